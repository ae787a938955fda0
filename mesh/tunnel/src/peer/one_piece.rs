//! Which datagrams arrive in one piece.

use std::net::SocketAddr;

use warren_core::consts::{OVERHEAD_V4, OVERHEAD_V6};

use super::Context;
use crate::outbox::Way;
use crate::source::Endpoint;

/// Bytes of a data message that are not the inner packet's: its header and its tag.
const OVERHEAD_DATA: usize = 32;

/// Which datagrams arrive in one piece. Routers fragment IPv4; of IPv6 only the sender does, and the
/// kernel where a route or a "packet too big" tells it to. What the probes found it does not know.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OnePiece {
    largest: usize,
    tell_kernel: bool,
}

impl OnePiece {
    /// `arrives` bytes do, outer headers included; `found` by probes, else the kernel says so.
    pub(crate) fn new(endpoint: SocketAddr, arrives: u32, found: bool) -> Self {
        let headers = outer_overhead(endpoint) - OVERHEAD_DATA;
        Self {
            largest: (arrives as usize).saturating_sub(headers),
            tell_kernel: found && endpoint.is_ipv6(),
        }
    }

    pub(super) const UNKNOWN: Self = Self {
        largest: usize::MAX,
        tell_kernel: false,
    };

    /// Makes what was sealed a datagram.
    #[inline]
    pub(super) fn commit(
        self,
        ctx: &mut Context<'_>,
        len: usize,
        endpoint: Endpoint,
        hops: Option<u8>,
    ) {
        let fits = len <= self.largest;
        *ctx.fragmented += u64::from(!fits);
        let in_pieces = self.tell_kernel && !fits;
        let way = Way {
            endpoint,
            rides: fits,
            in_pieces,
            hops,
        };
        ctx.out.datagrams.commit(len, way);
    }
}

/// Bytes of an outer packet that are not the inner packet's.
pub(super) fn outer_overhead(endpoint: SocketAddr) -> usize {
    let overhead = if endpoint.is_ipv4() {
        OVERHEAD_V4
    } else {
        OVERHEAD_V6
    };
    overhead as usize
}
