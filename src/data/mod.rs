//! Which rank sees which samples.
//!
//! ```
//! use kolo::data::ShardedSampler;
//!
//! // Rank 0 of 2, 10 samples, batches of up to 4 a rank: one global batch of 8, one of 2.
//! let mut sampler = ShardedSampler::new(10, 0, 2)?.with_seed(42);
//! for epoch in 0..3 {
//!     sampler.set_epoch(epoch);
//!     for batch in sampler.batches(4)? {
//!         // Load `batch.indices()`, average their gradients, multiply by `batch.weight()`, allreduce with Average.
//!         assert_eq!(batch.weight(), 1.0);
//!     }
//! }
//! # Ok::<(), kolo::Error>(())
//! ```

mod random;
mod sampler;

pub use sampler::{Batch, Batches, ShardedSampler};
