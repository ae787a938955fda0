//! The device's timers: a heap of deadlines, in which a peer at rest does not appear.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::{Duration, Instant};

use super::{Engine, PeerId};
use crate::outbox::Outbox;
use crate::peer::Peer;
use crate::time::Now;

/// How many handshakes are begun at once, and how far apart such rounds are: with 1,600 a second a
/// cold start of a thousand peers takes under a second and a quarter of a core.
const STARTS_AT_ONCE: usize = 32;
const START_EVERY: Duration = Duration::from_millis(20);
/// No peer is called on again sooner than this.
const SHORTEST: Duration = Duration::from_millis(10);

#[derive(Debug, Default)]
pub(super) struct Timers {
    /// Deadlines that a peer no longer has are passed over when they come up.
    heap: BinaryHeap<Reverse<(Instant, PeerId)>>,
    next_starts: Option<Instant>,
}

impl Timers {
    #[inline]
    pub(super) fn schedule(&mut self, id: PeerId, peer: &mut Peer, now: Instant) {
        // Nothing can be sent where a peer is not known to be.
        let (Some(session), Some(_)) = (&peer.session, peer.endpoint) else {
            return;
        };
        let due = session.deadline(now, !peer.waiting.is_empty());
        let Some(deadline) = due.into_iter().chain(peer.probe.deadline()).min() else {
            return;
        };
        let deadline = deadline.max(now + SHORTEST);
        if peer.deadline.is_none_or(|present| deadline < present) {
            peer.deadline = Some(deadline);
            self.heap.push(Reverse((deadline, id)));
        }
    }
}

impl Engine {
    /// Returns when to call [`Engine::handle_timers`] next; `None` while the device is at rest.
    pub fn poll_timeout(&mut self) -> Option<Instant> {
        while let Some(Reverse((at, id))) = self.timers.heap.peek() {
            let (at, id) = (*at, *id);
            if self.deadline_of(id) == Some(at) {
                break;
            }
            self.timers.heap.pop();
        }
        while let Some(id) = self.starts.front() {
            let waits = self.peers.get(id.0 as usize).and_then(Option::as_ref);
            if waits.is_some_and(|peer| peer.start_pending) {
                break;
            }
            self.starts.pop_front();
        }
        let peers = self.timers.heap.peek().map(|Reverse((at, _))| *at);
        let starts = self.timers.next_starts.filter(|_| !self.starts.is_empty());
        let backlog = self.backlog.deadline();
        peers.into_iter().chain(starts).chain(backlog).min()
    }

    /// Does what is due: retries, keepalives, expiry, handshakes to begin, and a few of those that
    /// were put aside.
    pub fn handle_timers(&mut self, now: Now, out: &mut Outbox) {
        self.handle_due_backlog(now, out);
        if self.timers.next_starts.is_none_or(|at| now.monotonic >= at) {
            let mut left = STARTS_AT_ONCE;
            while left > 0
                && let Some(id) = self.starts.pop_front()
            {
                if self.begin_start(id) {
                    self.with_peer(id, now, out, |peer, ctx| peer.start(ctx));
                    left -= 1;
                }
            }
            self.timers.next_starts = Some(now.monotonic + START_EVERY);
        }
        while let Some(Reverse((at, id))) = self.timers.heap.peek() {
            let (at, id) = (*at, *id);
            if at > now.monotonic {
                break;
            }
            self.timers.heap.pop();
            if self.deadline_of(id) == Some(at) {
                self.with_peer(id, now, out, |peer, ctx| {
                    peer.deadline = None;
                    peer.tick(ctx);
                });
            }
        }
    }

    /// Begins a handshake with every peer that has an endpoint, a few at a time: after a restart
    /// the peers do not know that their sessions are gone until they miss an answer for 15 s.
    pub fn start_handshakes(&mut self, now: Now) {
        let ids: Vec<PeerId> = self.by_key.values().copied().collect();
        for id in ids {
            self.enqueue_start(id, now.monotonic);
        }
    }

    pub(super) fn enqueue_start(&mut self, id: PeerId, now: Instant) {
        if let Some(Some(peer)) = self.peers.get_mut(id.0 as usize)
            && peer.endpoint.is_some()
            && !peer.start_pending
        {
            peer.start_pending = true;
            self.starts.push_back(id);
            self.timers.next_starts.get_or_insert(now);
        }
    }

    /// Whether the entry of the list still stands for a peer.
    fn begin_start(&mut self, id: PeerId) -> bool {
        match self.peers.get_mut(id.0 as usize) {
            Some(Some(peer)) => std::mem::take(&mut peer.start_pending),
            _ => false,
        }
    }

    fn deadline_of(&self, id: PeerId) -> Option<Instant> {
        self.peers.get(id.0 as usize)?.as_ref()?.deadline
    }
}
