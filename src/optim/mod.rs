//! Training: optimizers, and the wrapper that reduces gradients over the ranks while backward still computes.
//!
//! The six lines that make a training loop distributed:
//!
//! ```
//! use kolo::optim::{DistributedOptimizer, ParameterSpec, Sgd, SgdOptions, broadcast_parameters};
//!
//! let trained = kolo::threads(2, |kolo| -> kolo::Result<Vec<Vec<f32>>> {
//!     // A model: y = weight * x, and samples of y = 3 x, other ones on each rank.
//!     let mut parameters = vec![vec![kolo.rank() as f32]];
//!     let x = 1.0 + kolo.rank() as f32;
//!
//!     let specs = [ParameterSpec::new("weight", [1])];
//!     broadcast_parameters(kolo, specs.iter().map(ParameterSpec::name).zip(&mut parameters), 0)?;
//!     let sgd = Sgd::new(SgdOptions { learning_rate: 0.1, ..SgdOptions::default() })?;
//!     let mut optimizer: DistributedOptimizer<_> = DistributedOptimizer::new(kolo, sgd, specs)?;
//!
//!     for _ in 0..60 {
//!         let error = (parameters[0][0] - 3.0) * x; // backward, last layer first
//!         let mut gradient = optimizer.gradient_buffer("weight")?;
//!         gradient[0] = 2.0 * error * x;
//!         optimizer.gradient_ready("weight", gradient)?; // travels while backward goes on
//!         optimizer.step(&mut parameters)?;
//!     }
//!     Ok(parameters)
//! })?;
//! for rank in trained {
//!     assert!((rank?[0][0] - 3.0).abs() < 1e-4);
//! }
//! # Ok::<(), kolo::Error>(())
//! ```

mod agreement;
mod broadcast;
mod distributed;
mod metric;
mod missing;
mod optimizer;
mod options;
mod parameter;
mod pending;
mod real;
mod sgd;

pub use broadcast::broadcast_parameters;
pub use distributed::DistributedOptimizer;
pub use metric::{average_metric, average_weighted};
pub use optimizer::Optimizer;
pub use options::{CommunicationTime, DistributedOptions, MissingGradients};
pub use parameter::{ParameterKey, ParameterSpec};
pub use real::Real;
pub use sgd::{Sgd, SgdOptions};
