//! Warren in a simulated cluster: the agent's reconcile, the planner and the tunnel's engine that
//! ship, on machines, a registry and a network of the simulator's own, by one seeded clock.
//!
//! ```text
//!   scenario ---- acts ----> World: registry, network, clock, chance
//!                             |  events (lost, twice, late, out of order), datagrams
//!                             v
//!   Oracle <-- told too --- Agent: the Reconciler, Pace and RepairPace that ship
//!     |                       |  Host, DataPlane, Store, NodeRegistry
//!     | who must own what     v
//!     +----------------> Machine: kernel, device (the engine that ships, or its AllowedIPs), disk
//!     |                     each step is checked as it is done
//!     +----------------> verdict, at rest: each pair's packet delivered, or the reason of its drop
//! ```
//!
//! Job: to find, by chance and again by its seed, what the tests of single steps do not. It refuses
//! to use threads, sockets, files or the machine's clock in a scenario; one seed is one story.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)] // a harness of tests

pub mod agent;
pub mod cli;
pub mod device;
pub mod entry;
pub mod kernel;
pub mod machine;
pub mod mutation;
pub mod oracle;
mod packets;
mod peers;
pub mod port;
pub mod random;
mod registry;
pub mod scenario;
pub mod shelf;
pub mod trace;
pub mod upkeep;
mod verdict;
pub mod world;

pub use mutation::Mutation;
pub use scenario::{Failure, Outcome, play};
pub use verdict::Census;
pub use world::Setup;
