//! What ranks tell each other when a job starts, made to break its readers.

use xtask::fuzz::{Random, fuzz};

use super::boot::Hello;
use super::exchange::Table;
use crate::error::Result;
use crate::fields::put;
use crate::membership::share;
use crate::os::counting::frugal;
use crate::os::cpu::CpuMask;
use crate::topology::{Place, Topology};
use crate::transport::bootstrap::Bootstrap;
use crate::transport::link::JobKey;

fn place(random: &mut Random) -> Place {
    let mut cpus = CpuMask::default();
    (0..random.below(5)).for_each(|_| cpus.insert(random.below(300)));
    Place {
        identity: random.text(8),
        hostname: random.text(8),
        pid: random.number() as u32,
        start_time: random.number(),
        cpus,
        quota: random.once_in(2).then(|| random.below(100) as f64 / 7.0),
    }
}

#[test]
fn fuzz_hellos() {
    let valid = |random: &mut Random| {
        let agreement = (0..random.below(4)).map(|_| random.text(9)).collect();
        let id = u128::from(random.any()) << 64 | u128::from(random.any());
        Hello { id, key: JobKey::from_bytes([7; 32]), place: place(random), agreement }.encode()
    };
    fuzz("hellos", &[], valid, |bytes| {
        let Some(hello) = frugal(bytes, || Hello::decode(bytes)) else { return false };
        let again = Hello::decode(&hello.encode()).expect("what was written is read");
        assert_eq!((again.id, &again.key, again.agreement), (hello.id, &hello.key, hello.agreement));
        assert_eq!(again.place, hello.place);
        // Whatever two ranks say of their places, it makes a job or an error.
        let places = vec![hello.place, place(&mut Random::new(bytes.len() as u64))];
        if let Ok(topology) = Topology::new(1, places, &[]) {
            assert_eq!(topology.size(), 2);
        }
        true
    });
}

/// A peer that says `theirs`.
struct Two {
    theirs: Vec<u8>,
}

impl Bootstrap for Two {
    fn rank(&self) -> usize {
        0
    }

    fn allgather(&mut self, mine: &[u8]) -> Result<Vec<Vec<u8>>> {
        Ok(vec![mine.to_vec(), self.theirs.clone()])
    }
}

#[test]
fn fuzz_exchanges() {
    let valid = |random: &mut Random| {
        let mut bytes = Vec::new();
        put(&mut bytes, &random.bytes(9));
        if random.once_in(2) {
            put(&mut bytes, random.text(5).as_bytes());
            put(&mut bytes, random.text(20).as_bytes());
        }
        bytes
    };
    fuzz("exchanges", &[], valid, |bytes| {
        let mut table = Table::new(Box::new(Two { theirs: bytes.to_vec() }), "here".to_owned());
        match frugal(bytes, || table.exchange(Ok(vec![1]))) {
            Ok(bodies) => {
                assert_eq!((bodies.len(), &bodies[0][..]), (2, &[1][..]));
                true
            }
            Err(stop) => {
                assert!(!stop.error.to_string().is_empty());
                false
            }
        }
    });
}

/// A token that tells where memory is; what it names is opened, and is nothing of ours.
#[test]
fn fuzz_tokens() {
    let offer = share::create(share::Way::Memfd, 4096).expect("memory");
    let token = offer.token();
    let valid = |_: &mut Random| token.clone();
    fuzz("tokens", &[], valid, |bytes| match share::open(bytes) {
        Ok(mapping) => {
            assert!(mapping.len() >= 4096);
            true
        }
        // Another process, or none: the kernel's word for it is an error.
        Err(error) => {
            assert!(!error.to_string().is_empty());
            false
        }
    });
}
