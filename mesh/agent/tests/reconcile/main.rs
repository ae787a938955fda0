//! The reconcile against a world of state that changes are done to, as the kernel would.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod follow;
mod node;
mod plan;
mod report;
