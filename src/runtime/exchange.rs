//! The exchanges of a boot: each carries what the others need, or why this rank cannot go on.

use std::sync::Arc;

use crate::error::{Error, Failure, Result};
use crate::fields::{put, take, take_text};
use crate::transport::bootstrap::Bootstrap;

/// Why a boot stops, and whether this rank is the one to tell.
#[derive(Debug)]
pub(super) struct Stop {
    pub(super) error: Error,
    pub(super) tell: bool,
}

impl Stop {
    /// Something that only this rank knows.
    pub(super) fn own(error: Error) -> Self {
        Self { error, tell: true }
    }
}

/// Where the ranks meet while they boot.
pub(super) struct Table {
    bootstrap: Box<dyn Bootstrap>,
    hostname: String,
}

impl Table {
    pub(super) fn new(bootstrap: Box<dyn Bootstrap>, hostname: String) -> Self {
        Self { bootstrap, hostname }
    }

    pub(super) fn rank(&self) -> usize {
        self.bootstrap.rank()
    }

    pub(super) fn hostname(&self) -> &str {
        &self.hostname
    }

    pub(super) fn into_bootstrap(self) -> Box<dyn Bootstrap> {
        self.bootstrap
    }

    /// An error that every rank finds alike: the first tells.
    pub(super) fn common(&self, error: Error) -> Stop {
        Stop { error, tell: self.rank() == 0 }
    }

    /// Gives every rank what every rank brings. If one brings an error, all stop: it with that error, the others with
    /// one that names it.
    pub(super) fn exchange(&mut self, mine: Result<Vec<u8>>) -> Result<Vec<Vec<u8>>, Stop> {
        let mut bytes = Vec::new();
        match &mine {
            Ok(body) => put(&mut bytes, body),
            Err(error) => {
                put(&mut bytes, b"");
                put(&mut bytes, self.hostname.as_bytes());
                put(&mut bytes, error.to_string().as_bytes());
            }
        }
        let all = match (self.bootstrap.allgather(&bytes), &mine) {
            (Ok(all), _) => all,
            (Err(_), Err(own)) => return Err(Stop::own(own.clone())),
            (Err(error), Ok(_)) => return Err(Stop::own(error)),
        };
        let mut bodies = Vec::with_capacity(all.len());
        for (rank, bytes) in all.iter().enumerate() {
            let mut rest = &bytes[..];
            let body = take(&mut rest).ok_or_else(|| self.common(foreign(rank)))?;
            if rest.is_empty() {
                bodies.push(body.to_vec());
                continue;
            }
            return Err(match mine {
                Err(error) => Stop { error, tell: rank == self.rank() },
                Ok(_) => {
                    let host = take_text(&mut rest).ok_or_else(|| self.common(foreign(rank)))?;
                    let cause = take_text(&mut rest).ok_or_else(|| self.common(foreign(rank)))?;
                    Stop { error: Error::Failed(Arc::new(Failure::new(rank as u32, host, cause))), tell: false }
                }
            });
        }
        Ok(bodies)
    }
}

/// What to say about bytes that no rank of this version sends.
pub(super) fn foreign(rank: usize) -> Error {
    Error::config(format!("rank {rank} speaks another version of kolo; start the same program on every rank"))
}
