//! The cases, one a command.

pub(crate) mod allreduce;
pub(crate) mod flight;
pub(crate) mod list;
pub(crate) mod quiet;

use crate::control::Control;
use crate::machine::Machines;
use crate::peer::Mpi;
use crate::report::Record;
use anyhow::{Result, ensure};
use kolo::Kolo;

/// What every case needs.
pub(crate) struct Job<'a> {
    pub(crate) kolo: &'a Kolo,
    pub(crate) control: Control,
    pub(crate) machines: Machines,
    /// Present where a peer was asked for.
    pub(crate) mpi: Option<Mpi>,
}

impl Job<'_> {
    /// Whether this rank prints and writes.
    pub(crate) fn reports(&self) -> bool {
        self.kolo.rank() == 0
    }
}

/// A benchmark of wrong results is worth nothing: after the report, the job fails.
fn check_results(records: &[Record]) -> Result<()> {
    let wrong: u64 = records.iter().map(|record| record.wrong + record.peer_wrong.unwrap_or(0)).sum();
    ensure!(wrong == 0, "{wrong} values of the results are wrong: see the columns #wrong");
    Ok(())
}

/// Calls a function that is generic over the element type with the type that was asked for.
macro_rules! with_element {
    ($dtype:expr, $call:ident ( $($argument:expr),* )) => {
        match $dtype {
            kolo::DType::F16 => $call::<kolo::f16>($($argument),*),
            kolo::DType::BF16 => $call::<kolo::bf16>($($argument),*),
            kolo::DType::F32 => $call::<f32>($($argument),*),
            kolo::DType::F64 => $call::<f64>($($argument),*),
            kolo::DType::I32 => $call::<i32>($($argument),*),
            kolo::DType::I64 => $call::<i64>($($argument),*),
            kolo::DType::U8 => $call::<u8>($($argument),*),
            kolo::DType::U64 => $call::<u64>($($argument),*),
            kolo::DType::I8 => $call::<i8>($($argument),*),
            kolo::DType::I16 => $call::<i16>($($argument),*),
            kolo::DType::U16 => $call::<u16>($($argument),*),
            kolo::DType::U32 => $call::<u32>($($argument),*),
            other => anyhow::bail!("this benchmark does not know the type {other}"),
        }
    };
}
pub(crate) use with_element;
