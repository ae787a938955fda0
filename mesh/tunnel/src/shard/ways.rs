//! The ways to peers, which the engine asks for and the kernel knows.

use std::net::SocketAddr;

use super::Shard;
use crate::engine::{PathQuery, WayOut};
use crate::route::{is_tunnel, outgoing_link};
use crate::source::Source;
use crate::time::Now;
use crate::udp::path_mtu;

/// How many peers' ways are asked for before it is the packets' turn: some 20 microseconds each.
const QUERIES_AT_ONCE: usize = 32;

impl Shard {
    /// Answers some of the engine's questions.
    pub(super) fn answer_path_queries(&mut self, now: Now) {
        for _ in 0..QUERIES_AT_ONCE {
            let Some(query) = self.engine.poll_path_query() else {
                return;
            };
            self.answer_path_query(now, query);
        }
    }

    fn answer_path_query(&mut self, now: Now, query: PathQuery) {
        if let Some(source) = query.source {
            let good = self.is_way_by(query.endpoint, source);
            self.engine.handle_path_source(query, good);
        }
        let way = self.way_out(query.endpoint);
        if self.engine.handle_way(now, query, way)
            && let Ok(path_mtu_bytes) = path_mtu(query.endpoint, self.udp.mark())
        {
            self.engine.handle_path_mtu(now, query, path_mtu_bytes);
        }
    }

    /// By what a datagram to the endpoint leaves.
    fn way_out(&self, endpoint: SocketAddr) -> WayOut {
        let own = self.tun.as_ref().and_then(|tun| tun.index().ok());
        match outgoing_link(endpoint, None, self.udp.mark()) {
            Ok(Some(link)) if Some(link) == own => WayOut::Device,
            Ok(Some(link)) if is_tunnel(link).unwrap_or(false) => WayOut::Tunnel,
            _ => WayOut::Network,
        }
    }

    /// Whether the way back to a peer, from the address of ours that it speaks to, is by the link
    /// that its datagrams come by. As in the kernel's WireGuard, only IPv4 is asked for it.
    fn is_way_by(&self, endpoint: SocketAddr, source: Source) -> bool {
        if endpoint.is_ipv6() {
            return true;
        }
        let way = outgoing_link(endpoint, Some(source.address), self.udp.mark());
        matches!(way, Ok(Some(link)) if link == source.link)
    }
}
