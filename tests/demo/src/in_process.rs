//! The mesh in one process, for machines that allow no namespaces.
//!
//! ```text
//!      node1 (thread)              node2 (thread)              node3 (thread)
//!   pods a, b in memory         pods a, b in memory         pods a, b in memory
//!          |                           |                           |
//!       Engine                      Engine                      Engine
//!          |                           |                           |
//!   127.0.0.1:*                127.0.0.1:*, [::1]:*        127.0.0.1:*, [::1]:*
//!          |                           |                           |
//!   =======+===========================+===========================+======= loopback
//! ```
//!
//! Planning, AllowedIPs, handshakes, sealing and source checks are the real ones, and the sealed
//! packets cross real UDP sockets. What only a kernel does (TUN, routes, filter, CNI) is not here.

mod bulk;
mod inspect;
mod mesh;
mod node;
mod packet;
mod planned;
mod pod;
mod wire;

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use warren_tunnel::DropReason;

use inspect::Inspection;
use mesh::Mesh;
use packet::{Body, Inner};

const STEPS: u8 = 6;
/// No step takes longer where all is well.
const LIMIT: Duration = Duration::from_secs(60);
/// Echo requests for each pair and family.
const PINGS: u16 = 3;
const TRANSFER_BYTES: u64 = 20_000_000;
/// Under a second on most machines; a slow one with an unoptimised build shall not fail.
const TRANSFER_LIMIT: Duration = Duration::from_secs(120);
/// Packets of each family that are sent under a foreign source.
const FORGED: u64 = 5;

fn step(number: u8, what: &str) {
    println!("\n[{number}/{STEPS}] {what}");
}

/// Shows the mesh in this process.
///
/// # Errors
/// Whatever is not as promised, and whatever the kernel refuses of sockets on loopback.
pub(crate) fn run() -> Result<()> {
    step(
        1,
        "three nodes, each one thread with the tunnel's engine and UDP sockets on loopback",
    );
    let mesh = Mesh::start()?;
    let shown = show(&mesh);
    // A node that failed is the cause of whatever could not be shown.
    let ended = mesh.stop();
    ended.and(shown)
}

fn show(mesh: &Mesh) -> Result<()> {
    for node in &mesh.nodes {
        let as_text: Vec<String> = node.sockets.iter().map(SocketAddr::to_string).collect();
        println!("  {}: {}", node.name, as_text.join(", "));
    }
    if !mesh.ipv6 {
        println!("  this machine has no ::1: all outer packets are IPv4");
    }

    step(
        2,
        "peers as the agent plans them, and a handshake of every pair",
    );
    show_sessions(mesh)?;

    step(3, "two pods a node, in memory");
    for pod in mesh.pods() {
        println!("  {}: {}, {}", pod.name, pod.v4, pod.v6);
    }

    step(4, "every pod to every pod");
    show_matrix(mesh, false)?;
    show_matrix(mesh, true)?;
    show_paths(mesh)?;

    step(
        5,
        "20 MB between nodes, every datagram on the sockets searched",
    );
    show_transfer(mesh, (1, "a"), (3, "a"), false)?;
    show_transfer(mesh, (2, "a"), (3, "b"), true)?;
    show_inspections(mesh)?;

    step(6, "a foreign source");
    show_forged(mesh)?;
    show_drops(mesh)
}

fn show_sessions(mesh: &Mesh) -> Result<()> {
    let took = mesh.wait_connected(LIMIT)?;
    println!(
        "  every node has a session with every other after {:.3} s",
        took.as_secs_f64()
    );
    for node in &mesh.nodes {
        for peer in node.status()?.peers {
            let name = &mesh.by_key(&peer.public_key)?.name;
            let endpoint = peer.endpoint.context("a peer has no endpoint")?;
            let allowed: Vec<String> = peer.allowed_ips.iter().map(ToString::to_string).collect();
            println!(
                "  {} -> {name} at {endpoint}, allowed IPs {}",
                node.name,
                allowed.join(", ")
            );
        }
    }
    for (a, b) in [(1, 2), (1, 3), (2, 3)] {
        let ipv6 = mesh.ipv6 && a != 1;
        for (from, to) in [(a, b), (b, a)] {
            let endpoint = mesh.endpoint(from, to)?;
            ensure!(
                endpoint.is_ipv6() == ipv6,
                "node{from} sends to node{to} at {endpoint}, which is not the planned family"
            );
        }
    }
    Ok(())
}

/// Pings every pod from every pod in one family and prints the mean round-trip times in ms.
fn show_matrix(mesh: &Mesh, ipv6: bool) -> Result<()> {
    let family = if ipv6 { "IPv6" } else { "IPv4" };
    println!("  {family} round-trip times in ms, from the row to the column:");
    let header: String = mesh.pods().map(|p| format!("{:>9}", p.name)).collect();
    println!("  {:<9}{header}", "");
    for from in mesh.pods() {
        let mut line = format!("  {:<9}", from.name);
        for to in mesh.pods() {
            let target = to.address(ipv6);
            let mean = mesh
                .ping(from, target, PINGS, LIMIT)
                .with_context(|| format!("{} does not reach {} at {target}", from.name, to.name))?;
            line += &format!("{:>9.3}", mean.as_secs_f64() * 1000.0);
        }
        println!("{line}");
    }
    Ok(())
}

/// Every pair was pinged once a family: how many packets took which way is known exactly.
fn show_paths(mesh: &Mesh) -> Result<()> {
    let pods = mesh.pods().count() as u64;
    let of_node = pods / mesh.nodes.len() as u64;
    // Requests and replies, of two families.
    let each_pair = u64::from(PINGS) * 2 * 2;
    let local = pods * of_node * each_pair;
    let remote = pods * (pods - of_node) * each_pair;
    let (mut direct, mut tunnelled) = (0, 0);
    for node in &mesh.nodes {
        let status = node.status()?;
        direct += status.local_packets;
        tunnelled += status.counters.tun_rx_packets;
    }
    ensure!(
        (direct, tunnelled) == (local, remote),
        "{direct} packets were delivered on their node and {tunnelled} by the tunnel, \
         not {local} and {remote}"
    );
    println!(
        "  {tunnelled} packets between nodes went through the tunnel, {direct} within a node did not"
    );
    Ok(())
}

fn show_transfer(mesh: &Mesh, from: (u8, &str), to: (u8, &str), ipv6: bool) -> Result<()> {
    let (from_node, to_node) = (from.0, to.0);
    let (from, to) = (mesh.pod(from.0, from.1)?, mesh.pod(to.0, to.1)?);
    let sent = mesh
        .send(from, to.address(ipv6), TRANSFER_BYTES, TRANSFER_LIMIT)
        .with_context(|| format!("{} cannot send its stream to {}", from.name, to.name))?;
    let received = mesh.received(to)?;
    let [got] = received.as_slice() else {
        anyhow::bail!(
            "{} has {} transfers instead of one",
            to.name,
            received.len()
        );
    };
    ensure!(
        got.source == from.address(ipv6),
        "{} saw the source {} instead of {}",
        to.name,
        got.source,
        from.address(ipv6)
    );
    ensure!(
        got.complete && got.bytes == TRANSFER_BYTES,
        "{} bytes of {TRANSFER_BYTES} arrived",
        got.bytes
    );
    ensure!(
        got.digest == sent.digest,
        "the digests differ: sent {}, received {}",
        sent.digest,
        got.digest
    );
    println!(
        "  {} to {} over {}: {} MB at {:.0} Mbit/s, digests equal ({}…), the receiver saw {}",
        from.name,
        to.name,
        mesh.endpoint(from_node, to_node)?,
        got.bytes / 1_000_000,
        got.bytes as f64 * 8.0 / 1e6 / sent.took.as_secs_f64(),
        &got.digest[..16],
        got.source,
    );
    Ok(())
}

fn show_inspections(mesh: &Mesh) -> Result<()> {
    let (mut outer, mut inner) = (Inspection::default(), Inspection::default());
    for node in &mesh.nodes {
        let status = node.status()?;
        outer += status.outer;
        inner += status.inner;
    }
    let [initiations, responses, cookies, data] = outer.messages;
    println!(
        "  {} datagrams on the sockets, all looked at: {initiations} initiations, {responses} \
         responses, {cookies} cookie replies, {data} data messages; in clear: {}",
        outer.looked_at,
        outer.in_clear()
    );
    ensure!(
        outer.in_clear() == 0,
        "{} datagrams left in clear ({} with the marker, {} are no WireGuard message)",
        outer.in_clear(),
        outer.with_marker,
        outer.foreign
    );
    let least = 2 * TRANSFER_BYTES / bulk::BLOCK_BYTES;
    ensure!(
        data >= least,
        "{data} data messages cannot have carried {least} blocks"
    );
    println!(
        "  positive control: the same look at {} packets before sealing finds the marker in {}",
        inner.looked_at, inner.with_marker
    );
    ensure!(
        inner.looked_at >= least && inner.with_marker == inner.looked_at,
        "the look misses the marker in packets that carry it"
    );
    Ok(())
}

/// Node1 seals packets with the source of a pod of node2, and sends them to a pod of node3.
fn show_forged(mesh: &Mesh) -> Result<()> {
    let (liar, victim, target) = (mesh.node(1)?, mesh.pod(2, "a")?, mesh.pod(3, "a")?);
    let receiver = mesh.node(3)?;
    let dropped = || -> Result<u64> {
        Ok(receiver
            .status()?
            .counters
            .drops
            .get(DropReason::WrongSource))
    };
    let (drops_before, seen_before) = (dropped()?, mesh.packets_seen(target)?);
    for (source, destination) in [
        (IpAddr::from(victim.v4), IpAddr::from(target.v4)),
        (victim.v6.into(), target.v6.into()),
    ] {
        for number in 0..FORGED {
            let data = warren_e2e::MARKER.as_bytes();
            let body = Body::EchoRequest {
                id: 1,
                sequence: number as u16,
                data,
            };
            let packet = Inner {
                source,
                destination,
                body,
            };
            liar.forge(packet.to_bytes()?)?;
        }
        println!(
            "  {} seals {FORGED} packets from {source} (a pod of node2) to {destination}",
            liar.name
        );
    }
    let start = Instant::now();
    while dropped()? < drops_before + 2 * FORGED && start.elapsed() < LIMIT {
        std::thread::sleep(Duration::from_millis(2));
    }
    let drops = dropped()? - drops_before;
    let seen = mesh.packets_seen(target)? - seen_before;
    println!(
        "  {} dropped {drops} of them as {}, its pod saw {seen}",
        receiver.name,
        DropReason::WrongSource.as_str()
    );
    ensure!(
        (drops, seen) == (2 * FORGED, 0),
        "forged packets got through"
    );
    // The same pair in honesty: the drop was about the source, not about the way.
    mesh.ping(victim, target.v4.into(), 1, LIMIT)
        .context("the true owner of the source is not heard either")?;
    println!("  the true {} is answered at the same address", victim.name);
    Ok(())
}

fn show_drops(mesh: &Mesh) -> Result<()> {
    println!("\n  dropped packets, by reason:");
    for node in &mesh.nodes {
        let status = node.status()?;
        let drops = &status.counters.drops;
        let reasons: Vec<String> = drops
            .iter()
            .filter(|(_, count)| *count > 0)
            .map(|(reason, count)| format!("{} {count}", reason.as_str()))
            .collect();
        let reasons = if reasons.is_empty() {
            "none".into()
        } else {
            reasons.join(", ")
        };
        println!(
            "    {}: {reasons} (handshakes {}, not taken by its socket {})",
            node.name, status.counters.handshakes, status.not_sent
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_mesh_in_one_process_shows_all_that_it_promises() {
        super::run().unwrap();
    }
}
