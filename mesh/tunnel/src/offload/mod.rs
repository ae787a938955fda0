//! Super-packets: what the kernel would have cut into packets, cut here, and packets of one flow put
//! together for the kernel. Both are free of I/O.
//!
//! ```text
//! TUN --one read: headers + up to 64 KB--> Segments: packets, one by one, to be sealed
//! packets of peers --> Coalescer: runs of one flow --one write: headers + up to 64 KB--> TUN
//! ```
//!
//! Both do what the kernel does with its own packets (`tcp_gso_segment`, `__udp_gso_segment`,
//! `tcp_gro_receive`, `udp_gro_receive`), and what one puts together the kernel's other takes apart
//! into the very same packets.

mod checksum;
mod coalesce;
mod fields;
mod segment;
mod settings;
mod virtio;

pub use checksum::Sum;
pub(crate) use coalesce::MAX_PACKETS;
pub use coalesce::{Coalescer, Frame};
pub use segment::{MAX_SEGMENTS, Segments};
pub use settings::Offloads;
pub use virtio::{Offload, PartialChecksum, Split, SplitKind, VIRTIO_HEADER_LEN};
