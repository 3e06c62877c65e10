//! Memory that one rank of a host makes and the others map, also where "the others" are threads of its process.
//!
//! The maker calls [`create`], sends [`Offer::token`] to the others by whatever means stands at the time, and drops the
//! offer once everyone has called [`open`].

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use crate::error::{Error, Result};
use crate::os::memory::Mapping;
use crate::os::random;
use crate::transport::shm::{self, Ticket};

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
    place: Place,
}

#[derive(Debug)]
enum Place {
    Threads(u128),
    Processes(shm::Offer),
}

/// Makes `len` bytes of zeroed memory that the other ranks of the host can open.
///
/// # Errors
/// Memory that is not there, with advice.
pub(crate) fn create(way: Way, len: usize) -> Result<Offer> {
    let id = u128::from_le_bytes(random::bytes()?);
    let (mapping, place) = match way {
        Way::Threads => (Mapping::anonymous(len)?, Place::Threads(id)),
        Way::Memfd => with_place(shm::Offer::memfd("kolo", len)?),
        Way::Named => with_place(shm::Offer::named(&format!("kolo-{id:032x}"), len)?),
    };
    let mapping = Arc::new(mapping);
    if way == Way::Threads {
        offered().insert(id, Arc::downgrade(&mapping));
    }
    Ok(Offer { mapping, place })
}

fn with_place((mapping, offer): (Mapping, shm::Offer)) -> (Mapping, Place) {
    (mapping, Place::Processes(offer))
}

/// Maps what `token` tells of.
///
/// # Errors
/// Memory that cannot be opened, with advice; bytes that are no token.
pub(crate) fn open(token: &[u8]) -> Result<Arc<Mapping>> {
    match token.split_first() {
        Some((0, id)) => id
            .try_into()
            .ok()
            .and_then(|id| offered().get(&u128::from_le_bytes(id)).and_then(Weak::upgrade))
            .ok_or_else(|| Error::config("memory that a thread offered is over, or of another process")),
        Some((1, ticket)) => Ticket::from_bytes(ticket)?.open().map(Arc::new),
        _ => Err(Error::config("a peer offered shared memory in words of another version of kolo")),
    }
}

impl Offer {
    pub(crate) fn mapping(&self) -> &Arc<Mapping> {
        &self.mapping
    }

    /// What the others pass to [`open`].
    pub(crate) fn token(&self) -> Vec<u8> {
        match &self.place {
            Place::Threads(id) => [&[0][..], &id.to_le_bytes()].concat(),
            Place::Processes(offer) => [&[1][..], &offer.ticket().to_bytes()].concat(),
        }
    }
}

impl Drop for Offer {
    fn drop(&mut self) {
        if let Place::Threads(id) = self.place {
            offered().remove(&id);
        }
    }
}

// Each change of the map is one call; a thread that panicked in between left nothing half done.
fn offered() -> MutexGuard<'static, BTreeMap<u128, Weak<Mapping>>> {
    OFFERED.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_shares_and_an_offer_ends() {
        for way in [Way::Threads, Way::Memfd, Way::Named] {
            let offer = create(way, 10_000).expect("memory");
            let token = offer.token();
            let opened = open(&token).expect("opens");
            assert!(opened.len() >= 10_000);
            assert_eq!(way == Way::Threads, opened.ptr() == offer.mapping().ptr());
            drop(offer);
            // A descriptor of this process may by now be that of another test.
            assert!(way == Way::Memfd || open(&token).is_err(), "{way:?}: the offer is over");
        }
    }

    #[test]
    fn other_bytes_are_refused() {
        for bytes in [&[][..], &[9; 33], &[0; 17], &[0; 34], &[1; 3]] {
            assert!(open(bytes).is_err());
        }
    }
}
