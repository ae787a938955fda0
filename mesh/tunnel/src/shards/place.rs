//! Which shard a peer is in, and how the index of its sessions tells the kernel.
//!
//! ```text
//! receiver index:  g ssss nnnnnnnnnnnnnnnnnnn kkkkkkkk
//!                  |  |            |             key pair
//!                  |  |         session
//!                  |  shard, where there are several; else more of the session
//!                  generation
//! ```

/// The most shards: the index has four bits for their number.
pub const MAX_SHARDS: u8 = 16;

/// The bits of an index without the key pair's number.
const INDEX_BITS: u32 = 24;
const GENERATION_BIT: u32 = 1 << (INDEX_BITS - 1);
const SHARD_SHIFT: u32 = INDEX_BITS - 5;

/// The number of a shard, below [`MAX_SHARDS`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShardId(u8);

impl ShardId {
    /// The shard that takes initiations, and carries out requests first.
    pub const LEAD: Self = Self(0);

    /// Makes the id of a number; `None` where that is [`MAX_SHARDS`] or more.
    pub const fn new(number: u8) -> Option<Self> {
        match number < MAX_SHARDS {
            true => Some(Self(number)),
            false => None,
        }
    }

    /// Returns the number.
    pub const fn number(self) -> u8 {
        self.0
    }

    /// Goes through the first `count` ids, of at most [`MAX_SHARDS`].
    pub fn first(count: u8) -> impl Iterator<Item = Self> {
        (0..count.min(MAX_SHARDS)).map(Self)
    }
}

/// A shard among the shards of its device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    own: ShardId,
    count: u8,
}

impl Place {
    /// The only shard.
    pub const ALONE: Self = Self {
        own: ShardId::LEAD,
        count: 1,
    };

    /// Returns the places of `count` shards, at least 1 and at most [`MAX_SHARDS`].
    pub fn all(count: u8) -> impl Iterator<Item = Self> {
        let count = count.clamp(1, MAX_SHARDS);
        ShardId::first(count).map(move |own| Self { own, count })
    }

    /// Returns the shard.
    pub const fn own(self) -> ShardId {
        self.own
    }

    /// Returns how many there are.
    pub const fn count(self) -> u8 {
        self.count
    }

    /// The sessions of one shard and one generation that an index can tell apart.
    pub(crate) const fn sessions(self) -> u32 {
        match self.count {
            1 => GENERATION_BIT,
            _ => 1 << SHARD_SHIFT,
        }
    }

    /// The index of 24 bits of a session of this shard.
    pub(crate) const fn index(self, generation: bool, session: u32) -> u32 {
        let shard = (self.own.0 as u32) << SHARD_SHIFT;
        let generation = if generation { GENERATION_BIT } else { 0 };
        generation | shard | session
    }
}

/// How far the byte at the top of a receiver index is shifted to tell the shard, and what remains of it.
pub(crate) const TOP_BYTE_SHIFT: u32 = SHARD_SHIFT - (INDEX_BITS - 8);
pub(crate) const TOP_BYTE_MASK: u32 = MAX_SHARDS as u32 - 1;

/// The shard of a new peer, by how many each shard has: the one with the fewest, and of those the last,
/// as the first one has the initiations too. A hash would leave shards without peers in small clusters.
///
/// INVARIANT: all engines of a device see the same peers come and go in the same order.
pub(crate) fn choose(peers: &[usize]) -> ShardId {
    let numbers = (0..MAX_SHARDS).zip(peers).rev();
    numbers
        .min_by_key(|(_, peers)| **peers)
        .map_or(ShardId::LEAD, |(number, _)| ShardId(number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_top_byte_of_an_index_tells_the_shard_and_the_generation() {
        for count in [2, 3, 16] {
            for place in Place::all(count) {
                for generation in [false, true] {
                    for session in [0, 1, place.sessions() - 1] {
                        let receiver = place.index(generation, session) << 8 | 7;
                        let top = receiver.to_le_bytes()[3];
                        let shard = (u32::from(top) >> TOP_BYTE_SHIFT) & TOP_BYTE_MASK;
                        assert_eq!(shard, u32::from(place.own().number()));
                        assert_eq!(top >= 0x80, generation);
                    }
                }
            }
        }
        assert_eq!(Place::ALONE.sessions(), 1 << 23);
        assert_eq!(Place::ALONE.index(true, 5), 1 << 23 | 5);
    }

    #[test]
    fn peers_spread_evenly_and_the_lead_comes_last() {
        let mut peers = [0; 4];
        let mut chosen = Vec::new();
        for _ in 0..8 {
            let shard = choose(&peers);
            peers[shard.number() as usize] += 1;
            chosen.push(shard.number());
        }
        assert_eq!(chosen, [3, 2, 1, 0, 3, 2, 1, 0]);
        peers[2] -= 1;
        assert_eq!(choose(&peers).number(), 2);
        assert_eq!(choose(&[7]), ShardId::LEAD);
    }
}
