//! What the device tells of its peers that UAPI has no words for.

use std::net::SocketAddr;
use std::time::Instant;

use warren_core::peer_path::PeerPath;

use super::Engine;

impl Engine {
    /// Returns the way to each peer of which there is something to tell, in the order of their
    /// keys. `complete` adds what only the sockets know, by the peer's endpoint.
    pub fn peer_paths(
        &self,
        now: Instant,
        complete: impl Fn(SocketAddr, &mut PeerPath),
    ) -> Vec<PeerPath> {
        let peers = self.by_key.values();
        let paths = peers.filter_map(|id| {
            let peer = self.peers[id.slot()].as_ref()?;
            let mut path = PeerPath::new(peer.public_key);
            if let Some(session) = &peer.session {
                session.notes().report(now, &mut path);
            }
            path.path_mtu_bytes = peer.probe.limit(now);
            path.dropped = peer.dropped.as_ref().and_then(|notes| notes.report(now));
            if let Some(endpoint) = peer.endpoint {
                complete(endpoint, &mut path);
            }
            (!path.is_empty()).then_some(path)
        });
        paths.collect()
    }
}
