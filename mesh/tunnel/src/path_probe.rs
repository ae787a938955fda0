//! Finds the largest outer packet that arrives, where nobody tells: a router that drops what is too
//! large and whose ICMP is swallowed (RFC 8899, in small).
//!
//! A probe is a data message whose inside is no IP packet. A peer that knows it answers with one of
//! a few bytes; any other WireGuard drops it as malformed, and is asked less and less often. Probes
//! are sent only while large packets are: a pair at rest sends none.
//!
//! ```text
//!           a large packet, 10 s after         base answered,
//!           the last round (60 s: search)      top not in 0.5 s
//!  [ rest ] ----------> [ verify: base, top ] ----------> [ search: all sizes ] x 3
//!      ^                   | top answered                    | top answered: no limit
//!      +-------------------+                                 | else: the largest answered
//!      +-----------------------------------------------------+
//! ```

use std::time::{Duration, Instant};

/// The largest outer packet that every IPv6 path takes (RFC 8200, section 5).
pub(crate) const BASE: u32 = 1280;
/// Outer sizes worth knowing: tunnels in tunnels, PPPoE, Ethernet, jumbo frames.
const SIZES: [u32; 11] = [
    BASE, 1360, 1380, 1400, 1420, 1440, 1460, 1480, 1492, 1500, 4000,
];
/// How long a round waits for answers; later ones count in the next.
const ANSWER: Duration = Duration::from_millis(500);
const VERIFY_EVERY: Duration = Duration::from_secs(10);
/// How often a larger size is tried where a limit was found.
const RAISE_EVERY: Duration = Duration::from_secs(60);
/// How many searches the top size must fail: loss is no limit.
const SEARCHES: u32 = 3;
/// The waits after rounds without any answer double up to 64 times a minute.
const MUTE_WAIT: Duration = Duration::from_secs(60);
const MUTE_DOUBLINGS: u32 = 6;
/// A limit that was not looked at for so long is no longer told.
const LIMIT_LIFE: Duration = Duration::from_secs(600);

/// What a probe begins with: no version of IP.
const MAGIC: [u8; 8] = *b"\0wrnpath";
const ASK: u8 = 1;
const ANSWERED: u8 = 2;
/// Magic, kind, three bytes of zero, the size.
pub(crate) const MESSAGE_LEN: usize = 16;

/// A probe, or the answer to one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ProbeMessage {
    /// Tell me that this arrived.
    Ask(u32),
    /// It arrived.
    Answer(u32),
}

impl ProbeMessage {
    /// Reads the inside of a data message that is no IP packet.
    pub(crate) fn parse(inside: &[u8]) -> Option<Self> {
        let (head, _) = inside.split_first_chunk::<MESSAGE_LEN>()?;
        if head[..8] != MAGIC {
            return None;
        }
        let size = u32::from_be_bytes([head[12], head[13], head[14], head[15]]);
        match head[8] {
            ASK => Some(Self::Ask(size)),
            ANSWERED => Some(Self::Answer(size)),
            _ => None,
        }
    }

    /// Writes the message; what follows in `inside` becomes zero.
    pub(crate) fn write(self, inside: &mut [u8]) {
        inside.fill(0);
        let (kind, size) = match self {
            Self::Ask(size) => (ASK, size),
            Self::Answer(size) => (ANSWERED, size),
        };
        inside[..8].copy_from_slice(&MAGIC);
        inside[8] = kind;
        inside[12..MESSAGE_LEN].copy_from_slice(&size.to_be_bytes());
    }
}

#[derive(Debug)]
struct Round {
    /// 0 for a verification, else the number of the search.
    search: u32,
    until: Instant,
    /// The largest size that is let pass now.
    top: u32,
    /// The largest size that was answered; 0 for none.
    heard: u32,
    /// How many sizes are still to be asked for: the top, then those below it, the smallest last.
    asks: usize,
}

/// One peer's path.
#[derive(Debug, Default)]
pub(crate) struct PathProbe {
    /// What the kernel lets pass in one piece, in bytes; 0 while that is not known.
    ceiling: u32,
    limit: Option<(u32, Instant)>,
    round: Option<Round>,
    next_at: Option<Instant>,
    raise_at: Option<Instant>,
    /// Rounds in a row that nothing answered.
    mute: u32,
}

impl PathProbe {
    /// Takes what the kernel lets pass; another value begins anew.
    pub(crate) fn set_ceiling(&mut self, bytes: u32) {
        let bytes = bytes.min(65_535);
        if self.ceiling != bytes {
            *self = Self {
                ceiling: bytes,
                mute: self.mute,
                ..Self::default()
            };
        }
    }

    /// The largest outer packet that arrives, where that is less than the kernel lets pass.
    pub(crate) fn limit(&self, now: Instant) -> Option<u32> {
        let (bytes, at) = self.limit?;
        (now.saturating_duration_since(at) < LIMIT_LIFE).then_some(bytes)
    }

    /// Whether a large packet that is sent now begins a round.
    #[inline]
    pub(crate) fn is_due(&self, now: Instant) -> bool {
        self.ceiling > BASE && self.round.is_none() && self.next_at.is_none_or(|at| now >= at)
    }

    /// Begins a round.
    pub(crate) fn begin(&mut self, now: Instant) {
        let raise = self.limit.is_some() && self.raise_at.is_none_or(|at| now >= at);
        if raise {
            self.begin_search(now, 1, 0);
            return;
        }
        let top = self.limit.map_or(self.ceiling, |(bytes, _)| bytes);
        let asks = if top == BASE { 1 } else { 2 };
        self.round = Some(Round {
            search: 0,
            until: now + ANSWER,
            top,
            heard: 0,
            asks,
        });
    }

    /// The next size to ask for.
    pub(crate) fn poll_ask(&mut self) -> Option<u32> {
        let round = self.round.as_mut()?;
        round.asks = round.asks.checked_sub(1)?;
        let below = match round.search {
            0 if round.top == BASE => 0,
            0 => 1,
            _ => sizes_below(round.top),
        };
        Some(match round.asks == below {
            true => round.top,
            false => SIZES[round.asks],
        })
    }

    /// When [`PathProbe::handle_timeout`] has something to do.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.round.as_ref().map(|round| round.until)
    }

    /// Takes an answer; tells whether the limit changed.
    pub(crate) fn handle_answer(&mut self, now: Instant, size: u32) -> bool {
        let Some(round) = &mut self.round else {
            return false;
        };
        // A peer may say what it likes; of a size that is never asked for nothing follows.
        if size != round.top && !SIZES.contains(&size) || size > round.top {
            return false;
        }
        self.mute = 0;
        round.heard = round.heard.max(size);
        if size < round.top {
            return false;
        }
        let searched = round.search > 0;
        self.rest(now, VERIFY_EVERY);
        if searched {
            return self.limit.take().is_some();
        }
        if let Some((_, at)) = &mut self.limit {
            *at = now;
        }
        false
    }

    /// Ends a round whose time is over; tells whether the limit changed.
    pub(crate) fn handle_timeout(&mut self, now: Instant) -> bool {
        let Some(round) = self.round.take_if(|round| now >= round.until) else {
            return false;
        };
        if round.heard == 0 {
            // Nothing arrives at all, or the peer does not know probes: no word about sizes.
            let wait = MUTE_WAIT * 2u32.pow(self.mute.min(MUTE_DOUBLINGS));
            self.mute = self.mute.saturating_add(1);
            self.rest(now, wait);
            return false;
        }
        if round.search < SEARCHES {
            let heard = if round.search == 0 { 0 } else { round.heard };
            self.begin_search(now, round.search + 1, heard);
            return false;
        }
        let before = self.limit.map(|(bytes, _)| bytes);
        self.limit = Some((round.heard, now));
        self.raise_at = Some(now + RAISE_EVERY);
        self.rest(now, VERIFY_EVERY);
        before != Some(round.heard)
    }

    fn begin_search(&mut self, now: Instant, search: u32, heard: u32) {
        let top = self.ceiling;
        self.round = Some(Round {
            search,
            until: now + ANSWER,
            top,
            heard,
            asks: sizes_below(top) + 1,
        });
    }

    fn rest(&mut self, now: Instant, wait: Duration) {
        self.round = None;
        self.next_at = Some(now + wait);
    }
}

/// How many of the sizes are smaller.
fn sizes_below(top: u32) -> usize {
    SIZES.partition_point(|size| *size < top)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a path that takes packets up to `takes` until it rests; the sizes that were asked for.
    fn run(probe: &mut PathProbe, now: &mut Instant, takes: u32) -> Vec<u32> {
        let mut asked = Vec::new();
        assert!(probe.is_due(*now));
        probe.begin(*now);
        while let Some(deadline) = probe.deadline() {
            while let Some(size) = probe.poll_ask() {
                asked.push(size);
                if size <= takes {
                    probe.handle_answer(*now, size);
                }
            }
            *now = deadline.max(*now);
            probe.handle_timeout(*now);
        }
        asked
    }

    #[test]
    fn a_black_hole_is_found_within_seconds_and_left_when_it_is_gone() {
        let mut now = Instant::now();
        let start = now;
        let mut probe = PathProbe::default();
        assert!(!probe.is_due(now), "the kernel was not asked yet");
        probe.set_ceiling(1500);
        run(&mut probe, &mut now, 1410);
        assert_eq!(probe.limit(now), Some(1400));
        assert!(now - start < Duration::from_secs(5));
        now += VERIFY_EVERY;
        assert_eq!(
            run(&mut probe, &mut now, 1410),
            [1400],
            "verified, the base not needed"
        );
        assert_eq!(probe.limit(now), Some(1400));
        now += RAISE_EVERY;
        run(&mut probe, &mut now, 1500);
        assert_eq!(probe.limit(now), None);
    }

    #[test]
    fn a_wide_path_costs_one_probe_in_ten_seconds() {
        let mut now = Instant::now();
        let mut probe = PathProbe::default();
        probe.set_ceiling(1500);
        assert_eq!(run(&mut probe, &mut now, 1500), [1500]);
        assert!(!probe.is_due(now + Duration::from_secs(9)));
        assert_eq!(probe.limit(now), None);
    }

    #[test]
    fn a_peer_that_knows_no_probes_is_left_alone_and_nothing_is_concluded() {
        let mut now = Instant::now();
        let mut probe = PathProbe::default();
        probe.set_ceiling(1500);
        assert_eq!(run(&mut probe, &mut now, 0), [1500, BASE]);
        assert!(!probe.is_due(now + Duration::from_secs(59)));
        now += MUTE_WAIT;
        run(&mut probe, &mut now, 0);
        assert!(!probe.is_due(now + Duration::from_secs(119)));
        assert_eq!(probe.limit(now), None);
    }

    #[test]
    fn lost_probes_are_no_limit() {
        let mut now = Instant::now();
        let mut probe = PathProbe::default();
        probe.set_ceiling(1500);
        probe.begin(now);
        probe.handle_answer(now, BASE);
        for _ in 0..SEARCHES {
            now = probe.deadline().unwrap();
            assert!(!probe.handle_timeout(now));
            probe.handle_answer(now, 1492);
        }
        probe.handle_answer(now, 1500);
        assert_eq!((probe.limit(now), probe.deadline()), (None, None));
    }

    #[test]
    fn answers_of_sizes_that_were_not_asked_for_are_nothing() {
        let mut now = Instant::now();
        let mut probe = PathProbe::default();
        probe.set_ceiling(1500);
        probe.begin(now);
        while let Some(until) = probe.deadline() {
            for size in [0, 7, BASE - 1, 1300, 1501, u32::MAX] {
                assert!(!probe.handle_answer(now, size));
            }
            now = until;
            assert!(!probe.handle_timeout(now));
        }
        assert_eq!(probe.limit(now), None);
        assert!(!probe.is_due(now + VERIFY_EVERY), "taken for an answer");
    }

    #[test]
    fn messages_are_read_as_written_and_ip_packets_are_none() {
        let mut inside = [0xff; 1000];
        for message in [ProbeMessage::Ask(1500), ProbeMessage::Answer(9000)] {
            message.write(&mut inside);
            assert_eq!(ProbeMessage::parse(&inside), Some(message));
            assert_eq!(ProbeMessage::parse(&inside[..MESSAGE_LEN]), Some(message));
            assert_eq!(ProbeMessage::parse(&inside[..MESSAGE_LEN - 1]), None);
        }
        inside[0] = 0x45;
        assert_eq!(ProbeMessage::parse(&inside), None);
    }
}
