//! Several shards of one device: each a thread with its own sockets, TUN queue, engine and peers.
//!
//! ```text
//!              UDP: by the receiver index (steer.rs)          TUN: by the destination (tun/steering.rs)
//!                  |              |                               |             |
//!               shard 0        shard 1                         shard 0       shard 1
//!             initiations, its peers      its peers                |<-- rings -->|
//! ```
//!
//! Every engine carries out every request, so that all of them know all peers and all allowed IPs, and
//! all agree on the shard of each peer without a word (`shards/place.rs`). Sessions and all else a peer
//! has are in its own shard only. What comes to another one is handed over by a ring (`shards/ring.rs`); one
//! flow always takes the same way, so that its packets never overtake each other.

mod affinity;
mod place;
pub(crate) mod ring;

pub(crate) use affinity::pin;
pub use place::{MAX_SHARDS, Place, ShardId};
pub(crate) use place::{TOP_BYTE_MASK, TOP_BYTE_SHIFT, choose};
