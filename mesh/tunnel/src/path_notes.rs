//! What was asked of a peer and what came back: the facts behind `degraded` (`warren_core::degraded`
//! judges them). Nothing here sends a packet, or changes when one is sent.

use std::time::{Duration, Instant};

use warren_core::peer_path::{DropRun, Initiating, PeerPath, Unanswered, Unheard};

use crate::drops::DropReason;

/// After so long without a try the next one begins a new story.
const EPISODE_GAP: Duration = Duration::from_secs(30);
/// An initiator renews a key pair when it is 120 s old; one that comes back sooner has not heard
/// us for 15 s, or has started anew.
const EARLY: Duration = Duration::from_secs(115);
/// Drops that are further apart are not of one row.
const DROP_GAP: Duration = Duration::from_secs(15);

/// The first and the last of a row of events.
#[derive(Clone, Copy, Debug)]
struct Row {
    first: Instant,
    last: Instant,
    count: u32,
}

impl Row {
    fn add(row: &mut Option<Self>, now: Instant, gap: Duration) {
        match row {
            Some(row) if now.saturating_duration_since(row.last) < gap => {
                row.last = now;
                row.count = row.count.saturating_add(1);
            }
            _ => {
                *row = Some(Self {
                    first: now,
                    last: now,
                    count: 1,
                });
            }
        }
    }

    fn ages(&self, now: Instant) -> (Duration, Duration) {
        let age = |at| now.saturating_duration_since(at);
        (age(self.first), age(self.last))
    }
}

/// One peer's facts.
#[derive(Debug, Default)]
pub(crate) struct PathNotes {
    /// What must be answered, since the last authentic message.
    asked: Option<Row>,
    /// Our initiations since a handshake was last completed.
    initiated: Option<Row>,
    /// Answered initiations of the peer since then.
    answered: Option<Row>,
    /// The first of them came before the keys were due for renewal.
    answered_early: bool,
    completed_at: Option<Instant>,
}

impl PathNotes {
    /// Data was sent.
    #[inline]
    pub(crate) fn note_asked(&mut self, now: Instant) {
        Row::add(&mut self.asked, now, EPISODE_GAP);
    }

    pub(crate) fn note_initiation(&mut self, now: Instant) {
        Row::add(&mut self.initiated, now, EPISODE_GAP);
        self.note_asked(now);
    }

    /// An initiation of the peer was answered; it has the next move.
    pub(crate) fn note_response(&mut self, now: Instant) {
        let before = self.answered.map(|row| row.first);
        Row::add(&mut self.answered, now, EPISODE_GAP);
        if self.answered.map(|row| row.first) != before {
            self.answered_early = self
                .completed_at
                .is_some_and(|at| now.saturating_duration_since(at) < EARLY);
        }
    }

    pub(crate) fn note_completed(&mut self, now: Instant) {
        self.initiated = None;
        self.answered = None;
        self.completed_at = Some(now);
    }

    /// Anything authentic came.
    #[inline]
    pub(crate) fn note_received(&mut self) {
        self.asked = None;
    }

    /// Writes the facts down as they are now.
    pub(crate) fn report(&self, now: Instant, path: &mut PeerPath) {
        path.unanswered = self.asked.map(|row| {
            let (first, last) = row.ages(now);
            Unanswered { first, last }
        });
        path.initiating = self.initiated.map(|row| Initiating {
            initiations: row.count,
            first: row.ages(now).0,
        });
        // A single confirmation may get lost of a peer that has no more to say.
        let answered = self
            .answered
            .filter(|row| row.count > 1 || self.answered_early);
        path.unheard = answered.map(|row| {
            let (first, last) = row.ages(now);
            Unheard {
                handshakes: row.count,
                first,
                last,
            }
        });
    }
}

/// Authentic packets of one peer that were dropped for one reason, one after the other.
#[derive(Debug)]
pub(crate) struct DropNotes {
    reason: DropReason,
    packets: u64,
    first: Instant,
    last: Instant,
}

impl DropNotes {
    /// Notes a drop, if the reason is one that only the peer itself can have caused.
    pub(crate) fn note(notes: &mut Option<Box<Self>>, now: Instant, reason: DropReason) {
        let by_peer = matches!(
            reason,
            DropReason::WrongSource | DropReason::MartianSource | DropReason::InnerMalformed
        );
        if !by_peer {
            return;
        }
        match notes {
            Some(notes)
                if notes.reason == reason
                    && now.saturating_duration_since(notes.last) < DROP_GAP =>
            {
                notes.packets += 1;
                notes.last = now;
            }
            _ => {
                let first = Self {
                    reason,
                    packets: 1,
                    first: now,
                    last: now,
                };
                // A peer may send packets of two such kinds by turns.
                match notes {
                    Some(notes) => **notes = first,
                    None => *notes = Some(Box::new(first)),
                }
            }
        }
    }

    pub(crate) fn report(&self, now: Instant) -> Option<DropRun> {
        let age = |at| now.saturating_duration_since(at);
        (age(self.last) < DROP_GAP).then(|| DropRun {
            reason: self.reason.as_str().to_owned(),
            packets: self.packets,
            first: age(self.first),
            last: age(self.last),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use warren_keyring::PrivateKey;

    fn report(notes: &PathNotes, now: Instant) -> PeerPath {
        let key = PrivateKey::generate().unwrap().public_key();
        let mut path = PeerPath::new(key);
        notes.report(now, &mut path);
        path
    }

    #[test]
    fn silence_counts_from_the_first_unanswered_message_of_an_episode() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut notes = PathNotes::default();
        notes.note_asked(at(0));
        notes.note_initiation(at(15));
        let path = report(&notes, at(17));
        assert_eq!(path.unanswered.unwrap().first, Duration::from_secs(17));
        assert_eq!(path.initiating.unwrap().first, Duration::from_secs(2));
        notes.note_asked(at(60));
        let path = report(&notes, at(61));
        assert_eq!(path.unanswered.unwrap().first, Duration::from_secs(1));
        notes.note_received();
        assert_eq!(report(&notes, at(62)).unanswered, None);
        assert_eq!(report(&notes, at(62)).initiating.unwrap().initiations, 1);
        notes.note_completed(at(62));
        assert!(report(&notes, at(63)).is_empty());
    }

    #[test]
    fn a_peer_that_never_completes_is_told_apart_from_one_lost_confirmation() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut notes = PathNotes::default();
        notes.note_response(at(0));
        assert_eq!(report(&notes, at(4)).unheard, None);
        notes.note_response(at(5));
        assert_eq!(report(&notes, at(6)).unheard.unwrap().handshakes, 2);
        notes.note_completed(at(7));
        assert_eq!(report(&notes, at(8)).unheard, None);
        notes.note_response(at(30));
        assert_eq!(
            report(&notes, at(31)).unheard.unwrap().handshakes,
            1,
            "too early for a renewal: it does not hear us"
        );
    }

    #[test]
    fn only_drops_that_the_peer_itself_caused_are_noted() {
        let now = Instant::now();
        let mut notes = None;
        DropNotes::note(&mut notes, now, DropReason::Replayed);
        assert!(notes.is_none());
        DropNotes::note(&mut notes, now, DropReason::WrongSource);
        DropNotes::note(&mut notes, now + DROPPED_LATER, DropReason::WrongSource);
        let run = notes.as_ref().unwrap().report(now + DROPPED_LATER).unwrap();
        assert_eq!(
            (run.packets, run.first, run.last),
            (2, DROPPED_LATER, Duration::ZERO)
        );
        assert_eq!(notes.unwrap().report(now + DROPPED_LATER + DROP_GAP), None);
    }

    const DROPPED_LATER: Duration = Duration::from_secs(6);
}
