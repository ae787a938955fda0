//! A shard among others: what it hands over to them and takes from them.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use nix::sys::epoll::{EpollEvent, EpollFlags};
use warren_core::uapi::SetRequest;

use super::{Shard, TURN_BYTES, watch_tun};
use crate::control::{Command, Control, Line};
use crate::offload::Offload;
use crate::shards::ring::{Batch, HandedOver, Inbox, Incoming, Kind, Outgoing, ring};
use crate::shards::{Place, ShardId};
use crate::time::Now;
use crate::tun::{Tun, TunSteering};
use crate::udp::Udp;

/// How often the first shard is told where the peers of another one are, at most.
const ADDRESSES_EVERY: Duration = Duration::from_secs(1);

/// In so many turns all is taken that may wait for a shard.
const ALL_TURNS: usize = 64;
/// The packets that a TUN queue is taken to hold where the kernel does not tell.
const USUAL_QUEUE: u32 = 500;

/// What a shard has of the others, and how other threads speak to it.
#[derive(Debug)]
pub struct Mates {
    own: ShardId,
    pub(super) commands: Receiver<Command>,
    /// Of all shards, its own included.
    lines: Vec<Line>,
    inbox: Arc<Inbox>,
    /// By the number of the shard; none to itself.
    outgoing: Vec<Option<Outgoing>>,
    incoming: Vec<Incoming>,
    /// The ring whose turn it is.
    turn: usize,
    steering: Option<Arc<TunSteering>>,
    addresses_due: Option<Instant>,
    addresses_told: Option<Instant>,
    /// How many messages were handed over.
    pub(super) handed_over: u64,
    /// The TUN is not to be read.
    pub(super) held: bool,
}

impl Mates {
    /// Makes the ways between the shards of a device, of at least one, in the order of their numbers,
    /// and the handle on all of them. `steering` is how the TUN deals out to them.
    ///
    /// # Errors
    /// What the kernel says about an eventfd, of which each shard has one.
    pub fn all(
        shards: u8,
        steering: Option<Arc<TunSteering>>,
    ) -> nix::Result<(Vec<Self>, Control)> {
        let mut lines = Vec::new();
        let mut mates = Vec::new();
        for place in Place::all(shards) {
            let (line, commands) = Line::new()?;
            let inbox = Inbox::new(Arc::clone(line.wake()));
            lines.push(line);
            mates.push(Self {
                own: place.own(),
                commands,
                lines: Vec::new(),
                inbox,
                outgoing: Vec::new(),
                incoming: Vec::new(),
                turn: 0,
                steering: steering.clone(),
                addresses_due: None,
                addresses_told: None,
                handed_over: 0,
                held: false,
            });
        }
        for from in 0..mates.len() {
            mates[from].lines.clone_from(&lines);
            for to in 0..mates.len() {
                let outgoing = (from != to).then(|| {
                    let (outgoing, incoming) = ring(&mates[to].inbox);
                    mates[to].incoming.push(incoming);
                    outgoing
                });
                mates[from].outgoing.push(outgoing);
            }
        }
        let lead = lines.remove(0);
        Ok((mates, Control::new(lead, lines, steering)))
    }

    pub(super) fn line(&self) -> &Line {
        &self.lines[usize::from(self.own.number())]
    }

    pub(super) fn own(&self) -> ShardId {
        self.own
    }

    pub(super) fn leads(&self) -> bool {
        self.own == ShardId::LEAD
    }

    pub(super) fn steering(&self) -> Option<&TunSteering> {
        self.steering.as_deref()
    }

    /// Hands the queues of a new interface, in the order of their numbers, to the other shards.
    pub(super) fn hand_out(&self, queues: Vec<Tun>) {
        for (line, tun) in self.lines[1..].iter().zip(queues) {
            // One that has ended needs none.
            let _ = line.send(Command::Tun(Box::new(tun)));
        }
    }

    /// Notes that peers may be elsewhere than before.
    pub(super) fn note_addresses_changed(&mut self, now: Instant) {
        if !self.leads() && self.addresses_due.is_none() {
            let next = self.addresses_told.map_or(now, |at| at + ADDRESSES_EVERY);
            self.addresses_due = Some(next.max(now));
        }
    }

    /// When the first shard is to be told where this one's peers are.
    pub(super) fn addresses_due(&self) -> Option<Instant> {
        self.addresses_due
    }

    pub(super) fn tell_addresses(&mut self, now: Instant, addresses: Vec<IpAddr>) {
        self.addresses_due = None;
        self.addresses_told = Some(now);
        let _ = self.lines[0].send(Command::Addresses(self.own, addresses));
    }

    /// Hands over with the next [`Mates::send`]; tells whether that is to come before more is read.
    #[inline]
    pub(super) fn push(&mut self, to: ShardId, kind: Kind, bytes: &[u8]) -> bool {
        self.handed_over += 1;
        match &mut self.outgoing[usize::from(to.number())] {
            Some(outgoing) => outgoing.push(kind, bytes),
            None => unreachable!("{to:?} hands over to itself"),
        }
    }

    /// Hands over what was pushed and what is given; returns how much was dropped instead.
    pub(super) fn send(&mut self, version: u64, more: &mut Vec<HandedOver>) -> u64 {
        for HandedOver { to, kind, bytes } in more.drain(..) {
            for shard in ShardId::first(self.lines.len() as u8) {
                if shard != self.own && to.is_none_or(|to| to == shard) {
                    self.push(shard, kind, &bytes);
                }
            }
        }
        let rings = self.outgoing.iter_mut().flatten();
        rings.map(|outgoing| outgoing.send(version)).sum()
    }
}

impl Shard {
    /// Takes what others have handed over, by turns, and as much as is one turn beside other events.
    pub(super) fn take_handed_over(&mut self, now: Now) {
        let rings = self.mates.incoming.len();
        if rings == 0 {
            return;
        }
        self.mates.inbox.begin_look();
        let mut left = TURN_BYTES;
        for _ in 0..rings {
            while left > 0
                && let Some(batch) = self.next_batch()
            {
                left = left.saturating_sub(batch.weight());
                self.handle_batch(now, batch);
            }
            self.mates.turn = (self.mates.turn + 1) % rings;
            if left == 0 {
                self.mates.inbox.tell();
                break;
            }
        }
        self.flush();
    }

    /// Takes all that was handed over until now.
    pub(super) fn take_all_handed_over(&mut self, now: Now) {
        let waits = |mates: &Mates| mates.incoming.iter().any(Incoming::has_some);
        // More than may wait at once; what is sent meanwhile need not be taken.
        for _ in 0..ALL_TURNS {
            if !waits(&self.mates) {
                break;
            }
            self.take_handed_over(now);
        }
    }

    /// Reads all that the TUN has now: until it is empty, or as much as its queue holds.
    pub(super) fn drain_tun(&mut self, now: Now) {
        let Some(tun) = self.tun.as_ref().filter(|tun| !tun.writes_only()) else {
            return;
        };
        let held = u64::from(tun.queue_len().unwrap_or(USUAL_QUEUE));
        let from = self.frames.tun_rx;
        while !self.read_tun(now) && self.frames.tun_rx - from < held {}
    }

    /// Begins or ends to hear of the TUN's packets.
    pub(super) fn watch_tun_again(&mut self) {
        let Some(tun) = self.tun.as_ref().filter(|tun| !tun.writes_only()) else {
            return;
        };
        let flags = match self.mates.held {
            true => EpollFlags::empty(),
            false => EpollFlags::EPOLLIN,
        };
        let mut event = EpollEvent::new(flags, super::TUN);
        if let Err(error) = self.epoll.modify(tun, &mut event) {
            tracing::error!(%error, "cannot change how the TUN queue is watched");
        }
    }

    /// Carries out what the first shard has accepted, with the sockets of a new port.
    pub(super) fn follow(&mut self, now: Now, request: &SetRequest, udp: Option<Udp>) {
        if let Some(mark) = request.fwmark
            && let Err(error) = self.udp.set_mark(mark)
        {
            tracing::error!(%error, "one shard sends with another mark than the first");
        }
        // The engines have the same peers, so that none refuses what another one accepts.
        if let Err(error) = self.engine.apply(now, request) {
            tracing::error!(%error, "one shard has other peers than the first");
        }
        self.adopt_sockets(udp);
    }

    /// Takes a queue of an interface that the first shard has made anew.
    pub(super) fn adopt_tun(&mut self, tun: Tun) {
        // Closing the old one takes it out of epoll.
        match watch_tun(&self.epoll, &tun) {
            Ok(()) => self.tun = Some(tun),
            Err(error) => tracing::error!(%error, "cannot watch the TUN queue"),
        }
        self.watch_tun_again();
    }

    fn next_batch(&mut self) -> Option<Batch> {
        let version = self.engine.version();
        self.mates.incoming[self.mates.turn].next(version)
    }

    fn handle_batch(&mut self, now: Now, mut batch: Batch) {
        for n in 0..batch.len() {
            let (kind, bytes) = batch.item(n);
            match kind {
                Kind::Frame(offload) => {
                    self.share.note_data();
                    self.handle_frame(now, bytes, offload);
                }
                Kind::Handshake(source) => {
                    self.engine
                        .handle_handed_over(now, source, bytes, &mut self.out);
                }
                Kind::CallBack(address) => self.engine.handle_call_back(now, address),
            }
            if self.out.is_full() {
                self.flush();
            }
        }
        self.mates.incoming[self.mates.turn].give_back(batch);
    }

    /// Sends a frame of the TUN that another shard has read, or hands it on where its peer has moved.
    fn handle_frame(&mut self, now: Now, packet: &mut [u8], offload: Option<Offload>) {
        let out = &mut self.out;
        if let Some(shard) = self.engine.handle_tun_frame(now, packet, offload, out) {
            self.mates.push(shard, Kind::Frame(offload), packet);
        }
    }
}
