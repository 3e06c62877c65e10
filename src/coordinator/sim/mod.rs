//! Deterministic simulation: random programs on random layouts, over memory as weak as the protocol allows.
//!
//! `KOLO_SEEDS=n` runs n seeds, `KOLO_SEED=n` one of them. A failure prints its seed.

mod memory;
mod oracle;
mod world;

use oracle::Seen;
use world::World;
pub(super) use xtask::random::Random;

fn env(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().unwrap_or_else(|_| panic!("{name}={value} is no number")))
}

/// Seeds that once found a bug, each with the rule that it broke.
const MUSEUM: [(u64, &str); 3] = [
    (710, "an entry in which a rank joins has nothing behind it: the last join changes who must be there"),
    (7090, "a withdrawal that a failure has made moot must not confirm the next one"),
    (
        8198,
        "a refused call has had its error: without others no deadline ends the set, and it ends when its peers come",
    ),
];

#[test]
fn seeded_museum_of_found_bugs() {
    for (seed, rule) in MUSEUM {
        eprintln!("KOLO_SEED={seed}: {rule}");
        World::new(seed).run();
    }
}

#[test]
fn seeded_programs_on_weak_memory() {
    if let Some(seed) = env("KOLO_SEED") {
        World::new(seed).run();
        return;
    }
    let count = env("KOLO_SEEDS").unwrap_or(400);
    let mut total = Seen::default();
    for seed in 0..count {
        match std::panic::catch_unwind(|| World::new(seed).run()) {
            Ok(seen) => {
                total.cached += seen.cached;
                total.assigned += seen.assigned;
                total.reassigned += seen.reassigned;
                total.uncached += seen.uncached;
                total.evicted += seen.evicted;
                total.failed += seen.failed;
                total.withdrawn += seen.withdrawn;
                total.poisoned += seen.poisoned;
                total.lost += seen.lost;
                total.timed_out += seen.timed_out;
                total.retried += seen.retried;
                total.joined += seen.joined;
                total.sat_out += seen.sat_out;
                total.rootless += seen.rootless;
            }
            Err(panic) => {
                eprintln!("the simulation fails with KOLO_SEED={seed}");
                std::panic::resume_unwind(panic);
            }
        }
    }
    eprintln!("{count} seeds: {total:?}");
    // A simulation that never gets there proves nothing.
    if count >= 200 {
        let Seen {
            cached,
            assigned,
            reassigned,
            uncached,
            evicted,
            failed,
            withdrawn,
            poisoned,
            lost,
            timed_out,
            retried,
            joined,
            sat_out,
            rootless,
        } = total;
        let agreed = [cached, assigned, reassigned, uncached, evicted, failed, withdrawn];
        for seen in agreed.into_iter().chain([poisoned, lost, timed_out, retried, joined, sat_out, rootless]) {
            assert!(seen > 0, "some rule was never used: {total:?}");
        }
    }
}
