//! Send and receive: elements from one rank to one other, matched by order for each pair of ranks.

use std::sync::Arc;

use crate::communicator::Communicator;
use crate::engine::{Step, block};
use crate::error::{Error, Mismatch, Result};
use crate::tensor::{DType, Element};

/// Bytes before a message's first elements: type (1), zero (7), count (8).
const HEADER: usize = 16;

impl Communicator {
    /// Sends `data` to rank `to`. Returns once the data is copied out, which may be before the receiver takes it.
    ///
    /// # Collective
    /// Rank `to` calls [`recv`](Self::recv) with the same type and length. Messages of one pair of ranks arrive in the
    /// order in which they were sent; they do not mix with collectives.
    ///
    /// # Errors
    /// [`Error::Argument`] if `to` is this rank or no rank; the first failure of the job; [`Error::Timeout`] if the
    /// receiver does not take it before the deadline.
    pub fn send<T: Element>(&mut self, data: &[T], to: usize) -> Result<()> {
        self.check_peer("send to rank", to)?;
        let bytes: &[u8] = bytemuck::cast_slice(data);
        let mut header = [0; HEADER];
        header[0] = T::DTYPE as u8;
        header[8..].copy_from_slice(&(data.len() as u64).to_le_bytes());
        let Self { channel, user, scratch, .. } = self;
        let port = Arc::clone(channel.port());
        let peer = channel.team().global(to);
        // Bytes of the header and the data, as one message, that have been sent.
        let mut sent = 0;
        let total = HEADER + bytes.len();
        block(
            &port,
            &mut sent,
            |sent: &mut usize| {
                user.progress()?;
                let mut step = Step::Pending;
                while *sent < total {
                    let most = user.piece().min(total - *sent);
                    scratch.clear();
                    if *sent == 0 {
                        scratch.extend_from_slice(&header);
                        scratch.extend_from_slice(&bytes[..most - HEADER]);
                    } else {
                        scratch.extend_from_slice(&bytes[*sent - HEADER..][..most]);
                    }
                    if !user.try_send(to, scratch)? {
                        return Ok(step);
                    }
                    *sent += most;
                    step = Step::Progress;
                }
                Ok(if user.idle() { Step::Ready(()) } else { step })
            },
            |_| (format!("send of {} {} to rank {to}", data.len(), T::DTYPE), vec![peer]),
        )
    }

    /// Receives the next message of rank `from` into `data`.
    ///
    /// # Collective
    /// Rank `from` calls [`send`](Self::send) with the same type and length.
    ///
    /// # Errors
    /// [`Error::Argument`] if `from` is this rank or no rank; [`Error::Mismatch`] if type or length differ (the message
    /// is taken and dropped, `data` is left as it was); the first failure of the job; [`Error::Timeout`] at the deadline.
    pub fn recv<T: Element>(&mut self, data: &mut [T], from: usize) -> Result<()> {
        self.check_peer("receive from rank", from)?;
        let wanted = data.len();
        let Self { channel, user, .. } = self;
        let port = Arc::clone(channel.port());
        let peer = channel.team().global(from);
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(data);
        let mut incoming = Incoming { dtype: T::DTYPE, wanted, theirs: None, taken: 0, bytes };
        block(
            &port,
            &mut incoming,
            |incoming| {
                let mut step = Step::Pending;
                while !incoming.is_complete() {
                    if !user.try_recv(from, &mut |piece| incoming.take(piece))? {
                        return Ok(step);
                    }
                    step = Step::Progress;
                }
                Ok(Step::Ready(()))
            },
            |_| (format!("receive of {wanted} {} from rank {from}", T::DTYPE), vec![peer]),
        )?;
        incoming.check(peer, channel.team().global(channel.team().rank()))
    }

    fn check_peer(&self, what: &str, peer: usize) -> Result<()> {
        self.check_rank(what, peer)?;
        if peer == self.rank() {
            return Err(Error::argument(format!("{what} {peer}: that is this rank itself; copy the data instead")));
        }
        Ok(())
    }
}

/// A message on its way in.
struct Incoming<'a> {
    dtype: DType,
    wanted: usize,
    /// The sender's type code and count, once the header is there.
    theirs: Option<(u8, u64)>,
    /// Bytes of data taken so far, kept or not.
    taken: u64,
    bytes: &'a mut [u8],
}

impl Incoming<'_> {
    fn fits(&self) -> bool {
        self.theirs == Some((self.dtype as u8, self.wanted as u64))
    }

    fn expected(&self) -> Option<u64> {
        let (code, count) = self.theirs?;
        let size = DType::from_code(code).map_or(1, DType::size);
        Some(count.saturating_mul(size as u64))
    }

    fn is_complete(&self) -> bool {
        self.expected().is_some_and(|bytes| self.taken >= bytes)
    }

    fn take(&mut self, piece: &[u8]) {
        let data = if self.theirs.is_none() {
            let Some((header, data)) = piece.split_at_checked(HEADER) else { return };
            let count = header[8..].try_into().map(u64::from_le_bytes).unwrap_or(0);
            self.theirs = Some((header[0], count));
            data
        } else {
            piece
        };
        if self.fits() {
            let start = self.taken as usize;
            self.bytes[start..start + data.len()].copy_from_slice(data);
        }
        self.taken += data.len() as u64;
    }

    fn check(&self, from: u32, me: u32) -> Result<()> {
        if self.fits() {
            return Ok(());
        }
        let (code, count) = self.theirs.unwrap_or((0, 0));
        let theirs = DType::from_code(code).map_or("an unknown type", DType::name);
        let name = format!("message from rank {from} to rank {me}");
        let views =
            vec![(from, format!("sends {count} {theirs}")), (me, format!("receives {} {}", self.wanted, self.dtype))];
        Err(Error::Mismatch(Arc::new(Mismatch { name, views })))
    }
}
