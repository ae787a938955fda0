//! A node made by hand, pods' namespaces, and calls of CNI plugins in them, by the hundreds.
//!
//! Job: what the storm (tests/storm.rs) and the benchmark (src/bin/bench-cni.rs) share. The node has
//! all that `warren-cni` asks the kernel for, so that a call does all of its work; no daemon runs.

mod call;
mod node;
mod random;

pub use call::{Call, Outcome, Plugin};
pub use node::{Node, Pod, require_root};
pub use random::Random;
