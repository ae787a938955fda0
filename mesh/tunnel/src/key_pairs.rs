//! The key pairs of a session, mirrored from boringtun by index, age and use.

use std::time::{Duration, Instant};

/// Reject-After-Time (WireGuard paper, section 6.1).
pub(crate) const REJECT_AFTER: Duration = Duration::from_secs(180);
/// The key pairs that boringtun keeps; a pair's place is its local index modulo this.
const KEY_PAIRS: usize = 8;

/// How many messages one key pair is good for (WireGuard paper, section 6.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MessageLimits {
    /// Rekey-After-Messages: a new handshake is begun once so many were sent.
    pub rekey_after: u64,
    /// Reject-After-Messages: nothing is sent or accepted from that counter on.
    pub reject_after: u64,
}

impl Default for MessageLimits {
    fn default() -> Self {
        Self {
            rekey_after: 1 << 60,
            reject_after: u64::MAX - (1 << 13),
        }
    }
}

/// A pair of symmetric keys.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KeyPair {
    /// The index by which the peer addresses it.
    pub(crate) local: u32,
    pub(crate) since: Instant,
    /// boringtun's own idea of `since`: when its clock was last advanced before.
    pub(crate) stamped_at: Instant,
    /// The age from which on it is renewed when it is sent with, if the handshake was ours.
    pub(crate) rekey_after: Option<Duration>,
    /// The peer has shown that it has the keys too; an initiator knows that from the response.
    pub(crate) confirmed: bool,
    /// Messages sent with it, keepalives included.
    pub(crate) sent: u64,
}

impl KeyPair {
    #[inline]
    pub(crate) fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.since)
    }

    #[inline]
    pub(crate) fn is_initiator(&self) -> bool {
        self.rekey_after.is_some()
    }

    #[inline]
    pub(crate) fn is_valid(&self, now: Instant) -> bool {
        self.age(now) < REJECT_AFTER
    }
}

/// boringtun's ring of key pairs, and which of them it sends with.
#[derive(Debug, Default)]
pub(crate) struct KeyRing {
    pairs: [Option<KeyPair>; KEY_PAIRS],
    current: u32,
    /// The pair that the peer last sent with.
    heard: u32,
}

impl KeyRing {
    /// The pair that boringtun would send with; not necessarily one that may be used.
    #[inline]
    pub(crate) fn current(&self) -> Option<&KeyPair> {
        self.pairs[slot(self.current)].as_ref()
    }

    #[inline]
    pub(crate) fn current_mut(&mut self) -> Option<&mut KeyPair> {
        self.pairs[slot(self.current)].as_mut()
    }

    #[inline]
    pub(crate) fn get(&self, local: u32) -> Option<&KeyPair> {
        self.pairs[slot(local)]
            .as_ref()
            .filter(|pair| pair.local == local)
    }

    pub(crate) fn insert(&mut self, pair: KeyPair) {
        self.pairs[slot(pair.local)] = Some(pair);
    }

    /// boringtun has lost the pair that it sends with.
    pub(crate) fn forget_current(&mut self) {
        self.pairs[slot(self.current)] = None;
    }

    pub(crate) fn clear(&mut self) {
        self.pairs = [None; KEY_PAIRS];
    }

    /// Follows boringtun, which has just received with the pair; tells whether that confirms it.
    #[inline]
    pub(crate) fn heard(&mut self, local: u32) -> bool {
        self.heard = local;
        let first = match &mut self.pairs[slot(local)] {
            Some(pair) => !std::mem::replace(&mut pair.confirmed, true),
            None => false,
        };
        if self.current != local {
            self.promote(local);
        }
        first
    }

    /// Follows boringtun: the newer key pair is sent with.
    pub(crate) fn promote(&mut self, local: u32) {
        let (new, old) = (self.pairs[slot(local)], self.pairs[slot(self.current)]);
        if old.is_none_or(|old| new.is_some_and(|new| new.stamped_at >= old.stamped_at)) {
            self.current = local;
        }
    }

    /// Whether a new pair of that index would take the place of one in use. boringtun does not
    /// look: with eight handshakes in three minutes it throws the pair away that traffic is on.
    pub(crate) fn is_in_use(&self, local: u32, now: Instant) -> bool {
        self.pairs[slot(local)].is_some_and(|pair| {
            pair.is_valid(now) && (pair.local == self.current || pair.local == self.heard)
        })
    }

    pub(crate) fn any_valid(&self, now: Instant) -> bool {
        self.pairs.iter().flatten().any(|pair| pair.is_valid(now))
    }

    /// Whether boringtun, told the time, would throw away a pair that is still good: by its own
    /// idea of that pair's age.
    pub(crate) fn would_lose_valid(&self, now: Instant) -> bool {
        // A second for the two clocks, which are not read at the same moment.
        let limit = REJECT_AFTER - Duration::from_secs(1);
        self.pairs.iter().flatten().any(|pair| {
            pair.is_valid(now) && now.saturating_duration_since(pair.stamped_at) >= limit
        })
    }
}

/// The local index that boringtun gives after this one: only the low byte counts.
pub(crate) fn next_index(local: u32) -> u32 {
    (local & !0xff) | u32::from((local as u8).wrapping_add(1))
}

#[inline]
fn slot(local: u32) -> usize {
    local as usize % KEY_PAIRS
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(local: u32, since: Instant) -> KeyPair {
        KeyPair {
            local,
            since,
            stamped_at: since,
            rekey_after: None,
            confirmed: false,
            sent: 0,
        }
    }

    #[test]
    fn the_pair_that_traffic_is_on_is_not_overwritten_until_it_is_too_old() {
        let now = Instant::now();
        let mut ring = KeyRing::default();
        ring.insert(pair(0x101, now));
        assert!(!ring.is_in_use(0x109, now), "nobody has used it yet");
        assert!(ring.heard(0x101), "confirmed by its first message");
        assert!(!ring.heard(0x101));
        assert!(ring.is_in_use(0x109, now));
        assert!(!ring.is_in_use(0x102, now));
        assert!(!ring.is_in_use(0x109, now + REJECT_AFTER));
    }

    #[test]
    fn a_late_packet_on_an_older_pair_does_not_bring_it_back() {
        let now = Instant::now();
        let later = now + Duration::from_secs(120);
        let mut ring = KeyRing::default();
        for new in [pair(1, now), pair(2, later)] {
            ring.insert(new);
            ring.heard(new.local);
        }
        ring.heard(1);
        assert_eq!(ring.current().map(|pair| pair.local), Some(2));
    }

    #[test]
    fn only_the_low_byte_of_an_index_counts() {
        assert_eq!(next_index(0xabcd_ef00), 0xabcd_ef01);
        assert_eq!(next_index(0xabcd_efff), 0xabcd_ef00);
    }
}
