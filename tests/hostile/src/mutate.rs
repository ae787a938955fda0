//! Damaged, cut, extended and repeated messages, made of real ones.

use crate::random::Random;

/// The largest payload of a UDP datagram over IPv4.
pub const DATAGRAM_MAX: usize = 65_507;
/// How much random data is made once and sent in pieces.
const POOL_BYTES: usize = 1 << 20;

/// The source of one attack's datagrams.
pub struct Mutator {
    recorded: Vec<Vec<u8>>,
    pool: Vec<u8>,
    random: Random,
}

impl Mutator {
    /// Makes the source; without recorded messages everything is random.
    pub fn new(seed: u64, recorded: Vec<Vec<u8>>) -> Self {
        let mut random = Random::new(seed);
        let mut pool = vec![0; POOL_BYTES + DATAGRAM_MAX];
        random.fill(&mut pool);
        Self {
            recorded,
            pool,
            random,
        }
    }

    /// Puts the next datagram into `datagram`: as often a random one as one made of a real one.
    pub fn next(&mut self, datagram: &mut Vec<u8>) {
        datagram.clear();
        if self.recorded.is_empty() || self.random.one_in(2) {
            self.random_datagram(datagram);
        } else {
            self.mutated(datagram);
        }
    }

    fn random_datagram(&mut self, datagram: &mut Vec<u8>) {
        let len = self.random_len();
        let start = self.random.below(POOL_BYTES);
        datagram.extend_from_slice(&self.pool[start..start + len]);
        // Half of them get past the check of the type.
        if len >= 4 && self.random.one_in(2) {
            let kind = self.random.below(6) as u32;
            datagram[..4].copy_from_slice(&kind.to_le_bytes());
        }
    }

    /// Every order of magnitude as often, and the limits, and the lengths of real messages.
    fn random_len(&mut self) -> usize {
        match self.random.below(64) {
            0 => 0,
            1 => DATAGRAM_MAX,
            2..=9 => [148, 92, 64, 32, 147, 93, 65, 31][self.random.below(8)],
            _ => {
                let bits = self.random.below(17);
                self.random.below(1 << bits).min(DATAGRAM_MAX)
            }
        }
    }

    fn mutated(&mut self, datagram: &mut Vec<u8>) {
        let random = &mut self.random;
        let recorded = &self.recorded[random.below(self.recorded.len())];
        datagram.extend_from_slice(recorded);
        // One in sixteen stays as it is: a replay.
        if random.one_in(16) {
            return;
        }
        for _ in 0..=random.below(4) {
            let len = datagram.len();
            if len == 0 {
                return;
            }
            match random.below(8) {
                0 => datagram[random.below(len)] ^= 1 << random.below(8),
                1 => datagram[random.below(len)] = random.bits() as u8,
                2 => datagram.truncate(random.below(len)),
                3 => {
                    let more = 1 + random.below(64);
                    datagram.extend_from_slice(&self.pool[..more]);
                }
                4 => datagram[0] = random.below(6) as u8,
                // An index: wrong, or wrong only in the byte that counts sessions.
                5 if len >= 8 => datagram[4] = random.bits() as u8,
                6 if len >= 12 => random.fill(&mut datagram[4..8]),
                // The counter of data, the ephemeral key of a handshake.
                7 if len >= 16 => random.fill(&mut datagram[8..16]),
                _ => {
                    let end = len.min(16);
                    random.fill(&mut datagram[len - end..]);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_limits_of_length_occur_and_replays_too() {
        let real = vec![4u8; 80];
        let mut mutator = Mutator::new(5, vec![real.clone()]);
        let (mut empty, mut largest, mut replays, mut changed) = (0, 0, 0, 0);
        let mut datagram = Vec::new();
        for _ in 0..10_000 {
            mutator.next(&mut datagram);
            assert!(datagram.len() <= DATAGRAM_MAX);
            empty += usize::from(datagram.is_empty());
            largest += usize::from(datagram.len() == DATAGRAM_MAX);
            replays += usize::from(datagram == real);
            changed += usize::from(datagram.len() == 80 && datagram != real);
        }
        assert!(empty > 0 && largest > 0 && replays > 0 && changed > 0);
    }
}
