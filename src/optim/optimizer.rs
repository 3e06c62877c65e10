//! What kolo asks of an optimizer.

use super::Real;
use crate::Result;

/// A rule that turns a gradient into an update of a parameter.
///
/// [`Sgd`](super::Sgd) is one. To use a framework's own, implement this trait for a wrapper around it: the index and the
/// name identify the parameter, so that state which the rule keeps for each (a momentum, a moment) is found again.
///
/// ```
/// use kolo::optim::Optimizer;
///
/// /// Follows only the sign of the gradient.
/// struct SignSgd {
///     rate: f64,
/// }
///
/// impl Optimizer<f32> for SignSgd {
///     fn update(&mut self, _: usize, _: &str, values: &mut [f32], gradient: &[f32]) -> kolo::Result<()> {
///         for (value, gradient) in values.iter_mut().zip(gradient) {
///             *value -= self.rate as f32 * gradient.signum();
///         }
///         Ok(())
///     }
///
///     fn learning_rate(&self) -> f64 {
///         self.rate
///     }
///
///     fn set_learning_rate(&mut self, rate: f64) {
///         self.rate = rate;
///     }
/// }
///
/// let mut weights = [1.0, -2.0];
/// SignSgd { rate: 0.5 }.update(0, "weights", &mut weights, &[0.1, -3.0])?;
/// assert_eq!(weights, [0.5, -1.5]);
/// # Ok::<(), kolo::Error>(())
/// ```
///
/// An update must depend on nothing but its arguments and the state of earlier updates: then ranks that start equal and
/// get equal gradients stay equal, to the bit.
pub trait Optimizer<T: Real> {
    /// Updates parameter number `index`, called `name`, in place. `gradient` has the length of `values`.
    ///
    /// Called once a step for each parameter, in the order in which they were declared.
    ///
    /// # Errors
    /// Whatever keeps the rule from updating. The step ends there: parameters before this one are updated, this one
    /// and those after are not.
    fn update(&mut self, index: usize, name: &str, values: &mut [T], gradient: &[T]) -> Result<()>;

    /// The learning rate of the next update.
    fn learning_rate(&self) -> f64;

    /// Sets the learning rate from the next update on. Every rank must set the same.
    fn set_learning_rate(&mut self, rate: f64);

    /// The rule and its settings in a few words, the same on every rank that computes the same: ranks compare it before
    /// they train together. Empty by default, which compares nothing.
    fn describe(&self) -> String {
        String::new()
    }
}

impl<T: Real, O: Optimizer<T> + ?Sized> Optimizer<T> for Box<O> {
    fn update(&mut self, index: usize, name: &str, values: &mut [T], gradient: &[T]) -> Result<()> {
        (**self).update(index, name, values, gradient)
    }

    fn learning_rate(&self) -> f64 {
        (**self).learning_rate()
    }

    fn set_learning_rate(&mut self, rate: f64) {
        (**self).set_learning_rate(rate);
    }

    fn describe(&self) -> String {
        (**self).describe()
    }
}
