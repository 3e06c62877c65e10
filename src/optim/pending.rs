//! One parameter's gradient on its way from backward to the update.

use std::mem;
use std::sync::Arc;

use super::{ParameterSpec, Real};
use crate::{Error, Handle, Kolo, ReduceOp, Result, Tensor};

/// One parameter and its gradient of this step.
pub(crate) struct Parameter<B: Tensor> {
    pub(crate) spec: ParameterSpec,
    pub(crate) shape: Arc<[usize]>,
    /// The gradient's name on the wire.
    pub(crate) wire_name: String,
    /// Gradients that were given in this step.
    pub(crate) passes: usize,
    pub(crate) state: State<B>,
    /// Buffers to be filled again.
    pub(crate) spare: Vec<B>,
}

/// Where a parameter's gradient is between two steps.
pub(crate) enum State<B: Tensor> {
    /// None was given yet.
    Empty,
    /// The sum of some passes, with more to come.
    Accumulating(B),
    /// On its way.
    InFlight(Handle<Gradient<B>>),
    /// Back, the same on every rank.
    Reduced(Gradient<B>),
}

impl<B> Parameter<B>
where
    B: Tensor + Send + 'static,
    B::Element: Real,
{
    /// Refuses a gradient of another shape.
    pub(crate) fn check_shape(&self, gradient: &B) -> Result<()> {
        let (count, got) = (self.spec.count(), gradient.as_slice().len());
        let shape = gradient.shape();
        if got == count && (shape.len() == 1 || *shape == *self.shape) {
            return Ok(());
        }
        Err(Error::argument(format!(
            "gradient of '{}': its shape is {shape:?}, the parameter's {:?}; give a gradient of that shape, or a flat \
             one of {count} values",
            self.spec.name(),
            self.spec.shape()
        )))
    }

    /// Starts to reduce a gradient.
    pub(crate) fn submit(&mut self, kolo: &Kolo, values: Values<B>, op: ReduceOp) -> Result<()> {
        let gradient = Gradient { values, shape: Arc::clone(&self.shape) };
        self.state = State::InFlight(kolo.allreduce_async(&self.wire_name, gradient, op)?);
        Ok(())
    }

    /// Waits for the reduction, then divides by `divisor`, if any.
    pub(crate) fn wait(&mut self, divisor: Option<B::Element>) -> Result<()> {
        if let State::InFlight(handle) = mem::replace(&mut self.state, State::Empty) {
            let mut gradient = handle.wait()?;
            if let Some(divisor) = divisor {
                gradient.as_mut_slice().iter_mut().for_each(|value| *value = *value / divisor);
            }
            self.state = State::Reduced(gradient);
        }
        Ok(())
    }
}

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
