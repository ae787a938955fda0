//! Datagrams in batches: one system call for many.

use std::io;
use std::mem;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, RawFd};

use socket2::{SockAddr, SockAddrStorage, Socket};
use warren_core::peer_path::SendFailure;

use super::{Lanes, Udp, UdpBook};
use crate::outbox::Outbox;
use crate::source::{Control, Endpoint, Source};
use crate::sys::{check, wait_writable};

/// The datagrams of one system call.
pub(crate) const BATCH: usize = 64;
/// The room of a received datagram: any datagram fits.
const SLOT_BYTES: usize = 65_536;
/// How long a full send buffer is waited for. The TUN's queue fills up meanwhile, which slows the
/// senders down; dropping would make them send again.
const WAIT_WRITABLE_MS: libc::c_int = 10;

/// Fixed room for a batch of received datagrams. Pages that no datagram has touched take no memory.
pub(crate) struct ReceiveArena {
    bytes: Vec<u8>,
    addresses: Vec<SockAddrStorage>,
    controls: Vec<Control>,
    sources: Vec<Option<Source>>,
    lengths: Vec<usize>,
}

impl ReceiveArena {
    pub(crate) fn new() -> Self {
        Self {
            bytes: vec![0; BATCH * SLOT_BYTES],
            addresses: (0..BATCH).map(|_| SockAddrStorage::zeroed()).collect(),
            controls: vec![Control::EMPTY; BATCH],
            sources: vec![None; BATCH],
            lengths: vec![0; BATCH],
        }
    }

    /// Receives up to `most` datagrams, of at most a batch, and returns how many.
    pub(crate) fn receive(&mut self, socket: &Socket, most: usize) -> io::Result<usize> {
        // SAFETY: plain data, for which all zero is a value.
        let mut messages: [libc::mmsghdr; BATCH] = unsafe { mem::zeroed() };
        // SAFETY: as above.
        let mut vectors: [libc::iovec; BATCH] = unsafe { mem::zeroed() };
        let slots = self.bytes.chunks_exact_mut(SLOT_BYTES);
        for ((((message, vector), slot), address), control) in messages
            .iter_mut()
            .zip(&mut vectors)
            .zip(slots)
            .zip(&mut self.addresses)
            .zip(&mut self.controls)
        {
            control.attach(&mut message.msg_hdr, true);
            vector.iov_base = slot.as_mut_ptr().cast();
            vector.iov_len = slot.len();
            message.msg_hdr.msg_iov = vector;
            message.msg_hdr.msg_iovlen = 1;
            message.msg_hdr.msg_namelen = address.size_of();
            message.msg_hdr.msg_name = std::ptr::from_mut(address).cast();
        }
        // SAFETY: each header points to one vector of one slot, one address and one room for control
        // messages, all of which outlive the call and do not overlap.
        let received = check(unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                messages.as_mut_ptr(),
                most.min(BATCH) as libc::c_uint,
                libc::MSG_DONTWAIT,
                std::ptr::null_mut(),
            )
        })? as usize;
        for (n, message) in messages[..received].iter().enumerate() {
            self.lengths[n] = message.msg_len as usize;
            self.sources[n] = Control::source(&message.msg_hdr);
        }
        Ok(received)
    }

    /// Returns a received datagram, where it came from, and to which address of ours.
    #[inline]
    pub(crate) fn datagram(&self, n: usize) -> Option<(Endpoint, &[u8])> {
        let start = n * SLOT_BYTES;
        let datagram = &self.bytes[start..start + self.lengths[n]];
        let endpoint = Endpoint {
            address: socket_address(&self.addresses[n])?,
            source: self.sources[n],
        };
        Some((endpoint, datagram))
    }
}

#[inline]
fn socket_address(storage: &SockAddrStorage) -> Option<SocketAddr> {
    // SAFETY: the kernel wrote an address of the family that it names, or the storage is zero.
    let raw: &libc::sockaddr_storage =
        unsafe { &*std::ptr::from_ref(storage).cast::<libc::sockaddr_storage>() };
    match libc::c_int::from(raw.ss_family) {
        libc::AF_INET => {
            // SAFETY: the family says that this is what is stored.
            let raw = unsafe { &*std::ptr::from_ref(raw).cast::<libc::sockaddr_in>() };
            let address = Ipv4Addr::from(u32::from_be(raw.sin_addr.s_addr));
            Some(SocketAddr::new(address.into(), u16::from_be(raw.sin_port)))
        }
        libc::AF_INET6 => {
            // SAFETY: the family says that this is what is stored.
            let raw = unsafe { &*std::ptr::from_ref(raw).cast::<libc::sockaddr_in6>() };
            let address = Ipv6Addr::from(raw.sin6_addr.s6_addr);
            // The flow label is not part of who the peer is.
            Some(SocketAddr::V6(std::net::SocketAddrV6::new(
                address,
                u16::from_be(raw.sin6_port),
                0,
                raw.sin6_scope_id,
            )))
        }
        _ => None,
    }
}

/// Sends what is in the outbox for the network; what cannot be sent is counted and passed over.
pub(crate) fn send(udp: &Udp, out: &Outbox, book: &mut UdpBook) {
    let mut batch = SendBatch::default();
    for (way, datagram) in out.outgoing() {
        let endpoint = way.endpoint;
        let socket = if endpoint.address.is_ipv4() {
            &udp.v4
        } else {
            &udp.v6
        };
        let Some(Lanes { data: socket, .. }) = socket else {
            book.counters.send_errors += 1;
            book.counters.send_unreachable += 1;
            book.failures.note(endpoint.address, SendFailure::NoFamily);
            continue;
        };
        if way.in_pieces
            && let Some(pieces) = udp.pieces()
        {
            // What is before it leaves before it.
            batch.flush(book);
            book.note(endpoint.address, pieces.send(endpoint, datagram));
            continue;
        }
        let descriptor = socket.as_raw_fd();
        if batch.descriptor != descriptor || batch.items.len() == BATCH {
            batch.flush(book);
            batch.descriptor = descriptor;
        }
        let same = batch.items.last().map_or(0, |(_, n)| *n);
        // Neighbours mostly go to one endpoint: its address is converted once.
        match batch.addresses.last() {
            Some(last) if last.endpoint == endpoint => batch.items.push((datagram, same)),
            _ => {
                batch.addresses.push(Address::new(endpoint));
                batch.items.push((datagram, batch.addresses.len() - 1));
            }
        }
    }
    batch.flush(book);
}

/// An endpoint in the kernel's forms.
struct Address {
    endpoint: Endpoint,
    to: SockAddr,
    from: Control,
}

impl Address {
    fn new(endpoint: Endpoint) -> Self {
        Self {
            endpoint,
            to: endpoint.address.into(),
            from: endpoint.source.map_or(Control::EMPTY, Control::from_source),
        }
    }
}

#[derive(Default)]
struct SendBatch<'a> {
    descriptor: RawFd,
    addresses: Vec<Address>,
    items: Vec<(&'a [u8], usize)>,
}

impl SendBatch<'_> {
    fn flush(&mut self, book: &mut UdpBook) {
        let count = self.items.len();
        // SAFETY: plain data, for which all zero is a value.
        let mut messages: [libc::mmsghdr; BATCH] = unsafe { mem::zeroed() };
        // SAFETY: as above.
        let mut vectors: [libc::iovec; BATCH] = unsafe { mem::zeroed() };
        for ((message, vector), (datagram, address)) in
            messages.iter_mut().zip(&mut vectors).zip(&self.items)
        {
            let address = &mut self.addresses[*address];
            vector.iov_base = datagram.as_ptr().cast_mut().cast();
            vector.iov_len = datagram.len();
            message.msg_hdr.msg_iov = vector;
            message.msg_hdr.msg_iovlen = 1;
            message.msg_hdr.msg_name = address.to.as_ptr().cast_mut().cast();
            message.msg_hdr.msg_namelen = address.to.len();
            address.from.attach(&mut message.msg_hdr, false);
        }
        let mut sent = 0;
        let mut waited = false;
        while sent < count {
            let rest = &mut messages[sent..count];
            // SAFETY: each header points to one vector of a datagram, to one address and perhaps to
            // one control message, all of which outlive the call; sendmmsg only reads them.
            let result = check(unsafe {
                libc::sendmmsg(
                    self.descriptor,
                    rest.as_mut_ptr(),
                    rest.len() as libc::c_uint,
                    libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
                )
            });
            match result {
                Ok(now) => {
                    let done = sent..sent + now as usize;
                    if !book.failures.is_empty() {
                        for (_, address) in &self.items[done.clone()] {
                            book.failures
                                .note_sent(&self.addresses[*address].endpoint.address);
                        }
                    }
                    sent = done.end;
                }
                Err(error) => match error.raw_os_error() {
                    Some(libc::EINTR) => {}
                    Some(libc::EAGAIN) if !waited => {
                        waited = true;
                        wait_writable(self.descriptor, WAIT_WRITABLE_MS);
                    }
                    Some(libc::EINVAL | libc::ENETUNREACH | libc::EHOSTUNREACH)
                        if rest[0].msg_hdr.msg_controllen != 0 =>
                    {
                        // Perhaps the address is ours no more: the kernel's choice is as good.
                        let refused = self.items[sent].1;
                        for (message, item) in
                            messages[sent..count].iter_mut().zip(&self.items[sent..])
                        {
                            if item.1 == refused {
                                message.msg_hdr.msg_controllen = 0;
                            }
                        }
                        let endpoint = self.addresses[refused].endpoint.address;
                        book.refused_sources.push(endpoint);
                    }
                    _ => {
                        // Of the first of the rest; the others are tried.
                        let endpoint = self.addresses[self.items[sent].1].endpoint.address;
                        book.note(endpoint, Err(error));
                        sent += 1;
                    }
                },
            }
        }
        self.items.clear();
        self.addresses.clear();
    }
}
