//! `warren-cni`: the CNI plugin of Warren.
//!
//! Job: attach a pod to the node and detach it, as the CNI specification has it, while the agent
//! may be down. Environment and stdin become a request ([`mod@env`], [`config`]), addresses are
//! reserved ([`ipam`]), what is to be made is planned ([`plan`]) and carried out with an undo
//! ([`attach`]), and the answer goes to stdout in the version asked for ([`result`]). CHECK compares
//! with the same plan what the kernel has ([`check`]).
//!
//! It refuses to make a pod on a node whose kernel does not hold Warren's filter and `unreachable`
//! routes ([`protect`]), to guess about damaged state, and to write anything but the answer to
//! stdout.

#![forbid(unsafe_code)]

mod add;
pub mod aliases;
pub mod args;
pub mod attach;
pub mod call;
pub mod check;
pub mod config;
mod del;
pub mod env;
pub mod error;
mod gc;
pub mod ipam;
mod logging;
pub mod plan;
pub mod protect;
pub mod result;
mod status;
pub mod version;

pub use call::{Answer, run};
pub use error::Error;
