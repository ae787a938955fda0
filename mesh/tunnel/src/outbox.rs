//! Where the engine puts what is to be sent: two arenas, one system call for many messages.

use std::net::SocketAddr;
use std::ops::Range;

use crate::shards::ring::HandedOver;
use crate::source::Endpoint;

/// What an arena starts with and shrinks back to: what is sent on at the latest, and what one more
/// super-packet of 64 KB becomes.
const ARENA_BYTES: usize = 384 * 1024;
/// From so many bytes on the outbox wants to be emptied: what is in it shall still be in the
/// processor's cache then.
const FULL_BYTES: usize = 192 * 1024;
/// An arena that a burst made larger than this is given back.
const ARENA_KEPT_BYTES: usize = 4 * ARENA_BYTES;

/// Where a datagram goes, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    /// Where to, and from which address of ours.
    pub endpoint: Endpoint,
    /// Whether it may leave in a train with others. Not where it is known not to arrive in one piece,
    /// and not a probe of the path: a router that forwards a train whole drops it whole.
    pub rides: bool,
    /// Whether it is to leave in pieces that every IPv6 path takes: it is known not to arrive in
    /// one, and the kernel is not.
    pub in_pieces: bool,
}

impl From<Endpoint> for Way {
    fn from(endpoint: Endpoint) -> Self {
        Self {
            endpoint,
            rides: true,
            in_pieces: false,
        }
    }
}

/// The engine's output: datagrams for the network and packets for the TUN, in order.
///
/// The bytes lie back to back in memory that is reused, so that no packet costs an allocation and
/// neighbours to one endpoint can leave as one train. Empty it after each round of input.
#[derive(Debug)]
pub struct Outbox {
    pub(crate) datagrams: Arena<Way>,
    pub(crate) packets: Arena<()>,
    /// What is for other shards. Frames of the TUN are not among it, for they are not copied here.
    pub(crate) handed_over: Vec<HandedOver>,
}

impl Outbox {
    /// Makes an empty outbox.
    pub fn new() -> Self {
        Self {
            datagrams: Arena::new(),
            packets: Arena::new(),
            handed_over: Vec::new(),
        }
    }

    /// Goes through the datagrams and where each goes to.
    pub fn datagrams(&self) -> impl ExactSizeIterator<Item = (SocketAddr, &[u8])> {
        self.outgoing()
            .map(|(way, bytes)| (way.endpoint.address, bytes))
    }

    /// Goes through the datagrams, where each goes to, and how.
    pub fn outgoing(&self) -> impl ExactSizeIterator<Item = (Way, &[u8])> {
        self.datagrams.iter().map(|(way, bytes)| (*way, bytes))
    }

    /// Goes through the packets for the TUN.
    pub fn packets(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        self.packets.iter().map(|((), bytes)| bytes)
    }

    /// Tells whether there is nothing to send.
    pub fn is_empty(&self) -> bool {
        self.datagrams.items.is_empty() && self.packets.items.is_empty()
    }

    /// Tells whether so much is in it that it is to be emptied before the next input.
    #[inline]
    pub fn is_full(&self) -> bool {
        self.datagrams.used >= FULL_BYTES || self.packets.used >= FULL_BYTES
    }

    /// Forgets everything, and keeps the memory for the next round.
    pub fn clear(&mut self) {
        self.datagrams.clear();
        self.packets.clear();
        self.handed_over.clear();
    }
}

impl Default for Outbox {
    fn default() -> Self {
        Self::new()
    }
}

/// Messages back to back.
#[derive(Debug)]
pub(crate) struct Arena<T> {
    bytes: Vec<u8>,
    used: usize,
    items: Vec<(T, Range<usize>)>,
}

impl<T> Arena<T> {
    fn new() -> Self {
        Self {
            bytes: vec![0; ARENA_BYTES],
            used: 0,
            items: Vec::with_capacity(256),
        }
    }

    /// Returns room for one message of at most `len` bytes; it counts only when committed.
    #[inline]
    pub(crate) fn room(&mut self, len: usize) -> &mut [u8] {
        let end = self.used + len;
        if end > self.bytes.len() {
            self.bytes.resize(end.next_power_of_two(), 0);
        }
        &mut self.bytes[self.used..end]
    }

    /// Makes the first `len` bytes of the last room a message.
    #[inline]
    pub(crate) fn commit(&mut self, len: usize, meta: T) {
        let range = self.used..self.used + len;
        self.used = range.end;
        self.items.push((meta, range));
    }

    pub(crate) fn iter(&self) -> impl ExactSizeIterator<Item = (&T, &[u8])> {
        self.items
            .iter()
            .map(|(meta, range)| (meta, &self.bytes[range.clone()]))
    }

    /// The number of messages.
    pub(crate) fn len(&self) -> usize {
        self.items.len()
    }

    /// The message of that number, counted from 0.
    #[inline]
    pub(crate) fn get(&self, number: usize) -> &[u8] {
        &self.bytes[self.items[number].1.clone()]
    }

    #[inline]
    pub(crate) fn get_mut(&mut self, number: usize) -> &mut [u8] {
        &mut self.bytes[self.items[number].1.clone()]
    }

    /// The bytes of these messages; those that lie back to back are one slice.
    pub(crate) fn joined(
        &self,
        numbers: impl Iterator<Item = usize>,
    ) -> impl Iterator<Item = &[u8]> {
        let mut ranges = numbers
            .map(|number| self.items[number].1.clone())
            .peekable();
        std::iter::from_fn(move || {
            let mut joined = ranges.next()?;
            while let Some(next) = ranges.next_if(|next| next.start == joined.end) {
                joined.end = next.end;
            }
            Some(&self.bytes[joined])
        })
    }

    fn clear(&mut self) {
        self.used = 0;
        self.items.clear();
        if self.bytes.len() > ARENA_KEPT_BYTES {
            self.bytes = vec![0; ARENA_BYTES];
            self.items.shrink_to(256);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_committed_bytes_come_out_in_order() {
        let mut outbox = Outbox::new();
        let endpoint = Endpoint::from(SocketAddr::from(([192, 0, 2, 1], 1)));
        outbox.datagrams.room(100)[..3].copy_from_slice(b"one");
        outbox.datagrams.commit(3, endpoint.into());
        outbox.datagrams.room(100).fill(9);
        outbox.datagrams.room(3).copy_from_slice(b"two");
        outbox.datagrams.commit(3, endpoint.into());
        let bytes: Vec<&[u8]> = outbox.datagrams().map(|(_, bytes)| bytes).collect();
        assert_eq!(bytes, [b"one", b"two"]);
        outbox.clear();
        assert!(outbox.is_empty());
    }

    #[test]
    fn neighbours_are_joined_and_others_are_not() {
        let mut outbox = Outbox::new();
        for byte in 0..5 {
            outbox.packets.room(4).fill(byte);
            outbox.packets.commit(2, ());
        }
        let joined = |numbers: &[usize]| {
            let joined = outbox.packets.joined(numbers.iter().copied());
            joined.map(<[u8]>::to_vec).collect::<Vec<_>>()
        };
        assert_eq!(joined(&[0, 1, 3]), [&[0, 0, 1, 1][..], &[3, 3]]);
        assert_eq!(joined(&[4, 2]), [[4, 4], [2, 2]]);
        assert!(joined(&[]).is_empty());
    }

    #[test]
    fn it_is_full_before_it_has_to_grow() {
        let mut outbox = Outbox::new();
        while !outbox.is_full() {
            outbox.datagrams.room(1500);
            outbox.datagrams.commit(
                1500,
                Endpoint::from(SocketAddr::from(([192, 0, 2, 1], 1))).into(),
            );
        }
        assert_eq!(outbox.datagrams.bytes.len(), ARENA_BYTES);
    }

    #[test]
    fn a_burst_grows_an_arena_only_until_it_is_cleared() {
        let mut outbox = Outbox::new();
        for _ in 0..1000 {
            outbox.packets.room(65_535);
            outbox.packets.commit(65_535, ());
        }
        assert_eq!(outbox.packets().len(), 1000);
        outbox.clear();
        assert_eq!(outbox.packets.bytes.len(), ARENA_BYTES);
    }
}
