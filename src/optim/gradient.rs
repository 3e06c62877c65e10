//! A gradient on its way: the buffer its owner handed over, or zeros in place of a missing one.

use std::sync::Arc;

use crate::Tensor;

/// Where a gradient's values are.
pub(crate) enum Values<B: Tensor> {
    /// In the buffer that was handed over.
    Given(B),
    /// In zeros of kolo's own, where none was.
    Zeros(Vec<B::Element>),
}

/// A gradient with the shape of its parameter, whatever the shape of its buffer: a flat `Vec` is one.
pub(crate) struct Gradient<B: Tensor> {
    pub(crate) values: Values<B>,
    pub(crate) shape: Arc<[usize]>,
}

impl<B: Tensor> Tensor for Gradient<B> {
    type Element = B::Element;

    fn shape(&self) -> Vec<usize> {
        self.shape.to_vec()
    }

    fn as_slice(&self) -> &[B::Element] {
        match &self.values {
            Values::Given(buffer) => buffer.as_slice(),
            Values::Zeros(zeros) => zeros,
        }
    }

    fn as_mut_slice(&mut self) -> &mut [B::Element] {
        match &mut self.values {
            Values::Given(buffer) => buffer.as_mut_slice(),
            Values::Zeros(zeros) => zeros,
        }
    }
}
