//! How gradients are reduced, and the time that takes.

use std::time::Duration;

use super::{ParameterSpec, agreement};
use crate::{Element, Error, ReduceOp, Result};

/// How a [`DistributedOptimizer`](super::DistributedOptimizer) reduces gradients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DistributedOptions {
    /// [`ReduceOp::Average`] (the default) or [`ReduceOp::Sum`].
    pub op: ReduceOp,
    /// Gradients of each parameter that are added locally before they are reduced; at least 1, the default.
    pub backward_passes_per_step: usize,
    /// Opens the names of the gradients on the wire, `gradient` by default. Two optimizers that are used at the same time
    /// need different ones.
    pub prefix: String,
    /// What a missing gradient means. An error by default.
    pub missing: MissingGradients,
}

impl Default for DistributedOptions {
    fn default() -> Self {
        Self {
            op: ReduceOp::Average,
            backward_passes_per_step: 1,
            prefix: "gradient".to_owned(),
            missing: MissingGradients::Error,
        }
    }
}

/// What [`DistributedOptimizer::step`](super::DistributedOptimizer::step) does about a parameter that got no gradient, or too few passes of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MissingGradients {
    /// The step fails on every rank with an error that says which rank lacks what; nothing is updated.
    #[default]
    Error,
    /// The gradient counts as zero, or as the sum of the passes there are: for models that do not use every parameter
    /// in every pass.
    Zero,
}

/// Time that a rank spent on communication instead of computing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CommunicationTime {
    /// Handing gradients over while backward ran.
    pub hand_over: Duration,
    /// Waiting for reduced gradients, which includes waiting for slower ranks.
    pub wait: Duration,
}

impl CommunicationTime {
    /// Both together.
    #[must_use]
    pub fn total(&self) -> Duration {
        self.hand_over + self.wait
    }
}

impl DistributedOptions {
    /// Refuses what cannot work.
    pub(crate) fn check(&self) -> Result<()> {
        if !matches!(self.op, ReduceOp::Average | ReduceOp::Sum) {
            return Err(Error::argument(format!("gradients cannot be reduced by {}; choose average or sum", self.op)));
        }
        if self.backward_passes_per_step == 0 {
            return Err(Error::argument("backward_passes_per_step is 0; it must be at least 1"));
        }
        Ok(())
    }

    /// The lines by which ranks compare their models. `rule` is the optimizer's own description.
    pub(crate) fn view<T: Element>(&self, rule: &str, specs: &[ParameterSpec]) -> Vec<String> {
        let Self { op, backward_passes_per_step: passes, missing, .. } = self;
        let settings = format!("{op} of {passes} pass(es) a step, missing gradients are {missing:?}; {rule}");
        let line = |spec: &ParameterSpec| agreement::parameter_line(spec.name(), T::DTYPE, spec.shape());
        std::iter::once(settings.replace('\n', " ")).chain(specs.iter().map(line)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_view_shows_settings_then_parameters() {
        let specs = [ParameterSpec::new("a", [2, 3]), ParameterSpec::new("b", [])];
        let lines = DistributedOptions::default().view::<f64>("a\nrule", &specs);
        assert_eq!(lines[0], "average of 1 pass(es) a step, missing gradients are Error; a rule");
        assert_eq!(lines[1..], ["\"a\" f64 [2, 3]", "\"b\" f64 []"]);
    }

    #[test]
    fn options_that_cannot_work_are_refused() {
        let options = DistributedOptions { op: ReduceOp::Min, ..DistributedOptions::default() };
        assert!(options.check().expect_err("min").to_string().contains("choose average or sum"));
        let options = DistributedOptions { backward_passes_per_step: 0, ..DistributedOptions::default() };
        assert!(options.check().expect_err("no pass").to_string().contains("at least 1"));
    }
}
