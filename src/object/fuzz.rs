//! Notices, labels and objects of peers, made to break their readers.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use xtask::fuzz::{Random, fuzz};

use super::codec::decode;
use super::{Label, Notice, Parcel, encode};
use crate::config::Bytes;
use crate::os::counting::frugal;

/// Something of everything that serde knows.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
enum Node {
    Nothing,
    Flag(bool),
    Number { small: u8, signed: i64, wide: u128, real: f32 },
    Text(String, Option<char>),
    Table(BTreeMap<String, Vec<u16>>),
    Pair(Box<(Node, Node)>),
}

fn node(random: &mut Random, depth: usize) -> Node {
    match random.below(if depth == 0 { 5 } else { 6 }) {
        0 => Node::Nothing,
        1 => Node::Flag(random.once_in(2)),
        2 => Node::Number {
            small: random.any() as u8,
            signed: random.number() as i64,
            wide: u128::from(random.any()) << random.below(64),
            // NaN does not equal itself.
            real: random.below(1000) as f32 / 8.0,
        },
        3 => Node::Text(random.text(12), random.once_in(2).then_some('ä')),
        4 => {
            let row = |random: &mut Random| (0..random.below(5)).map(|_| random.any() as u16).collect();
            Node::Table((0..random.below(4)).map(|_| (random.text(4), row(random))).collect())
        }
        _ => Node::Pair(Box::new((node(random, depth - 1), node(random, depth - 1)))),
    }
}

#[test]
fn fuzz_objects() {
    let valid = |random: &mut Random| encode(&node(random, 3), Bytes::mib(1)).expect("small");
    fuzz("objects", &[], valid, |bytes| {
        let Ok(object) = frugal(bytes, || decode::<Node>(bytes)) else { return false };
        let again = encode(&object, Bytes::mib(1)).expect("small");
        let read = decode::<Node>(&again).expect("what was written is read");
        assert_eq!(encode(&read, Bytes::mib(1)), Ok(again));
        true
    });
}

#[test]
fn fuzz_notices() {
    let valid = |random: &mut Random| {
        let said = if random.once_in(2) { Ok(random.bytes(40)) } else { Err(random.text(20)) };
        Notice { call: random.text(20), said }.encode()
    };
    fuzz("notices", &[], valid, |bytes| match frugal(bytes, || Notice::decode(bytes)) {
        Ok(notice) => {
            assert_eq!(notice.encode(), bytes, "every notice has one form");
            true
        }
        Err(reason) => {
            assert!(!reason.is_empty());
            false
        }
    });
}

/// A label, and all that comes after it in one chunk.
#[test]
fn fuzz_parcels() {
    let valid = |random: &mut Random| {
        let object = encode(&node(random, 3), Bytes::mib(1)).expect("small");
        Label::new(&object).encode()
    };
    fuzz("parcels", &[], valid, |bytes| {
        let label = Label::decode(bytes);
        if let Some(label) = &label {
            assert_eq!(label.encode(), bytes, "every label has one form");
        }
        // The label alone decides how much room is made: no more than is allowed.
        match frugal(bytes, || Parcel::open(bytes, Bytes::kib(16))) {
            Ok(mut parcel) => {
                let missing = parcel.missing();
                assert!(label.is_some() && missing <= 16 << 10);
                let room = parcel.lend();
                assert!(room.len() >= missing);
                parcel.put_back(room);
                frugal(bytes, || parcel.unpack::<Node>()).is_ok()
            }
            Err(reason) => {
                assert!(!reason.is_empty());
                false
            }
        }
    });
}
