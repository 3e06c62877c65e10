//! Owned tensors that an operation in flight reads and writes.

use std::fmt;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, Ordering};

use super::{Piece, RawSlice, Tensor};
use crate::error::Result;

/// Keeps a tensor alive and in place for as long as an operation needs it.
///
/// The operation holds one reference and its handle another. The tensor sits behind a raw pointer from the start, so
/// that no later move of a reference invalidates the operation's view of it.
pub(crate) struct Hold<B> {
    tensor: AtomicPtr<B>,
}

impl<B: Tensor> Hold<B> {
    /// Takes the tensor in, and gives the view that the operation may use until [`take`](Self::take).
    pub(crate) fn new(tensor: B) -> (Arc<Self>, RawSlice) {
        let tensor = Box::into_raw(Box::new(tensor));
        // SAFETY: the pointer comes from a Box and nothing else uses it yet.
        let view = RawSlice::of_mut(unsafe { &mut *tensor }.as_mut_slice());
        (Arc::new(Self { tensor: AtomicPtr::new(tensor) }), view)
    }
}

impl<B> Hold<B> {
    /// Gives the tensor back, once. The caller has seen that the operation no longer touches it.
    pub(crate) fn take(&self) -> Option<B> {
        let tensor = self.tensor.swap(ptr::null_mut(), Ordering::AcqRel);
        // SAFETY: a non-null pointer came from `Box::into_raw`, and the swap makes this the only one to take it.
        (!tensor.is_null()).then(|| *unsafe { Box::from_raw(tensor) })
    }
}

/// What a handle gives its user when the operation has ended.
pub(crate) trait GiveBack<B>: Send + Sync {
    /// The result, once. The caller has seen that the operation has ended well.
    fn take(&self) -> Option<B>;

    /// The same where making the result of what has come may fail. May run user code.
    fn read(&self) -> Option<Result<B>> {
        self.take().map(Ok)
    }

    /// What is left of a cancelled operation, if it is the user's own. The caller has seen that nothing touches it.
    fn cancelled(&self) -> Option<B>;
}

impl<B: Send> GiveBack<B> for Hold<B> {
    fn take(&self) -> Option<B> {
        Hold::take(self)
    }

    fn cancelled(&self) -> Option<B> {
        Hold::take(self)
    }
}

/// What an operation reads and what it writes, both of them the user's own.
pub(crate) struct Both<A, B> {
    input: Arc<dyn GiveBack<A>>,
    output: Arc<dyn GiveBack<B>>,
}

impl<A, B> Both<A, B> {
    pub(crate) fn of(input: Arc<dyn GiveBack<A>>, output: Arc<dyn GiveBack<B>>) -> Arc<Self> {
        Arc::new(Self { input, output })
    }
}

impl<A, B> Both<A, B>
where
    A: Tensor + Send + 'static,
    B: Tensor + Send + 'static,
{
    /// Takes two tensors in.
    pub(crate) fn new(input: A, output: B) -> (Arc<Self>, Piece) {
        let ((input, read), (output, written)) = (Hold::new(input), Hold::new(output));
        (Self::of(input, output), Piece { input: read, output: written })
    }
}

impl<A, B> GiveBack<(A, B)> for Both<A, B> {
    fn take(&self) -> Option<(A, B)> {
        self.input.take().zip(self.output.take())
    }

    fn cancelled(&self) -> Option<(A, B)> {
        self.input.cancelled().zip(self.output.cancelled())
    }
}

impl<B> Drop for Hold<B> {
    fn drop(&mut self) {
        drop(self.take());
    }
}

impl<B> fmt::Debug for Hold<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hold")
    }
}

// SAFETY: the tensor is reached only through `take`, which hands it to one thread.
unsafe impl<B: Send> Send for Hold<B> {}
// SAFETY: as above; a shared `Hold` gives no access but `take`.
unsafe impl<B: Send> Sync for Hold<B> {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_view_is_the_tensor_and_it_comes_back_once() {
        let (hold, view) = Hold::new(vec![1.0_f32, 2.0]);
        // SAFETY: `hold` keeps the two elements alive and nothing else touches them.
        unsafe { view.ptr().cast::<f32>().write(5.0) };
        assert_eq!(hold.take(), Some(vec![5.0, 2.0]));
        assert_eq!(hold.take(), None);
    }

    #[test]
    fn two_tensors_come_back_as_they_went_in() {
        let (both, piece) = Both::new(vec![1.0_f32, 2.0], vec![0.0_f32; 2].into_boxed_slice());
        // SAFETY: `both` keeps the elements alive and nothing else touches them.
        unsafe { piece.output.ptr().cast::<f32>().write(piece.input.ptr().cast::<f32>().read() + 4.0) };
        let (input, output) = both.take().expect("once");
        assert_eq!((input, &*output), (vec![1.0, 2.0], &[5.0, 0.0][..]));
        assert!(both.take().is_none() && both.cancelled().is_none());
    }
}
