//! Operations in flight over the shipping code: random programs from seeds, and single scenarios.

mod courses;
mod data;
mod queue;
mod scenarios;
mod world;

use world::{Seen, World};

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().unwrap_or_else(|_| panic!("{name}={value} is no number")))
}

#[test]
fn seeded_programs_of_names_in_any_order() {
    if let Some(seed) = number("KOLO_SEED") {
        println!("{:?}", World::new(seed).run());
        return;
    }
    let count = number("KOLO_SEEDS").unwrap_or(300);
    let mut total = Seen::default();
    for seed in 0..count {
        match std::panic::catch_unwind(|| World::new(seed).run()) {
            Ok(seen) => total.add(seen),
            Err(panic) => {
                eprintln!("replay it with KOLO_SEED={seed}");
                std::panic::resume_unwind(panic);
            }
        }
    }
    println!("{count} seeds: {total:?}");
    let Seen { reduced, apart, moved, mismatched, withdrawn, poisoned } = total;
    assert!(
        count < 200 || [reduced, apart, moved, mismatched, withdrawn, poisoned].iter().all(|&n| n > 0),
        "{total:?}"
    );
}
