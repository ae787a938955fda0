//! How many handshakes packets may begin at once: a pod that sends to a thousand nodes for the first
//! time shall not hold up the data of all others for as long as a thousand key exchanges take.

use std::time::Instant;

/// How many under one reading of the clock; one takes 136 us. The others are begun in rounds.
const AT_ONCE: usize = 8;

/// The handshakes that packets have begun lately.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    turn: Option<Instant>,
    begun: usize,
}

impl Pace {
    /// Whether one more may be begun now.
    pub(crate) fn allows(&mut self, now: Instant) -> bool {
        if self.turn != Some(now) {
            self.turn = Some(now);
            self.begun = 0;
        }
        self.begun < AT_ONCE
    }

    /// Notes that one was begun.
    pub(crate) fn note_begun(&mut self) {
        self.begun += 1;
    }
}
