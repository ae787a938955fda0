//! The way from one shard to another: a bounded ring without a lock for each pair, and one event for
//! whoever receives.
//!
//! ```text
//! shard a --push--> filling --send, once a round--> ring of batches --next--> shard b
//!             ^                                                                  |
//!             '---------- emptied batches, to be filled again -------------------'
//! ```
//!
//! What one shard pushes another one gets in the same order, or, where too much waits already, not at
//! all. A batch says how many requests its sender had carried out: who has carried out fewer lets it
//! wait, as it might not know the peer yet.

use std::mem;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use nix::sys::eventfd::EventFd;
use rtrb::{Consumer, Producer, PushError, RingBuffer};

use super::ShardId;
use crate::offload::Offload;
use crate::source::Endpoint;

/// The batches that wait in one ring.
const BATCHES: usize = 1024;
/// The emptied batches that are kept for their memory.
const KEPT: usize = 16;
/// The memory of an emptied batch that is worth keeping.
const KEPT_BYTES: usize = 512 << 10;
/// From so many bytes on a batch is to be sent before more is read.
const FULL_BYTES: usize = 192 << 10;
/// The bytes that wait for one shard, of all others together: 15 ms of its time.
const INBOX_BYTES: usize = 4 << 20;
/// What a batch counts beside its bytes.
const BATCH_BYTES: usize = 256;

/// What is handed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A frame of the TUN, and what is left to be done with it.
    Frame(Option<Offload>),
    /// An initiation that was admitted.
    Handshake(Endpoint),
    /// The peers at this address are to be called back.
    CallBack(IpAddr),
}

/// What is for other shards and is not copied into a ring yet.
#[derive(Debug)]
pub(crate) struct HandedOver {
    /// Which one; none stands for all of them.
    pub(crate) to: Option<ShardId>,
    pub(crate) kind: Kind,
    pub(crate) bytes: Box<[u8]>,
}

/// What is handed over at once, in order.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    version: u64,
    bytes: Vec<u8>,
    /// What each is, and where in `bytes` it ends.
    items: Vec<(Kind, usize)>,
}

impl Batch {
    pub(crate) fn len(&self) -> usize {
        self.items.len()
    }

    /// What waits of it, for the limits.
    pub(crate) fn weight(&self) -> usize {
        self.bytes.len() + BATCH_BYTES
    }

    /// The item of that number, counted from 0.
    #[inline]
    pub(crate) fn item(&mut self, number: usize) -> (Kind, &mut [u8]) {
        let start = match number {
            0 => 0,
            _ => self.items[number - 1].1,
        };
        let (kind, end) = self.items[number];
        (kind, &mut self.bytes[start..end])
    }

    fn clear(&mut self) {
        self.bytes.clear();
        self.items.clear();
    }
}

/// What a shard is told by: all others share it.
#[derive(Debug)]
pub(crate) struct Inbox {
    waiting_bytes: AtomicUsize,
    told: AtomicBool,
    wake: Arc<EventFd>,
}

impl Inbox {
    pub(crate) fn new(wake: Arc<EventFd>) -> Arc<Self> {
        Arc::new(Self {
            waiting_bytes: AtomicUsize::new(0),
            told: AtomicBool::new(false),
            wake,
        })
    }

    /// Wakes the shard, unless it is told already and has not looked since.
    pub(crate) fn tell(&self) {
        if !self.told.swap(true, Ordering::AcqRel) {
            // It can only fail when it is signalled as often as a u64 can count.
            let _ = self.wake.write(1);
        }
    }

    /// Begins a look: what is sent from now on tells anew.
    pub(crate) fn begin_look(&self) {
        // A swap, so that whatever was pushed by whoever found it told is seen now.
        self.told.swap(false, Ordering::AcqRel);
    }
}

/// The end of a ring at which is handed over.
#[derive(Debug)]
pub(crate) struct Outgoing {
    ring: Producer<Batch>,
    emptied: Consumer<Batch>,
    filling: Batch,
    inbox: Arc<Inbox>,
}

/// The end at which is received.
#[derive(Debug)]
pub(crate) struct Incoming {
    ring: Consumer<Batch>,
    emptied: Producer<Batch>,
    inbox: Arc<Inbox>,
}

/// Makes the ring from one shard to the one that is told by this inbox.
pub(crate) fn ring(inbox: &Arc<Inbox>) -> (Outgoing, Incoming) {
    let (push, pop) = RingBuffer::new(BATCHES);
    let (give, take) = RingBuffer::new(KEPT);
    let outgoing = Outgoing {
        ring: push,
        emptied: take,
        filling: Batch::default(),
        inbox: Arc::clone(inbox),
    };
    let incoming = Incoming {
        ring: pop,
        emptied: give,
        inbox: Arc::clone(inbox),
    };
    (outgoing, incoming)
}

impl Outgoing {
    /// Adds to what is sent next; tells whether that is to be sent before more is read.
    #[inline]
    pub(crate) fn push(&mut self, kind: Kind, bytes: &[u8]) -> bool {
        self.filling.bytes.extend_from_slice(bytes);
        self.filling.items.push((kind, self.filling.bytes.len()));
        self.filling.bytes.len() >= FULL_BYTES
    }

    /// Sends what was pushed; returns how many were dropped instead, because too much waits.
    pub(crate) fn send(&mut self, version: u64) -> u64 {
        if self.filling.items.is_empty() {
            return 0;
        }
        self.filling.version = version;
        let weight = self.filling.weight();
        let before = self.inbox.waiting_bytes.fetch_add(weight, Ordering::AcqRel);
        if before + weight <= INBOX_BYTES {
            let next = self.emptied.pop().unwrap_or_default();
            match self.ring.push(mem::replace(&mut self.filling, next)) {
                Ok(()) => {
                    self.inbox.tell();
                    return 0;
                }
                Err(PushError::Full(batch)) => self.filling = batch,
            }
        }
        self.inbox.waiting_bytes.fetch_sub(weight, Ordering::AcqRel);
        let lost = self.filling.items.len() as u64;
        self.filling.clear();
        lost
    }
}

impl Incoming {
    pub(crate) fn has_some(&self) -> bool {
        !self.ring.is_empty()
    }

    /// Takes the next batch; not one of a sender that has carried out more than `version` requests.
    pub(crate) fn next(&mut self, version: u64) -> Option<Batch> {
        if self.ring.peek().ok()?.version > version {
            return None;
        }
        self.ring.pop().ok()
    }

    /// Gives a batch back whose items are dealt with.
    pub(crate) fn give_back(&mut self, mut batch: Batch) {
        let weight = batch.weight();
        self.inbox.waiting_bytes.fetch_sub(weight, Ordering::AcqRel);
        batch.clear();
        if batch.bytes.capacity() <= KEPT_BYTES {
            // Where enough are kept its memory is given back.
            let _ = self.emptied.push(batch);
        }
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::eventfd::EfdFlags;
    use proptest::prelude::*;

    use super::*;

    fn inbox() -> Arc<Inbox> {
        let wake = EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap();
        Inbox::new(Arc::new(wake))
    }

    fn take(incoming: &mut Incoming, version: u64) -> Vec<Vec<u8>> {
        let mut taken = Vec::new();
        while let Some(mut batch) = incoming.next(version) {
            for n in 0..batch.len() {
                taken.push(batch.item(n).1.to_vec());
            }
            incoming.give_back(batch);
        }
        taken
    }

    const FRAME: Kind = Kind::Frame(None);

    #[test]
    fn who_has_carried_out_fewer_requests_lets_a_batch_and_all_behind_it_wait() {
        let inbox = inbox();
        let (mut outgoing, mut incoming) = ring(&inbox);
        for (byte, version) in [(1, 4), (2, 5), (3, 4)] {
            outgoing.push(FRAME, &[byte]);
            assert_eq!(outgoing.send(version), 0);
        }
        assert_eq!(take(&mut incoming, 4), [[1]]);
        assert_eq!(take(&mut incoming, 4), [[0u8; 0]; 0]);
        assert_eq!(take(&mut incoming, 5), [[2], [3]]);
        assert_eq!(inbox.waiting_bytes.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn one_event_tells_of_all_that_is_sent_until_the_next_look() {
        let inbox = inbox();
        let (mut outgoing, _incoming) = ring(&inbox);
        let send = |outgoing: &mut Outgoing| {
            outgoing.push(FRAME, &[1]);
            outgoing.send(0)
        };
        send(&mut outgoing);
        send(&mut outgoing);
        assert_eq!(inbox.wake.read(), Ok(1));
        send(&mut outgoing);
        assert_eq!(inbox.wake.read(), Err(nix::Error::EAGAIN));
        inbox.begin_look();
        send(&mut outgoing);
        assert_eq!(inbox.wake.read(), Ok(1));
        assert_eq!(outgoing.send(0), 0, "nothing to be sent");
        assert_eq!(inbox.wake.read(), Err(nix::Error::EAGAIN));
    }

    #[test]
    fn what_waits_for_one_shard_is_bounded_over_all_that_send() {
        let inbox = inbox();
        let mut rings: Vec<_> = (0..3).map(|_| ring(&inbox)).collect();
        let frame = vec![7; 65_535];
        let (mut sent, mut lost) = (0, 0);
        for n in 0..300 {
            let (outgoing, _) = &mut rings[n % 3];
            outgoing.push(FRAME, &frame);
            let dropped = outgoing.send(0);
            (sent, lost) = (sent + 1 - dropped, lost + dropped);
            assert!(inbox.waiting_bytes.load(Ordering::Relaxed) <= INBOX_BYTES);
        }
        assert!((60..=64).contains(&sent), "{sent}");
        assert_eq!(sent + lost, 300);
        let taken: usize = rings.iter_mut().map(|(_, i)| take(i, 0).len()).sum();
        assert_eq!(taken as u64, sent);
        assert_eq!(inbox.waiting_bytes.load(Ordering::Relaxed), 0);
        let (outgoing, _) = &mut rings[0];
        outgoing.push(FRAME, &frame);
        assert_eq!(outgoing.send(0), 0, "there is room again");
        // And a ring of small batches is full by their number.
        for _ in 0..BATCHES + 10 {
            outgoing.push(FRAME, &[1]);
            outgoing.send(0);
        }
        assert_eq!(take(&mut rings[0].1, 0).len(), BATCHES);
    }

    #[test]
    fn between_threads_each_sender_is_heard_in_order_and_nothing_is_lost_unsaid() {
        const FRAMES: u64 = 40_000;
        let inbox = inbox();
        let (outgoing, mut incoming): (Vec<_>, Vec<_>) = (0..3).map(|_| ring(&inbox)).unzip();
        let senders = outgoing.into_iter().map(|mut outgoing| {
            std::thread::spawn(move || {
                let mut lost = 0;
                for n in 0..FRAMES {
                    let full = outgoing.push(FRAME, &n.to_le_bytes());
                    if full || n % 7 == 0 {
                        lost += outgoing.send(0);
                    }
                }
                lost + outgoing.send(0)
            })
        });
        let senders: Vec<_> = senders.collect();
        let mut heard = [0u64; 3];
        let mut last = [None; 3];
        let mut lost = None;
        loop {
            // Looked at before the rings: what they have then is the last.
            let ended = senders.iter().all(|sender| sender.is_finished());
            inbox.begin_look();
            for (n, incoming) in incoming.iter_mut().enumerate() {
                for bytes in take(incoming, 0) {
                    let number = u64::from_le_bytes(bytes.try_into().unwrap());
                    assert!(last[n].is_none_or(|last| last < number));
                    last[n] = Some(number);
                    heard[n] += 1;
                }
            }
            if ended {
                break;
            }
        }
        for (n, sender) in senders.into_iter().enumerate() {
            let dropped = sender.join().unwrap();
            assert_eq!(heard[n] + dropped, FRAMES);
            *lost.get_or_insert(0) += dropped;
        }
        assert!(lost < Some(3 * FRAMES), "some were heard");
    }

    proptest! {
        #[test]
        fn items_come_out_as_they_went_in(
            rounds in prop::collection::vec(prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..9), 0..20)
        ) {
            let inbox = inbox();
            let (mut outgoing, mut incoming) = ring(&inbox);
            let mut taken = Vec::new();
            for (n, round) in rounds.iter().enumerate() {
                for bytes in round {
                    outgoing.push(FRAME, bytes);
                }
                prop_assert_eq!(outgoing.send(0), 0);
                // So that batches are filled again while others wait.
                if n % 3 == 2 {
                    taken.extend(take(&mut incoming, 0));
                }
            }
            taken.extend(take(&mut incoming, 0));
            prop_assert_eq!(taken, rounds.concat());
        }
    }
}
