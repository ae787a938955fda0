//! Where the engine puts what is to be sent: two arenas, one system call for many messages.

use std::net::SocketAddr;
use std::ops::Range;

use crate::offload::MAX_SEGMENTS;
use crate::shards::ring::HandedOver;
use crate::source::Endpoint;

/// From so many bytes on the outbox wants to be emptied: what is in it shall still be in the
/// processor's cache then.
const FULL_BYTES: usize = 192 * 1024;
/// And what one more input may become. That is most for a super-packet of 64 KB in the smallest
/// segments that Linux makes: 2,048 with headers of 72 bytes and our own 32, padded to 16.
const INPUT_BYTES: usize = 352 * 1024;
const ARENA_BYTES: usize = FULL_BYTES + INPUT_BYTES;
/// The same in messages.
const FULL_MESSAGES: usize = 2040;
pub(crate) const MAX_MESSAGES: usize = FULL_MESSAGES + MAX_SEGMENTS + 8;

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
    /// How many hops it may take; `None`: as many as the kernel gives.
    pub hops: Option<u8>,
}

impl From<Endpoint> for Way {
    fn from(endpoint: Endpoint) -> Self {
        Self {
            endpoint,
            rides: true,
            in_pieces: false,
            hops: None,
        }
    }
}

/// The engine's output: datagrams for the network and packets for the TUN, in order.
///
/// The bytes lie back to back in memory that is taken once, so that no packet costs an allocation and
/// neighbours to one endpoint can leave as one train. It never grows: empty it after each round of
/// input, and before the next input when it is full. Who does not loses packets, which are counted
/// as `outbox_full`.
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
        self.datagrams.is_full() || self.packets.is_full()
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

/// Messages back to back, in memory of a fixed size.
#[derive(Debug)]
pub(crate) struct Arena<T> {
    bytes: Box<[u8]>,
    used: usize,
    /// INVARIANT: never more than at the start there is room for.
    items: Vec<(T, Range<usize>)>,
}

impl<T> Arena<T> {
    fn new() -> Self {
        Self {
            bytes: vec![0; ARENA_BYTES].into(),
            used: 0,
            items: Vec::with_capacity(MAX_MESSAGES),
        }
    }

    fn is_full(&self) -> bool {
        self.used >= FULL_BYTES || self.items.len() >= FULL_MESSAGES
    }

    /// Returns room for one message of at most `len` bytes; it counts only when committed. `None`
    /// where there is no more: an arena that is not full has it for all that one input becomes.
    #[inline]
    pub(crate) fn room(&mut self, len: usize) -> Option<&mut [u8]> {
        if self.items.len() == MAX_MESSAGES {
            return None;
        }
        self.bytes.get_mut(self.used..self.used + len)
    }

    /// The first bytes of the last room.
    #[inline]
    pub(crate) fn last_room(&self) -> &[u8] {
        &self.bytes[self.used..]
    }

    /// Makes the first `len` bytes of the last room a message.
    ///
    /// INVARIANT: called at most once for each room that there was.
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

    /// The bytes in a range that [`Arena::joined`] has given.
    #[inline]
    pub(crate) fn bytes(&self, range: &Range<usize>) -> &[u8] {
        &self.bytes[range.clone()]
    }

    /// Where the bytes of these messages are; those that lie back to back are one range.
    pub(crate) fn joined(
        &self,
        numbers: impl Iterator<Item = usize>,
    ) -> impl Iterator<Item = Range<usize>> {
        let mut ranges = numbers
            .map(|number| self.items[number].1.clone())
            .peekable();
        std::iter::from_fn(move || {
            let mut joined = ranges.next()?;
            while let Some(next) = ranges.next_if(|next| next.start == joined.end) {
                joined.end = next.end;
            }
            Some(joined)
        })
    }

    fn clear(&mut self) {
        self.used = 0;
        self.items.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_committed_bytes_come_out_in_order() {
        let mut outbox = Outbox::new();
        let endpoint = Endpoint::from(SocketAddr::from(([192, 0, 2, 1], 1)));
        outbox.datagrams.room(100).unwrap()[..3].copy_from_slice(b"one");
        outbox.datagrams.commit(3, endpoint.into());
        outbox.datagrams.room(100).unwrap().fill(9);
        outbox.datagrams.room(3).unwrap().copy_from_slice(b"two");
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
            outbox.packets.room(4).unwrap().fill(byte);
            outbox.packets.commit(2, ());
        }
        let joined = |numbers: &[usize]| {
            let joined = outbox.packets.joined(numbers.iter().copied());
            joined
                .map(|range| outbox.packets.bytes(&range).to_vec())
                .collect::<Vec<_>>()
        };
        assert_eq!(joined(&[0, 1, 3]), [&[0, 0, 1, 1][..], &[3, 3]]);
        assert_eq!(joined(&[4, 2]), [[4, 4], [2, 2]]);
        assert!(joined(&[]).is_empty());
    }

    fn way() -> Way {
        Endpoint::from(SocketAddr::from(([192, 0, 2, 1], 1))).into()
    }

    /// An outbox that one more message of that length would make full.
    fn almost_full(len: usize) -> Outbox {
        let mut outbox = Outbox::new();
        loop {
            outbox.datagrams.room(len).unwrap();
            outbox.packets.room(len).unwrap();
            let used = outbox.packets.used + len;
            if used >= FULL_BYTES || outbox.packets.len() + 1 >= FULL_MESSAGES {
                assert!(!outbox.is_full());
                return outbox;
            }
            outbox.datagrams.commit(len, way());
            outbox.packets.commit(len, ());
        }
    }

    #[test]
    fn what_is_not_full_has_room_for_any_input() {
        for len in [32, 112, 1452, 65_535] {
            let mut outbox = almost_full(len);
            // The largest datagram or packet, and the most and the smallest segments.
            assert!(outbox.packets.room(65_535).is_some());
            let payload = 65_535usize.div_ceil(MAX_SEGMENTS);
            let segment = (72 + payload).next_multiple_of(16) + 32;
            for n in 0..MAX_SEGMENTS {
                assert!(outbox.datagrams.room(segment).is_some(), "{n} after {len}");
                outbox.datagrams.commit(segment, way());
            }
        }
    }

    #[test]
    fn it_never_grows_and_is_of_use_again_when_it_is_cleared() {
        for len in [32, 65_535] {
            let mut outbox = almost_full(len);
            let memory = |outbox: &Outbox| {
                let packets = &outbox.packets;
                (
                    packets.bytes.as_ptr(),
                    packets.items.as_ptr(),
                    packets.items.capacity(),
                )
            };
            let before = memory(&outbox);
            while outbox.packets.room(len).is_some() {
                outbox.packets.commit(len, ());
            }
            assert!(outbox.packets.len() <= MAX_MESSAGES);
            assert_eq!(memory(&outbox), before);
            outbox.clear();
            assert!(outbox.packets.room(65_535).is_some());
            assert_eq!(memory(&outbox), before);
        }
    }
}
