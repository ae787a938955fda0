//! A mesh of Warren's real programs on the hosts of a lab, for tests and the demo.
//!
//! ```text
//!   node1            node2             node4 ...
//!   192.0.2.1        192.0.2.2         192.0.2.4
//!      |             2001:db8:a::2     2001:db8:a::4
//!      |                |                 |
//!   ===+================+=================+======= lan-a
//!                       |
//!                 192.0.2.254, 2001:db8:a::ff
//!                     router
//!                 198.51.100.254, 2001:db8:b::ff
//!                       |
//!   ====================+========= lan-b
//!                       |
//!                    node3
//!                    198.51.100.3
//!                    2001:db8:b::3
//! ```
//!
//! Node1 has no IPv6 address, so its pairs use IPv4; node2 and node3 prefer IPv6 and use it between
//! them. Pods of node N have addresses in 10.244.N.0/24 and fd00:244:0:N::/64.
//!
//! What it refuses to do: stand in for any part of Warren. Each node runs `warren-tunnel` and
//! `warren-agent`, and pods are attached by `warren-cni` with the configuration that the agent
//! wrote, as a container runtime does it.

mod marked;
mod mesh;
mod node;
mod pod;
mod traffic;
mod underlay;
mod wall_clock;

pub use marked::{marked_packets, send_marked, stream_marked};
pub use mesh::{CLUSTER_V4, CLUSTER_V6, Mesh};
pub use node::Node;
pub use pod::MeshPod;
pub use traffic::{MARKER, Ping, Probe, ProbeResult, Transfer, ping, ping_each, transfer};
pub use underlay::{
    assert_captured, assert_check_can_fail, reason, wait_back, wait_degraded, wait_well,
};
pub use wall_clock::WallClock;
