//! Stochastic gradient descent.

use super::{Optimizer, Real};
use crate::{Error, Result};

/// The settings of [`Sgd`]. The default is plain descent at a rate of 0.01.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SgdOptions {
    /// Length of a step against the gradient; at least 0.
    pub learning_rate: f64,
    /// Share of the previous direction that is kept; at least 0, and 0 for none.
    pub momentum: f64,
    /// Share of the gradient that does not enter the momentum; 0 for none.
    pub dampening: f64,
    /// Looks ahead along the momentum. Needs a momentum, and no dampening.
    pub nesterov: bool,
    /// Factor of the parameter that is added to its gradient (L2 penalty); at least 0.
    pub weight_decay: f64,
}

impl Default for SgdOptions {
    fn default() -> Self {
        Self { learning_rate: 0.01, momentum: 0.0, dampening: 0.0, nesterov: false, weight_decay: 0.0 }
    }
}

/// Stochastic gradient descent with momentum, Nesterov's look-ahead and weight decay.
///
/// The formulas are those of `torch.optim.SGD` (PyTorch's manual, "SGD"), whose momentum follows Sutskever, Martens, Dahl
/// and Hinton, "On the importance of initialization and momentum in deep learning", 2013. For parameter p, gradient g,
/// rate r, momentum m, dampening d, decay w and momentum buffer b:
///
/// ```text
/// g <- g + w p                              with weight decay
/// b <- g in the first step, else m b + (1 - d) g     with momentum
/// g <- g + m b if nesterov, else b          with momentum
/// p <- p - r g
/// ```
///
/// Settings are rounded to `T` once an update; each operation then rounds once to `T`, element by element, so that equal
/// gradients give equal bits on every rank.
///
/// ```
/// use kolo::optim::{Optimizer, Sgd, SgdOptions};
///
/// let mut sgd = Sgd::new(SgdOptions { learning_rate: 0.5, momentum: 0.5, ..SgdOptions::default() })?;
/// let mut weight = [1.0_f32];
/// sgd.update(0, "weight", &mut weight, &[1.0])?;
/// assert_eq!(weight, [0.5]);
/// sgd.update(0, "weight", &mut weight, &[0.0])?; // the momentum carries on
/// assert_eq!(weight, [0.25]);
/// # Ok::<(), kolo::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Sgd<T> {
    options: SgdOptions,
    /// One a parameter, by index; empty before its first update.
    momentum: Vec<Vec<T>>,
}

impl<T: Real> Sgd<T> {
    /// A rule without history.
    ///
    /// # Errors
    /// [`Error::Argument`] for a setting out of its range.
    pub fn new(options: SgdOptions) -> Result<Self> {
        for (setting, value) in [
            ("learning_rate", options.learning_rate),
            ("momentum", options.momentum),
            ("weight_decay", options.weight_decay),
        ] {
            if !(value.is_finite() && value >= 0.0) {
                return Err(Error::argument(format!("SGD: {setting} is {value}; it must be 0 or more, and finite")));
            }
        }
        if !options.dampening.is_finite() {
            return Err(Error::argument(format!("SGD: dampening is {}; it must be finite", options.dampening)));
        }
        if options.nesterov && (options.momentum == 0.0 || options.dampening != 0.0) {
            return Err(Error::argument(format!(
                "SGD: nesterov with momentum {} and dampening {}; it needs a momentum above 0 and no dampening",
                options.momentum, options.dampening
            )));
        }
        Ok(Self { options, momentum: Vec::new() })
    }

    /// The settings in force.
    #[must_use]
    pub fn options(&self) -> &SgdOptions {
        &self.options
    }

    /// The momentum of parameter `index`; none before its first update, or without momentum.
    ///
    /// With [`set_momentum_buffer`](Self::set_momentum_buffer), what a checkpoint keeps besides the parameters.
    #[must_use]
    pub fn momentum_buffer(&self, index: usize) -> Option<&[T]> {
        self.momentum.get(index).filter(|buffer| !buffer.is_empty()).map(Vec::as_slice)
    }

    /// Sets the momentum of parameter `index`, as read from a checkpoint. Every rank must set the same.
    pub fn set_momentum_buffer(&mut self, index: usize, buffer: Vec<T>) {
        self.buffer(index).clone_from(&buffer);
    }

    fn buffer(&mut self, index: usize) -> &mut Vec<T> {
        if self.momentum.len() <= index {
            self.momentum.resize_with(index + 1, Vec::new);
        }
        &mut self.momentum[index]
    }
}

impl<T: Real> Optimizer<T> for Sgd<T> {
    fn update(&mut self, index: usize, name: &str, values: &mut [T], gradient: &[T]) -> Result<()> {
        let SgdOptions { learning_rate, momentum, dampening, nesterov, weight_decay } = self.options;
        let count = values.len();
        if gradient.len() != count {
            return Err(Error::argument(format!(
                "SGD: '{name}' has {count} values, its gradient {}; they must have the same shape",
                gradient.len()
            )));
        }
        let rate = T::from_f64(learning_rate);
        let decay = T::from_f64(weight_decay);
        let decayed = |value: T, gradient: T| if weight_decay == 0.0 { gradient } else { gradient + decay * value };
        if momentum == 0.0 {
            for (value, &gradient) in values.iter_mut().zip(gradient) {
                *value = *value - rate * decayed(*value, gradient);
            }
            return Ok(());
        }

        let buffer = self.buffer(index);
        let first = buffer.is_empty();
        if first {
            buffer.resize(count, T::default());
        } else if buffer.len() != count {
            return Err(Error::argument(format!(
                "SGD: '{name}' has {count} values, but its momentum {}; give each parameter an index of its own, and \
                 start a new optimizer when the model's shapes change",
                buffer.len()
            )));
        }
        let keep = T::from_f64(momentum);
        let fresh = T::from_f64(1.0 - dampening);
        for ((value, &gradient), velocity) in values.iter_mut().zip(gradient).zip(buffer) {
            let gradient = decayed(*value, gradient);
            *velocity = if first { gradient } else { keep * *velocity + fresh * gradient };
            let direction = if nesterov { gradient + keep * *velocity } else { *velocity };
            *value = *value - rate * direction;
        }
        Ok(())
    }

    fn learning_rate(&self) -> f64 {
        self.options.learning_rate
    }

    fn set_learning_rate(&mut self, rate: f64) {
        self.options.learning_rate = rate;
    }

    fn describe(&self) -> String {
        let SgdOptions { learning_rate, momentum, dampening, nesterov, weight_decay } = self.options;
        format!(
            "SGD with learning_rate {learning_rate}, momentum {momentum}, dampening {dampening}, nesterov {nesterov}, \
             weight_decay {weight_decay}"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sgd<T: Real>(options: SgdOptions) -> Sgd<T> {
        Sgd::new(options).expect("settings in range")
    }

    /// Values of one parameter after each of the given gradients.
    fn path(options: SgdOptions, start: f64, gradients: &[f64]) -> Vec<f64> {
        let mut sgd = sgd::<f64>(options);
        let mut value = [start];
        let step = |gradient: &f64| {
            sgd.update(0, "p", &mut value, &[*gradient]).expect("an update");
            value[0]
        };
        gradients.iter().map(step).collect()
    }

    #[test]
    fn plain_descent_subtracts_rate_times_gradient() {
        let options = SgdOptions { learning_rate: 0.25, ..SgdOptions::default() };
        assert_eq!(path(options, 1.0, &[2.0, -4.0, 0.0]), [0.5, 1.5, 1.5]);
    }

    #[test]
    fn weight_decay_on_a_zero_gradient_shrinks_geometrically() {
        // p (1 - r w)^k with r w = 1/4, exact in binary.
        let options = SgdOptions { learning_rate: 0.5, weight_decay: 0.5, ..SgdOptions::default() };
        assert_eq!(path(options, 1.0, &[0.0; 3]), [0.75, 0.75 * 0.75, 0.75 * 0.75 * 0.75]);
    }

    #[test]
    fn momentum_under_a_constant_gradient_follows_its_closed_form() {
        // b_k = (1 - m^k) / (1 - m), p_k = p_0 - r sum of b.
        let (rate, momentum) = (0.1, 0.9_f64);
        let options = SgdOptions { learning_rate: rate, momentum, ..SgdOptions::default() };
        let mut expected = 3.0;
        for (k, value) in (1..).zip(path(options, 3.0, &[1.0; 40])) {
            expected -= rate * (1.0 - momentum.powi(k)) / (1.0 - momentum);
            assert!((value - expected).abs() < 1e-12, "step {k}: {value} instead of {expected}");
        }
    }

    #[test]
    fn dampening_spares_the_first_step() {
        // b: 1, then 0.5 * 1 + 0.25 * 1 = 0.75, then 0.5 * 0.75 + 0.25 = 0.625.
        let options = SgdOptions { learning_rate: 1.0, momentum: 0.5, dampening: 0.75, ..SgdOptions::default() };
        assert_eq!(path(options, 0.0, &[1.0; 3]), [-1.0, -1.75, -2.375]);
    }

    #[test]
    fn nesterov_looks_ahead() {
        // b: 1, 1.5, 1.75; direction g + b / 2: 1.5, 1.75, 1.875.
        let options = SgdOptions { learning_rate: 1.0, momentum: 0.5, nesterov: true, ..SgdOptions::default() };
        assert_eq!(path(options, 0.0, &[1.0; 3]), [-1.5, -3.25, -5.125]);
    }

    #[test]
    fn decay_nesterov_and_momentum_together_by_hand() {
        // p 1, g 1: g' = 1.5, b = 1.5, direction 1.5 + 0.75 = 2.25, p = -0.125 (r = 0.5).
        // g 0: g' = -0.0625, b = 0.75 - 0.0625 = 0.6875, direction -0.0625 + 0.34375 = 0.28125, p = -0.265625.
        let options = SgdOptions {
            learning_rate: 0.5,
            momentum: 0.5,
            nesterov: true,
            weight_decay: 0.5,
            ..SgdOptions::default()
        };
        assert_eq!(path(options, 1.0, &[1.0, 0.0]), [-0.125, -0.265625]);
    }

    #[test]
    fn each_parameter_has_its_own_momentum_in_either_precision() {
        let options = SgdOptions { learning_rate: 1.0, momentum: 0.5, ..SgdOptions::default() };
        let mut sgd = sgd::<f32>(options);
        let (mut a, mut b) = ([0.0_f32; 2], [0.0_f32; 3]);
        sgd.update(2, "b", &mut b, &[4.0; 3]).expect("b");
        sgd.update(0, "a", &mut a, &[1.0; 2]).expect("a");
        sgd.update(2, "b", &mut b, &[0.0; 3]).expect("b");
        assert_eq!((a, b), ([-1.0; 2], [-6.0; 3]));
        assert_eq!(sgd.momentum_buffer(0), Some(&[1.0_f32; 2][..]));
        assert_eq!(sgd.momentum_buffer(1), None);
        assert_eq!(sgd.momentum_buffer(2), Some(&[2.0_f32; 3][..]));
    }

    #[test]
    fn a_restored_momentum_goes_on_where_it_was() {
        let options = SgdOptions { learning_rate: 0.1, momentum: 0.9, ..SgdOptions::default() };
        let mut whole = sgd::<f64>(options);
        let (mut expected, mut value) = ([1.0], [1.0]);
        whole.update(0, "p", &mut expected, &[0.3]).expect("an update");
        value.copy_from_slice(&expected);
        let mut restored = sgd::<f64>(options);
        restored.set_momentum_buffer(0, whole.momentum_buffer(0).expect("a momentum").to_vec());
        whole.update(0, "p", &mut expected, &[0.7]).expect("an update");
        restored.update(0, "p", &mut value, &[0.7]).expect("an update");
        assert_eq!(value, expected);
    }

    #[test]
    fn the_rate_can_change_between_updates() {
        let mut sgd = sgd::<f32>(SgdOptions { learning_rate: 1.0, ..SgdOptions::default() });
        let mut value = [0.0_f32];
        sgd.update(0, "p", &mut value, &[1.0]).expect("an update");
        sgd.set_learning_rate(0.25);
        assert_eq!(sgd.learning_rate(), 0.25);
        sgd.update(0, "p", &mut value, &[1.0]).expect("an update");
        assert_eq!(value, [-1.25]);
    }

    #[test]
    fn settings_out_of_range_are_refused_by_name() {
        let refused = |options: SgdOptions| Sgd::<f32>::new(options).expect_err("refused").to_string();
        let plain = SgdOptions::default();
        assert!(refused(SgdOptions { learning_rate: -0.1, ..plain }).contains("learning_rate is -0.1"));
        assert!(refused(SgdOptions { momentum: f64::NAN, ..plain }).contains("momentum is NaN"));
        assert!(refused(SgdOptions { weight_decay: f64::INFINITY, ..plain }).contains("weight_decay is inf"));
        assert!(refused(SgdOptions { nesterov: true, ..plain }).contains("needs a momentum"));
        let damped = SgdOptions { nesterov: true, momentum: 0.9, dampening: 0.1, ..plain };
        assert!(refused(damped).contains("no dampening"));
    }

    #[test]
    fn a_gradient_of_another_length_changes_nothing() {
        let mut sgd = sgd::<f32>(SgdOptions { momentum: 0.9, ..SgdOptions::default() });
        let mut value = [1.0_f32; 2];
        let error = sgd.update(0, "conv1.weight", &mut value, &[1.0]).expect_err("refused").to_string();
        assert!(error.contains("'conv1.weight' has 2 values, its gradient 1"), "{error}");
        sgd.update(0, "conv1.weight", &mut value, &[0.0; 2]).expect("an update");
        let error = sgd.update(0, "other", &mut [0.0; 3], &[0.0; 3]).expect_err("refused").to_string();
        assert!(error.contains("'other' has 3 values, but its momentum 2"), "{error}");
        assert_eq!(value, [1.0; 2]);
    }
}
