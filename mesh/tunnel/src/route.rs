//! Asks the kernel by which link a datagram would leave, what that is, and hears of it when that may have changed.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use netlink_packet_core::{NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::link::{LinkLayerType, LinkMessage};
use netlink_packet_route::route::{RouteAttribute, RouteMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::sys::socket::{
    AddressFamily as Family, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv,
    send, socket,
};

/// An answer is one message; of a link it is the largest, some kilobytes.
const ANSWER_BYTES: usize = 32 << 10;

/// The shortest time between two changes that are acted on: a thousand routes may change at once.
const CHANGES_EVERY: Duration = Duration::from_secs(1);

/// Tells when addresses or routes of this machine have changed.
#[derive(Debug)]
pub(crate) struct RouteWatch {
    netlink: OwnedFd,
    acted_at: Option<Instant>,
    due: Option<Instant>,
}

impl RouteWatch {
    /// Opens the watch in the namespace of the calling thread.
    ///
    /// # Errors
    /// What the kernel says about the netlink socket.
    pub(crate) fn open() -> io::Result<Self> {
        let netlink = socket(
            Family::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
            SockProtocol::NetlinkRoute,
        )?;
        let groups = libc::RTMGRP_IPV4_IFADDR
            | libc::RTMGRP_IPV4_ROUTE
            | libc::RTMGRP_IPV6_IFADDR
            | libc::RTMGRP_IPV6_ROUTE;
        bind(netlink.as_raw_fd(), &NetlinkAddr::new(0, groups as u32))?;
        Ok(Self {
            netlink,
            acted_at: None,
            due: None,
        })
    }

    /// Takes what the kernel has told; how it reads does not matter, nor that some was lost.
    pub(crate) fn handle_readable(&mut self, now: Instant) {
        let mut message = [0; 1024];
        loop {
            match recv(self.as_raw_fd(), &mut message, MsgFlags::MSG_DONTWAIT) {
                Ok(_) | Err(nix::Error::ENOBUFS) => {
                    let next = self.acted_at.map_or(now, |at| at + CHANGES_EVERY);
                    self.due.get_or_insert(next.max(now));
                }
                Err(nix::Error::EINTR) => {}
                Err(_) => return,
            }
        }
    }

    /// When the changes are to be acted on.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Tells, once, that changes are to be acted on now.
    pub(crate) fn take_due(&mut self, now: Instant) -> bool {
        let due = self.due.is_some_and(|at| at <= now);
        if due {
            self.due = None;
            self.acted_at = Some(now);
        }
        due
    }
}

impl AsRawFd for RouteWatch {
    fn as_raw_fd(&self) -> RawFd {
        self.netlink.as_raw_fd()
    }
}

/// Returns the index of the link by which a datagram with this mark leaves for the endpoint, from
/// that address of ours if one is given; `None` where no route leads there, or the address is not
/// ours.
///
/// # Errors
/// What the kernel says about the netlink socket.
pub(crate) fn outgoing_link(
    endpoint: SocketAddr,
    source: Option<IpAddr>,
    mark: u32,
) -> io::Result<Option<u32>> {
    let question = question(endpoint, source, mark);
    Ok(match ask(RouteNetlinkMessage::GetRoute(question))? {
        Some(RouteNetlinkMessage::NewRoute(route)) => {
            route
                .attributes
                .iter()
                .find_map(|attribute| match attribute {
                    RouteAttribute::Oif(link) => Some(*link),
                    _ => None,
                })
        }
        // No route, or one that refuses.
        _ => None,
    })
}

/// Tells whether a link is a tunnel of packets without link addresses, as WireGuard's and TUN devices are.
///
/// # Errors
/// What the kernel says about the netlink socket.
pub(crate) fn is_tunnel(link: u32) -> io::Result<bool> {
    let mut question = LinkMessage::default();
    question.header.index = link;
    Ok(match ask(RouteNetlinkMessage::GetLink(question))? {
        Some(RouteNetlinkMessage::NewLink(link)) => {
            link.header.link_layer_type == LinkLayerType::None
        }
        _ => false,
    })
}

/// Asks the kernel one thing; `None` where it has no answer.
fn ask(question: RouteNetlinkMessage) -> io::Result<Option<RouteNetlinkMessage>> {
    let mut message = NetlinkMessage::from(question);
    message.header.flags = NLM_F_REQUEST;
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);

    let netlink = socket(
        Family::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkRoute,
    )?;
    send(netlink.as_raw_fd(), &bytes, MsgFlags::empty())?;
    let mut answer = vec![0; ANSWER_BYTES];
    // The kernel has answered before `send` returned.
    let len = recv(netlink.as_raw_fd(), &mut answer, MsgFlags::MSG_DONTWAIT)?;
    let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&answer[..len])
        .map_err(io::Error::other)?;
    Ok(match answer.payload {
        NetlinkPayload::InnerMessage(answer) => Some(answer),
        _ => None,
    })
}

fn question(endpoint: SocketAddr, source: Option<IpAddr>, mark: u32) -> RouteMessage {
    let mut question = RouteMessage::default();
    let (family, bits) = match endpoint.ip() {
        IpAddr::V4(_) => (AddressFamily::Inet, 32),
        IpAddr::V6(_) => (AddressFamily::Inet6, 128),
    };
    question.header.address_family = family;
    question.header.destination_prefix_length = bits;
    question
        .attributes
        .push(RouteAttribute::Destination(endpoint.ip().into()));
    if let Some(source) = source {
        question.header.source_prefix_length = bits;
        question
            .attributes
            .push(RouteAttribute::Source(source.into()));
    }
    if mark != 0 {
        question.attributes.push(RouteAttribute::Mark(mark));
    }
    if let SocketAddr::V6(endpoint) = endpoint
        && endpoint.scope_id() != 0
    {
        question
            .attributes
            .push(RouteAttribute::Oif(endpoint.scope_id()));
    }
    question
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_reached_by_lo_in_both_families() {
        let lo = nix::net::if_::if_nametoindex("lo").unwrap();
        for endpoint in ["127.0.0.1:7", "[::1]:7"] {
            let found = outgoing_link(endpoint.parse().unwrap(), None, 0).unwrap();
            assert_eq!(found, Some(lo), "{endpoint}");
        }
        assert!(!is_tunnel(lo).unwrap());
    }
}
