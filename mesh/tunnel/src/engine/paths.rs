//! The ways to peers: asked by the engine, answered by whoever has sockets.

use std::net::SocketAddr;

use super::{Engine, PeerId};
use crate::peer::OnePiece;
use crate::source::Source;
use crate::time::Now;

/// How many peers there may be on the way to a peer, each reached through the next.
const MOST_PEERS_BETWEEN: usize = 8;

/// The question how large a datagram to an endpoint may be; asked by the engine, answered by
/// whoever has a socket.
#[derive(Clone, Copy, Debug)]
pub struct PathQuery {
    peer: PeerId,
    /// Where to.
    pub endpoint: SocketAddr,
    /// The address of ours that the peer speaks to, and the link that its datagrams come by.
    pub source: Option<Source>,
}

/// By what the way to an endpoint leaves this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WayOut {
    /// A link to the network.
    Network,
    /// Another tunnel.
    Tunnel,
    /// The very device whose peer it is.
    Device,
}

impl Engine {
    /// Returns the next peer whose path is to be measured, see [`Engine::handle_path_mtu`].
    pub fn poll_path_query(&mut self) -> Option<PathQuery> {
        while let Some(id) = self.path_queries.pop_front() {
            if let Some(Some(peer)) = self.peers.get(id.slot())
                && let Some(endpoint) = peer.endpoint
            {
                return Some(PathQuery {
                    peer: id,
                    endpoint,
                    source: peer.source,
                });
            }
        }
        None
    }

    /// Whether a peer's path is to be measured.
    pub fn has_path_queries(&self) -> bool {
        !self.path_queries.is_empty()
    }

    /// Takes the path's MTU in bytes, outer headers included: padding will not exceed it.
    pub fn handle_path_mtu(&mut self, now: Now, query: PathQuery, path_mtu_bytes: u32) {
        if let Some(Some(peer)) = self.peers.get_mut(query.peer.slot())
            && peer.endpoint == Some(query.endpoint)
        {
            peer.probe.set_ceiling(path_mtu_bytes);
            let limit = peer.probe.limit(now.monotonic);
            let arrives = limit.unwrap_or(path_mtu_bytes);
            peer.one_piece = OnePiece::new(query.endpoint, arrives, limit.is_some());
            let inner = warren_core::mtu::inner_mtu(arrives, query.endpoint.ip());
            peer.inner_mtu = inner as usize;
            peer.note_endpoint_good();
        }
    }

    /// Takes whether the way to the endpoint is by the link that the query's source came by. If so,
    /// the peer is answered from the address that it speaks to.
    pub fn handle_path_source(&mut self, query: PathQuery, good: bool) {
        if let Some(Some(peer)) = self.peers.get_mut(query.peer.slot())
            && peer.source == query.source
        {
            peer.note_source(good);
        }
    }

    /// Takes that the kernel refuses to send to this endpoint from the address of ours that its
    /// peer speaks to.
    pub fn handle_source_refused(&mut self, endpoint: SocketAddr) {
        for peer in self.peers.iter_mut().flatten() {
            if peer.endpoint == Some(endpoint) {
                peer.forget_source();
            }
        }
    }

    /// Asks anew for the ways to all peers that are answered from an address of their choice, or
    /// whose endpoint was within this device or another tunnel: our addresses or routes have changed.
    pub fn handle_routes_changed(&mut self) {
        for id in self.by_key.values() {
            let peer = self.peers[id.slot()].as_ref();
            if peer.is_some_and(|peer| {
                peer.source.is_some() || peer.endpoint_within || peer.endpoint_in_tunnel
            }) {
                self.path_queries.push_back(*id);
            }
        }
    }

    /// Takes that another mark of datagrams may lead them other ways: as in the kernel's WireGuard it is for
    /// the kernel to choose from which address, until a peer is heard again.
    pub(super) fn note_mark_changed(&mut self) {
        for id in self.by_key.values() {
            if let Some(peer) = &mut self.peers[id.slot()] {
                peer.forget_source();
                self.path_queries.push_back(*id);
            }
        }
    }

    /// Takes by what the way to the endpoint leads out. Of this very device it tells whether it may be gone
    /// all the same: where it leads on to another peer, whose own way does not come back. Else the peer is
    /// not followed there; if it was told to be there, nothing is sent to it until that or the routes change.
    pub fn handle_way(&mut self, now: Now, query: PathQuery, way: WayOut) -> bool {
        let through_device = way == WayOut::Device;
        let good = !through_device || self.leads_on(&query);
        if let Some(Some(peer)) = self.peers.get_mut(query.peer.slot())
            && peer.endpoint == Some(query.endpoint)
        {
            peer.endpoint_within = through_device;
            peer.endpoint_in_tunnel = way == WayOut::Tunnel;
            if !good {
                peer.note_endpoint_loops(now.monotonic);
            }
        }
        good
    }

    /// Whether what is sent to the endpoint through this device goes to another peer, maybe through more of
    /// them, and out to the network from the last one.
    fn leads_on(&self, query: &PathQuery) -> bool {
        let mut endpoint = query.endpoint;
        for _ in 0..MOST_PEERS_BETWEEN {
            let next = match self.allowed_ips.lookup(endpoint.ip()) {
                Some(id) if *id != query.peer => self.peers[id.slot()].as_ref(),
                _ => None,
            };
            // Of a peer of another shard it is not known where that is, so it may be in the circle.
            let Some((next, beyond)) = next.and_then(|peer| Some((peer, peer.endpoint?))) else {
                return false;
            };
            if !next.endpoint_within {
                return true;
            }
            endpoint = beyond;
        }
        false
    }
}
