//! Elements that an operation of several steps lends to one step after the other.

use std::ops::Range;
use std::sync::Arc;

use super::{DType, Element, Hold, RawSlice};

/// Elements that belong to an operation between its steps, and to a step while that is in flight.
pub(crate) struct Lent<T: Element> {
    hold: Arc<Hold<Vec<T>>>,
    view: RawSlice,
}

/// What a step may read and write, and what keeps it alive however the operation ends.
#[derive(Clone)]
pub(crate) struct Part {
    pub(crate) view: RawSlice,
    pub(crate) dtype: DType,
    pub(crate) keep: Arc<dyn Send + Sync>,
}

impl Part {
    /// Its elements.
    pub(crate) fn count(&self) -> usize {
        self.view.len() / self.dtype.size()
    }
}

impl<T: Element> Lent<T> {
    pub(crate) fn new(elements: Vec<T>) -> Self {
        let (hold, view) = Hold::new(elements);
        Self { hold, view }
    }

    pub(crate) fn len(&self) -> usize {
        self.view.len() / T::DTYPE.size()
    }

    /// Lends some of the elements.
    ///
    /// # Panics
    /// If there are no such elements.
    pub(crate) fn part(&self, elements: Range<usize>) -> Part {
        let size = T::DTYPE.size();
        let view = self.view.part(elements.start * size, elements.len() * size);
        Part { view, dtype: T::DTYPE, keep: Arc::clone(&self.hold) as _ }
    }

    /// Lends all of them.
    pub(crate) fn all(&self) -> Part {
        self.part(0..self.len())
    }

    /// The elements, once no step has any of them.
    pub(crate) fn take(self) -> Vec<T> {
        self.hold.take().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_of_the_elements_and_outlive_their_owner() {
        let lent = Lent::new(vec![1_u32, 2, 3, 4]);
        let part = lent.part(1..3);
        assert_eq!((part.count(), part.dtype, lent.len()), (2, DType::U32, 4));
        // SAFETY: `lent` keeps the elements alive and nothing else touches them.
        unsafe { part.view.ptr().cast::<u32>().write(9) };
        drop(lent);
        // SAFETY: the part has a reference of its own.
        assert_eq!(unsafe { part.view.ptr().cast::<u32>().read() }, 9);
        let lent = Lent::new(vec![7_u8; 3]);
        assert_eq!(lent.take(), [7; 3]);
    }
}
