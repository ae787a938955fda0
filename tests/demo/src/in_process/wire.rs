//! A node's UDP sockets on loopback.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};

use anyhow::{Context, Result};
use nix::errno::Errno;

/// One socket for each family that loopback has here.
pub(super) struct Wire {
    v4: UdpSocket,
    v6: Option<UdpSocket>,
}

impl Wire {
    /// Binds to ports of the kernel's choice.
    pub(super) fn bind(ipv6: bool) -> Result<Self> {
        let bind = |address: SocketAddr| -> Result<UdpSocket> {
            let socket = UdpSocket::bind(address)
                .with_context(|| format!("cannot bind a UDP socket to {address}"))?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        };
        Ok(Self {
            v4: bind((Ipv4Addr::LOCALHOST, 0).into())?,
            v6: ipv6
                .then(|| bind((Ipv6Addr::LOCALHOST, 0).into()))
                .transpose()?,
        })
    }

    /// Tells whether this machine has ::1: its kernel may be without IPv6, or the address off.
    pub(super) fn has_ipv6() -> Result<bool> {
        match UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)) {
            Ok(_) => Ok(true),
            Err(error)
                if error.kind() == io::ErrorKind::AddrNotAvailable
                    || error.raw_os_error() == Some(Errno::EAFNOSUPPORT as i32) =>
            {
                Ok(false)
            }
            Err(error) => Err(error).context("cannot tell whether [::1] can be bound to"),
        }
    }

    /// Returns where the node is reached, one address a family.
    pub(super) fn addresses(&self) -> Result<Vec<SocketAddr>> {
        let addresses: io::Result<Vec<SocketAddr>> =
            self.sockets().map(UdpSocket::local_addr).collect();
        addresses.context("cannot tell where a UDP socket is bound")
    }

    /// Puts a datagram on the socket of its family; `false` when the socket had no room, as a busy
    /// network would have lost it.
    pub(super) fn send(&self, to: SocketAddr, datagram: &[u8]) -> Result<bool> {
        let socket = if to.is_ipv6() {
            self.v6
                .as_ref()
                .with_context(|| format!("no IPv6 socket to reach {to}"))?
        } else {
            &self.v4
        };
        match socket.send_to(datagram, to) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error).with_context(|| format!("cannot send a datagram to {to}")),
        }
    }

    /// Returns the sockets.
    pub(super) fn sockets(&self) -> impl Iterator<Item = &UdpSocket> {
        [&self.v4].into_iter().chain(&self.v6)
    }

    /// Returns what to wait for.
    pub(super) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.sockets().map(AsFd::as_fd)
    }
}
