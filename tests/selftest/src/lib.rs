//! What the kernel's own selftest of WireGuard tries, written anew: `warren-tunnel` is at one end and the
//! kernel's WireGuard at the other, and then the other way round.
//!
//! A [`Device`] is an interface of either [`Kind`] on a host of the lab, set by `wg` and `ip` alone. A [`Pair`]
//! is two hosts on a cable with one each. The scenarios are in `tests/selftest`, a file for each topic; they
//! are run by `make test-selftest` in a virtual machine, for the kernel must have WireGuard. A machine that
//! has it can run them itself.
//!
//! What it refuses to do: test one implementation alone, except where only one has what is tested.

mod device;
mod heard;
mod kind;
mod pair;
mod traffic;

pub use device::Device;
pub use heard::Heard;
pub use kind::{Kind, Roles, run};
pub use pair::{Outer, Pair, inner, other};
pub use traffic::{exchange, is_silent, ping, ping_many, say, serve, traffic};

/// A result whose error names what was done.
pub type Result<T = ()> = anyhow::Result<T>;
