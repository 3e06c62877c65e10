//! What strangers may say to a leader, made to break its readers.

use xtask::fuzz::{Random, fuzz};

use super::frame::{Frame, Parser};
use super::handshake::{self, CHALLENGE, Greeting, HELLO, PROOF};
use super::{Card, JobKey};
use crate::error::Failure;
use crate::os::counting::frugal;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

fn frames(random: &mut Random) -> Vec<u8> {
    let mut out = Vec::new();
    for _ in 0..=random.below(5) {
        match random.below(6) {
            0 => Frame::Doorbell,
            1 => Frame::Ask,
            2 => Frame::Answer,
            3 => Frame::Bye,
            4 => Frame::Pause(Duration::from_millis(random.number())),
            _ => Frame::Abort(Failure::new(random.number() as u32, random.text(20), random.text(40))),
        }
        .encode(&mut out);
    }
    out
}

#[test]
fn fuzz_link_frames() {
    fuzz("link frames", &[], frames, |bytes| {
        let mut whole = Vec::new();
        let fed = frugal(bytes, || Parser::default().feed(bytes, &mut whole));
        // Cut anywhere, the same comes out.
        let (mut parser, mut parts) = (Parser::default(), Vec::new());
        let pieces = bytes.chunks(1 + bytes.len() % 7).try_for_each(|piece| parser.feed(piece, &mut parts));
        assert_eq!((&whole, fed), (&parts, pieces));
        let mut again = Vec::new();
        whole.iter().for_each(|frame| frame.encode(&mut again));
        let mut second = Vec::new();
        assert_eq!(Parser::default().feed(&again, &mut second), Ok(()));
        assert_eq!(second, whole);
        assert!(bytes.starts_with(&again), "every frame has one form");
        !whole.is_empty()
    });
}

#[test]
fn fuzz_handshakes() {
    let key = JobKey::from_bytes([7; 32]);
    let greeting = Greeting { job: 1 << 77, epoch: 3, from: 1, to: 0 };
    let hello = handshake::hello(&greeting, &[1; 32]);
    let challenge = handshake::challenge(&key, &hello, &[2; 32]);
    let proof = handshake::proof(&key, &hello, &challenge).expect("the key fits");
    let valid = |_: &mut Random| [&hello[..], &challenge, &proof].concat();
    fuzz("handshakes", &[], valid, |bytes| {
        let Some((theirs, rest)) = bytes.split_first_chunk::<HELLO>() else { return false };
        if let Ok(read) = handshake::read_hello(theirs) {
            let nonce = theirs[40..].try_into().expect("32 bytes");
            assert_eq!(handshake::hello(&read, &nonce), *theirs, "every hello has one form");
        }
        let Some((answer, rest)) = rest.split_first_chunk::<CHALLENGE>() else { return false };
        assert_eq!(handshake::proof(&key, &hello, answer).is_some(), *answer == challenge, "only who has the key");
        let Some(given) = rest.first_chunk::<PROOF>() else { return false };
        assert_eq!(handshake::is_proved(&key, &hello, &[2; 32], given), *given == proof, "only who has the key");
        true
    });
}

#[test]
fn fuzz_cards() {
    let valid = |random: &mut Random| {
        let mut address = |_| {
            let ip = match random.once_in(2) {
                true => IpAddr::from((random.any() as u32).to_le_bytes()),
                false => IpAddr::from(u128::from(random.any()).to_le_bytes()),
            };
            SocketAddr::new(ip, random.any() as u16)
        };
        let addresses = (0..3).map(&mut address).collect();
        Card { name: random.text(12), addresses }.encode()
    };
    fuzz("cards", &[], valid, |bytes| {
        let card = frugal(bytes, || Card::decode(bytes));
        card.is_some_and(|card| {
            assert_eq!(card.encode(), bytes, "every card has one form");
            true
        })
    });
}
