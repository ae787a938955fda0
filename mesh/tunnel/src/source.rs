//! The address of ours that a peer speaks to, so that it is answered from there: what is on the way,
//! and the peer's own filters, know only that one. As the kernel's WireGuard and wireguard-go do.

use std::net::{IpAddr, SocketAddr};

use crate::sys::set_int_option;

/// Where a datagram comes from or goes to, and which of our own addresses it came to or leaves from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The other end's address.
    pub address: SocketAddr,
    /// Ours; `None` leaves the choice to the kernel.
    pub source: Option<Source>,
}

/// An address of ours, and the index of the link that its datagrams came by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source {
    /// The address.
    pub address: IpAddr,
    /// The link's index.
    pub link: u32,
}

impl From<SocketAddr> for Endpoint {
    fn from(address: SocketAddr) -> Self {
        Self {
            address,
            source: None,
        }
    }
}

/// Has the kernel tell for each datagram to which of our addresses it came.
pub(crate) fn ask_for_sources(socket: &socket2::Socket, v6: bool) -> std::io::Result<()> {
    match v6 {
        true => set_int_option(socket, libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, 1),
        false => set_int_option(socket, libc::IPPROTO_IP, libc::IP_PKTINFO, 1),
    }
}
