//! How two ends prove to each other that they know the job's key, without saying it.
//!
//! ```text
//! dialer   -> acceptor   hello = who am I, whom do I want, which job and epoch, my nonce
//! acceptor -> dialer     its nonce, MAC(key, "accept" hello nonce)
//! dialer   -> acceptor   MAC(key, "dial" hello nonce)
//! ```
//!
//! The MAC is HMAC-SHA256 (RFC 2104). Each end contributes a fresh nonce, so nothing can be replayed; the two words
//! keep one end's proof from serving as the other's. Lengths are fixed, so nothing can be read in two ways.

use hmac::{Hmac, Mac};
use sha2::Sha256;

use super::JobKey;

/// What both ends must mean by "this connection".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Greeting {
    pub(super) job: u128,
    pub(super) epoch: u64,
    /// The dialing host.
    pub(super) from: u32,
    /// The host that is dialed.
    pub(super) to: u32,
}

pub(super) type Nonce = [u8; 32];

pub(super) const HELLO: usize = 72;
pub(super) const CHALLENGE: usize = 64;
pub(super) const PROOF: usize = 32;

const MAGIC: [u8; 4] = *b"KOLO";
/// Changes with every change of the link's bytes.
const VERSION: u16 = 1;

/// The dialer's first message.
pub(super) fn hello(greeting: &Greeting, nonce: &Nonce) -> [u8; HELLO] {
    let mut out = [0; HELLO];
    out[0..4].copy_from_slice(&MAGIC);
    out[4..6].copy_from_slice(&VERSION.to_le_bytes());
    out[8..24].copy_from_slice(&greeting.job.to_le_bytes());
    out[24..32].copy_from_slice(&greeting.epoch.to_le_bytes());
    out[32..36].copy_from_slice(&greeting.from.to_le_bytes());
    out[36..40].copy_from_slice(&greeting.to.to_le_bytes());
    out[40..72].copy_from_slice(nonce);
    out
}

/// What a dialer says of itself, before it has proved anything.
pub(super) fn read_hello(hello: &[u8; HELLO]) -> Result<Greeting, String> {
    if hello[0..4] != MAGIC || hello[6..8] != [0, 0] {
        return Err("it does not speak kolo".to_owned());
    }
    let version = u16::from_le_bytes([hello[4], hello[5]]);
    if version != VERSION {
        return Err(format!(
            "it speaks version {version} of the link, this is version {VERSION}; use one build of kolo"
        ));
    }
    let word = |at: usize| u32::from_le_bytes([hello[at], hello[at + 1], hello[at + 2], hello[at + 3]]);
    let wide = |at: usize| u64::from(word(at)) | u64::from(word(at + 4)) << 32;
    Ok(Greeting {
        job: u128::from(wide(8)) | u128::from(wide(16)) << 64,
        epoch: wide(24),
        from: word(32),
        to: word(36),
    })
}

/// The acceptor's answer.
pub(super) fn challenge(key: &JobKey, hello: &[u8; HELLO], nonce: &Nonce) -> [u8; CHALLENGE] {
    let mut out = [0; CHALLENGE];
    out[..32].copy_from_slice(nonce);
    out[32..].copy_from_slice(&mac(key, b"kolo link accept", hello, nonce).finalize().into_bytes());
    out
}

/// The dialer's proof, if the acceptor has given its own.
pub(super) fn proof(key: &JobKey, hello: &[u8; HELLO], challenge: &[u8; CHALLENGE]) -> Option<[u8; PROOF]> {
    let (nonce, theirs) = challenge.split_first_chunk::<32>()?;
    // Compares in constant time.
    mac(key, b"kolo link accept", hello, nonce).verify_slice(theirs).ok()?;
    Some(mac(key, b"kolo link dial..", hello, nonce).finalize().into_bytes().into())
}

/// Whether the dialer knows the key.
pub(super) fn is_proved(key: &JobKey, hello: &[u8; HELLO], nonce: &Nonce, proof: &[u8; PROOF]) -> bool {
    mac(key, b"kolo link dial..", hello, nonce).verify_slice(proof).is_ok()
}

fn mac(key: &JobKey, role: &[u8; 16], hello: &[u8; HELLO], nonce: &Nonce) -> Hmac<Sha256> {
    let mac = <Hmac<Sha256> as Mac>::new_from_slice(key.bytes()).expect("HMAC takes keys of any length");
    mac.chain_update(role).chain_update(hello).chain_update(nonce)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GREETING: Greeting = Greeting { job: 5 << 90, epoch: 1 << 40, from: 3, to: 1 };

    fn key(byte: u8) -> JobKey {
        JobKey::from_bytes([byte; 32])
    }

    #[test]
    fn two_that_share_a_key_agree() {
        let hello = hello(&GREETING, &[1; 32]);
        assert_eq!(read_hello(&hello), Ok(GREETING));
        let challenge = challenge(&key(9), &hello, &[2; 32]);
        let proof = proof(&key(9), &hello, &challenge).expect("the acceptor knows the key");
        assert!(is_proved(&key(9), &hello, &[2; 32], &proof));
    }

    #[test]
    fn neither_end_can_do_without_the_key_nor_reuse_what_it_heard() {
        let hello = hello(&GREETING, &[1; 32]);
        let good = challenge(&key(9), &hello, &[2; 32]);
        assert_eq!(proof(&key(9), &hello, &challenge(&key(8), &hello, &[2; 32])), None);
        let proved = proof(&key(9), &hello, &good).expect("right key");
        assert!(!is_proved(&key(9), &hello, &[3; 32], &proved), "another nonce");
        assert!(!is_proved(&key(8), &hello, &[2; 32], &proved), "another key");
        let other = super::hello(&Greeting { to: 2, ..GREETING }, &[1; 32]);
        assert!(!is_proved(&key(9), &other, &[2; 32], &proved), "another greeting");
        let mirrored: [u8; 32] = good[32..].try_into().expect("32 bytes");
        assert!(!is_proved(&key(9), &hello, &[2; 32], &mirrored), "the acceptor's own proof sent back");
    }

    #[test]
    fn strangers_and_other_versions_are_told_apart() {
        let mut bytes = hello(&GREETING, &[0; 32]);
        bytes[4] = 77;
        assert!(read_hello(&bytes).expect_err("another version").contains("version 77"));
        assert!(read_hello(&[b'G'; HELLO]).expect_err("a stranger").contains("does not speak kolo"));
    }

    proptest! {
        #[test]
        fn any_hello_is_read_or_refused(mut bytes in prop::collection::vec(any::<u8>(), HELLO), right in any::<bool>()) {
            if right {
                bytes[..8].copy_from_slice(&hello(&GREETING, &[0; 32])[..8]);
            }
            let bytes: [u8; HELLO] = bytes.try_into().expect("the length");
            prop_assert_eq!(read_hello(&bytes).is_ok(), bytes[..8] == hello(&GREETING, &[0; 32])[..8]);
        }
    }
}
