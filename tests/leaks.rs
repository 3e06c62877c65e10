//! A job leaves nothing behind. Alone in this file, because it counts what the whole process has.

use std::fs;

#[derive(Debug, PartialEq, Eq)]
struct Census {
    descriptors: usize,
    threads: usize,
    shared_mappings: usize,
}

fn census() -> Census {
    let entries = |path: &str| fs::read_dir(path).expect("/proc is there").count();
    let maps = fs::read_to_string("/proc/self/maps").expect("/proc is there");
    // Private mappings belong to the allocator, which keeps what it likes.
    let shared = maps.lines().filter(|line| line.split(' ').nth(1).is_some_and(|flags| flags.ends_with('s')));
    Census {
        descriptors: entries("/proc/self/fd"),
        threads: entries("/proc/self/task"),
        shared_mappings: shared.count(),
    }
}

#[test]
fn a_thousand_jobs_leave_nothing() {
    let builder = || kolo::Builder::new().shared_reserve(1 << 20);
    let round = || {
        let kolo = builder().init().expect("alone");
        drop(kolo.alloc::<f32>(1000).expect("memory"));
        drop(kolo);
        builder().threads(2, |kolo| kolo.alloc::<u8>(7).expect("memory").len()).expect("two threads");
        builder().hosts([2, 1]).threads(3, kolo::Kolo::rank).expect("two hosts, one of two");
        builder().hosts([1, 1]).threads(2, kolo::Kolo::rank).expect("two hosts");
    };
    round();
    let before = census();
    for _ in 0..1000 {
        round();
    }
    // Threads may take a moment to vanish from /proc, and that of a leader which left first, a moment to end. Something
    // that stays for good would keep this from ending.
    while census() != before {
        std::thread::yield_now();
    }
}
