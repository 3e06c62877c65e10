//! Memory that one rank of a host makes and the others map: what to make it of, and how to tell them.
//!
//! The maker calls [`create`], sends [`Offer::token`] to the others by whatever means stands at the time, and drops the
//! offer once everyone has called [`open`].

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::memory::Mapping;
use super::random;
use crate::error::{Error, Result};

/// What shared memory of a job is made of. Decided once, when the job starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// Memory of this process: all ranks of the host are its threads.
    Threads,
    /// A file without a name, which peers open through `/proc`.
    Memfd,
    /// A file in `/dev/shm`, removed as soon as everyone has mapped it.
    Named,
}

/// Memory of this process on offer to its other threads.
static OFFERED: Mutex<BTreeMap<u128, Weak<Mapping>>> = Mutex::new(BTreeMap::new());

/// New shared memory, and the promise that others may still open it.
#[derive(Debug)]
pub(crate) struct Offer {
    mapping: Arc<Mapping>,
    token: Token,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Token {
    way: Way,
    pid: u32,
    fd: i32,
    len: u64,
    id: u128,
}

/// Makes `len` bytes of zeroed memory that the other ranks of the host can open.
///
/// # Errors
/// Memory that is not there, with advice.
pub(crate) fn create(way: Way, len: usize) -> Result<Offer> {
    let mut token =
        Token { way, pid: std::process::id(), fd: -1, len: len as u64, id: u128::from_le_bytes(random::bytes()?) };
    let mapping = match way {
        Way::Threads => Mapping::anonymous(len)?,
        Way::Memfd => Mapping::memfd("kolo", len)?,
        Way::Named => Mapping::shm_create(&name(token.id), len)?,
    };
    token.fd = mapping.fd().unwrap_or(-1);
    let mapping = Arc::new(mapping);
    if way == Way::Threads {
        offered().insert(token.id, Arc::downgrade(&mapping));
    }
    Ok(Offer { mapping, token })
}

/// Maps what `token` tells of.
///
/// # Errors
/// Memory that cannot be opened, with advice; bytes that are no token.
pub(crate) fn open(token: &[u8]) -> Result<Arc<Mapping>> {
    let token = Token::decode(token)
        .ok_or_else(|| Error::config("a peer offered shared memory in words of another version of kolo"))?;
    let len = usize::try_from(token.len).unwrap_or(usize::MAX);
    match token.way {
        Way::Threads => offered().get(&token.id).and_then(Weak::upgrade).ok_or_else(|| {
            Error::config(format!("memory of process {} is offered to process {}", token.pid, std::process::id()))
        }),
        Way::Memfd => Mapping::open_proc_fd(token.pid, token.fd, len).map(Arc::new),
        Way::Named => Mapping::shm_open(&name(token.id), len).map(Arc::new),
    }
}

impl Offer {
    pub(crate) fn mapping(&self) -> &Arc<Mapping> {
        &self.mapping
    }

    /// What the others pass to [`open`].
    pub(crate) fn token(&self) -> Vec<u8> {
        self.token.encode()
    }
}

impl Drop for Offer {
    fn drop(&mut self) {
        match self.token.way {
            Way::Threads => drop(offered().remove(&self.token.id)),
            Way::Memfd => {}
            Way::Named => {
                // A name that somebody removed already is as good as gone.
                let _ = Mapping::shm_unlink(&name(self.token.id));
            }
        }
    }
}

impl Token {
    fn encode(&self) -> Vec<u8> {
        let way = match self.way {
            Way::Threads => 0,
            Way::Memfd => 1,
            Way::Named => 2,
        };
        let mut out = vec![way];
        out.extend(self.pid.to_le_bytes());
        out.extend(self.fd.to_le_bytes());
        out.extend(self.len.to_le_bytes());
        out.extend(self.id.to_le_bytes());
        out
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (way, rest) = bytes.split_first()?;
        let (pid, rest) = rest.split_first_chunk()?;
        let (fd, rest) = rest.split_first_chunk()?;
        let (len, rest) = rest.split_first_chunk()?;
        let (id, rest) = rest.split_first_chunk()?;
        let way = match way {
            0 => Way::Threads,
            1 => Way::Memfd,
            2 => Way::Named,
            _ => return None,
        };
        rest.is_empty().then(|| Self {
            way,
            pid: u32::from_le_bytes(*pid),
            fd: i32::from_le_bytes(*fd),
            len: u64::from_le_bytes(*len),
            id: u128::from_le_bytes(*id),
        })
    }
}

fn name(id: u128) -> String {
    format!("/kolo-{id:032x}")
}

// Each change of the map is one call; a thread that panicked in between left nothing half done.
fn offered() -> std::sync::MutexGuard<'static, BTreeMap<u128, Weak<Mapping>>> {
    OFFERED.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(mapping: &Mapping, at: usize, byte: u8) {
        assert!(at < mapping.len());
        // SAFETY: inside the mapping, which only this thread uses.
        unsafe { mapping.ptr().add(at).write(byte) };
    }

    fn read(mapping: &Mapping, at: usize) -> u8 {
        assert!(at < mapping.len());
        // SAFETY: inside the mapping, which only this thread uses.
        unsafe { mapping.ptr().add(at).read() }
    }

    #[test]
    fn every_way_shares_both_ways_and_leaves_nothing() {
        for way in [Way::Threads, Way::Memfd, Way::Named] {
            let offer = create(way, 10_000).expect("memory");
            let token = offer.token();
            let opened = open(&token).expect("opens");
            write(offer.mapping(), 9_999, 7);
            assert_eq!(read(&opened, 9_999), 7, "{way:?}");
            write(&opened, 0, 8);
            assert_eq!(read(offer.mapping(), 0), 8, "{way:?}");
            drop(offer);
            if way != Way::Memfd {
                assert!(open(&token).is_err(), "{way:?}: the offer is over");
            }
            assert_eq!(read(&opened, 9_999), 7, "{way:?}: memory outlives its maker");
        }
    }

    #[test]
    fn other_bytes_are_refused() {
        for bytes in [&[][..], &[9; 33], &[0; 32], &[0; 34], &[0; 33]] {
            assert!(open(bytes).is_err());
        }
    }
}
