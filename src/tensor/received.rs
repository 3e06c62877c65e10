//! Where an operation leaves elements whose number is known only once every rank has told its own.

use std::sync::{Arc, OnceLock};

use super::blocks::room;
use super::hold::{GiveBack, Hold};
use super::{Blocks, Element, RawSlice};
use crate::error::Result;

/// Makes room in the middle of an operation.
pub(crate) trait Grow: Send + Sync {
    /// Room for the elements of all blocks, which `counts` are; once. The view is the operation's until it has ended.
    ///
    /// # Errors
    /// No memory.
    fn grow(&self, counts: Vec<usize>) -> Result<RawSlice>;
}

/// The result of an operation, once there is one.
#[derive(Debug)]
pub(crate) struct Received<T: Element> {
    room: OnceLock<Room<T>>,
}

/// The elements of all blocks, and how many each has.
#[derive(Debug)]
struct Room<T: Element> {
    data: Arc<Hold<Vec<T>>>,
    counts: Vec<usize>,
}

impl<T: Element> Received<T> {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { room: OnceLock::new() })
    }
}

impl<T: Element> Grow for Received<T> {
    fn grow(&self, counts: Vec<usize>) -> Result<RawSlice> {
        let data = room::<T>(counts.iter().sum(), "the result")?;
        let (data, view) = Hold::new(data);
        let first = self.room.set(Room { data, counts }).is_ok();
        assert!(first, "an operation gets room for its result once");
        Ok(view)
    }
}

impl<T: Element> GiveBack<Blocks<T>> for Received<T> {
    fn take(&self) -> Option<Blocks<T>> {
        let Room { data, counts } = self.room.get()?;
        Some(Blocks::new(data.take()?, counts.clone()))
    }

    fn cancelled(&self) -> Option<Blocks<T>> {
        None
    }
}

impl<T: Element> GiveBack<Vec<T>> for Received<T> {
    fn take(&self) -> Option<Vec<T>> {
        self.room.get().and_then(|room| room.data.take())
    }

    fn cancelled(&self) -> Option<Vec<T>> {
        None
    }
}
