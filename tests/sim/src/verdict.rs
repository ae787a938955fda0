//! What must be true once nothing moves any more: each node as the reference model says and as a
//! fresh agent would build it, and each packet delivered, or dropped for the reason foretold.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use ipnet::IpNet;
use warren_core::ObservedState;
use warren_core::consts::{MAIN_TABLE, NODE_TABLE};
use warren_core::state::{Packets, RouteTarget};

use crate::agent::{Agent, Told};
use crate::machine::{Desk, Machine};
use crate::packets::{Fate, Lost, ends, foretell, sockets, speak, try_packet};
use crate::peers::Peers;
use crate::port::Port;
use crate::world::World;

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
    let both = world.agents.iter().zip(&world.machines);
    let peers: Vec<Peers> = both
        .map(|(agent, machine)| Peers::of(agent, &machine.0.borrow()))
        .collect();
    let sockets = sockets(world);
    if world.real {
        speak(world, &nodes);
    }
    let mut census = Census::default();
    let mut lost = Lost::default();
    for from in &nodes {
        for to in nodes.iter().filter(|to| *to != from) {
            for ends in ends(world, *from, *to) {
                let fate = foretell(world, &peers, &sockets, (*from, ends));
                if let Err(fault) = try_packet(world, *from, ends, fate, &mut lost) {
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
    if let Err(fault) = lost.judge(world) {
        world.faults.push(format!("at rest: {fault}"));
    }
    census
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
    let peers = Peers::of(agent, &machine);
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
