//! The pure core of Warren: what every program of it must agree on, without I/O.
//!
//! Job: believe or refuse nodes ([`node`], [`kubernetes`], [`reject`]), plan this node's network from them
//! ([`mod@plan`], [`planner`]), tell what must change ([`state`], [`mod@diff`]), find the owner of an
//! address ([`allowed_ips`]), read and write the texts that the programs exchange ([`uapi`],
//! [`status`], [`files`], [`peer_path`]), and say why a pair of nodes suffers ([`degraded`]).
//!
//! It refuses to do I/O, to read a clock, or to know of tokio, Kubernetes or netlink: time and
//! input are handed in, so that the real loops, the tests and a simulator drive the same code.
//!
//! ```text
//! NodeView --parse--> NodeRecord --plan--> DesiredState --diff(observed)--> [Change]
//!              \--> NodeReject (shown)  /
//!                                conflicts, incumbents
//! ```

#![forbid(unsafe_code)]

pub mod allowed_ips;
mod claims;
mod conflict;
pub mod consts;
pub mod degraded;
pub mod diff;
pub mod endpoint;
pub mod files;
pub mod follow;
pub mod kubernetes;
pub mod mtu;
pub mod node;
pub mod peer_path;
pub mod plan;
pub mod planner;
pub mod reject;
pub mod state;
pub mod status;
pub mod uapi;

pub use allowed_ips::AllowedIps;
pub use diff::{Removals, diff};
pub use endpoint::Endpoints;
pub use follow::PlanPart;
pub use node::{MeshRanges, NodeName, NodeRecord, NodeUid, NodeView};
pub use plan::{KeyChange, LocalNode, Pinning, Plan, PlanInput, Settings, plan};
pub use planner::{Planner, RegistryEvent};
pub use reject::{NodeNotice, NodeReject};
pub use state::{Change, DesiredState, ObservedState};
