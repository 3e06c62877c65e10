//! The suite that runs jobs across hosts which are namespaces of this machine, over the path that real hosts take.

use anyhow::Result;
use xtask::harness;
use xtask::mpi::Flavour;
use xtask::network::Network;

use super::{Context, cargo};
use crate::workspace::{self, root, target};

/// Files of which the cases that list hosts run across a network, in place of pretended hosts.
const FILES: &[&str] = &[
    "joining",
    "collectives",
    "named",
    "named_moves",
    "adasum",
    "join",
    "in_order",
    "objects",
    "training",
    "failures",
];

/// Where the example of the digits runs: ranks of each host.
const SPREADS: &[&[usize]] = &[&[1, 1], &[2, 1, 1]];

pub(crate) fn run(context: &Context) -> Result<()> {
    if context.launcher.flavour() != Flavour::OpenMpi4 {
        context.skip(format!(
            "jobs across namespaces are started by Open MPI up to 4.x, not {}",
            context.launcher.flavour()
        ));
        return Ok(());
    }
    crate::setup::ensure_network_programs()?;
    if let Err(why) = Network::available() {
        context.skip(format!("no hosts can be made out of namespaces here: {why:#}"));
        return Ok(());
    }
    let mut own = workspace::cargo(&["test", "--quiet", "--test", cargo::HOSTS, "--", "--test-threads=1"]);
    context.run(&mut own)?;
    let mut others = workspace::cargo(&["test", "--quiet", "--no-fail-fast"]);
    others.args(FILES.iter().flat_map(|name| ["--test", name])).env(harness::NETWORK, "1");
    context.run(&mut others)?;
    context.need_tests()?;

    context.run(&mut workspace::cargo(&["build", "--quiet", "--release", "--example", crate::demo::EXAMPLE]))?;
    let digits = target().join("release/examples").join(crate::demo::EXAMPLE);
    for spread in SPREADS {
        let network = Network::new(spread.len())?;
        let mut job = network.mpirun(spread).env("KOLO_DETERMINISTIC", "1").command(&digits, &["--progress", "lines"]);
        context.run(job.current_dir(root()))?;
        context.count(1);
    }
    Ok(())
}
