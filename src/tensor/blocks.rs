//! Blocks of elements that differ in size by rank, as gathers and alltoall return them.

use std::ops::Range;

use super::Element;
use crate::error::{Error, Result};

/// One block of elements from each rank, end to end in rank order. Blocks may be empty.
///
/// ```
/// # kolo::threads(2, |kolo| -> kolo::Result<()> {
/// let mut world = kolo.communicator()?;
/// let mine = vec![kolo.rank() as f32; 1 + kolo.rank()];
/// let all = world.allgatherv(&mine)?;
/// assert_eq!(all.data(), [0.0, 1.0, 1.0]);
/// assert_eq!(all.counts(), [1, 2]);
/// assert_eq!(all.block(1), [1.0, 1.0]);
/// # Ok(())
/// # })?.into_iter().collect::<kolo::Result<Vec<()>>>()?;
/// # Ok::<(), kolo::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Blocks<T> {
    data: Vec<T>,
    counts: Vec<usize>,
}

impl<T> Blocks<T> {
    pub(crate) fn new(data: Vec<T>, counts: Vec<usize>) -> Self {
        debug_assert_eq!(counts.iter().sum::<usize>(), data.len());
        Self { data, counts }
    }

    /// All elements, the blocks end to end.
    #[must_use]
    pub fn data(&self) -> &[T] {
        &self.data
    }

    /// All elements, without a copy.
    #[must_use]
    pub fn into_data(self) -> Vec<T> {
        self.data
    }

    /// Elements of each block, by rank.
    #[must_use]
    pub fn counts(&self) -> &[usize] {
        &self.counts
    }

    /// The block of rank `rank`.
    ///
    /// # Panics
    /// If there is no such rank.
    #[must_use]
    pub fn block(&self, rank: usize) -> &[T] {
        &self.data[self.range(rank)]
    }

    /// The blocks, by rank.
    pub fn iter(&self) -> impl Iterator<Item = &[T]> {
        let mut rest = &self.data[..];
        self.counts.iter().map(move |&count| {
            let (block, tail) = rest.split_at(count);
            rest = tail;
            block
        })
    }

    fn range(&self, rank: usize) -> Range<usize> {
        let start = self.counts[..rank].iter().sum();
        start..start + self.counts[rank]
    }
}

/// Zeroed elements, or an error that says how many were too many.
pub(crate) fn room<T: Element>(count: usize, what: &str) -> Result<Vec<T>> {
    let mut data = Vec::new();
    if data.try_reserve_exact(count).is_err() {
        let bytes = count.saturating_mul(size_of::<T>());
        return Err(Error::system(
            format!("{what}: no memory for {count} elements ({bytes} bytes) from all ranks; send less at a time"),
            std::io::ErrorKind::OutOfMemory,
        ));
    }
    data.resize(count, T::zeroed());
    Ok(data)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_by_rank() {
        let blocks = Blocks::new(vec![1, 2, 3], vec![2, 0, 1]);
        assert_eq!(blocks.block(0), [1, 2]);
        assert!(blocks.block(1).is_empty());
        assert_eq!(blocks.iter().map(<[_]>::len).collect::<Vec<_>>(), [2, 0, 1]);
        assert_eq!(blocks.into_data(), [1, 2, 3]);
    }

    #[test]
    fn too_many_elements_are_an_error() {
        let error = room::<f64>(usize::MAX / 4, "allgatherv").unwrap_err().to_string();
        assert!(error.contains("allgatherv: no memory for"), "{error}");
    }
}
