//! Do the peers answer, through the tunnel, to small packets and to the largest?
//!
//! A WireGuard port is silent to strangers, so that nobody can tell a closed one from an open one by
//! a datagram. What tells is a handshake, and a packet through the tunnel brings one about.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use warren_core::plan::tunnel_address;
use warren_core::uapi::Peer;
use warren_keyring::PublicKey;

use super::facts::Facts;
use super::finding::{Check, Finding};
use super::ping::{Echo, ping};
use crate::kernel_device;
use crate::show::ShownDevice;
use crate::sources::Sources;
use crate::text;

/// More than one retry of a handshake, which comes after 5 s (Rekey-Timeout).
const PATIENCE: Duration = Duration::from_secs(8);
/// How many peers are asked at once.
const MAX_PEERS: usize = 64;
/// A packet that fits everywhere.
const SMALL_BYTES: u32 = 100;
/// A session lives that long (Reject-After-Time, WireGuard paper, section 6.1).
const SESSION_SECONDS: u64 = 180;

/// A peer as it is asked.
struct Asked<'a> {
    peer: &'a Peer,
    name: String,
    address: IpAddr,
    mtu_bytes: u32,
}

pub(super) fn check(facts: &Facts) -> Vec<Finding> {
    let mut check = Check::new("peers");
    let Ok(device) = &facts.device else {
        return Vec::new();
    };
    if facts.args.no_probe {
        return check.done("not asked (--no-probe)");
    }
    let asked: Vec<Asked<'_>> = device
        .peers
        .iter()
        .filter_map(|p| asked(facts, p))
        .collect();
    let left_out = asked.len().saturating_sub(MAX_PEERS);
    let asked = &asked[..asked.len().min(MAX_PEERS)];
    let small = |peer: &Asked<'_>| Echo {
        to: peer.address,
        packet_bytes: SMALL_BYTES,
    };
    let large = |peer: &Asked<'_>| Echo {
        to: peer.address,
        packet_bytes: peer.mtu_bytes,
    };
    let requests: BTreeSet<Echo> = asked.iter().flat_map(|p| [small(p), large(p)]).collect();
    let answered = match ping(&requests, PATIENCE) {
        Ok(answered) => answered,
        Err(e) => {
            check.warn(
                format!("cannot send pings: {e}"),
                "whether the peers answer is not known",
                "run this as root",
            );
            return check.done("");
        }
    };
    let handshakes = handshakes_now(facts);
    for peer in asked {
        let Asked {
            name, mtu_bytes, ..
        } = peer;
        let endpoint = peer
            .peer
            .endpoint
            .map(text::endpoint)
            .unwrap_or("no endpoint".into());
        let age = handshakes.get(&peer.peer.public_key).copied().flatten();
        let has_session = age.is_some_and(|age| age < SESSION_SECONDS);
        match (answered.contains(&small(peer)), answered.contains(&large(peer))) {
            (true, true) => {}
            (true, false) => check.error(
                format!("{name} answers small packets through the tunnel, but none of {mtu_bytes} bytes"),
                "connections open and then hang: something on the way swallows large packets",
                format!(
                    "tracepath -n {}; then lower the MTU of this node's underlay interface, or set \
                     mtu in the agent's configuration",
                    peer.peer.endpoint.map(|e| e.ip().to_string()).unwrap_or_default()
                ),
            ),
            (false, _) if has_session => check.warn(
                format!("{name} has a session, but does not answer a ping through the tunnel"),
                "its firewall drops ICMP from the tunnel, or its routes or addresses are damaged",
                format!("on {name}: warren doctor"),
            ),
            (false, _) => check.error(
                format!("no handshake with {name} at {endpoint}"),
                "nothing comes back from there: its warren-tunnel is down, its endpoint is wrong, or \
                 a firewall on the way drops UDP; its pods are not reached",
                format!(
                    "on {name}: warren doctor, and ss -lun; here: ping {0}; tcpdump -ni any udp and \
                     host {0}",
                    peer.peer.endpoint.map(|e| e.ip().to_string()).unwrap_or_default()
                ),
            ),
        }
    }
    let more = match left_out {
        0 => String::new(),
        more => format!("; {more} more were not asked"),
    };
    check.done(format!(
        "{} of {} answer, small packets and large{more}",
        asked.len(),
        asked.len()
    ))
}

fn asked<'a>(facts: &Facts, peer: &'a Peer) -> Option<Asked<'a>> {
    let status = facts.agent.as_ref().ok();
    let known = status.and_then(|s| s.peers.iter().find(|p| p.public_key == peer.public_key));
    // Node addresses are of full length; what is shorter is a podCIDR.
    let is_range = |net: &&ipnet::IpNet| net.max_prefix_len() - net.prefix_len() >= 2;
    let range = peer.allowed_ips.iter().find(is_range)?;
    let route = facts.net.as_ref().ok()?.routes.iter().find(|route| {
        route.dst == *range
            && facts
                .tunnel_link()
                .is_some_and(|l| route.oif == Some(l.index))
    });
    let link_mtu = facts.tunnel_link().map(|link| link.mtu);
    Some(Asked {
        peer,
        name: known.map_or_else(|| peer.public_key.to_base64(), |known| known.node.clone()),
        address: tunnel_address(range),
        mtu_bytes: route.and_then(|route| route.mtu).or(link_mtu)?,
    })
}

/// The age in seconds of each peer's newest handshake, now that it was asked.
fn handshakes_now(facts: &Facts) -> BTreeMap<PublicKey, Option<u64>> {
    let sources = Sources::new(facts.args.directories.clone());
    let interface = &facts.args.interface;
    let device = match facts.is_kernel {
        true => kernel_device::read(interface).ok(),
        false => sources.device(interface).ok(),
    };
    let Some(ShownDevice { device, .. }) = device else {
        return BTreeMap::new();
    };
    let age = |peer: &Peer| {
        peer.last_handshake
            .map(|at| facts.now.saturating_sub(at.as_secs()))
    };
    device
        .peers
        .iter()
        .map(|peer| (peer.public_key, age(peer)))
        .collect()
}
