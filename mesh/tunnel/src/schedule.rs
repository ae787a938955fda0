//! When a peer is to be spoken to, whatever it may have to say (WireGuard paper, section 6).
//!
//! ```text
//! handshake:   sent -- 5 s + 0..333 ms -- sent -- ... -- 90 s given up
//! data sent:   .. 15 s + 0..333 ms without any answer -- handshake
//! data heard:  .. 10 s without sending anything ------- keepalive
//! persistent:  .. the interval without any message ---- keepalive
//! key pair:    0 s -- 120 s ------------- 165 s -------- 180 s --------- 540 s
//!              use    initiator rekeys    initiator      refused         erased
//!                     when it sends       rekeys when    in and out
//!                                         it receives
//! ```

use std::time::{Duration, Instant};

use crate::key_pairs::REJECT_AFTER;
use crate::path_notes::PathNotes;
use crate::random::Random;

/// Rekey-After-Time.
pub(crate) const REKEY_AFTER: Duration = Duration::from_secs(120);
/// An initiator that only receives rekeys so long before the end that a lost try can be repeated.
pub(crate) const REKEY_AFTER_RECEIVING: Duration = Duration::from_secs(165);
/// Rekey-Attempt-Time.
const ATTEMPT_TIME: Duration = Duration::from_secs(90);
/// Rekey-Timeout.
const REKEY_TIMEOUT: Duration = Duration::from_secs(5);
/// Keepalive-Timeout.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Keys are erased when so long no new ones were agreed upon.
const ERASE_AFTER: Duration = Duration::from_secs(3 * REJECT_AFTER.as_secs());
/// The jitter of every handshake that a timer begins, in milliseconds.
const JITTER_MS: u64 = 333;
/// The jitter of a renewal after handshakes that crossed: some round trips.
const CROSSING_JITTER_MS: u64 = 2000;

/// What a peer's timers ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Due {
    /// The present handshake once more.
    Retry,
    /// An end of the present handshake, unanswered for 90 s.
    GiveUp,
    /// A new handshake: data was sent, and nothing has come back.
    Handshake,
    /// An empty message: data has come, and nothing was sent back.
    Keepalive,
    /// An empty message, or a handshake where there are no keys.
    PersistentKeepalive,
    /// The end of all keys.
    Erase,
}

/// A handshake of ours that nobody has answered yet.
#[derive(Clone, Copy, Debug)]
struct Attempt {
    started: Instant,
    retry_at: Instant,
}

/// One peer's timers.
#[derive(Debug)]
pub(crate) struct Schedule {
    attempt: Option<Attempt>,
    /// When an initiation or a response was last sent.
    handshake_sent_at: Option<Instant>,
    handshake_at: Option<Instant>,
    keepalive_at: Option<Instant>,
    /// More data has come since `keepalive_at` was set.
    keepalive_again: bool,
    persistent: Option<Duration>,
    persistent_at: Option<Instant>,
    erase_at: Option<Instant>,
    random: Random,
    /// What these messages say of the way to the peer.
    notes: PathNotes,
}

impl Schedule {
    pub(crate) fn new(random: Random) -> Self {
        Self {
            attempt: None,
            handshake_sent_at: None,
            handshake_at: None,
            keepalive_at: None,
            keepalive_again: false,
            persistent: None,
            persistent_at: None,
            erase_at: None,
            random,
            notes: PathNotes::default(),
        }
    }

    /// The next moment at which something is due.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let attempt = self.attempt.map(|attempt| attempt.retry_at);
        [
            attempt,
            self.handshake_at,
            self.keepalive_at,
            self.persistent_at,
            self.erase_at,
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// What is due now, one thing at a time; each is over with once it was done or noted.
    pub(crate) fn due(&self, now: Instant) -> Option<Due> {
        let is_due = |at: Option<Instant>| at.is_some_and(|at| now >= at);
        if let Some(attempt) = self.attempt
            && now >= attempt.retry_at
        {
            let spent = now.saturating_duration_since(attempt.started);
            return Some(if spent >= ATTEMPT_TIME {
                Due::GiveUp
            } else {
                Due::Retry
            });
        }
        if is_due(self.erase_at) {
            Some(Due::Erase)
        } else if is_due(self.handshake_at) {
            Some(Due::Handshake)
        } else if is_due(self.keepalive_at) {
            Some(Due::Keepalive)
        } else if is_due(self.persistent_at) {
            Some(Due::PersistentKeepalive)
        } else {
            None
        }
    }

    /// When an initiation may be sent that no timer asks for: not within 5 s of the last handshake
    /// message, and not before the retry of one that is under way.
    pub(crate) fn next_handshake(&self) -> Option<Instant> {
        let sent_at = self.handshake_sent_at?;
        let retry_at = self.attempt.map(|attempt| attempt.retry_at);
        Some(retry_at.unwrap_or(sent_at + REKEY_TIMEOUT))
    }

    /// What was asked of the peer and what came back.
    pub(crate) fn notes(&self) -> &PathNotes {
        &self.notes
    }

    pub(crate) fn in_attempt(&self) -> bool {
        self.attempt.is_some()
    }

    /// The interval of persistent keepalives; `None` switches them off.
    pub(crate) fn set_persistent(&mut self, now: Instant, interval: Option<Duration>) {
        if self.persistent != interval {
            self.persistent = interval;
            self.persistent_at = interval.map(|interval| now + interval);
        }
    }

    /// Lets a handshake begin at once although one was begun a moment ago.
    pub(crate) fn forget_last_handshake(&mut self) {
        self.handshake_sent_at = None;
    }

    pub(crate) fn note_initiation(&mut self, now: Instant) {
        let retry_at = now + REKEY_TIMEOUT + self.jitter();
        let started = self.attempt.map_or(now, |attempt| attempt.started);
        self.attempt = Some(Attempt { started, retry_at });
        self.handshake_sent_at = Some(now);
        self.handshake_at = None;
        self.erase_at.get_or_insert(now + ERASE_AFTER);
        self.notes.note_initiation(now);
        self.note_sent(now);
    }

    /// A response leaves the peer the next move; a handshake of ours goes on if it makes none.
    pub(crate) fn note_response(&mut self, now: Instant) {
        let retry_at = now + REKEY_TIMEOUT + self.jitter();
        if let Some(attempt) = &mut self.attempt {
            attempt.retry_at = retry_at;
        }
        self.handshake_sent_at = Some(now);
        self.note_key_pair(now);
        self.notes.note_response(now);
        self.note_sent(now);
    }

    pub(crate) fn note_key_pair(&mut self, now: Instant) {
        self.erase_at = Some(now + ERASE_AFTER);
    }

    /// Both sides have keys.
    pub(crate) fn note_completed(&mut self, now: Instant) {
        self.attempt = None;
        self.notes.note_completed(now);
    }

    pub(crate) fn note_given_up(&mut self) {
        self.attempt = None;
        self.handshake_at = None;
    }

    pub(crate) fn note_erased(&mut self) {
        self.erase_at = None;
        self.keepalive_at = None;
        self.handshake_at = None;
    }

    #[inline]
    pub(crate) fn note_data_sent(&mut self, now: Instant) {
        if self.handshake_at.is_none() {
            let jitter = self.jitter();
            self.handshake_at = Some(now + KEEPALIVE_TIMEOUT + REKEY_TIMEOUT + jitter);
        }
        self.notes.note_asked(now);
        self.note_sent(now);
    }

    /// A keepalive was asked for and sent, or could not be sent.
    pub(crate) fn note_keepalive(&mut self, now: Instant) {
        let again = self.keepalive_again;
        self.note_sent(now);
        if again {
            self.keepalive_at = Some(now + KEEPALIVE_TIMEOUT);
        }
    }

    /// Any authenticated message was sent.
    #[inline]
    pub(crate) fn note_sent(&mut self, now: Instant) {
        self.keepalive_at = None;
        self.keepalive_again = false;
        self.note_traversal(now);
    }

    /// Any authenticated message was received.
    #[inline]
    pub(crate) fn note_received(&mut self, now: Instant) {
        self.handshake_at = None;
        self.notes.note_received();
        self.note_traversal(now);
    }

    #[inline]
    pub(crate) fn note_data_received(&mut self, now: Instant) {
        match self.keepalive_at {
            None => self.keepalive_at = Some(now + KEEPALIVE_TIMEOUT),
            Some(_) => self.keepalive_again = true,
        }
    }

    #[inline]
    fn note_traversal(&mut self, now: Instant) {
        self.persistent_at = self.persistent.map(|interval| now + interval);
    }

    /// By how much one side waits longer than the other, so that their handshakes cross no more.
    pub(crate) fn crossing_jitter(&mut self) -> Duration {
        Duration::from_millis(self.random.below(CROSSING_JITTER_MS))
    }

    fn jitter(&mut self) -> Duration {
        Duration::from_millis(self.random.below(JITTER_MS + 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn data_that_goes_on_coming_is_answered_every_10_seconds() {
        let start = Instant::now();
        let mut schedule = Schedule::new(Random::new(1));
        schedule.note_data_received(start);
        schedule.note_data_received(start + seconds(4));
        assert_eq!(schedule.deadline(), Some(start + seconds(10)));
        assert_eq!(schedule.due(start + seconds(10)), Some(Due::Keepalive));
        schedule.note_keepalive(start + seconds(10));
        assert_eq!(schedule.deadline(), Some(start + seconds(20)));
        schedule.note_keepalive(start + seconds(20));
        assert_eq!(schedule.deadline(), None, "and no more once it has ended");
        schedule.note_data_received(start + seconds(30));
        schedule.note_sent(start + seconds(31));
        assert_eq!(schedule.deadline(), None, "anything sent is an answer");
    }

    #[test]
    fn silence_is_counted_from_the_first_unanswered_packet() {
        let start = Instant::now();
        let mut schedule = Schedule::new(Random::new(1));
        schedule.note_data_sent(start);
        schedule.note_data_sent(start + seconds(14));
        assert_eq!(schedule.due(start + seconds(14)), None);
        assert_eq!(schedule.due(start + seconds(16)), Some(Due::Handshake));
        schedule.note_received(start + seconds(16));
        assert_eq!(schedule.due(start + seconds(16)), None);
    }
}
