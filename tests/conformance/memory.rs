//! Buffers of every kind that users have, with cells around them that no operation may touch.

use std::fmt;

use kolo::{Kolo, Result, SharedBuffer, Tensor};

use super::value::Value;

/// Elements before and after a buffer that is not aligned.
const GUARD: usize = 3;

/// Where a buffer lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Memory {
    /// An allocation of its own, as long as the buffer.
    Private,
    /// In the middle of one, at an address that only the element type aligns.
    Unaligned,
    /// From `kolo.alloc`.
    Shared,
    /// In the middle of a buffer from `kolo.alloc`.
    SharedUnaligned,
}

impl Memory {
    pub(crate) const ALL: [Self; 4] = [Self::Private, Self::Unaligned, Self::Shared, Self::SharedUnaligned];

    /// One of them, in turn.
    pub(crate) fn turn(turn: usize) -> Self {
        Self::ALL[turn % Self::ALL.len()]
    }

    fn guard(self) -> usize {
        if matches!(self, Self::Private | Self::Shared) { 0 } else { GUARD }
    }
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Private => "private",
            Self::Unaligned => "private unaligned",
            Self::Shared => "shared",
            Self::SharedUnaligned => "shared unaligned",
        })
    }
}

/// Elements somewhere; also a tensor of any shape.
pub(crate) struct Buffer<T: Value> {
    cells: Cells<T>,
    guard: usize,
    shape: Vec<usize>,
}

enum Cells<T: Value> {
    Private(Vec<T>),
    Shared(SharedBuffer<T>),
}

impl<T: Value> Cells<T> {
    fn all(&self) -> &[T] {
        match self {
            Self::Private(cells) => cells,
            Self::Shared(cells) => cells,
        }
    }

    fn all_mut(&mut self) -> &mut [T] {
        match self {
            Self::Private(cells) => cells,
            Self::Shared(cells) => cells,
        }
    }
}

impl<T: Value> Buffer<T> {
    /// Room for `count` elements, poisoned.
    pub(crate) fn poisoned(kolo: &Kolo, memory: Memory, count: usize) -> Result<Self> {
        let guard = memory.guard();
        let len = count + 2 * guard;
        let mut cells = match memory {
            Memory::Private | Memory::Unaligned => Cells::Private(vec![T::poison(); len]),
            Memory::Shared | Memory::SharedUnaligned => Cells::Shared(kolo.alloc(len)?),
        };
        cells.all_mut().fill(T::poison());
        Ok(Self { cells, guard, shape: vec![count] })
    }

    /// A buffer that holds `data`.
    pub(crate) fn of(kolo: &Kolo, memory: Memory, data: &[T]) -> Result<Self> {
        let mut buffer = Self::poisoned(kolo, memory, data.len())?;
        buffer.slice_mut().copy_from_slice(data);
        Ok(buffer)
    }

    /// The same elements in another shape.
    pub(crate) fn shaped(mut self, shape: &[usize]) -> Self {
        assert_eq!(shape.iter().product::<usize>(), self.slice().len(), "{shape:?}");
        self.shape = shape.to_vec();
        self
    }

    pub(crate) fn slice(&self) -> &[T] {
        let all = self.cells.all();
        &all[self.guard..all.len() - self.guard]
    }

    pub(crate) fn slice_mut(&mut self) -> &mut [T] {
        let (guard, all) = (self.guard, self.cells.all_mut());
        let end = all.len() - guard;
        &mut all[guard..end]
    }

    /// Writes one element beyond the end.
    pub(crate) fn overrun(&mut self, value: T) {
        let end = self.guard + self.slice().len();
        self.cells.all_mut()[end] = value;
    }

    /// Whether the cells around are as they were.
    pub(crate) fn is_framed(&self) -> bool {
        let all = self.cells.all();
        let around = all[..self.guard].iter().chain(&all[all.len() - self.guard..]);
        around.into_iter().all(|cell| cell.is(T::poison()))
    }
}

impl<T: Value> Tensor for Buffer<T> {
    type Element = T;

    fn shape(&self) -> Vec<usize> {
        self.shape.clone()
    }

    fn as_slice(&self) -> &[T] {
        self.slice()
    }

    fn as_mut_slice(&mut self) -> &mut [T] {
        self.slice_mut()
    }
}

/// A shape of so many elements with several dimensions, as far as they divide; other turns give others.
pub(crate) fn shape(count: usize, turn: usize) -> Vec<usize> {
    match turn % 4 {
        _ if count == 1 && turn.is_multiple_of(2) => Vec::new(),
        1 if count.is_multiple_of(6) => vec![2, count / 6, 3],
        2 if count.is_multiple_of(2) => vec![count / 2, 1, 2],
        3 => vec![1, count, 1, 1],
        _ => vec![count],
    }
}
