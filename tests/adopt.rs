//! An application that initialises MPI itself lends kolo a communicator.
#![cfg(feature = "mpi")]
#![allow(unsafe_code, reason = "a raw handle of MPI")]

#[macro_use]
mod common;

use std::process::ExitCode;

use mpi::Threading;
use mpi::raw::AsRaw as _;
use mpi::topology::Communicator as _;

mpi_test!(a_communicator_of_the_application_is_adopted, np = [3], || {
    let (universe, _) = mpi::initialize_with_threading(Threading::Serialized).expect("MPI starts");
    let world = universe.world();
    // Ranks 0 and 2 in reverse order, and rank 1 alone.
    let color = mpi::topology::Color::with_value(world.rank() % 2);
    let part = world.split_by_color_with_key(color, -world.rank()).expect("a part");
    // SAFETY: a live communicator of the MPI that this program is linked with, finalised after the job is over.
    let kolo = unsafe { kolo::Builder::new().mpi_communicator(part.as_raw()) }.init().expect("a job");
    assert_eq!(kolo.size(), if world.rank() == 1 { 1 } else { 2 });
    assert_eq!(kolo.rank(), usize::from(world.rank() == 0));
    kolo.communicator().and_then(|mut all| all.barrier()).expect("a barrier");
    drop(kolo);
    // MPI is still the application's: it ends with the universe.
    drop(part);
    drop(universe);
    ExitCode::SUCCESS
});

mpi_test!(an_mpi_of_too_low_a_level_is_refused_with_advice, np = [2], || {
    let (universe, _) = mpi::initialize_with_threading(Threading::Single).expect("MPI starts");
    let error = kolo::init().expect_err("below SERIALIZED").to_string();
    assert!(error.contains("MPI_THREAD_SERIALIZED"), "{error}");
    drop(universe);
    ExitCode::SUCCESS
});
