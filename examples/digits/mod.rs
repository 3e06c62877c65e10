//! The parts of example 03: the data, the network, and training it.

pub(crate) mod arguments;
pub(crate) mod dataset;
pub(crate) mod kernels;
pub(crate) mod network;
pub(crate) mod progress;
pub(crate) mod reference;
pub(crate) mod training;
