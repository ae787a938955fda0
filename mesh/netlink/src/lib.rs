//! Typed calls to the kernel's network configuration, as far as Warren needs them.
//!
//! [`Netlink`] is one rtnetlink connection, bound to the network namespace it was opened in: links,
//! addresses, routes, rules and neighbours are read and changed through it ([`SyncNetlink`] is its
//! like for a program without a runtime), [`EventStream`] tells
//! when someone changed them. [`Netns`] names a namespace and runs code inside it, [`sysctl`] reads
//! and writes `/proc/sys`, [`wireguard`] drives the kernel's own WireGuard, [`protection`] reads back
//! which of our nftables rules are loaded, and a [`Guard`] is a small table that nobody else can
//! flush.
//!
//! What it refuses to do: it keeps no state and no cache, for the kernel is the only truth; it
//! decides nothing; it starts no process; and it never moves the calling thread into another
//! namespace.

mod addresses;
mod connection;
mod error;
mod events;
mod guard;
mod links;
mod neighbours;
mod netns;
mod nfnetlink;
pub mod protection;
mod route_lookup;
mod routes;
mod rules;
mod socket;
mod sync;
pub mod sysctl;
pub mod wireguard;

pub use addresses::Address;
pub use connection::Netlink;
pub use error::NetlinkError;
pub use events::{EventStream, NetEvent};
pub use guard::{Guard, GuardSpec, change_peer_sets};
pub use links::{Link, VethPeer, VethSpec};
pub use neighbours::Neighbour;
pub use netns::Netns;
pub use route_lookup::{RouteLookup, RouteLookupOptions};
pub use routes::{Family, Route, RouteKind};
pub use rules::Rule;
pub use sync::{Batch, SyncNetlink};
