//! A bare netlink socket, for what the rtnetlink connection is not made for.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use netlink_packet_core::NetlinkBuffer;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, getsockopt,
    recvmsg, send, setsockopt, socket, sockopt,
};
use zeroize::Zeroize;

/// The kernel's messages come in datagrams of up to 32 KiB.
const DATAGRAM: usize = 64 * 1024;

/// A netlink socket with its receive buffer.
pub(crate) struct Socket {
    fd: OwnedFd,
    buffer: Box<[u8]>,
}

/// A datagram from the kernel.
pub(crate) enum Datagram<'a> {
    /// Whole messages, one after the other.
    Messages(&'a [u8]),
    /// More than the buffer holds: some messages are lost.
    Truncated,
    /// Not from the kernel: to be ignored.
    Foreign,
}

impl Socket {
    /// Opens a socket in the calling thread's network namespace, member of the multicast `groups`
    /// (a bit each, the lowest being group 1).
    pub(crate) fn open(protocol: SockProtocol, flags: SockFlag, groups: u32) -> io::Result<Self> {
        let flags = flags | SockFlag::SOCK_CLOEXEC;
        let fd = socket(AddressFamily::Netlink, SockType::Raw, flags, protocol)?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
        Ok(Self {
            fd,
            buffer: vec![0; DATAGRAM].into(),
        })
    }

    /// Sets the receive buffer's size, past the system's limit where that is allowed.
    pub(crate) fn set_receive_buffer(&self, bytes: usize) -> io::Result<()> {
        setsockopt(&self.fd, sockopt::RcvBufForce, &bytes)
            .or_else(|_| setsockopt(&self.fd, sockopt::RcvBuf, &bytes))?;
        Ok(())
    }

    /// Makes room for a message of so many bytes, past the system's limit where that is allowed.
    pub(crate) fn set_send_buffer(&self, bytes: usize) -> io::Result<()> {
        // The kernel wants some room of its own in it, and gives twice what is asked for.
        if bytes >= getsockopt(&self.fd, sockopt::SndBuf)? / 2 {
            setsockopt(&self.fd, sockopt::SndBufForce, &bytes)
                .or_else(|_| setsockopt(&self.fd, sockopt::SndBuf, &bytes))?;
        }
        Ok(())
    }

    /// Overwrites what was received last, where it may hold secrets.
    pub(crate) fn wipe(&mut self) {
        self.buffer.zeroize();
    }

    pub(crate) fn send(&self, message: &[u8]) -> io::Result<()> {
        // The kernel is where an unconnected netlink socket sends to.
        send(self.fd.as_raw_fd(), message, MsgFlags::empty())?;
        Ok(())
    }

    pub(crate) fn receive(&mut self) -> io::Result<Datagram<'_>> {
        let received = loop {
            let mut parts = [io::IoSliceMut::new(&mut self.buffer)];
            match recvmsg::<NetlinkAddr>(self.fd.as_raw_fd(), &mut parts, None, MsgFlags::empty()) {
                Ok(received) => break (received.bytes, received.flags, received.address),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        };
        let (length, flags, sender) = received;
        // Any process may send to a netlink socket whose port it guesses.
        let from_kernel = sender.is_some_and(|sender| sender.pid() == 0);
        if !from_kernel {
            return Ok(Datagram::Foreign);
        }
        if flags.contains(MsgFlags::MSG_TRUNC) {
            return Ok(Datagram::Truncated);
        }
        Ok(Datagram::Messages(
            self.buffer.get(..length).unwrap_or_default(),
        ))
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

/// Splits a datagram into its messages; a malformed rest is left out.
pub(crate) fn messages(mut datagram: &[u8]) -> impl Iterator<Item = NetlinkBuffer<&[u8]>> {
    std::iter::from_fn(move || {
        let message = NetlinkBuffer::new_checked(datagram).ok()?;
        // `new_checked` has seen that the length covers a header and lies within the datagram.
        let padded = (message.length() as usize).next_multiple_of(4);
        let (whole, rest) = datagram.split_at_checked(padded).unwrap_or((datagram, &[]));
        datagram = rest;
        NetlinkBuffer::new_checked(whole).ok()
    })
}
