//! Asks the kernel by which link a datagram would leave.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;

use netlink_packet_core::{NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::route::{RouteAttribute, RouteMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::sys::socket::{
    AddressFamily as Family, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket,
};

/// An answer is one message of a few hundred bytes.
const ANSWER_BYTES: usize = 8 << 10;

/// Returns the index of the link by which a datagram with this mark leaves for the endpoint; `None`
/// where no route leads there.
///
/// # Errors
/// What the kernel says about the netlink socket.
pub(crate) fn outgoing_link(endpoint: SocketAddr, mark: u32) -> io::Result<Option<u32>> {
    let mut message = NetlinkMessage::from(RouteNetlinkMessage::GetRoute(question(endpoint, mark)));
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
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewRoute(route)) => route
            .attributes
            .iter()
            .find_map(|attribute| match attribute {
                RouteAttribute::Oif(link) => Some(*link),
                _ => None,
            }),
        // No route, or one that refuses.
        _ => None,
    })
}

fn question(endpoint: SocketAddr, mark: u32) -> RouteMessage {
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
            let found = outgoing_link(endpoint.parse().unwrap(), 0).unwrap();
            assert_eq!(found, Some(lo), "{endpoint}");
        }
    }
}
