//! The MTU of the tunnel, of each peer's routes, and of the ways to the peers.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use warren_core::consts::{MIN_MTU, OVERHEAD_V4, OVERHEAD_V6};
use warren_core::mtu::inner_mtu;

use super::facts::{Facts, path_mtu};
use super::finding::{Check, Finding};

/// How long a router may take to say that a packet is too big.
const ANSWER: Duration = Duration::from_millis(500);
/// Bytes of an outer packet that are not UDP's payload.
const UDP_V4: u32 = 28;
const UDP_V6: u32 = 48;

pub(super) fn check(facts: &Facts) -> Vec<Finding> {
    let mut check = Check::new("mtu");
    let (Some(link), Ok(net)) = (facts.tunnel_link(), &facts.net) else {
        return Vec::new();
    };
    let interface = &facts.args.interface;
    if link.mtu < MIN_MTU {
        check.error(
            format!("the MTU of {interface} is {}, under {MIN_MTU}", link.mtu),
            "the kernel drops its IPv6 addresses and routes",
            format!("ip link set {interface} mtu {MIN_MTU}; warren-agent puts the rest back"),
        );
    }
    let Ok(device) = &facts.device else {
        return check.done(format!("{interface} has {} bytes", link.mtu));
    };
    let endpoints = device.peers.iter().filter_map(|peer| peer.endpoint);
    if !facts.args.no_probe {
        probe(endpoints, &net.links);
    }
    for peer in &device.peers {
        let Some(endpoint) = peer.endpoint else {
            continue;
        };
        let Some(path) = path_mtu(endpoint.ip(), &net.links) else {
            check.error(
                format!("no route to the endpoint {endpoint}"),
                "its node's pods are not reached",
                format!("ip route get {}", endpoint.ip()),
            );
            continue;
        };
        let overhead = if endpoint.is_ipv4() {
            OVERHEAD_V4
        } else {
            OVERHEAD_V6
        };
        let largest = inner_mtu(path, endpoint.ip());
        for range in &peer.allowed_ips {
            let routes = net
                .routes
                .iter()
                .filter(|r| r.dst == *range && r.oif == Some(link.index));
            for mtu in routes.map(|route| route.mtu.unwrap_or(link.mtu).min(link.mtu)) {
                if mtu > largest {
                    check.warn(
                        format!(
                            "route {range} takes packets of {mtu} bytes, and the way to {endpoint} \
                             carries {path}: at most {largest} fit, {overhead} are the tunnel's"
                        ),
                        "outer packets are fragmented, which is slow and may be filtered",
                        "start warren-agent, which follows the path; if it runs: warren status",
                    );
                }
            }
        }
    }
    check.done(format!(
        "{interface} has {} bytes, and the ways to the peers carry it",
        link.mtu
    ))
}

/// Sends each endpoint one datagram of the size that the route allows. It means nothing to a
/// WireGuard, and is dropped without a word; but a router that it is too big for says so, and the
/// kernel remembers.
fn probe(endpoints: impl Iterator<Item = SocketAddr>, links: &[warren_netlink::Link]) {
    let mut sent = false;
    for endpoint in endpoints {
        let any = if endpoint.is_ipv4() {
            "0.0.0.0:0"
        } else {
            "[::]:0"
        };
        let (Ok(socket), Some(mtu)) = (UdpSocket::bind(any), path_mtu(endpoint.ip(), links)) else {
            continue;
        };
        let headers = if endpoint.is_ipv4() { UDP_V4 } else { UDP_V6 };
        let payload = vec![0; mtu.saturating_sub(headers).min(65_000) as usize];
        // What cannot be sent teaches nothing, and what it would teach is found by the handshake.
        sent |= socket.send_to(&payload, endpoint).is_ok();
    }
    if sent {
        std::thread::sleep(ANSWER);
    }
}
