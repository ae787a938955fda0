//! The device's timers: a wheel of deadlines, in which a peer at rest does not appear.
//!
//! A deadline that moves away, as each packet moves one, leaves the earlier one in the wheel: when
//! that comes up, the peer is asked when it is really due. So a packet costs one comparison.

use std::time::{Duration, Instant};

use super::wheel::{Step, Wheel};
use super::{Engine, PeerId};
use crate::outbox::Outbox;
use crate::peer::Peer;
use crate::time::Now;

/// How many handshakes are begun at once, and how far apart such rounds are: with 1,600 a second a
/// cold start of a thousand peers takes under a second and a quarter of a core.
const STARTS_AT_ONCE: usize = 32;
const START_EVERY: Duration = Duration::from_millis(20);
/// How many peers are called on at once, so that the data has its turn: a handshake takes 136 us.
const CALLS_AT_ONCE: usize = 16;
/// How many steps of the wheel are made at once; one takes some 20 ns.
const STEPS_AT_ONCE: usize = 4096;

/// The ticks of a second: one takes 8 ms, and nothing comes later than that by the wheel.
const TICKS_PER_SECOND: u64 = 125;
const TICK: Duration = Duration::from_nanos(1_000_000_000 / TICKS_PER_SECOND);

#[derive(Debug)]
pub(super) struct Timers {
    /// INVARIANT: a peer is in it if and only if it has a `deadline`.
    wheel: Wheel,
    /// The time of tick 0.
    origin: Option<Instant>,
    next_starts: Option<Instant>,
}

impl Timers {
    pub(super) fn new() -> Self {
        Self {
            wheel: Wheel::new(),
            origin: None,
            next_starts: None,
        }
    }

    /// Makes place for so many peers.
    pub(super) fn grow_to(&mut self, peers: usize) {
        self.wheel.grow_to(peers);
    }

    #[inline]
    pub(super) fn schedule(&mut self, id: PeerId, peer: &mut Peer, now: Instant) {
        let Some(deadline) = peer.next_deadline(now) else {
            return;
        };
        if peer.deadline.is_none_or(|present| deadline < present) {
            peer.deadline = Some(deadline);
            self.put(id, deadline, now);
        }
    }

    /// Forgets a peer's deadline: it has none any longer.
    pub(super) fn cancel(&mut self, id: PeerId) {
        self.wheel.cancel(id.0);
    }

    fn put(&mut self, id: PeerId, deadline: Instant, now: Instant) {
        // No peer is called on twice in a tick.
        let next = self.tick_of(now) + 1;
        let tick = self.tick_from(deadline).max(next);
        self.wheel.schedule(id.0, tick);
    }

    /// There are peers to begin with: now, or when the next round is.
    fn note_starts(&mut self, now: Instant) {
        let next = self.next_starts.unwrap_or(now);
        self.next_starts = Some(next.max(now));
    }

    /// The first tick that begins at that time or later; known once the tick of an earlier time is.
    fn tick_from(&self, at: Instant) -> u64 {
        let since = self.since_origin(at);
        let begun = (u64::from(since.subsec_nanos())).div_ceil(TICK.as_nanos() as u64);
        since.as_secs() * TICKS_PER_SECOND + begun
    }

    /// The tick that it is now; the first one asked for is 0.
    fn tick_of(&mut self, now: Instant) -> u64 {
        self.origin.get_or_insert(now);
        let since = self.since_origin(now);
        let over = u64::from(since.subsec_nanos()) / TICK.as_nanos() as u64;
        since.as_secs() * TICKS_PER_SECOND + over
    }

    fn since_origin(&self, at: Instant) -> Duration {
        let since = self
            .origin
            .map(|origin| at.saturating_duration_since(origin));
        since.unwrap_or_default()
    }

    /// When the wheel has something to do.
    fn next(&self) -> Option<Instant> {
        let tick = self.wheel.next()?;
        let seconds = Duration::from_secs(tick / TICKS_PER_SECOND);
        let rest = (tick % TICKS_PER_SECOND) as u32;
        Some(self.origin? + seconds + TICK * rest)
    }
}

impl Engine {
    /// Returns when to call [`Engine::handle_timers`] next; `None` while the device is at rest.
    pub fn poll_timeout(&mut self) -> Option<Instant> {
        let starts = self.timers.next_starts.filter(|_| self.has_starts());
        let peers = self.timers.next();
        let backlog = self.backlog.deadline();
        peers.into_iter().chain(starts).chain(backlog).min()
    }

    /// Does what is due: retries, keepalives, expiry, handshakes to begin, and a few of those that
    /// were put aside. Of many at once it does a part, and [`Engine::poll_timeout`] then says that
    /// there is more to do now, after the data that has come meanwhile.
    pub fn handle_timers(&mut self, now: Now, out: &mut Outbox) {
        self.handle_due_backlog(now, out);
        self.call_due_peers(now, out);
        if self.timers.next_starts.is_none_or(|at| now.monotonic >= at) {
            self.begin_starts(now, out);
        }
    }

    /// Calls on the next peers whose deadline is over.
    fn call_due_peers(&mut self, now: Now, out: &mut Outbox) {
        let tick = self.timers.tick_of(now.monotonic);
        let mut called = 0;
        for _ in 0..STEPS_AT_ONCE {
            if called == CALLS_AT_ONCE || out.is_full() {
                return;
            }
            match self.timers.wheel.step(tick) {
                Step::Due(id) => {
                    called += 1;
                    self.with_peer(PeerId(id), now, out, |peer, ctx| {
                        peer.deadline = None;
                        peer.tick(ctx);
                    });
                }
                Step::Moved => {}
                Step::Idle => return,
            }
        }
    }

    fn begin_starts(&mut self, now: Now, out: &mut Outbox) {
        for _ in 0..STARTS_AT_ONCE {
            if out.is_full() {
                break;
            }
            let Some(id) = self.next_start() else { break };
            self.with_peer(id, now, out, |peer, ctx| peer.start(ctx));
        }
        self.timers.next_starts = Some(now.monotonic + START_EVERY);
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
        if let Some(Some(peer)) = self.peers.get_mut(id.slot())
            && peer.endpoint.is_some()
            && !peer.start_pending
        {
            peer.start_pending = true;
            self.starts.push_back(id);
            self.timers.note_starts(now);
        }
    }

    /// Begins soon with a peer that packets wait for, before those that nobody waits for.
    #[cold]
    pub(super) fn enqueue_wanted(&mut self, id: PeerId, now: Instant) {
        self.wanted.push_back(id);
        self.timers.note_starts(now);
    }

    /// Whether there are peers to begin with. Entries of the lists that stand for none any longer
    /// are left out.
    fn has_starts(&mut self) -> bool {
        for list in [&mut self.wanted, &mut self.starts] {
            while let Some(id) = list.front() {
                let peer = self.peers.get(id.slot()).and_then(Option::as_ref);
                if peer.is_some_and(|peer| peer.start_pending) {
                    return true;
                }
                list.pop_front();
            }
        }
        false
    }

    fn next_start(&mut self) -> Option<PeerId> {
        loop {
            let next = self.wanted.pop_front();
            let id = next.or_else(|| self.starts.pop_front())?;
            if let Some(Some(peer)) = self.peers.get_mut(id.slot())
                && std::mem::take(&mut peer.start_pending)
            {
                peer.wanted = false;
                return Some(id);
            }
        }
    }
}
