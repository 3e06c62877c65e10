//! Making memory that the ranks of a host share, and telling the others where it is.
//!
//! A memfd is tried first: it has no name, and so leaves nothing behind. Where a peer cannot open it (a hardened `/proc`),
//! the maker offers a name below `/dev/shm` instead, which is removed when the maker drops its [`Offer`]: after every
//! peer has mapped it, or when anything goes wrong before.

use std::os::fd::RawFd;

use crate::error::{Error, Result};
use crate::os::memory::Mapping;

/// What the maker of a mapping holds until every peer has mapped it.
#[derive(Debug)]
pub(crate) struct Offer {
    ticket: Ticket,
}

/// How a peer finds the memory. Travels as bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ticket {
    len: usize,
    place: Place,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    Memfd { pid: u32, fd: RawFd },
    Named(String),
}

impl Offer {
    /// Makes `len` bytes of memory without a name. `label` shows in `/proc/PID/maps`.
    pub(crate) fn memfd(label: &str, len: usize) -> Result<(Mapping, Self)> {
        let mapping = Mapping::memfd(label, len)?;
        let fd = mapping.fd().expect("a memfd mapping keeps its descriptor");
        let place = Place::Memfd { pid: std::process::id(), fd };
        let ticket = Ticket { len: mapping.len(), place };
        Ok((mapping, Self { ticket }))
    }

    /// Makes `len` bytes of memory called `/name`, which must be unique to the job, the host and the area.
    pub(crate) fn named(name: &str, len: usize) -> Result<(Mapping, Self)> {
        let name = format!("/{name}");
        let mapping = Mapping::shm_create(&name, len)?;
        let ticket = Ticket { len: mapping.len(), place: Place::Named(name) };
        Ok((mapping, Self { ticket }))
    }

    pub(crate) fn ticket(&self) -> &Ticket {
        &self.ticket
    }
}

impl Drop for Offer {
    fn drop(&mut self) {
        if let Place::Named(name) = &self.ticket.place
            && let Err(error) = Mapping::shm_unlink(name)
        {
            // Nothing depends on it; the user should know what stays behind.
            log::warn!("{error}");
        }
    }
}

impl Ticket {
    /// Maps the memory.
    pub(crate) fn open(&self) -> Result<Mapping> {
        match &self.place {
            Place::Memfd { pid, fd } => Mapping::open_proc_fd(*pid, *fd, self.len),
            Place::Named(name) => Mapping::shm_open(name, self.len),
        }
    }

    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = (self.len as u64).to_le_bytes().to_vec();
        match &self.place {
            Place::Memfd { pid, fd } => {
                bytes.push(0);
                bytes.extend(pid.to_le_bytes());
                bytes.extend(fd.to_le_bytes());
            }
            Place::Named(name) => {
                bytes.push(1);
                bytes.extend(name.as_bytes());
            }
        }
        bytes
    }

    /// # Errors
    /// When the bytes are no ticket: the ranks run different builds.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Result<Self> {
        Self::decode(bytes).ok_or_else(|| {
            Error::system(
                "a rank of this host told where its shared memory is in words that this build does not know; all \
                 ranks must run the same build",
                std::io::Error::from(std::io::ErrorKind::InvalidData),
            )
        })
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (len, rest) = bytes.split_first_chunk::<8>()?;
        let (kind, rest) = rest.split_first()?;
        let place = match kind {
            0 => {
                let (pid, rest) = rest.split_first_chunk::<4>()?;
                let fd: [u8; 4] = rest.try_into().ok()?;
                Place::Memfd { pid: u32::from_le_bytes(*pid), fd: RawFd::from_le_bytes(fd) }
            }
            1 => Place::Named(std::str::from_utf8(rest).ok()?.to_owned()),
            _ => return None,
        };
        Some(Self { len: usize::try_from(u64::from_le_bytes(*len)).ok()?, place })
    }
}

#[cfg(all(test, not(kolo_loom)))]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::os::process::Identity;
    use crate::os::rerun;
    use crate::transport::shm::{Control, MemberState, Memory, Stamp};

    fn name(label: &str) -> String {
        format!("kolo-test-{label}-{}", std::process::id())
    }

    #[test]
    fn tickets_travel() {
        let (memfd, offer) = Offer::memfd("kolo-test", 5000).expect("made");
        let ticket = Ticket::from_bytes(&offer.ticket().to_bytes()).expect("a ticket");
        assert_eq!(&ticket, offer.ticket());
        assert_eq!(ticket.open().expect("opened").len(), memfd.len());
        assert!(Ticket::from_bytes(&[]).is_err());
        assert!(Ticket::from_bytes(&[0; 10]).is_err());
        assert!(Ticket::from_bytes(&[9; 40]).is_err());
    }

    #[test]
    fn a_named_offer_takes_its_name_away() {
        let name = name("offer");
        let path = std::path::Path::new("/dev/shm").join(&name);
        let (_mapping, offer) = Offer::named(&name, 5000).expect("made");
        let ticket = Ticket::from_bytes(&offer.ticket().to_bytes()).expect("a ticket");
        assert!(path.exists());
        let _theirs = ticket.open().expect("opened");
        drop(offer);
        assert!(!path.exists());
        assert!(ticket.open().is_err());
    }

    const STAMP: Stamp = Stamp { job: 1 << 100 | 5, epoch: 3, set: 0 };
    const PEER: &str = "transport::shm::segment::tests::peer_role";

    /// The second member of the test below.
    #[test]
    fn peer_role() {
        let Some(ticket) = rerun::role() else { return };
        let bytes: Vec<u8> = ticket.split(',').map(|byte| byte.parse().expect("a byte")).collect();
        let mapping = Ticket::from_bytes(&bytes).expect("a ticket").open().expect("opened");
        let control = Control::new(&Memory::new(Arc::new(mapping)), 2, 2, 1).expect("control");
        control.verify(&STAMP).expect("the same memory");
        control.join(1, Identity::current().expect("an identity"));
        control.bells().ring_others();
        let parent = control.member(0).process;
        while control.state(0) != MemberState::Left {
            assert!(parent.is_alive(), "the first member ended without leaving");
            control.sleep(Some(Duration::from_secs(1)), || control.state(0) == MemberState::Left);
        }
        assert!(control.leave());
    }

    fn meet(offer: &Offer, mapping: Mapping) {
        let control = Control::new(&Memory::new(Arc::new(mapping)), 2, 2, 0).expect("control");
        control.stamp(&STAMP);
        control.join(0, Identity::current().expect("an identity"));
        let ticket = offer.ticket().to_bytes().iter().map(u8::to_string).collect::<Vec<_>>().join(",");
        let mut child = rerun::command(PEER, &ticket).spawn().expect("a child");
        while control.state(1) == MemberState::Absent {
            let ended = child.try_wait().expect("a state");
            assert!(ended.is_none() || control.state(1) != MemberState::Absent, "the child never joined: {ended:?}");
            control.sleep(Some(Duration::from_secs(1)), || control.state(1) != MemberState::Absent);
        }
        assert_eq!(control.member(1).process.pid, child.id());
        assert!(control.leave());
        rerun::succeed(&child.wait_with_output().expect("an end"));
        assert_eq!(control.state(1), MemberState::Left);
    }

    #[test]
    fn two_processes_meet_in_a_memfd() {
        let (mapping, offer) = Offer::memfd("kolo-test", Control::bytes(2, 2)).expect("made");
        meet(&offer, mapping);
    }

    #[test]
    fn two_processes_meet_in_a_named_memory() {
        let (mapping, offer) = Offer::named(&name("meet"), Control::bytes(2, 2)).expect("made");
        meet(&offer, mapping);
    }
}
