//! A packet of each pair: what must become of it by the reference model, and what does.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use warren_tunnel::DropReason;

use crate::device::Device;
use crate::kernel::{Way, way};
use crate::machine::inside;
use crate::mutation::Mutation;
use crate::oracle::within;
use crate::peers::Peers;
use crate::world::{MARKER, World};

/// A handshake may be begun 5 s after the last, is tried for 90 s, and given up with the next of its
/// retries, which are up to 5.333 s apart; what waits for it is dropped then.
const ATTEMPTS: Duration = Duration::from_secs(102);
/// Reject-After-Time (WireGuard paper, section 6.1).
const KEYS_LIVE: Duration = Duration::from_secs(180);

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Delivered(usize),
    Unreachable,
    /// Not for the tunnel: the node's own pods, or a node outside the mesh.
    Elsewhere,
    TunnelDown,
    Dropped(usize, DropReason),
}

/// Packets to where nobody answers. Those that found no session wait for one and are given up in the
/// end; those that found the session of a peer that has gone are sent, and nobody learns of it.
#[derive(Default)]
pub(crate) struct Lost {
    /// Whose they are.
    packets: Vec<(usize, (IpAddr, IpAddr), Vec<u8>)>,
    /// By node: what it had given up before, and how many packets it keeps.
    kept: BTreeMap<usize, (u64, u64)>,
}

impl Lost {
    fn send(
        &mut self,
        world: &mut World,
        from: usize,
        source: IpAddr,
        to: IpAddr,
    ) -> Result<(), String> {
        let given_up = drops(world, from, DropReason::HandshakeTimeout);
        let before = kept_and_sent(world, from);
        let packet = send(world, from, source, to);
        let after = kept_and_sent(world, from);
        self.packets.push((from, (source, to), packet));
        if after.0 > before.0 {
            self.kept.entry(from).or_insert((given_up, 0)).1 += 1;
        } else if after.1 == before.1 {
            return Err(format!(
                "it is neither kept nor sent: {}",
                counted(world, from)
            ));
        }
        Ok(())
    }

    /// Waits for the end of all handshakes, and looks at what became of the packets.
    pub(crate) fn judge(&self, world: &mut World) -> Result<(), String> {
        if self.packets.is_empty() {
            return Ok(());
        }
        world.run(ATTEMPTS);
        for (node, (before, kept)) in &self.kept {
            let given_up = drops(world, *node, DropReason::HandshakeTimeout) - before;
            if given_up < *kept {
                return Err(format!(
                    "node{node} keeps {kept} waiting packets and gives {given_up} up: {}",
                    counted(world, *node)
                ));
            }
        }
        for (from, (source, to), packet) in &self.packets {
            if let Some(node) = arrival(world, packet) {
                return Err(format!(
                    "node{from}, {source} to {to}: it arrives at node{node}, and must be lost"
                ));
            }
        }
        Ok(())
    }
}

/// The addresses that a packet from a pod of one node to a pod of another, and to the node, has.
pub(crate) fn ends(world: &World, from: usize, to: usize) -> Vec<(IpAddr, IpAddr)> {
    let (from, to) = (
        world.machines[from].0.borrow(),
        world.machines[to].0.borrow(),
    );
    let pods = to.pod_cidrs.iter().map(|net| inside(net, 5));
    let mut out = Vec::new();
    for target in pods.chain(to.addresses.iter().copied()) {
        let pod = from.pod_cidrs.iter().map(|net| inside(net, 9));
        let mut same = pod.filter(|a| a.is_ipv6() == target.is_ipv6());
        out.extend(same.next().map(|source| (source, target)));
    }
    out
}

pub(crate) fn sockets(world: &World) -> BTreeMap<SocketAddr, usize> {
    let mut out = BTreeMap::new();
    for node in (0..world.machines.len()).rev().filter(|n| world.on[*n]) {
        let machine = world.machines[node].0.borrow();
        if machine.device.is_some() {
            let port = warren_core::consts::DEFAULT_PORT;
            out.extend(
                machine
                    .addresses
                    .iter()
                    .map(|a| (SocketAddr::new(*a, port), node)),
            );
        }
    }
    out
}

/// What must become of a packet, by the reference model and nothing else.
pub(crate) fn foretell(
    world: &World,
    peers: &[Peers],
    sockets: &BTreeMap<SocketAddr, usize>,
    (from, (source, to)): (usize, (IpAddr, IpAddr)),
) -> Fate {
    let machine = world.machines[from].0.borrow();
    if machine.pod_cidrs.iter().any(|net| within(net, to)) {
        return Fate::Elsewhere;
    }
    if !peers[from].is_routed(to) {
        let pod = world.cluster.iter().any(|net| within(net, to));
        let member = peers[from].members.contains(&to) && !machine.addresses.contains(&to);
        return if pod || member {
            Fate::Unreachable
        } else {
            Fate::Elsewhere
        };
    }
    if machine.device.is_none() {
        return Fate::TunnelDown;
    }
    // A route from an earlier life may have outlived the tunnel's state.
    let Some((key, endpoint)) = peers[from].owner(to) else {
        return Fate::Dropped(from, DropReason::NoRoute);
    };
    let own = machine.keys.public;
    let has_key = |node: &usize| world.machines[*node].0.borrow().keys.public == key;
    // Sessions follow their peer: where it speaks first, or was heard before, it is found in spite
    // of its endpoint.
    let speaks = |node: &usize| {
        let back = peers[*node].keys.get(&own);
        world.real && back.is_some_and(|back| sockets.get(back) == Some(&from))
    };
    let followed = world
        .real
        .then(|| device_sends_to(world, from, to))
        .flatten();
    let found = sockets.get(&endpoint).copied();
    let holder = sockets.values().copied().find(|node| has_key(node));
    let there = holder.filter(|n| found == Some(*n) || followed == Some(*n) || speaks(n));
    let there = there.or(found);
    let Some(there) = there.filter(|n| !world.is_cut(from, *n)) else {
        return Fate::Dropped(from, DropReason::HandshakeTimeout);
    };
    if !has_key(&there) {
        return Fate::Dropped(there, DropReason::BadMac1);
    }
    if !peers[there].keys.contains_key(&own) {
        return Fate::Dropped(there, DropReason::UnknownPeer);
    }
    if peers[there].owner(source).map(|(key, _)| key) != Some(own) {
        return Fate::Dropped(there, DropReason::WrongSource);
    }
    Fate::Delivered(there)
}

/// Sends the packet, and compares.
pub(crate) fn try_packet(
    world: &mut World,
    from: usize,
    (source, to): (IpAddr, IpAddr),
    fate: Fate,
    lost: &mut Lost,
) -> Result<(), String> {
    let way = {
        let machine = world.machines[from].0.borrow();
        way(
            &machine.kernel,
            &machine.pod_cidrs,
            &machine.cluster,
            (source, to),
        )
    };
    let expected = match fate {
        Fate::Unreachable => way == Way::Unreachable,
        Fate::Elsewhere => way == Way::Local || way == Way::Outside,
        _ => way == Way::Tunnel,
    };
    if !expected {
        return Err(format!("its way is {way:?}"));
    }
    match fate {
        Fate::Unreachable | Fate::Elsewhere | Fate::TunnelDown => Ok(()),
        _ if !world.real => {
            let found = by_tables(world, from, source, to);
            let same = found == fate;
            if same {
                Ok(())
            } else {
                Err(format!("{found:?}"))
            }
        }
        Fate::Dropped(_, DropReason::HandshakeTimeout) => lost.send(world, from, source, to),
        Fate::Dropped(node, reason) => {
            let before = refusals(world, node, reason);
            let gone = drops(world, from, DropReason::HandshakeTimeout);
            let packet = send(world, from, source, to);
            // It may come when an attempt at a handshake is at its end, and go with what waits.
            let given_up = |world: &World| {
                drops(world, from, DropReason::HandshakeTimeout) > gone
                    && drops(world, node, reason) > 0
            };
            let dropped = wait(world, |world| {
                refusals(world, node, reason) > before || given_up(world)
            });
            // A late datagram from an address that the peer has left leads its session back there,
            // until the peer speaks; one that refuses this node never does.
            let strayed = node != from && device_sends_to(world, from, to) != Some(node);
            match (dropped || strayed, arrival(world, &packet)) {
                (true, None) => Ok(()),
                (_, Some(node)) => Err(format!("it arrives at node{node}")),
                (false, None) => Err(format!("it is not counted so: {}", counted(world, node))),
            }
        }
        Fate::Delivered(node) => {
            let at_the_end = keys_end(world, from, to);
            let mut packet = send(world, from, source, to);
            wait(world, |world| arrival(world, &packet).is_some());
            if at_the_end && arrival(world, &packet).is_none() {
                // The receiver's keys are older than the initiator's by the way of its response:
                // what is sent at their very end comes too late, and a handshake follows it.
                packet = send(world, from, source, to);
                wait(world, |world| arrival(world, &packet).is_some());
            }
            match arrival(world, &packet) {
                Some(there) if there == node => Ok(()),
                other => Err(format!("it arrives at {other:?}: {}", counted(world, node))),
            }
        }
    }
}

/// What becomes of a packet where there are no sessions: both ends' tables and keys decide.
fn by_tables(world: &World, from: usize, source: IpAddr, to: IpAddr) -> Fate {
    let machine = world.machines[from].0.borrow();
    let Some(device) = &machine.device else {
        return Fate::TunnelDown;
    };
    let Some((key, endpoint)) = device.lookup(to) else {
        return Fate::Dropped(from, DropReason::NoRoute);
    };
    let Some(endpoint) = endpoint else {
        return Fate::Dropped(from, DropReason::NoEndpoint);
    };
    let there = world
        .machine_at(endpoint)
        .filter(|n| !world.is_cut(from, *n));
    let Some(there) = there else {
        return Fate::Dropped(from, DropReason::HandshakeTimeout);
    };
    let other = world.machines[there].0.borrow();
    let Some(device) = other.device.as_ref().filter(|_| other.keys.public == key) else {
        return Fate::Dropped(there, DropReason::BadMac1);
    };
    if !device.knows(&machine.keys.public) {
        return Fate::Dropped(there, DropReason::UnknownPeer);
    }
    if device.lookup(source).map(|(key, _)| key) != Some(machine.keys.public) {
        return Fate::Dropped(there, DropReason::WrongSource);
    }
    Fate::Delivered(there)
}

/// Lets every node send to every other, so that sessions are where they can be.
pub(crate) fn speak(world: &mut World, nodes: &[usize]) {
    for _ in 0..2 {
        for from in nodes {
            for to in nodes.iter().filter(|to| *to != from) {
                for (source, to) in ends(world, *from, *to) {
                    send(world, *from, source, to);
                }
            }
        }
        world.run(Duration::from_secs(12));
    }
}

/// Hands a tunnel a packet that no other is like.
fn send(world: &mut World, from: usize, source: IpAddr, to: IpAddr) -> Vec<u8> {
    let number = world.random.any();
    let payload = [MARKER, &number.to_be_bytes()].concat();
    let packet = match (source, to) {
        (IpAddr::V4(source), IpAddr::V4(to)) => {
            let mut head = [0; 20];
            head[0] = 0x45;
            head[3] = 20 + payload.len() as u8;
            head[12..16].copy_from_slice(&source.octets());
            head[16..].copy_from_slice(&to.octets());
            [&head[..], &payload].concat()
        }
        (IpAddr::V6(source), IpAddr::V6(to)) => {
            let mut head = [0; 40];
            head[0] = 0x60;
            head[5] = payload.len() as u8;
            head[6] = 59;
            head[8..24].copy_from_slice(&source.octets());
            head[24..].copy_from_slice(&to.octets());
            [&head[..], &payload].concat()
        }
        _ => return Vec::new(),
    };
    world.with_engine(from, |engine, now, out| {
        engine.handle_tun_packet(now, &packet, out);
    });
    packet
}

fn arrival(world: &World, packet: &[u8]) -> Option<usize> {
    let found = world.delivered.iter().find(|(_, seen)| seen == packet);
    found.map(|(node, _)| *node)
}

fn wait(world: &mut World, done: impl Fn(&World) -> bool) -> bool {
    for milliseconds in [20, 100, 400, 1500, 4000, 6000] {
        if done(world) {
            return true;
        }
        world.run(Duration::from_millis(milliseconds));
    }
    done(world)
}

/// As [`drops`]; data on a session that the receiver has forgotten, as it does with the peer, is
/// refused likewise, until its sender tries a handshake.
fn refusals(world: &World, node: usize, reason: DropReason) -> u64 {
    let forgotten = match reason {
        DropReason::UnknownPeer | DropReason::BadMac1 => {
            drops(world, node, DropReason::UnknownIndex)
        }
        _ => 0,
    };
    drops(world, node, reason) + forgotten
}

/// The node that a node's device sends such a packet to now.
fn device_sends_to(world: &World, from: usize, to: IpAddr) -> Option<usize> {
    let machine = world.machines[from].0.borrow();
    let (_, endpoint) = machine.device.as_ref()?.lookup(to)?;
    world.machine_at(endpoint?)
}

/// What a node's engine has dropped, for a report.
fn counted(world: &World, node: usize) -> String {
    match &world.machines[node].0.borrow().device {
        Some(Device::Engine(engine)) => {
            let drops = engine.counters().drops.iter().filter(|(_, n)| *n > 0);
            format!("{:?}", drops.collect::<Vec<_>>())
        }
        _ => String::new(),
    }
}

/// Whether the keys that a packet would be sent with have less than a second left.
fn keys_end(world: &World, from: usize, to: IpAddr) -> bool {
    let machine = world.machines[from].0.borrow();
    let peer = machine.device.as_ref().and_then(|device| device.lookup(to));
    let age = peer.and_then(|(key, _)| machine.device.as_ref()?.keys_age(&key));
    age.is_some_and(|age| age >= KEYS_LIVE - Duration::from_secs(1) && age <= KEYS_LIVE)
}

fn drops(world: &World, node: usize, reason: DropReason) -> u64 {
    let silent = world.setup.mutation == Some(Mutation::GivesUpInSilence);
    if silent && reason == DropReason::HandshakeTimeout {
        return 0;
    }
    match &world.machines[node].0.borrow().device {
        Some(Device::Engine(engine)) => engine.counters().drops.get(reason),
        _ => 0,
    }
}

/// The bytes that wait for handshakes in a node's engine, and the datagrams that it has made.
fn kept_and_sent(world: &World, node: usize) -> (usize, u64) {
    match &world.machines[node].0.borrow().device {
        Some(Device::Engine(engine)) => {
            (engine.waiting_bytes(), engine.counters().udp_tx_datagrams)
        }
        _ => (0, 0),
    }
}
