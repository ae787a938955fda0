//! Handshakes: after the data of the same round, and under load in their share of time.

use nix::sys::epoll::{EpollEvent, EpollFlags, EpollTimeout};

use super::{HANDSHAKES, Shard};
use crate::time::Now;
use crate::udp::Lane;

/// The most handshakes that are taken from one socket before it is another one's turn.
const HANDSHAKE_BATCH: usize = 32;
/// The most sockets for handshakes that are told to be readable at once: more than there are.
const MAX_READY: usize = 128;

impl Shard {
    /// Receives handshakes, a few of each socket by turns: all that there are, or under load what
    /// their share of time allows.
    pub(super) fn receive_handshakes(&mut self, now: Now) {
        self.share.begin();
        // By turns the one or the other comes first, for either alone can use up the share.
        if !self.share.is_used_up() {
            self.backlog_first = !self.backlog_first;
            if self.backlog_first {
                self.work_off_backlog(now);
            }
        }
        let mut events = [EpollEvent::empty(); MAX_READY];
        'looks: while !self.share.is_used_up() {
            let count = match self.handshakes.wait(&mut events, EpollTimeout::ZERO) {
                Ok(0) | Err(_) => break,
                Ok(count) => count,
            };
            // The one that the last look did not come to is first.
            let ready = &mut events[..count];
            ready.sort_unstable_by_key(|event| (event.data() < self.next_lane, event.data()));
            for event in ready {
                if self.share.is_used_up() {
                    break 'looks;
                }
                self.next_lane = event.data() + 1;
                let lane = event.data() as usize;
                let Some(socket) = self.udp.lanes(Lane::Handshakes).nth(lane) else {
                    continue;
                };
                match self.received.receive(socket, HANDSHAKE_BATCH) {
                    Ok(count) => self.handle_received(now, count),
                    Err(error) => self.note_receive_error(&error),
                }
            }
        }
        self.work_off_backlog(now);
        self.flush();
        let was_polled = self.share.is_polled();
        let under_load = self.engine.is_under_load(now);
        if self.share.end(now.monotonic, under_load)
            && let Ok(secret) = getrandom::u32()
        {
            let known = self.engine.addresses().collect();
            self.udp.reshuffle(secret, known);
        }
        if was_polled != self.share.is_polled() {
            self.engine.hold_backlog(self.share.is_polled());
            // While they are looked for by the clock, their arrival wakes nobody.
            let flags = match self.share.is_polled() {
                true => EpollFlags::empty(),
                false => EpollFlags::EPOLLIN,
            };
            let mut event = EpollEvent::new(flags, HANDSHAKES);
            if let Err(error) = self.epoll.modify(&self.handshakes.0, &mut event) {
                tracing::error!(%error, "cannot change how the sockets for handshakes are watched");
            }
        }
    }

    /// Does the key exchanges that wait, under load, as far as their share of time goes.
    fn work_off_backlog(&mut self, now: Now) {
        while self.share.is_polled()
            && !self.share.is_used_up()
            && self.engine.handle_backlog(now, &mut self.out)
        {}
    }
}
