//! The wrapper that makes an optimizer train with all ranks.

use std::fmt;
use std::mem;
use std::time::Instant;

use super::missing::missing_gradients;
use super::parameter::Names;
use super::pending::{Gradient, Parameter, State, Values};
use super::{
    CommunicationTime, DistributedOptions, MissingGradients, Optimizer, ParameterKey, ParameterSpec, Real, agreement,
};
use crate::{Error, Kolo, ReduceOp, Result, SharedBuffer, Tensor};

/// Reduces the gradients of all ranks, each as soon as backward has produced it, and applies an [`Optimizer`].
///
/// `B` is what holds a gradient: a `Vec`, or any [`Tensor`]. Hand each gradient over with
/// [`gradient_ready`](Self::gradient_ready), in any order, best in the order of backward: it is reduced while backward
/// goes on. [`step`](Self::step) waits for all and updates. Buffers come back for the next step from
/// [`gradient_buffer`](Self::gradient_buffer), so that a steady state allocates no gradients.
///
/// # Arithmetic
/// With N ranks, k passes a step, and g(r, j) the gradient of pass j on rank r:
///
/// ```text
/// a(r) = ((g(r, 0) + g(r, 1)) + ..) + g(r, k-1)     on the rank, in the order of the passes, in the type itself
/// Sum:      G = ((a(0) + a(1)) + ..) + a(N-1)       in rank order
/// Average:  G = that sum / N, then / k if k > 1     one division each
/// ```
///
/// So Average is the mean over all N k micro-batches, and the learning rate does not depend on k. On one host, or with
/// a deterministic schedule, the sum runs in rank order: with k = 1 the update has the same bits as that of one process
/// which adds the N micro-batches in rank order and divides once by N. `f16` and `bf16` sums over ranks accumulate
/// in `f32` and round once.
pub struct DistributedOptimizer<O, B = Vec<f32>>
where
    B: Tensor,
{
    kolo: Kolo,
    optimizer: O,
    options: DistributedOptions,
    names: Names,
    parameters: Vec<Parameter<B>>,
    /// Name of the tensor in which ranks tell each other that a gradient is missing.
    status_name: String,
    steps: u64,
    synchronized: bool,
    time: CommunicationTime,
}

impl<O, B> DistributedOptimizer<O, B>
where
    B: Tensor + Send + 'static,
    B::Element: Real,
    O: Optimizer<B::Element>,
{
    /// Wraps `optimizer` for a model with the given parameters: averages, one pass a step.
    ///
    /// # Collective
    /// Every rank, with the same model: names, shapes, types and their order are compared.
    ///
    /// # Errors
    /// As [`with_options`](Self::with_options).
    pub fn new(kolo: &Kolo, optimizer: O, parameters: impl IntoIterator<Item = ParameterSpec>) -> Result<Self> {
        Self::with_options(kolo, optimizer, parameters, DistributedOptions::default())
    }

    /// Wraps `optimizer` for a model with the given parameters.
    ///
    /// # Collective
    /// Every rank, with the same prefix; the other options, the optimizer's settings, names, shapes, types and
    /// their order are compared.
    ///
    /// # Errors
    /// [`Error::Mismatch`] with the first difference between the ranks' models, on every rank. [`Error::Argument`] on a
    /// rank with a bad option or name; its peers get a mismatch that quotes it.
    pub fn with_options(
        kolo: &Kolo,
        optimizer: O,
        parameters: impl IntoIterator<Item = ParameterSpec>,
        options: DistributedOptions,
    ) -> Result<Self> {
        let specs: Vec<ParameterSpec> = parameters.into_iter().collect();
        let names = options.check().and_then(|()| Names::new(&specs));
        let view = match &names {
            Ok(_) => Ok(options.view::<B::Element>(&optimizer.describe(), &specs)),
            Err(error) => Err(error.clone()),
        };
        agreement::verify(kolo, &options.prefix, view)?;

        let prefix = &options.prefix;
        let parameters = specs.into_iter().map(|spec| Parameter {
            shape: spec.shape().into(),
            wire_name: format!("{prefix}.{}", spec.name()),
            spec,
            passes: 0,
            state: State::Empty,
            spare: Vec::new(),
        });
        Ok(Self {
            parameters: parameters.collect(),
            status_name: format!("{prefix}:missing"),
            kolo: kolo.clone(),
            optimizer,
            names: names?,
            options,
            steps: 0,
            synchronized: false,
            time: CommunicationTime::default(),
        })
    }

    /// Takes the gradient of a parameter, given by index or name, and starts to reduce it.
    ///
    /// With several passes a step, the first ones are only added up, and the last one starts the reduction.
    /// The buffer is `gradient`'s parameter in shape, or flat; its order is the parameter's.
    ///
    /// # Errors
    /// [`Error::Argument`] for an unknown parameter, another shape, or a gradient too many. Nothing was sent; the step
    /// can still be completed with the right gradient.
    pub fn gradient_ready(&mut self, parameter: impl ParameterKey, gradient: B) -> Result<()> {
        let began = Instant::now();
        let result = self.take_gradient(self.names.index(&parameter)?, gradient);
        self.time.hand_over += began.elapsed();
        result
    }

    fn take_gradient(&mut self, index: usize, gradient: B) -> Result<()> {
        let passes = self.options.backward_passes_per_step;
        let parameter = &mut self.parameters[index];
        parameter.check_shape(&gradient)?;
        if parameter.passes == passes || self.synchronized {
            return Err(Error::argument(format!(
                "gradient of '{}': it was already given {} time(s) in this step, and backward_passes_per_step is \
                 {passes}; call step before the next pass, or give each gradient once a pass",
                parameter.spec.name(),
                parameter.passes,
            )));
        }
        let sum = match mem::replace(&mut parameter.state, State::Empty) {
            State::Accumulating(mut sum) => {
                for (sum, &value) in sum.as_mut_slice().iter_mut().zip(gradient.as_slice()) {
                    *sum = *sum + value;
                }
                parameter.spare.push(gradient);
                sum
            }
            _ => gradient,
        };
        parameter.passes += 1;
        if parameter.passes < passes {
            parameter.state = State::Accumulating(sum);
            return Ok(());
        }
        let submitted = parameter.submit(&self.kolo, Values::Given(sum), self.options.op);
        if submitted.is_err() {
            parameter.passes = 0;
        }
        submitted
    }

    /// Waits for every gradient and updates `parameters`, which come in the order of the model.
    ///
    /// Waiting is skipped after a [`synchronize`](Self::synchronize). Whether it succeeds or fails, all gradients of the
    /// step are used up, and the next one begins.
    ///
    /// # Collective
    /// Every rank, once a step.
    ///
    /// # Errors
    /// As [`synchronize`](Self::synchronize); [`Error::Argument`] if `parameters` are not those of the model. Nothing
    /// is updated then. An error of the wrapped optimizer leaves the parameters before the failing one updated.
    pub fn step<V: AsMut<[B::Element]>>(&mut self, parameters: &mut [V]) -> Result<()> {
        self.synchronize()?;
        let result = self.update(parameters);
        self.begin_step();
        result
    }

    /// Waits until every gradient is reduced, without updating yet, for what looks at all of them first, as clipping by
    /// their norm does; then [`gradient_mut`](Self::gradient_mut) reaches them.
    ///
    /// # Collective
    /// Every rank, once a step, or not at all.
    ///
    /// # Errors
    /// [`Error::Mismatch`] on every rank if a gradient is missing on any, unless [`MissingGradients::Zero`] allows that: it
    /// lists what each rank lacks. The gradients of this step are dropped, no parameter was changed, and the job can go
    /// on. Otherwise the first error of a reduction.
    pub fn synchronize(&mut self) -> Result<()> {
        if self.synchronized {
            return Ok(());
        }
        let began = Instant::now();
        let result = self.complete();
        self.time.wait += began.elapsed();
        match &result {
            Ok(()) => self.synchronized = true,
            Err(_) => self.begin_step(),
        }
        result
    }

    /// A reduced gradient, between [`synchronize`](Self::synchronize) and [`step`](Self::step).
    ///
    /// # Errors
    /// [`Error::Argument`] for an unknown parameter, or before `synchronize`.
    pub fn gradient_mut(&mut self, parameter: impl ParameterKey) -> Result<&mut [B::Element]> {
        let parameter = &mut self.parameters[self.names.index(&parameter)?];
        match &mut parameter.state {
            State::Reduced(gradient) => Ok(gradient.as_mut_slice()),
            _ => Err(Error::argument(format!(
                "the gradient of '{}' is not reduced yet; call synchronize first",
                parameter.spec.name()
            ))),
        }
    }

    /// A gradient buffer of this parameter that an earlier step has done with, its values unspecified; none if there is
    /// no such buffer.
    ///
    /// # Errors
    /// [`Error::Argument`] for an unknown parameter.
    pub fn spare_buffer(&mut self, parameter: impl ParameterKey) -> Result<Option<B>> {
        let index = self.names.index(&parameter)?;
        Ok(self.parameters[index].spare.pop())
    }

    /// The model's parameters, in order.
    pub fn parameters(&self) -> impl ExactSizeIterator<Item = &ParameterSpec> {
        self.parameters.iter().map(|parameter| &parameter.spec)
    }

    /// Steps that were completed.
    #[must_use]
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Time this rank has spent handing gradients over and waiting for them.
    #[must_use]
    pub fn communication_time(&self) -> CommunicationTime {
        self.time
    }

    /// The wrapped optimizer's learning rate.
    #[must_use]
    pub fn learning_rate(&self) -> f64 {
        self.optimizer.learning_rate()
    }

    /// Sets the wrapped optimizer's learning rate. Every rank must set the same.
    pub fn set_learning_rate(&mut self, rate: f64) {
        self.optimizer.set_learning_rate(rate);
    }

    /// The wrapped optimizer.
    pub fn optimizer(&self) -> &O {
        &self.optimizer
    }

    /// The wrapped optimizer, for its own settings. Every rank must do the same with it.
    pub fn optimizer_mut(&mut self) -> &mut O {
        &mut self.optimizer
    }

    /// Brings every gradient to `Reduced`, or says why not.
    fn complete(&mut self) -> Result<()> {
        let op = self.options.op;
        let passes = self.options.backward_passes_per_step;
        let mut someone_lacks = false;
        if self.options.missing == MissingGradients::Error {
            let lacks = self.parameters.iter().any(|parameter| parameter.passes < passes);
            // Of the gradients' type and operation, so that it is fused with the last of them.
            let mut status = [if lacks { B::Element::from_f64(1.0) } else { B::Element::default() }];
            self.kolo.allreduce(&self.status_name, &mut status, op)?;
            someone_lacks = status != [B::Element::default()];
        }
        let given: Vec<u64> = if someone_lacks {
            self.parameters.iter().map(|parameter| parameter.passes as u64).collect()
        } else {
            Vec::new()
        };

        // What is missing is made up for, even when the step fails: the peers' gradients of that name are under way.
        for parameter in self.parameters.iter_mut().filter(|parameter| parameter.passes < passes) {
            let values = match mem::replace(&mut parameter.state, State::Empty) {
                State::Accumulating(sum) => Values::Given(sum),
                _ => Values::Zeros(vec![B::Element::default(); parameter.spec.count()]),
            };
            parameter.submit(&self.kolo, values, op)?;
        }
        let divisor = (op == ReduceOp::Average && passes > 1).then(|| B::Element::from_f64(passes as f64));
        let mut first_error = None;
        for parameter in &mut self.parameters {
            match parameter.wait(divisor) {
                Ok(()) => {}
                // A mismatch ends one operation; anything else ends them all.
                Err(error @ Error::Mismatch(_)) => _ = first_error.get_or_insert(error),
                Err(error) => return Err(error),
            }
        }
        if someone_lacks {
            let what = format!("{}: gradients of step {}", self.options.prefix, self.steps);
            let wire_name = format!("{}:by-rank", self.status_name);
            let names: Vec<&str> = self.parameters().map(ParameterSpec::name).collect();
            return Err(missing_gradients(&self.kolo, &wire_name, what, &names, &given, passes as u64)?);
        }
        first_error.map_or(Ok(()), Err)
    }

    fn update<V: AsMut<[B::Element]>>(&mut self, parameters: &mut [V]) -> Result<()> {
        let count = self.parameters.len();
        if parameters.len() != count {
            return Err(Error::argument(format!(
                "step got {} parameters, but the model has {count}; pass all of them, in the order of the model",
                parameters.len()
            )));
        }
        for (parameter, values) in self.parameters.iter().zip(parameters.iter_mut()) {
            let (count, got) = (parameter.spec.count(), values.as_mut().len());
            if got != count {
                return Err(Error::argument(format!(
                    "step got {got} values for '{}', which has the shape {:?}, {count} values; pass the parameters in \
                     the order of the model",
                    parameter.spec.name(),
                    parameter.spec.shape()
                )));
            }
        }
        for (index, (parameter, values)) in self.parameters.iter().zip(parameters).enumerate() {
            let State::Reduced(gradient) = &parameter.state else {
                unreachable!("after synchronize every gradient is reduced");
            };
            self.optimizer.update(index, parameter.spec.name(), values.as_mut(), gradient.as_slice())?;
        }
        self.steps += 1;
        Ok(())
    }

    /// Forgets the gradients of a step and keeps their buffers. What is still in flight runs to its end unattended: the
    /// peers count on it.
    fn begin_step(&mut self) {
        for parameter in &mut self.parameters {
            parameter.passes = 0;
            match mem::replace(&mut parameter.state, State::Empty) {
                State::Reduced(Gradient { values: Values::Given(buffer), .. }) | State::Accumulating(buffer) => {
                    parameter.spare.push(buffer);
                }
                State::Empty | State::InFlight(_) | State::Reduced(_) => {}
            }
            // A caller that never takes spare buffers must not make them pile up.
            parameter.spare.truncate(self.options.backward_passes_per_step);
        }
        self.synchronized = false;
    }
}

impl<O, T> DistributedOptimizer<O, Vec<T>>
where
    T: Real,
    O: Optimizer<T>,
{
    /// A buffer for a gradient of this parameter: one of an earlier step, or a new one. Its values are unspecified.
    ///
    /// # Errors
    /// [`Error::Argument`] for an unknown parameter.
    pub fn gradient_buffer(&mut self, parameter: impl ParameterKey) -> Result<Vec<T>> {
        let index = self.names.index(&parameter)?;
        let parameter = &mut self.parameters[index];
        Ok(parameter.spare.pop().unwrap_or_else(|| vec![T::default(); parameter.spec.count()]))
    }
}

impl<O, T> DistributedOptimizer<O, SharedBuffer<T>>
where
    T: Real,
    O: Optimizer<T>,
{
    /// A buffer for a gradient of this parameter, in memory that the host's ranks share: one of an earlier step, or a new
    /// one. Its values are unspecified.
    ///
    /// # Errors
    /// [`Error::Argument`] for an unknown parameter; as [`Kolo::alloc`] if the shared memory is used up.
    pub fn gradient_buffer(&mut self, parameter: impl ParameterKey) -> Result<SharedBuffer<T>> {
        let index = self.names.index(&parameter)?;
        let parameter = &mut self.parameters[index];
        match parameter.spare.pop() {
            Some(buffer) => Ok(buffer),
            None => self.kolo.alloc(parameter.spec.count()),
        }
    }
}

impl<O: fmt::Debug, B: Tensor> fmt::Debug for DistributedOptimizer<O, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DistributedOptimizer")
            .field("optimizer", &self.optimizer)
            .field("options", &self.options)
            .field("parameters", &self.parameters.len())
            .field("steps", &self.steps)
            .finish_non_exhaustive()
    }
}
