//! The peers of other shards: this one knows that they are there, which prefixes they have and where
//! they are, and hands over what is for them.
//!
//! ```text
//! PeerId:  xxxx ssssssssssssssssssssssssssss
//!          |    place among all peers
//!          the peer's shard XOR this one: 0 for its own peers
//! ```

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

use super::{Engine, PeerId};
use crate::drops::DropReason;
use crate::gate::Class;
use crate::outbox::Outbox;
use crate::shards::ring::{HandedOver, Kind};
use crate::shards::{Place, ShardId, choose};
use crate::source::Endpoint;
use crate::time::Now;

/// The bits of a place; there are never so many peers.
const SLOT_BITS: u32 = 28;

impl PeerId {
    /// Whether the peer is of this shard.
    #[inline]
    pub(super) fn is_here(self) -> bool {
        self.0 >> SLOT_BITS == 0
    }

    /// Its place among all peers.
    #[inline]
    pub(super) fn slot(self) -> usize {
        (self.0 & ((1 << SLOT_BITS) - 1)) as usize
    }
}

/// What an engine knows of other shards.
#[derive(Debug)]
pub(super) struct Elsewhere {
    place: Place,
    /// How many peers each shard has.
    peers: Vec<usize>,
    /// Where those of other shards are.
    addresses: BTreeMap<ShardId, Vec<IpAddr>>,
    /// How many requests were carried out.
    version: u64,
}

impl Elsewhere {
    pub(super) fn new(place: Place) -> Self {
        Self {
            place,
            peers: vec![0; place.count().into()],
            addresses: BTreeMap::new(),
            version: 0,
        }
    }

    pub(super) fn place(&self) -> Place {
        self.place
    }

    pub(super) fn note_request(&mut self) {
        self.version += 1;
    }

    /// Chooses the shard of a new peer.
    pub(super) fn add_peer(&mut self) -> ShardId {
        let shard = choose(&self.peers);
        self.peers[usize::from(shard.number())] += 1;
        shard
    }

    pub(super) fn remove_peer(&mut self, id: PeerId) {
        let shard = self.shard_of(id);
        self.peers[usize::from(shard.number())] -= 1;
    }

    pub(super) fn id(&self, shard: ShardId, slot: u32) -> PeerId {
        let distance = u32::from(shard.number() ^ self.place.own().number());
        PeerId(distance << SLOT_BITS | slot)
    }

    fn shard_of(&self, id: PeerId) -> ShardId {
        let number = (id.0 >> SLOT_BITS) as u8 ^ self.place.own().number();
        ShardId::new(number).unwrap_or_default()
    }

    pub(super) fn addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.addresses.values().flatten().copied()
    }
}

impl Engine {
    /// Returns how many peers are of this very shard.
    pub fn own_peer_count(&self) -> usize {
        let place = self.elsewhere.place;
        self.elsewhere.peers[usize::from(place.own().number())]
    }

    /// Returns how many requests were carried out. All shards have carried out the same ones when it
    /// is the same.
    pub(crate) fn version(&self) -> u64 {
        self.elsewhere.version
    }

    /// Goes through all prefixes and the shards of the peers that have them.
    pub(crate) fn shards_of_prefixes(&self) -> impl Iterator<Item = (IpNet, ShardId)> + '_ {
        let prefixes = self.allowed_ips.iter();
        prefixes.map(|(prefix, id)| (prefix, self.shard_of(*id)))
    }

    pub(super) fn shard_of(&self, id: PeerId) -> ShardId {
        self.elsewhere.shard_of(id)
    }

    /// Goes through the addresses of this shard's own peers.
    pub(crate) fn own_addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        let peers = self.peers.iter().flatten();
        peers.filter_map(|peer| Some(peer.endpoint?.ip()))
    }

    /// Takes where the peers of another shard are.
    pub(crate) fn handle_addresses_elsewhere(&mut self, shard: ShardId, addresses: Vec<IpAddr>) {
        self.elsewhere.addresses.insert(shard, addresses);
    }

    /// Takes an initiation that another shard has admitted.
    pub(crate) fn handle_handed_over(
        &mut self,
        now: Now,
        source: Endpoint,
        handshake: &[u8],
        out: &mut Outbox,
    ) {
        if let Err(reason) = self.handle_admitted(now, Class::Proven, source, handshake, out) {
            self.counters.drops.count(reason);
        }
    }

    /// Takes that the peers at an address are to be called back.
    pub(crate) fn handle_call_back(&mut self, now: Now, address: IpAddr) {
        self.call_back(now, address);
    }

    /// Takes that so many messages for other shards were dropped.
    pub(crate) fn note_handover_full(&mut self, messages: u64) {
        let drops = &mut self.counters.drops;
        drops.count_many(DropReason::HandoverFull, messages);
    }

    pub(super) fn hand_over(
        &self,
        id: PeerId,
        source: Endpoint,
        handshake: &[u8],
        out: &mut Outbox,
    ) {
        out.handed_over.push(HandedOver {
            to: Some(self.shard_of(id)),
            kind: Kind::Handshake(source),
            bytes: handshake.into(),
        });
    }

    pub(super) fn call_back_elsewhere(&self, address: IpAddr, out: &mut Outbox) {
        if self.elsewhere.place.count() > 1 {
            out.handed_over.push(HandedOver {
                to: None,
                kind: Kind::CallBack(address),
                bytes: Box::default(),
            });
        }
    }
}
