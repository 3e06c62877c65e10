//! Ranks as threads of one process.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;

use super::boot::{self, Kind};
use super::{Builder, Kolo};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::membership::panic_text;
use crate::transport::bootstrap::Threads;
use crate::transport::sim::Network;

pub(super) fn threads<R, F>(builder: Builder, n: usize, program: F) -> Result<Vec<R>>
where
    R: Send,
    F: Fn(&Kolo) -> R + Sync,
{
    if n == 0 {
        return Err(Error::argument("a job needs at least one rank; pass the number of threads"));
    }
    let raw = builder.settings()?;
    // Read once more by each rank, as processes would; here only for what they meet in.
    let config = Config::load(raw.clone())?.config;
    let network = config.seed.0.map_or_else(|| Network::new(n), |seed| Network::seeded(n, seed));
    let group = Threads::group(n, config.deadline);
    let (program, raw, network) = (&program, &raw, &network);
    let outcomes: Vec<Result<R>> = thread::scope(|scope| {
        let ranks: Vec<_> = group
            .into_iter()
            .enumerate()
            .map(|(rank, bootstrap)| {
                thread::Builder::new()
                    .name(format!("kolo rank {rank}"))
                    .spawn_scoped(scope, move || {
                        let kind = Kind::Thread { bootstrap, network: network.clone() };
                        let kolo = boot::boot(Ok(raw.clone()), kind).map_err(|refusal| refusal.error)?;
                        // What a panic leaves half done stays with the program; the rank is over.
                        catch_unwind(AssertUnwindSafe(|| program(&kolo)))
                            .map_err(|payload| kolo.job.fail(panic_text(Some(&*payload))))
                    })
                    .map_err(|e| Error::system(format!("starting a thread for rank {rank} of {n}"), e))
            })
            .collect();
        // A rank that could not start drops its bootstrap, which tells the others.
        ranks
            .into_iter()
            .map(|rank| rank?.join().unwrap_or_else(|payload| Err(Error::argument(panic_text(Some(&*payload))))))
            .collect()
    });
    // Ranks that panicked because of the first failure carry it, too.
    outcomes.into_iter().collect()
}
