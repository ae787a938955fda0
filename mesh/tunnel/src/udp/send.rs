//! Sending: one system call for many trains of datagrams.

use std::collections::BTreeSet;
use std::io::{self, IoSlice};
use std::mem;
use std::net::SocketAddr;
use std::ops::Range;
use std::os::fd::{AsRawFd, RawFd};

use socket2::SockAddr;
use warren_core::peer_path::SendFailure;

use super::control::Control;
use super::trains::{MAX_DATAGRAMS, Train, Trains};
use super::{Lanes, Udp, UdpBook};
use crate::outbox::{Arena, Outbox, Way};
use crate::sys::{check, wait_writable};

/// The messages of one system call, and the slices that they are made of: neighbours in the outbox
/// are one.
const BATCH: usize = 64;
const MAX_SLICES: usize = 256;
/// How long a full send buffer is waited for. The TUN's queue fills up meanwhile, which slows the
/// senders down; dropping would make them send again.
const WAIT_WRITABLE_MS: libc::c_int = 10;
/// The most endpoints that are remembered for taking no trains.
const MAX_REFUSING: usize = 4096;

/// Sends what is in an outbox, with memory that it has from the start.
#[derive(Debug)]
pub(crate) struct Sender {
    trains: Trains,
    batch: Batch,
    /// The datagrams of a train that the kernel does not take as one.
    singles: Batch,
    /// Endpoints whose way takes no trains: by a device that computes no checksums.
    refusing: BTreeSet<SocketAddr>,
}

impl Sender {
    pub(crate) fn new() -> Self {
        Self {
            trains: Trains::new(),
            batch: Batch::new(),
            singles: Batch::new(),
            refusing: BTreeSet::new(),
        }
    }

    /// Sends what is for the network; what cannot be sent is counted and passed over.
    pub(crate) fn send(&mut self, udp: &Udp, out: &Outbox, book: &mut UdpBook) {
        let Self {
            trains,
            batch,
            singles,
            refusing,
        } = self;
        let with_trains = udp.offloads().udp_segment;
        trains.plan(out.outgoing(), |endpoint| {
            with_trains && (refusing.is_empty() || !refusing.contains(endpoint))
        });
        let arena = &out.datagrams;
        for train in trains.as_slice() {
            let endpoint = train.way.endpoint;
            let socket = match endpoint.address {
                SocketAddr::V4(_) => &udp.v4,
                SocketAddr::V6(_) => &udp.v6,
            };
            let Some(Lanes { data: socket, .. }) = socket else {
                let lost = train.count as u64;
                book.counters.send_errors += lost;
                book.counters.send_unreachable += lost;
                book.failures.note(endpoint.address, SendFailure::NoFamily);
                continue;
            };
            let datagrams = trains.datagrams(train);
            if train.way.in_pieces
                && let Some(pieces) = udp.pieces()
            {
                // What is before it leaves before it.
                batch.flush(arena, book, refusing, singles);
                for number in datagrams {
                    let sent = pieces.send(endpoint, arena.get(number));
                    book.note(endpoint.address, sent);
                }
                continue;
            }
            let descriptor = socket.as_raw_fd();
            if batch.descriptor != descriptor || !batch.has_room_for(train) {
                batch.flush(arena, book, refusing, singles);
                batch.descriptor = descriptor;
            }
            batch.push(train, arena.joined(datagrams));
        }
        batch.flush(arena, book, refusing, singles);
    }

    #[cfg(test)]
    pub(super) fn has_refusals(&self) -> bool {
        !self.refusing.is_empty()
    }

    /// Tries trains again everywhere: the ways are others now.
    pub(crate) fn forget_refusals(&mut self) {
        self.refusing.clear();
    }
}

/// Trains for one socket.
#[derive(Debug)]
struct Batch {
    descriptor: RawFd,
    /// INVARIANT: of both never more than at the start there is room for.
    items: Vec<Item>,
    /// Where the bytes of all items are.
    slices: Vec<Range<usize>>,
}

/// A train in the kernel's forms.
#[derive(Debug)]
struct Item {
    way: Way,
    count: usize,
    segment_len: usize,
    slices: Range<usize>,
    to: SockAddr,
    control: Control,
}

impl Batch {
    fn new() -> Self {
        Self {
            descriptor: -1,
            items: Vec::with_capacity(BATCH),
            slices: Vec::with_capacity(MAX_SLICES),
        }
    }

    fn has_room_for(&self, train: &Train) -> bool {
        self.items.len() < BATCH && self.slices.len() + train.count <= MAX_SLICES
    }

    fn push(&mut self, train: &Train, slices: impl Iterator<Item = Range<usize>>) {
        let first = self.slices.len();
        self.slices.extend(slices);
        self.push_item(train.way, train.count, train.segment_len, first);
    }

    /// Adds an item of the slices from `first` on.
    fn push_item(&mut self, way: Way, count: usize, segment_len: usize, first: usize) {
        let endpoint = way.endpoint;
        let mut control = Control::EMPTY;
        if count > 1 {
            // What rides in trains fits a link, and those have at most 65,535 bytes.
            control.push_segment_len(segment_len as u16);
        }
        if let Some(hops) = way.hops {
            control.push_hops(&endpoint.address, hops);
        }
        if let Some(source) = endpoint.source {
            control.push_source(source);
        }
        self.items.push(Item {
            way,
            count,
            segment_len,
            slices: first..self.slices.len(),
            to: endpoint.address.into(),
            control,
        });
    }

    /// Sends all; `singles` is for the datagrams of trains that are refused.
    fn flush(
        &mut self,
        arena: &Arena<Way>,
        book: &mut UdpBook,
        refusing: &mut BTreeSet<SocketAddr>,
        singles: &mut Self,
    ) {
        let mut sent = 0;
        let mut waited = false;
        while sent < self.items.len() {
            match self.send_from(sent, arena) {
                Ok(now) => {
                    for item in &self.items[sent..sent + now] {
                        book.note_sent(&item.way.endpoint.address);
                    }
                    sent += now;
                }
                Err(error) => match error.raw_os_error() {
                    Some(libc::EINTR) => {}
                    Some(libc::EAGAIN) if !waited => {
                        waited = true;
                        wait_writable(self.descriptor, WAIT_WRITABLE_MS);
                    }
                    Some(code @ (libc::EIO | libc::EINVAL | libc::EMSGSIZE))
                        if self.items[sent].count > 1 =>
                    {
                        // EIO: the way's device computes no checksums. Else the way has become
                        // too narrow a moment ago, or it is not about the train.
                        let address = self.items[sent].way.endpoint.address;
                        if code == libc::EIO && refusing.len() < MAX_REFUSING {
                            tracing::info!(endpoint = %address, "the way takes no trains of datagrams");
                            refusing.insert(address);
                        }
                        self.put_singly(sent, singles);
                        // Of single datagrams none is a train that could be refused.
                        singles.flush(arena, book, refusing, &mut Self::none());
                        sent += 1;
                    }
                    Some(libc::EINVAL | libc::ENETUNREACH | libc::EHOSTUNREACH)
                        if self.items[sent].control.has_source() =>
                    {
                        // Perhaps the address is ours no more: the kernel's choice is as good.
                        let refused = self.items[sent].way.endpoint;
                        for item in &mut self.items[sent..] {
                            if item.way.endpoint == refused {
                                item.control.drop_source();
                            }
                        }
                        book.refused_sources.push(refused.address);
                    }
                    _ => {
                        // Of the first of the rest; the others are tried.
                        let item = &self.items[sent];
                        book.note_lost(item.way.endpoint.address, &error, item.count);
                        sent += 1;
                    }
                },
            }
        }
        self.items.clear();
        self.slices.clear();
    }

    /// A batch that nothing is put into.
    fn none() -> Self {
        Self {
            descriptor: -1,
            items: Vec::new(),
            slices: Vec::new(),
        }
    }

    /// Hands the items from this one on to the kernel, and returns how many it took.
    fn send_from(&mut self, first: usize, arena: &Arena<Way>) -> io::Result<usize> {
        // SAFETY: plain data, for which all zero is a value.
        let mut headers: [libc::mmsghdr; BATCH] = unsafe { mem::zeroed() };
        // By its documentation an IoSlice is an iovec.
        let mut vectors = [IoSlice::new(&[]); MAX_SLICES];
        for (vector, range) in vectors.iter_mut().zip(&self.slices) {
            *vector = IoSlice::new(arena.bytes(range));
        }
        let items = &mut self.items[first..];
        for (header, item) in headers.iter_mut().zip(&mut *items) {
            let header = &mut header.msg_hdr;
            let vectors = &vectors[item.slices.clone()];
            header.msg_iov = vectors.as_ptr().cast_mut().cast();
            header.msg_iovlen = vectors.len() as _;
            header.msg_name = item.to.as_ptr().cast_mut().cast();
            header.msg_namelen = item.to.len();
            item.control.attach(header);
        }
        // SAFETY: each header points to slices of the outbox, to one address and perhaps to control
        // messages, all of which outlive the call; sendmmsg only reads them.
        let sent = check(unsafe {
            libc::sendmmsg(
                self.descriptor,
                headers.as_mut_ptr(),
                items.len().min(BATCH) as libc::c_uint,
                libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
            )
        })?;
        Ok(sent as usize)
    }

    /// Puts the datagrams of one train into another batch, each alone. They are at most
    /// [`MAX_DATAGRAMS`], which fit it.
    fn put_singly(&self, train: usize, singles: &mut Self) {
        singles.descriptor = self.descriptor;
        let train = &self.items[train];
        for slice in &self.slices[train.slices.clone()] {
            // Slices end where datagrams do.
            for start in slice.clone().step_by(train.segment_len) {
                let end = (start + train.segment_len).min(slice.end);
                let first = singles.slices.len();
                singles.slices.push(start..end);
                singles.push_item(train.way, 1, end - start, first);
            }
        }
    }
}

const _: () = assert!(MAX_DATAGRAMS <= BATCH && BATCH <= MAX_SLICES);
