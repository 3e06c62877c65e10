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
