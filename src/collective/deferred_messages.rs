//! The asynchronous messages of a communicator.

use std::sync::Arc;

use crate::communicator::Communicator;
use crate::engine::{Receiving, Sending};
#[cfg(doc)]
use crate::error::Error;
use crate::error::Result;
use crate::handle::{Handle, LaneOf};
use crate::tensor::{Element, Hold, Tensor};

impl Communicator {
    /// Begins to send `tensor` to rank `to`; the handle gives it back once it is copied out, which may be before the receiver
    /// takes it.
    ///
    /// Messages to different ranks, messages from ranks, and collectives do not wait for each other.
    ///
    /// ```
    /// # kolo::threads(2, |kolo| -> kolo::Result<()> {
    /// let mut world = kolo.communicator()?;
    /// let (me, other) = (kolo.rank(), 1 - kolo.rank());
    /// // Both ranks send first: neither waits for the other to receive.
    /// let sent = world.send_async(vec![me as f32; 1_000_000], other)?;
    /// let received = world.recv_async(vec![0.0_f32; 1_000_000], other)?;
    /// assert_eq!(received.wait()?, vec![other as f32; 1_000_000]);
    /// sent.wait()?;
    /// # Ok(())
    /// # })?.into_iter().collect::<kolo::Result<Vec<()>>>()?;
    /// # Ok::<(), kolo::Error>(())
    /// ```
    ///
    /// # Collective
    /// As [`send`](Self::send). Ranks may differ in whether they wait.
    ///
    /// # Errors
    /// [`Error::Argument`] if `to` is this rank or no rank; [`Error::Poisoned`] if the communicator has ended. All others come
    /// from the handle: those of [`send`](Self::send), and [`Error::Poisoned`] if another operation ended the communicator.
    pub fn send_async<B>(&mut self, tensor: B, to: usize) -> Result<Handle<B>>
    where
        B: Tensor + Send + 'static,
    {
        self.check_peer("send to rank", to)?;
        let (hold, view) = Hold::new(tensor);
        let task = Box::new(Sending::new(view, B::Element::DTYPE, to));
        self.queue()?.submit(LaneOf::To(to), "send", task, Some(Arc::clone(&hold) as _), hold)
    }

    /// Begins to receive the next message of rank `from` into `tensor`; the handle gives it back.
    ///
    /// # Collective
    /// As [`recv`](Self::recv). Ranks may differ in whether they wait.
    ///
    /// # Errors
    /// [`Error::Argument`] if `from` is this rank or no rank; [`Error::Poisoned`] if the communicator has ended. All others come
    /// from the handle: those of [`recv`](Self::recv), and [`Error::Poisoned`] if another operation ended the communicator.
    pub fn recv_async<B>(&mut self, tensor: B, from: usize) -> Result<Handle<B>>
    where
        B: Tensor + Send + 'static,
    {
        self.check_peer("receive from rank", from)?;
        let (hold, view) = Hold::new(tensor);
        let task = Box::new(Receiving::new(view, B::Element::DTYPE, from));
        self.queue()?.submit(LaneOf::From(from), "recv", task, Some(Arc::clone(&hold) as _), hold)
    }
}
