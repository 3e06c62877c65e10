//! Names and shapes of a model's parameters.

use std::collections::HashMap;

use crate::{Error, Result};

/// A parameter of a model as every rank must see it: its name and its shape.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParameterSpec {
    name: String,
    shape: Vec<usize>,
}

impl ParameterSpec {
    /// A parameter called `name`, unique in its model, of the given shape.
    ///
    /// ```
    /// let weight = kolo::optim::ParameterSpec::new("conv1.weight", [3, 3, 1, 16]);
    /// assert_eq!(weight.count(), 144);
    /// ```
    #[must_use]
    pub fn new(name: impl Into<String>, shape: impl Into<Vec<usize>>) -> Self {
        Self { name: name.into(), shape: shape.into() }
    }

    /// The name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The shape, outermost dimension first.
    #[must_use]
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Number of values: the product of the shape, 1 for a scalar.
    #[must_use]
    pub fn count(&self) -> usize {
        self.shape.iter().product()
    }
}

/// What says which parameter is meant: its index in the model, or its name.
pub trait ParameterKey: sealed::Sealed {}

impl ParameterKey for usize {}
impl ParameterKey for &str {}
impl ParameterKey for &String {}

mod sealed {
    use std::collections::HashMap;

    pub trait Sealed {
        /// The index of the parameter, where `names` has the index of each name.
        fn find(&self, names: &HashMap<String, usize>) -> crate::Result<usize>;
    }
}

impl sealed::Sealed for usize {
    fn find(&self, names: &HashMap<String, usize>) -> Result<usize> {
        let count = names.len();
        if *self < count {
            return Ok(*self);
        }
        Err(Error::argument(format!("there is no parameter {self}: the model has {count}, counted from 0")))
    }
}

impl sealed::Sealed for &str {
    fn find(&self, names: &HashMap<String, usize>) -> Result<usize> {
        names.get(*self).copied().ok_or_else(|| {
            let mut known: Vec<&str> = names.keys().map(String::as_str).collect();
            known.sort_unstable();
            let shown = known.len().min(8);
            let more = if shown < known.len() { ", ..." } else { "" };
            Error::argument(format!(
                "there is no parameter '{self}'; the model's {} are called {}{more}",
                known.len(),
                known[..shown].join(", ")
            ))
        })
    }
}

impl sealed::Sealed for &String {
    fn find(&self, names: &HashMap<String, usize>) -> Result<usize> {
        <&str as sealed::Sealed>::find(&self.as_str(), names)
    }
}

/// The index of each name.
pub(crate) struct Names(HashMap<String, usize>);

impl Names {
    /// The names of a model, or what is wrong with them.
    pub(crate) fn new(specs: &[ParameterSpec]) -> Result<Self> {
        let mut names = HashMap::with_capacity(specs.len());
        for (index, spec) in specs.iter().enumerate() {
            if spec.name.is_empty() {
                return Err(Error::argument(format!("parameter {index} has an empty name; give it one")));
            }
            if let Some(other) = names.insert(spec.name.clone(), index) {
                return Err(Error::argument(format!(
                    "parameters {other} and {index} are both called '{}'; give each a name of its own",
                    spec.name
                )));
            }
        }
        Ok(Self(names))
    }

    pub(crate) fn index(&self, key: &impl ParameterKey) -> Result<usize> {
        key.find(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(of: &[&str]) -> Result<Names> {
        let specs: Vec<ParameterSpec> = of.iter().map(|name| ParameterSpec::new(*name, [1])).collect();
        Names::new(&specs)
    }

    #[test]
    fn a_scalar_has_one_value_and_an_empty_shape_none() {
        assert_eq!(ParameterSpec::new("scale", []).count(), 1);
        assert_eq!(ParameterSpec::new("none", [3, 0]).count(), 0);
    }

    #[test]
    fn parameters_are_found_by_index_and_by_name() {
        let names = names(&["a", "b"]).expect("good names");
        assert_eq!(names.index(&1).expect("an index"), 1);
        assert_eq!(names.index(&"b").expect("a name"), 1);
        assert_eq!(names.index(&&String::from("a")).expect("a name"), 0);
    }

    #[test]
    fn an_unknown_parameter_is_answered_with_the_known_ones() {
        let names = names(&["conv", "dense"]).expect("good names");
        let error = names.index(&"dens").expect_err("unknown").to_string();
        assert!(error.contains("no parameter 'dens'") && error.contains("conv, dense"), "{error}");
        let error = names.index(&2).expect_err("unknown").to_string();
        assert!(error.contains("no parameter 2: the model has 2"), "{error}");
    }

    #[test]
    fn names_must_be_unique_and_not_empty() {
        let error = names(&["a", "b", "a"]).err().expect("twice").to_string();
        assert!(error.contains("parameters 0 and 2 are both called 'a'"), "{error}");
        let error = names(&["a", ""]).err().expect("empty").to_string();
        assert!(error.contains("parameter 1 has an empty name"), "{error}");
    }
}
