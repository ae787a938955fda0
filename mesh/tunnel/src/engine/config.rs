//! What UAPI asks of the device: `set` and `get`.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use warren_core::uapi::{self, AllowedIpUpdate, PeerUpdate, SetRequest};
use warren_keyring::{PresharedKey, PrivateKey, PublicKey};

use super::{Engine, PeerId};
use crate::drops::DropReason;
use crate::peer::Peer;
use crate::session::{Identity, Session, SessionParts};
use crate::time::Now;

/// Why a request was refused. The device is then as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ApplyError {
    /// More peers than session indices allow.
    #[error("set: {peers} peers are more than the {most} that have session indices")]
    TooManyPeers {
        /// How many there would be at most.
        peers: usize,
        /// How many there may be.
        most: usize,
    },
}

impl Engine {
    /// Changes the device as `set` asks, wholly or not at all. `listen_port` and `fwmark` concern
    /// sockets and are told by [`Engine::set_listen`].
    ///
    /// As in the reference, a peer with the device's own key is passed over, and a prefix that is
    /// given to a peer moves there from whoever had it.
    ///
    /// # Errors
    /// [`ApplyError::TooManyPeers`]: the caller can only ask for fewer.
    pub fn apply(&mut self, now: Now, request: &SetRequest) -> Result<(), ApplyError> {
        let peers = self.by_key.len() + request.peers.len();
        // Random indices are found at once while most of them are free.
        let most = self.elsewhere.place().sessions() as usize / 2;
        if peers > most {
            return Err(ApplyError::TooManyPeers { peers, most });
        }
        self.elsewhere.note_request();
        if let Some(private_key) = &request.private_key {
            self.set_private_key(now.monotonic, private_key.clone());
        }
        if request.replace_peers {
            let keys: Vec<PublicKey> = self.by_key.keys().copied().collect();
            for key in keys {
                self.remove_peer(&key);
            }
        }
        for update in &request.peers {
            self.update_peer(now.monotonic, update);
        }
        if let Some(identity) = &mut self.identity {
            identity.gate.scale(self.by_key.len());
        }
        self.changed = true;
        Ok(())
    }

    /// Notes what the sockets have, for [`Engine::get`].
    pub fn set_listen(&mut self, listen_port: u16, fwmark: u32) {
        self.changed |= (self.listen_port, self.fwmark) != (listen_port, fwmark);
        if self.fwmark != fwmark {
            self.note_mark_changed();
        }
        self.listen_port = listen_port;
        self.fwmark = fwmark;
    }

    /// Returns the device as [`get_at`](Self::get_at), with handshakes in the wall clock's time when
    /// they happened.
    pub fn get(&self) -> uapi::Device {
        self.device(|handshake| handshake.unix)
    }

    /// Returns the device as `get` shows it, peers in the order of their keys. Handshakes are told in
    /// the wall clock's present time, so that their ages are right although it was set since.
    pub fn get_at(&self, now: Now) -> uapi::Device {
        self.device(|handshake| now.unix_at(handshake))
    }

    fn device(&self, handshake_time: impl Fn(&Now) -> Duration) -> uapi::Device {
        let mut allowed_ips = vec![Vec::new(); self.peers.len()];
        for (prefix, id) in self.allowed_ips.iter() {
            allowed_ips[id.slot()].push(prefix);
        }
        let peers = self
            .by_key
            .values()
            .filter_map(|id| {
                let peer = self.peers[id.slot()].as_ref()?;
                Some(uapi::Peer {
                    preshared_key: peer.preshared_key.clone(),
                    endpoint: peer.endpoint,
                    last_handshake: peer.last_handshake.as_ref().map(&handshake_time),
                    rx_bytes: peer.rx_bytes,
                    tx_bytes: peer.tx_bytes,
                    persistent_keepalive: peer.keepalive_seconds,
                    path_probes: peer.path_probes,
                    allowed_ips: std::mem::take(&mut allowed_ips[id.slot()]),
                    ..uapi::Peer::new(peer.public_key)
                })
            })
            .collect();
        uapi::Device {
            private_key: self.private_key.clone(),
            listen_port: self.listen_port,
            fwmark: self.fwmark,
            peers,
        }
    }

    fn set_private_key(&mut self, now: Instant, private_key: Option<PrivateKey>) {
        if self.private_key == private_key {
            return;
        }
        self.public_key = private_key.as_ref().map(PrivateKey::public_key);
        // A device cannot be its own peer.
        if let Some(own) = self.public_key {
            self.remove_peer(&own);
        }
        self.identity = private_key
            .as_ref()
            .map(|key| Identity::new(key, self.by_key.len(), self.stamps));
        self.private_key = private_key;
        let ids: Vec<PeerId> = self.by_key.values().copied().collect();
        for id in ids {
            self.end_session(id);
            self.enqueue_start(id, now);
        }
    }

    fn update_peer(&mut self, now: Instant, update: &PeerUpdate) {
        let key = update.public_key;
        if self.public_key == Some(key) {
            return;
        }
        if update.remove {
            return self.remove_peer(&key);
        }
        let known = self.by_key.get(&key).copied();
        let id = match known {
            Some(id) => id,
            None if update.update_only => return,
            None => self.add_peer(key),
        };
        self.update_state(now, id, update, known.is_none());
        if update.replace_allowed_ips {
            self.allowed_ips.remove_all(&id);
        }
        for allowed_ip in &update.allowed_ips {
            match allowed_ip {
                AllowedIpUpdate::Add(prefix) => {
                    self.allowed_ips.insert(*prefix, id);
                }
                AllowedIpUpdate::Remove(prefix) => {
                    self.allowed_ips.remove_if_owner(prefix, &id);
                }
            }
        }
    }

    /// Changes what only a peer of this shard has.
    fn update_state(&mut self, now: Instant, id: PeerId, update: &PeerUpdate, new: bool) {
        let mut start = new;
        let mut new_keys = false;
        let Some(Some(peer)) = self.peers.get_mut(id.slot()) else {
            return;
        };
        if let Some(preshared_key) = &update.preshared_key {
            let new: Option<PresharedKey> =
                (!preshared_key.is_zero()).then(|| preshared_key.clone());
            new_keys = new != peer.preshared_key;
            start |= new_keys;
            peer.preshared_key = new;
        }
        if let Some(endpoint) = update.endpoint {
            let moved = peer.set_endpoint(canonical(endpoint));
            let up = peer
                .session
                .as_ref()
                .is_some_and(|session| session.sendable(now));
            // What was tried at the old endpoint, if there was one, is worth a try at the new one.
            start |= moved && !up;
        }
        if let Some(path_probes) = update.path_probes {
            peer.path_probes = path_probes;
        }
        if let Some(seconds) = update.persistent_keepalive {
            start |= peer.keepalive_seconds == 0 && seconds > 0;
            peer.keepalive_seconds = seconds;
            let interval = peer.keepalive();
            if let Some(session) = &mut peer.session {
                session.set_keepalive(now, interval);
            }
            self.timers.schedule(id, peer, now);
        }
        if new_keys {
            self.end_session(id);
        }
        if start {
            self.enqueue_start(id, now);
        }
    }

    fn add_peer(&mut self, key: PublicKey) -> PeerId {
        let shard = self.elsewhere.add_peer();
        let here = shard == self.elsewhere.place().own();
        let peer = here.then(|| Box::new(Peer::new(key, self.default_inner_mtu)));
        let slot = match self.free.pop() {
            Some(slot) => {
                self.peers[slot as usize] = peer;
                slot
            }
            None => {
                self.peers.push(peer);
                self.make_room();
                self.peers.len() as u32 - 1
            }
        };
        let id = self.elsewhere.id(shard, slot);
        self.by_key.insert(key, id);
        id
    }

    /// Takes the memory that a device of so many peers may ever need for lists of them.
    fn make_room(&mut self) {
        let peers = self.peers.len();
        self.timers.grow_to(peers);
        for list in [&mut self.starts, &mut self.wanted, &mut self.path_queries] {
            list.reserve(peers.saturating_sub(list.len()));
        }
    }

    fn remove_peer(&mut self, key: &PublicKey) {
        let Some(id) = self.by_key.remove(key) else {
            return;
        };
        self.allowed_ips.remove_all(&id);
        self.elsewhere.remove_peer(id);
        if let Some(mut peer) = self.peers[id.slot()].take() {
            self.timers.cancel(id);
            peer.waiting.clear(
                DropReason::PeerGone,
                &mut self.pool,
                &mut self.counters.drops,
            );
            if let Some(index) = peer.index {
                self.by_index.remove(&index);
            }
        }
        self.free.push(id.slot() as u32);
    }

    /// Ends a peer's session, whose keys are no longer the right ones: boringtun cannot change them.
    /// The next one is made when it is needed.
    fn end_session(&mut self, id: PeerId) {
        let Some(Some(peer)) = self.peers.get_mut(id.slot()) else {
            return;
        };
        if let Some(old) = peer.index.take() {
            self.by_index.remove(&old);
        }
        peer.waiting.clear(
            DropReason::PeerGone,
            &mut self.pool,
            &mut self.counters.drops,
        );
        peer.deadline = None;
        self.timers.cancel(id);
        if let Some(session) = peer.session.take() {
            peer.last_initiation = session.into_last_initiation();
        }
    }

    /// Gives a peer a session with the keys that it has now, under a new index, unless the device
    /// has no key. That costs a key exchange: a thousand of them with the request that adds a
    /// thousand peers would hold up the packets of all others.
    #[cold]
    pub(super) fn make_session(&mut self, now: Instant, id: PeerId) {
        if self.identity.is_none() {
            return;
        }
        let index = self.new_index();
        let random = self.random.fork();
        let (Some(Some(peer)), Some(identity)) = (self.peers.get_mut(id.slot()), &self.identity)
        else {
            return;
        };
        let parts = SessionParts {
            peer: peer.public_key,
            preshared_key: peer.preshared_key.as_ref(),
            index,
            last_initiation: peer.last_initiation.take(),
            limits: self.message_limits,
            random,
        };
        let mut session = Session::new(identity, parts);
        session.set_keepalive(now, peer.keepalive());
        peer.session = Some(session);
        peer.index = Some(index);
        self.by_index.insert(index, id);
    }

    fn new_index(&mut self) -> u32 {
        let place = self.elsewhere.place();
        loop {
            let session = self.random.below(place.sessions().into()) as u32;
            let index = place.index(self.generation, session);
            if !self.by_index.contains_key(&index) {
                return index;
            }
        }
    }
}

/// An IPv4-mapped endpoint is an IPv4 one: the sockets of both families are separate.
fn canonical(endpoint: SocketAddr) -> SocketAddr {
    match endpoint.ip().to_canonical() {
        IpAddr::V4(address) => SocketAddr::new(address.into(), endpoint.port()),
        IpAddr::V6(_) => endpoint,
    }
}
