//! The userspace WireGuard data plane of Warren.
//!
//! Job: move packets between a TUN device and WireGuard peers over UDP, under the control of the
//! standard UAPI socket, and keep working when nothing else of Warren does.
//!
//! It refuses to know of Kubernetes, to route anything that no peer has in its allowed IPs, and to
//! accept an inner packet whose source is not the sending peer's by the longest match.
//!
//! [`Engine`] is the device as a state machine without I/O: packets, datagrams, time and requests
//! in, an [`Outbox`] out. [`shard::Shard`] is the loop that gives it a TUN device and sockets, and
//! [`daemon`] puts the program of a node together, [`transient`] the drop-in for wireguard-go.

#[cfg(test)]
mod allocations;
pub mod clock;
pub mod control;
pub mod daemon;
mod drops;
mod engine;
mod gate;
mod inner;
mod key_pairs;
pub mod lock;
mod message;
mod nesting;
pub mod offload;
pub mod options;
mod outbox;
mod outcome;
mod pace;
mod path_notes;
mod path_probe;
mod peer;
mod queue;
mod random;
mod route;
pub mod saver;
mod schedule;
mod send_failures;
mod session;
pub mod shard;
pub mod shards;
mod share;
mod source;
pub mod spin;
pub mod state;
pub mod state_dir;
pub mod status_socket;
mod steer;
mod sys;
mod time;
pub mod transient;
pub mod tun;
mod uapi_lines;
pub mod uapi_server;
pub mod udp;
pub mod unix_socket;
mod unreachable;
mod wiped;
mod zone;

pub use drops::{DropReason, Drops};
pub use engine::{ApplyError, Counters, Engine, EngineConfig, PathQuery, WayOut};
pub use key_pairs::MessageLimits;
pub use outbox::Outbox;
pub use shards::{Place, ShardId};
pub use source::{Endpoint, Source};
pub use time::Now;
