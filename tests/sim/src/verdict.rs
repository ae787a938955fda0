//! What must be true once nothing moves any more: each node as the reference model says and as a
//! fresh agent would build it, and each packet delivered, or dropped for the reason foretold.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use ipnet::IpNet;
use warren_core::ObservedState;
use warren_core::consts::{MAIN_TABLE, NODE_TABLE};
use warren_core::state::{Packets, RouteTarget};
use warren_keyring::PublicKey;
use warren_tunnel::DropReason;

use crate::agent::{Agent, Told};
use crate::device::Device;
use crate::kernel::{Way, way};
use crate::machine::{Desk, Machine, inside};
use crate::oracle::{Judged, within};
use crate::port::Port;
use crate::world::{MARKER, World};

/// A handshake is tried for 90 s; what waits for it is dropped then.
const ATTEMPTS: Duration = Duration::from_secs(100);

/// What became of the packets of all pairs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// Delivered.
    pub delivered: u64,
    /// Refused by the sender's routes.
    pub unreachable: u64,
    /// Dropped, by the reason's name.
    pub dropped: BTreeMap<&'static str, u64>,
}

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Delivered(usize),
    Unreachable,
    /// Not for the tunnel: the node's own pods, or a node outside the mesh.
    Elsewhere,
    TunnelDown,
    Dropped(usize, DropReason),
}

/// What the reference model knows of a node's peers.
struct Peers {
    owners: BTreeMap<IpNet, (PublicKey, SocketAddr)>,
    lengths: BTreeSet<u8>,
    keys: BTreeMap<PublicKey, SocketAddr>,
    /// Whom a pod reaches by the tunnel or not at all.
    members: BTreeSet<IpAddr>,
}

impl Peers {
    fn of(agent: &Agent) -> Self {
        let mut owners = BTreeMap::new();
        let mut keys = BTreeMap::new();
        for (name, how) in agent.judged.iter().flat_map(|j| j.iter()) {
            let Judged::Accepted {
                endpoint,
                addresses,
                ..
            } = how
            else {
                continue;
            };
            let entry = &agent.oracle.view[name].entry;
            keys.insert(entry.key, *endpoint);
            let hosts = addresses.iter().copied().map(IpNet::from);
            for net in entry.pod_cidrs.iter().copied().chain(hosts) {
                owners.insert(net, (entry.key, *endpoint));
            }
        }
        let lengths = owners.keys().map(IpNet::prefix_len).collect();
        let judged = agent.judged.as_deref();
        Self {
            owners,
            lengths,
            keys,
            members: judged.map_or_else(BTreeSet::new, |j| agent.oracle.members(j)),
        }
    }

    /// The owner of the longest prefix.
    fn owner(&self, address: IpAddr) -> Option<(PublicKey, SocketAddr)> {
        let nets = self
            .lengths
            .iter()
            .rev()
            .filter_map(|l| IpNet::new(address, *l).ok());
        nets.map(|net| net.trunc())
            .find_map(|net| self.owners.get(&net).copied())
    }
}

/// Looks at everything, and takes note of the first thing that is wrong.
pub(crate) fn judge(world: &mut World) -> Census {
    let count = world.machines.len();
    let nodes: Vec<usize> = (0..count).filter(|n| world.on[*n]).collect();
    for node in &nodes {
        let found = check_node(world, *node);
        let fresh = if *node % (count / 20).max(1) == 0 {
            check_fresh(world, *node)
        } else {
            Ok(())
        };
        if let Err(fault) = found.and(fresh) {
            world.faults.push(format!("at rest: node{node}: {fault}"));
            return Census::default();
        }
    }
    let peers: Vec<Peers> = world.agents.iter().map(Peers::of).collect();
    let sockets = sockets(world);
    if world.real {
        speak(world, &nodes);
    }
    let mut census = Census::default();
    let mut waiting = Vec::new();
    for from in &nodes {
        for to in nodes.iter().filter(|to| *to != from) {
            for ends in ends(world, *from, *to) {
                let fate = foretell(world, &peers, &sockets, (*from, ends));
                if let Err(fault) = try_packet(world, *from, ends, fate, &mut waiting) {
                    let (source, to) = ends;
                    world.faults.push(format!(
                        "at rest: node{from}, {source} to {to}: {fate:?} was foretold: {fault}"
                    ));
                    return census;
                }
                match fate {
                    Fate::Delivered(_) => census.delivered += 1,
                    Fate::Unreachable => census.unreachable += 1,
                    Fate::Dropped(_, reason) => {
                        *census.dropped.entry(reason.as_str()).or_default() += 1;
                    }
                    Fate::TunnelDown => *census.dropped.entry("tunnel_down").or_default() += 1,
                    Fate::Elsewhere => {}
                }
            }
        }
    }
    if !waiting.is_empty() {
        world.run(ATTEMPTS);
        for (node, before) in waiting {
            if drops(world, node, DropReason::HandshakeTimeout) <= before {
                let fault = format!("at rest: node{node} never gives its waiting packets up");
                world.faults.push(fault);
            }
        }
    }
    census
}

/// The addresses that a packet from a pod of one node to a pod of another, and to the node, has.
fn ends(world: &World, from: usize, to: usize) -> Vec<(IpAddr, IpAddr)> {
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

fn sockets(world: &World) -> BTreeMap<SocketAddr, usize> {
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
fn foretell(
    world: &World,
    peers: &[Peers],
    sockets: &BTreeMap<SocketAddr, usize>,
    (from, (source, to)): (usize, (IpAddr, IpAddr)),
) -> Fate {
    let machine = world.machines[from].0.borrow();
    if machine.pod_cidrs.iter().any(|net| within(net, to)) {
        return Fate::Elsewhere;
    }
    let Some((key, endpoint)) = peers[from].owner(to) else {
        let pod = world.cluster.iter().any(|net| within(net, to));
        let member = peers[from].members.contains(&to) && !machine.addresses.contains(&to);
        return if pod || member {
            Fate::Unreachable
        } else {
            Fate::Elsewhere
        };
    };
    if machine.device.is_none() {
        return Fate::TunnelDown;
    }
    let own = machine.keys.public;
    let has_key = |node: &usize| world.machines[*node].0.borrow().keys.public == key;
    // Sessions follow their peer: where it speaks first, it is found in spite of its endpoint.
    let speaks = |node: &usize| {
        let back = peers[*node].keys.get(&own);
        world.real && back.is_some_and(|back| sockets.get(back) == Some(&from))
    };
    let found = sockets.get(&endpoint).copied();
    let holder = sockets.values().copied().find(|node| has_key(node));
    let there = holder.filter(|n| found == Some(*n) || speaks(n)).or(found);
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
fn try_packet(
    world: &mut World,
    from: usize,
    (source, to): (IpAddr, IpAddr),
    fate: Fate,
    waiting: &mut Vec<(usize, u64)>,
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
        Fate::Dropped(node, DropReason::HandshakeTimeout) => {
            let before = drops(world, node, DropReason::HandshakeTimeout);
            waiting.push((node, before));
            send(world, from, source, to);
            Ok(())
        }
        Fate::Dropped(node, reason) => {
            let before = refusals(world, node, reason);
            world.delivered.clear();
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
            let strayed = device_sends_to(world, from, to) != Some(node);
            match (dropped || strayed, arrival(world, &packet)) {
                (true, None) => Ok(()),
                (_, Some(node)) => Err(format!("it arrives at node{node}")),
                (false, None) => Err(format!("it is not counted so: {}", counted(world, node))),
            }
        }
        Fate::Delivered(node) => {
            world.delivered.clear();
            let packet = send(world, from, source, to);
            wait(world, |world| arrival(world, &packet).is_some());
            match arrival(world, &packet) {
                Some(there) if there == node => Ok(()),
                other => Err(format!("it arrives at {other:?}")),
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
fn speak(world: &mut World, nodes: &[usize]) {
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
        engine.handle_tun_packet(now, &packet, out)
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

fn drops(world: &World, node: usize, reason: DropReason) -> u64 {
    match &world.machines[node].0.borrow().device {
        Some(Device::Engine(engine)) => engine.counters().drops.get(reason),
        _ => 0,
    }
}

/// A node at rest is as the reference model says, plainly spelt out.
fn check_node(world: &World, node: usize) -> Result<(), String> {
    let agent = &world.agents[node];
    let machine = world.machines[node].0.borrow();
    let last = agent.last.as_ref().ok_or("its agent has not reconciled")?;
    if !last.protected {
        return Err(format!("not protected: {:?}", last.problems));
    }
    if !agent.synced || machine.device.is_none() {
        return if world.away[node] || machine.device.is_none() {
            Ok(())
        } else {
            Err("never told the whole view".into())
        };
    }
    if !last.settled {
        return Err(format!("not settled: {:?}", last.problems));
    }
    let peers = Peers::of(agent);
    let kernel = &machine.kernel;
    let tunnels = |table: u32| -> BTreeSet<IpNet> {
        let here = kernel.routes.iter().filter(|(key, target)| {
            key.table == table && matches!(target, RouteTarget::Tunnel { .. })
        });
        here.map(|(key, _)| key.destination).collect()
    };
    let pods = |net: &&IpNet| world.cluster.iter().any(|range| range.contains(*net));
    let pod_ranges: BTreeSet<IpNet> = peers.owners.keys().filter(pods).copied().collect();
    let hosts: BTreeSet<IpNet> = peers.owners.keys().filter(|n| !pods(n)).copied().collect();
    same("routes to pods", &tunnels(MAIN_TABLE), &pod_ranges)?;
    let own: Vec<bool> = machine
        .pod_cidrs
        .iter()
        .map(|net| net.addr().is_ipv6())
        .collect();
    let usable = hosts
        .iter()
        .filter(|net| own.contains(&net.addr().is_ipv6()));
    let node_table = usable.chain(&pod_ranges).copied().collect();
    same("routes of our table", &tunnels(NODE_TABLE), &node_table)?;
    same("addresses", &kernel.addresses, &machine.tunnel_addresses())?;
    let rules: BTreeSet<Packets> = kernel.rules.iter().map(|rule| rule.packets).collect();
    let from = machine.pod_cidrs.iter().copied().map(Packets::From);
    let to = world.cluster.iter().copied().map(Packets::To);
    same("rules", &rules, &from.chain(to).collect())?;
    let filter = kernel.filter.as_ref().ok_or("no filter")?;
    same(
        "the filter's ranges",
        &filter.pod_ranges,
        &world.cluster.iter().copied().collect(),
    )?;
    let others = peers
        .members
        .iter()
        .filter(|a| !machine.addresses.contains(a));
    let members = others.copied().map(IpNet::from).collect();
    same("the filter's peers", &filter.peer_addresses, &members)?;
    let device = machine.device.as_ref().ok_or("no tunnel")?;
    let owners = device.owners(None)?;
    let wanted = peers
        .owners
        .iter()
        .map(|(net, (key, _))| (*net, *key))
        .collect();
    same("owners", &owners, &wanted)?;
    same("endpoints", &machine.given, &peers.keys)
}

fn same<T: PartialEq + std::fmt::Debug>(what: &str, is: &T, must: &T) -> Result<(), String> {
    if is == must {
        return Ok(());
    }
    Err(format!("{what}: {is:?}, and must be {must:?}"))
}

/// What an agent built by many steps is what a fresh one with its incumbents builds at once.
fn check_fresh(world: &World, node: usize) -> Result<(), String> {
    let agent = &world.agents[node];
    let machine = world.machines[node].0.borrow();
    let (true, Some(device)) = (agent.synced, &machine.device) else {
        return Ok(());
    };
    let mut blank = Machine {
        name: machine.name.clone(),
        uid: machine.uid.clone(),
        keys: machine.keys.clone(),
        pod_cidrs: machine.pod_cidrs.clone(),
        addresses: machine.addresses.clone(),
        cluster: machine.cluster.clone(),
        kernel: ObservedState::default(),
        device: None,
        disk: Default::default(),
        shelf: Rc::clone(&machine.shelf),
        given: BTreeMap::new(),
        touched: Default::default(),
        registry: Desk::default(),
        pass: Default::default(),
        done: Vec::new(),
        faults: Vec::new(),
        late: Vec::new(),
        ..*machine
    };
    blank.start_tunnel(0);
    blank.disk.view = machine.disk.view.clone();
    blank.disk.view.applied_endpoints.clear();
    blank.disk.oracle = machine.disk.oracle.clone();
    let port = Port(Rc::new(RefCell::new(blank)));
    let mut fresh = Agent::dead(true);
    fresh.start(&port);
    let all: Vec<_> = agent.oracle.view.values().cloned().collect();
    fresh.tell(&Told::Synced(Rc::new(all)), &port.0.borrow());
    for _ in 0..2 {
        fresh.reconcile(&port);
    }
    let built = port.0.borrow();
    if let Some(fault) = built.faults.first() {
        return Err(format!("a fresh agent: {fault}"));
    }
    same(
        "the kernel beside a fresh agent's",
        &machine.kernel,
        &built.kernel,
    )?;
    same(
        "endpoints beside a fresh agent's",
        &machine.given,
        &built.given,
    )?;
    let fresh_owners = built.device.as_ref().map(|d| d.owners(None));
    let fresh_owners = fresh_owners.ok_or("no tunnel")??;
    same(
        "owners beside a fresh agent's",
        &device.owners(None)?,
        &fresh_owners,
    )
}
