//! Warren on machines with kernels of their own: virtual machines of Debian 12 on a private network.
//!
//! ```text
//!   node1                    node2                    node3
//!   192.168.56.11            192.168.56.12            192.168.56.13
//!   fd00:56::11              fd00:56::12              fd00:56::13
//!     |                        |                        |
//!   ==+========================+========================+== private network: a switch of a lab
//! ```
//!
//! Pods of node N have addresses in 10.244.(32 N).0/19 and fd00:244:0:N::/64. The machines' disk is made by
//! `tests/vm/prepare`; the scripts in `tests/vm/provision`, which the Vagrantfile uses too, make a machine a node.
//!
//! What it refuses to do: reach into a machine by other ways than a user has, which are ssh, the cable and the plug.
//! Its main types are [`Cluster`] and [`Machine`].

mod cluster;
mod machine;
mod payload;
mod places;
mod pod;
mod settings;
mod ssh;

pub use cluster::Cluster;
pub use machine::Machine;
pub use payload::Version;
pub use places::skip_reason;
pub use pod::{Pod, ping, ping_all};
pub use settings::{Family, Settings};

/// A result whose error names what was done.
pub type Result<T = ()> = anyhow::Result<T>;

/// What the payload of every transfer is sprinkled with, and what no packet on the private network may hold.
pub const MARKER: &str = "warren-clear-text-marker-7c1f";
