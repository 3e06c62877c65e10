//! A message of one rank to another: cut into pieces here, and put together there.

use std::sync::Arc;

use crate::error::{Error, Mismatch, Result};
use crate::tensor::{DType, Element, overwrite};
use crate::transport::Link;

/// Bytes before a message's first elements: type (1), zero (7), count (8).
const HEADER: usize = 16;

/// A message on its way out.
pub(super) struct Outgoing<'a> {
    bytes: &'a [u8],
    header: [u8; HEADER],
    /// Bytes of the header and the data, as one message, that have been sent.
    sent: usize,
}

impl<'a> Outgoing<'a> {
    pub(super) fn new<T: Element>(data: &'a [T]) -> Self {
        let mut header = [0; HEADER];
        header[0] = T::DTYPE as u8;
        header[8..].copy_from_slice(&(data.len() as u64).to_le_bytes());
        Self { bytes: bytemuck::cast_slice(data), header, sent: 0 }
    }

    pub(super) fn is_sent(&self) -> bool {
        self.sent == HEADER + self.bytes.len()
    }

    /// Hands the next piece to the link, put together in `scratch`; `false` if it takes none now.
    pub(super) fn advance(&mut self, link: &mut dyn Link, to: usize, scratch: &mut Vec<u8>) -> Result<bool> {
        let most = link.piece().min(HEADER + self.bytes.len() - self.sent);
        scratch.clear();
        if self.sent == 0 {
            scratch.extend_from_slice(&self.header);
            scratch.extend_from_slice(&self.bytes[..most - HEADER]);
        } else {
            scratch.extend_from_slice(&self.bytes[self.sent - HEADER..][..most]);
        }
        let taken = link.try_send(to, scratch)?;
        if taken {
            self.sent += most;
        }
        Ok(taken)
    }

    /// Gives the whole message to this rank itself.
    pub(super) fn hand_over(&mut self, mut take: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        take(&self.header)?;
        take(self.bytes)?;
        self.sent = HEADER + self.bytes.len();
        Ok(())
    }
}

/// A message on its way in.
pub(super) struct Incoming<'a, T> {
    data: &'a mut [T],
    /// The sender's type code and count, once the header is there.
    theirs: Option<(u8, u64)>,
    /// Bytes of data taken so far, kept or not.
    taken: u64,
}

/// The same, of whatever type.
pub(super) trait Arrival {
    fn is_complete(&self) -> bool;

    /// Takes the next piece of the global rank `from`.
    fn take(&mut self, piece: &[u8], from: u32) -> Result<()>;

    /// Whether the message, once it is complete, was what was to come.
    fn check(&self, from: u32, me: u32) -> Result<()>;
}

impl<'a, T: Element> Incoming<'a, T> {
    pub(super) fn new(data: &'a mut [T]) -> Self {
        Self { data, theirs: None, taken: 0 }
    }

    fn fits(&self) -> bool {
        self.theirs == Some((T::DTYPE as u8, self.data.len() as u64))
    }

    fn expected(&self) -> Option<u64> {
        let (code, count) = self.theirs?;
        let size = DType::from_code(code).map_or(1, DType::size);
        Some(count.saturating_mul(size as u64))
    }
}

impl<T: Element> Arrival for Incoming<'_, T> {
    fn is_complete(&self) -> bool {
        self.expected().is_some_and(|bytes| self.taken >= bytes)
    }

    fn take(&mut self, piece: &[u8], from: u32) -> Result<()> {
        let data = if self.theirs.is_none() {
            let Some((header, data)) = piece.split_at_checked(HEADER) else {
                let text = format!("a message of {} bytes from rank {from} has no header", piece.len());
                return Err(Error::Poisoned(text.into()));
            };
            let count = header[8..].try_into().map(u64::from_le_bytes).unwrap_or(0);
            self.theirs = Some((header[0], count));
            data
        } else {
            piece
        };
        if self.fits() && !overwrite(self.data, self.taken as usize, data) {
            let text = format!("the message from rank {from} holds bytes that are no {}", T::DTYPE);
            return Err(Error::Poisoned(text.into()));
        }
        self.taken += data.len() as u64;
        Ok(())
    }

    fn check(&self, from: u32, me: u32) -> Result<()> {
        if self.fits() {
            return Ok(());
        }
        let (code, count) = self.theirs.unwrap_or((0, 0));
        let theirs = DType::from_code(code).map_or("an unknown type", DType::name);
        let name = format!("message from rank {from} to rank {me}");
        let views =
            vec![(from, format!("sends {count} {theirs}")), (me, format!("receives {} {}", self.data.len(), T::DTYPE))];
        Err(Error::Mismatch(Arc::new(Mismatch::new(name, views))))
    }
}
