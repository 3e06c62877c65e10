//! What kolo asks of a framework's tensor.

use super::{Element, SharedBuffer};

/// A tensor in host memory that kolo can reduce in place: a shape, and its elements as one contiguous slice.
///
/// Implement it for your own tensor type to hand it to [`Kolo::allreduce_async`](crate::Kolo::allreduce_async) and get
/// it back from the handle. `Vec<T>`, `Box<[T]>`, [`SharedBuffer`](crate::SharedBuffer) and `&mut [T]` implement it.
///
/// ```
/// struct Matrix {
///     rows: usize,
///     columns: usize,
///     values: Vec<f32>,
/// }
///
/// impl kolo::Tensor for Matrix {
///     type Element = f32;
///
///     fn shape(&self) -> Vec<usize> {
///         vec![self.rows, self.columns]
///     }
///
///     fn as_slice(&self) -> &[f32] {
///         &self.values
///     }
///
///     fn as_mut_slice(&mut self) -> &mut [f32] {
///         &mut self.values
///     }
/// }
/// # let matrix = Matrix { rows: 2, columns: 3, values: vec![0.0; 6] };
/// # assert_eq!(kolo::Tensor::shape(&matrix).iter().product::<usize>(), kolo::Tensor::as_slice(&matrix).len());
/// ```
pub trait Tensor {
    /// The type of the elements.
    type Element: Element;

    /// The extent of each dimension, the slowest-varying first. Their product is the number of elements; no dimensions
    /// means one element.
    fn shape(&self) -> Vec<usize>;

    /// The elements in row-major order.
    fn as_slice(&self) -> &[Self::Element];

    /// The elements in row-major order, to be overwritten with the result.
    fn as_mut_slice(&mut self) -> &mut [Self::Element];
}

macro_rules! slice_like {
    ($($t:ty),* $(,)?) => {$(
        impl<T: Element> Tensor for $t {
            type Element = T;

            fn shape(&self) -> Vec<usize> {
                vec![self.len()]
            }

            fn as_slice(&self) -> &[T] {
                self
            }

            fn as_mut_slice(&mut self) -> &mut [T] {
                self
            }
        }
    )*};
}

slice_like!(Vec<T>, Box<[T]>, SharedBuffer<T>, &mut [T]);
