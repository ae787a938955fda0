//! Receiving: one system call for many datagrams, and for trains of them that the kernel has put
//! together (`UDP_GRO`).

use std::io;
use std::mem;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::AsRawFd;

use socket2::{SockAddrStorage, Socket};

use super::control::{Control, Received};
use crate::source::Endpoint;
use crate::sys::check;

/// The messages of one system call.
pub(crate) const BATCH: usize = 64;
/// The room of a received message: any datagram and any train fits.
const SLOT_BYTES: usize = 65_536;

/// Fixed room for a batch of received messages. Pages that none has touched take no memory.
pub(crate) struct ReceiveArena {
    bytes: Vec<u8>,
    addresses: Vec<SockAddrStorage>,
    controls: Vec<Control>,
    received: Vec<Received>,
    lengths: Vec<usize>,
}

/// A datagram, or several of one sender.
pub(crate) struct Message<'a> {
    pub(crate) from: Endpoint,
    pub(crate) bytes: &'a [u8],
    /// The length of each datagram but the last in bytes.
    segment_len: usize,
}

impl<'a> Message<'a> {
    /// Goes through the datagrams.
    #[inline]
    pub(crate) fn datagrams(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        // An empty datagram is one too.
        let empty = self.bytes.is_empty().then_some(self.bytes);
        self.bytes.chunks(self.segment_len).chain(empty)
    }
}

impl ReceiveArena {
    pub(crate) fn new() -> Self {
        Self {
            bytes: vec![0; BATCH * SLOT_BYTES],
            addresses: (0..BATCH).map(|_| SockAddrStorage::zeroed()).collect(),
            controls: vec![Control::EMPTY; BATCH],
            received: vec![Received::default(); BATCH],
            lengths: vec![0; BATCH],
        }
    }

    /// Receives up to `most` messages, of at most a batch, and returns how many.
    pub(crate) fn receive(&mut self, socket: &Socket, most: usize) -> io::Result<usize> {
        let most = most.min(BATCH);
        // SAFETY: plain data, for which all zero is a value.
        let mut messages: [libc::mmsghdr; BATCH] = unsafe { mem::zeroed() };
        // SAFETY: as above.
        let mut vectors: [libc::iovec; BATCH] = unsafe { mem::zeroed() };
        let slots = self.bytes.chunks_exact_mut(SLOT_BYTES);
        for ((((message, vector), slot), address), control) in messages[..most]
            .iter_mut()
            .zip(&mut vectors)
            .zip(slots)
            .zip(&mut self.addresses)
            .zip(&mut self.controls)
        {
            control.attach_room(&mut message.msg_hdr);
            vector.iov_base = slot.as_mut_ptr().cast();
            vector.iov_len = slot.len();
            message.msg_hdr.msg_iov = vector;
            message.msg_hdr.msg_iovlen = 1;
            message.msg_hdr.msg_namelen = address.size_of();
            message.msg_hdr.msg_name = std::ptr::from_mut(address).cast();
        }
        // SAFETY: each of the first `most` headers points to one vector of one slot, one address and
        // one room for control messages, all of which outlive the call and do not overlap.
        let received = check(unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                messages.as_mut_ptr(),
                most as libc::c_uint,
                libc::MSG_DONTWAIT,
                std::ptr::null_mut(),
            )
        })? as usize;
        for (n, message) in messages[..received].iter().enumerate() {
            self.lengths[n] = message.msg_len as usize;
            self.received[n] = Control::received(&message.msg_hdr);
        }
        Ok(received)
    }

    /// The bytes of the first `count` messages.
    pub(crate) fn bytes(&self, count: usize) -> usize {
        self.lengths[..count].iter().sum()
    }

    /// Returns a received message, where it came from, and to which address of ours.
    #[inline]
    pub(crate) fn message(&self, n: usize) -> Option<Message<'_>> {
        let start = n * SLOT_BYTES;
        let Received {
            source,
            segment_len,
        } = self.received[n];
        Some(Message {
            from: Endpoint {
                address: socket_address(&self.addresses[n])?,
                source,
            },
            bytes: &self.bytes[start..start + self.lengths[n]],
            segment_len: segment_len.unwrap_or(SLOT_BYTES),
        })
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
            Some(SocketAddr::V6(SocketAddrV6::new(
                address,
                u16::from_be(raw.sin6_port),
                0,
                raw.sin6_scope_id,
            )))
        }
        _ => None,
    }
}
