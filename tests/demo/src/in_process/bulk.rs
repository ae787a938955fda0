//! A stream of numbered blocks in UDP, with a window and cumulative acknowledgements, so that
//! nothing of it is lost. Both ends are state machines without I/O.
//!
//! ```text
//! sender                     receiver
//! block 0 .. 63        ->
//!                      <-    next is 16, 32, 48, 64
//! block 64 .. 127      ->
//! block 129            ->    (128 was lost)
//!                      <-    next is 128
//! block 128 ..         ->
//! ```
//!
//! An acknowledgement that says nothing new tells of a loss, and so do 50 ms without one: then all
//! after the last acknowledged block is sent again.

use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};
use warren_e2e::MARKER;

/// Bytes of a block: with all headers it fits into the inner MTU of either family.
pub(super) const BLOCK_BYTES: u64 = 1280;
/// Less than a socket's receive buffer holds by default.
const WINDOW: u64 = 64;
const ACKNOWLEDGE_EVERY: u64 = 16;
const RETRY: Duration = Duration::from_millis(50);

const KIND_BLOCK: u8 = 1;
const KIND_NEXT: u8 = 2;
const HEAD_BYTES: usize = 17;

/// A message of the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Message<'a> {
    /// One of `count` blocks.
    Block {
        number: u64,
        count: u64,
        bytes: &'a [u8],
    },
    /// The receiver has all blocks before this one.
    Next { number: u64 },
}

impl<'a> Message<'a> {
    pub(super) fn parse(data: &'a [u8]) -> Option<Self> {
        let (head, bytes) = data.split_first_chunk::<HEAD_BYTES>()?;
        let number = u64::from_be_bytes(head[1..9].try_into().ok()?);
        let count = u64::from_be_bytes(head[9..].try_into().ok()?);
        match head[0] {
            KIND_BLOCK => Some(Self::Block {
                number,
                count,
                bytes,
            }),
            KIND_NEXT => Some(Self::Next { number }),
            _ => None,
        }
    }

    pub(super) fn to_bytes(self) -> Vec<u8> {
        let (kind, number, count, bytes) = match self {
            Self::Block {
                number,
                count,
                bytes,
            } => (KIND_BLOCK, number, count, bytes),
            // The marker makes every packet of a pod one that a look at clear text finds.
            Self::Next { number } => (KIND_NEXT, number, 0, MARKER.as_bytes()),
        };
        let mut data = Vec::with_capacity(HEAD_BYTES + bytes.len());
        data.push(kind);
        data.extend_from_slice(&number.to_be_bytes());
        data.extend_from_slice(&count.to_be_bytes());
        data.extend_from_slice(bytes);
        data
    }
}

/// The sending end.
pub(super) struct Sender {
    count: u64,
    acknowledged: u64,
    next: u64,
    /// The block that a repeated acknowledgement has brought the sender back to. Each block still
    /// on the way then repeats it once more, and none of those tells of another loss.
    back_at: Option<u64>,
    hashed: u64,
    digest: Sha256,
    retry_at: Instant,
}

impl Sender {
    /// Makes the sender of that many blocks.
    pub(super) fn new(count: u64, now: Instant) -> Self {
        Self {
            count,
            acknowledged: 0,
            next: 0,
            back_at: None,
            hashed: 0,
            digest: Sha256::new(),
            retry_at: now + RETRY,
        }
    }

    /// Returns the next message that the window has room for.
    pub(super) fn poll_message(&mut self, now: Instant) -> Option<Vec<u8>> {
        if now >= self.retry_at {
            self.next = self.acknowledged;
            self.retry_at = now + RETRY;
        }
        if self.next >= self.count.min(self.acknowledged + WINDOW) {
            return None;
        }
        let bytes = block(self.next);
        if self.next == self.hashed {
            self.digest.update(&bytes);
            self.hashed += 1;
        }
        let message = Message::Block {
            number: self.next,
            count: self.count,
            bytes: &bytes,
        };
        self.next += 1;
        Some(message.to_bytes())
    }

    /// Takes an acknowledgement.
    pub(super) fn handle_next(&mut self, number: u64, now: Instant) {
        // More than was ever sent cannot have arrived.
        if number > self.acknowledged && number <= self.hashed {
            self.acknowledged = number;
            self.next = self.next.max(number);
            self.retry_at = now + RETRY;
        } else if number == self.acknowledged && self.back_at != Some(number) {
            self.next = number;
            self.back_at = Some(number);
            self.retry_at = now + RETRY;
        }
    }

    /// Returns when to poll again at the latest.
    pub(super) fn timeout(&self) -> Instant {
        self.retry_at
    }

    /// Returns the digest of all blocks once all are acknowledged.
    pub(super) fn finished(&self) -> Option<String> {
        (self.acknowledged == self.count).then(|| hex(&self.digest))
    }
}

/// The receiving end; it takes blocks in their order only.
#[derive(Default)]
pub(super) struct Receiver {
    next: u64,
    count: u64,
    bytes: u64,
    digest: Sha256,
}

impl Receiver {
    /// Takes a block, and returns the answer if one is due.
    pub(super) fn handle_block(
        &mut self,
        number: u64,
        count: u64,
        bytes: &[u8],
    ) -> Option<Vec<u8>> {
        self.count = count;
        let in_order = number == self.next;
        if in_order {
            self.digest.update(bytes);
            self.bytes += bytes.len() as u64;
            self.next += 1;
        }
        let due = !in_order || self.next.is_multiple_of(ACKNOWLEDGE_EVERY) || self.complete();
        due.then(|| Message::Next { number: self.next }.to_bytes())
    }

    /// Tells whether all blocks have come.
    pub(super) fn complete(&self) -> bool {
        self.next == self.count
    }

    /// Returns the bytes taken.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Returns the digest of what was taken.
    pub(super) fn digest(&self) -> String {
        hex(&self.digest)
    }
}

fn hex(digest: &Sha256) -> String {
    let bytes = digest.clone().finalize();
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A block: the marker, then bytes that differ from block to block (SplitMix64 by its number).
fn block(number: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(BLOCK_BYTES as usize + 8);
    bytes.extend_from_slice(MARKER.as_bytes());
    let mut state = number << 32;
    while bytes.len() < BLOCK_BYTES as usize {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bytes.extend_from_slice(&(mixed ^ (mixed >> 31)).to_be_bytes());
    }
    bytes.truncate(BLOCK_BYTES as usize);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Carries a stream of `count` blocks over a network that loses what `lose` says.
    fn carry(count: u64, mut lose: impl FnMut() -> bool) -> (Sender, Receiver) {
        let mut now = Instant::now();
        let (mut sender, mut receiver) = (Sender::new(count, now), Receiver::default());
        for _ in 0..100_000 {
            if sender.finished().is_some() {
                return (sender, receiver);
            }
            let Some(message) = sender.poll_message(now) else {
                now = sender.timeout();
                continue;
            };
            let Some(Message::Block {
                number,
                count,
                bytes,
            }) = Message::parse(&message)
            else {
                panic!("the sender sends blocks only");
            };
            if lose() {
                continue;
            }
            let Some(answer) = receiver.handle_block(number, count, bytes) else {
                continue;
            };
            let Some(Message::Next { number }) = Message::parse(&answer) else {
                panic!("the receiver acknowledges only");
            };
            if !lose() {
                sender.handle_next(number, now);
            }
        }
        panic!("the stream never ends");
    }

    #[test]
    fn a_stream_arrives_whole_and_in_order_over_a_network_that_loses() {
        let mut expected = Sha256::new();
        (0..500).for_each(|number| expected.update(block(number)));
        for every in [u64::MAX, 7, 3, 2] {
            let mut sent = 0u64;
            let (sender, receiver) = carry(500, || {
                sent += 1;
                sent.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32 < (1 << 32) / every
            });
            assert_eq!(receiver.bytes(), 500 * BLOCK_BYTES);
            assert!(receiver.complete());
            assert_eq!(receiver.digest(), hex(&expected));
            assert_eq!(sender.finished(), Some(hex(&expected)));
        }
    }

    #[test]
    fn a_repeated_acknowledgement_brings_the_sender_back_at_once_and_only_once() {
        let now = Instant::now();
        let mut sender = Sender::new(100, now);
        let sent = |sender: &mut Sender| std::iter::from_fn(|| sender.poll_message(now)).count();
        assert_eq!(sent(&mut sender) as u64, WINDOW);
        sender.handle_next(16, now);
        sender.handle_next(16, now);
        assert_eq!(
            sent(&mut sender) as u64,
            WINDOW,
            "blocks 16 to 79, of which 48 anew"
        );
        sender.handle_next(16, now);
        assert_eq!(sender.poll_message(now), None);
    }

    #[test]
    fn an_acknowledgement_of_what_was_never_sent_is_ignored() {
        let now = Instant::now();
        let mut sender = Sender::new(10, now);
        assert!(sender.poll_message(now).is_some());
        sender.handle_next(10, now);
        assert_eq!(sender.finished(), None);
    }

    #[test]
    fn no_two_blocks_are_alike() {
        let blocks: std::collections::BTreeSet<Vec<u8>> = (0..1000).map(block).collect();
        assert_eq!(blocks.len(), 1000);
        assert!(blocks.iter().all(|b| b.len() as u64 == BLOCK_BYTES));
    }
}
