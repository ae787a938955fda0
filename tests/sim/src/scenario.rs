//! What is done to a cluster, by chance, and the peace that follows.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::time::Duration;

use ipnet::IpNet;
use warren_core::consts::{DEFAULT_PORT, PROTOCOL_AGENT};
use warren_core::state::RouteTarget;

use crate::entry::{Entry, Flaw};
use crate::upkeep::{FILTER, NETWORK};
use crate::verdict::{Census, judge};
use crate::world::{Event, Setup, Weather, World};

/// A scenario that ended as it must.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The hash of all that happened.
    pub hash: u64,
    /// How many nodes there were.
    pub nodes: usize,
    /// Whether the tunnels were engines.
    pub real: bool,
    /// What became of the pairs' packets.
    pub census: Census,
}

/// A scenario in which something happened that must not.
#[derive(Clone, Debug)]
pub struct Failure {
    /// Its setup's seed.
    pub seed: u64,
    /// What happened.
    pub fault: String,
    /// What happened just before.
    pub tail: String,
}

/// Plays a scenario to its end.
///
/// # Errors
/// The first thing that must not be; a panic is one.
pub fn play(setup: Setup) -> Result<Outcome, Failure> {
    let mut world = World::new(setup);
    let played = catch_unwind(AssertUnwindSafe(|| play_in(&mut world)));
    let census = played.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
        // What panicked may have left anything half done: its own fault comes first.
        let fault = format!("it panics: {}", text.unwrap_or("without a word"));
        world.faults.insert(0, fault);
        Census::default()
    });
    match world.fault() {
        None => Ok(Outcome {
            hash: world.trace.hash(),
            nodes: world.machines.len(),
            real: world.real,
            census,
        }),
        Some(fault) => Err(Failure {
            seed: setup.seed,
            fault,
            tail: world.trace.tail(),
        }),
    }
}

fn play_in(world: &mut World) -> Census {
    world.begin();
    world.settle();
    match world.fault() {
        None => judge(world),
        Some(_) => Census::default(),
    }
}

impl World {
    /// Switches the nodes on, and lets things happen.
    fn begin(&mut self) {
        let large = self.machines.len() > 64;
        let ms = |random: &mut crate::random::Random, most: usize| {
            Duration::from_millis(random.below(most) as u64)
        };
        self.weather = Weather {
            lost: [0, 20, 100, 300][self.random.below(4)],
            twice: [0, 100][self.random.below(2)],
            loss: [0, 10, 100, 300][self.random.below(4)],
            delay: ms(&mut self.random, 700),
            jitter: ms(&mut self.random, 300),
        };
        self.on.fill(true);
        if large {
            // A cold start of a cluster that there is.
            for node in 0..self.machines.len() {
                let entry = self.entry_of(node);
                let listed = entry.listed();
                self.registry.insert(listed.entry.name.clone(), listed);
            }
        }
        for node in 0..self.machines.len() {
            let late = self.random.time(Duration::from_secs(3));
            self.after(late, Event::StartTunnel(node));
            let late = self.random.time(Duration::from_secs(3));
            self.after(late, Event::StartAgent(node));
        }
        self.acts = if large {
            12
        } else {
            10 + self.random.below(50)
        };
        let first = Duration::from_secs(if large { 6 } else { 2 });
        self.after(first, Event::Act);
        while self.acts > 0 && self.fault().is_none() {
            self.run(Duration::from_secs(1));
        }
    }

    /// Everything works again, but for what may stay broken; then nothing moves any more.
    fn settle(&mut self) {
        self.note(format_args!("peace"));
        self.weather = Weather {
            delay: Duration::from_millis(100),
            jitter: Duration::from_millis(5),
            ..Weather::default()
        };
        if self.real || self.random.chance(700) {
            self.cut.clear();
        }
        let left_away = self.random.below(self.machines.len());
        let stays_away = !self.real && self.random.chance(200);
        for node in 0..self.machines.len() {
            self.away[node] &= stays_away && node == left_away;
            self.machines[node].0.borrow_mut().pass.fails = None;
            let (agent, tunnel) = (
                self.random.time(Duration::from_secs(2)),
                Duration::from_secs(1),
            );
            self.after(agent, Event::StartAgent(node));
            let spared = !self.real && self.random.chance(30);
            if !spared {
                self.after(tunnel, Event::StartTunnel(node));
            }
        }
        let large = self.machines.len() > 64;
        // The longest that an event may still take.
        self.run(Duration::from_secs(if large { 8 } else { 16 }));
        for _ in 0..8 {
            let before: Vec<_> = self.registry.values().cloned().collect();
            for node in 0..self.machines.len() {
                self.relist(node);
            }
            self.run(Duration::from_secs(6));
            let now: Vec<_> = self.registry.values().cloned().collect();
            let same =
                now.len() == before.len() && now.iter().zip(&before).all(|(a, b)| Rc::ptr_eq(a, b));
            if same && self.is_quiet() || self.fault().is_some() {
                return;
            }
        }
        self.faults
            .push("the registry does not come to rest".into());
    }

    /// Does something to the cluster.
    pub(crate) fn act(&mut self) {
        self.acts = self.acts.saturating_sub(1);
        let node = self.random.below(self.machines.len());
        match self.random.below(22) {
            0 | 1 => self.kill_agent(node),
            2 => self.machines[node].0.borrow_mut().pass.fuse = Some(self.random.below(40) as u32),
            3 => self.kill_tunnel(node),
            4 => self.reboot(node),
            5 => self.leave(node),
            6 => self.come_back(node),
            7..=9 => self.steal(),
            10 => self.end_thief(),
            11 => self.spoil(),
            12 => self.force(),
            13 => self.away[node] = !self.away[node],
            14..=16 => self.harm_host(node),
            17 => self.move_node(node),
            18 => self.renumber(node),
            19 => {
                let other = self.random.below(self.machines.len());
                let pair = (node.min(other), node.max(other));
                if node != other && !self.cut.remove(&pair) {
                    self.cut.insert(pair);
                }
            }
            20 => {
                self.machines[node].0.borrow_mut().pass.fails = Some(self.random.below(20) as u32)
            }
            _ => self.recreate(),
        }
        if self.acts > 0 {
            let most = if self.random.chance(200) { 10 } else { 2 };
            let next = self.random.time(Duration::from_secs(most));
            self.after(next, Event::Act);
        }
    }

    fn kill_agent(&mut self, node: usize) {
        self.note(format_args!("node{node}'s agent is killed"));
        self.agents[node].kill();
        if self.random.chance(150) {
            self.note(format_args!("node{node}'s agent loses its view"));
            self.machines[node].0.borrow_mut().disk.view = Default::default();
            self.machines[node].0.borrow_mut().disk.oracle = Default::default();
        }
        let back = self.random.time(Duration::from_secs(12));
        self.after(back, Event::StartAgent(node));
    }

    fn kill_tunnel(&mut self, node: usize) {
        self.note(format_args!("node{node}'s tunnel is killed"));
        self.machines[node].0.borrow_mut().kill_tunnel();
        if self.random.chance(200) {
            self.note(format_args!("node{node}'s tunnel loses its state"));
            self.machines[node].0.borrow_mut().disk.peers.clear();
        }
        let new_key = self.random.chance(200);
        if new_key {
            self.note(format_args!("node{node}'s key is made anew"));
            let keys = self.keys();
            self.machines[node].0.borrow_mut().keys = keys;
        }
        let back = self.random.time(Duration::from_secs(6));
        self.after(back, Event::StartTunnel(node));
        self.touch(node, NETWORK);
    }

    fn reboot(&mut self, node: usize) {
        self.note(format_args!("node{node} reboots"));
        self.agents[node].kill();
        {
            let mut machine = self.machines[node].0.borrow_mut();
            machine.kill_tunnel();
            machine.kernel = Default::default();
            machine.has_pods = false;
            machine.late.clear();
        }
        let back = self.random.time(Duration::from_secs(8));
        self.after(back, Event::StartTunnel(node));
        let back = self.random.time(Duration::from_secs(8));
        self.after(back, Event::StartAgent(node));
    }

    fn leave(&mut self, node: usize) {
        if self.on.iter().filter(|on| **on).count() < 3 || !self.on[node] {
            return;
        }
        self.reboot(node);
        self.on[node] = false;
        let name = self.machines[node].0.borrow().name.clone();
        self.delete(&name);
    }

    /// A node that left returns as another life, with or without what it was known by.
    fn come_back(&mut self, _: usize) {
        let Some(node) = (0..self.on.len()).find(|n| !self.on[*n]) else {
            return;
        };
        self.lives += 1;
        let (lives, keys) = (self.lives, self.keys());
        let other = self.random.below(self.machines.len());
        let cidrs = if self.random.chance(300) {
            self.pod_cidrs(other)
        } else {
            self.pod_cidrs(node)
        };
        let (keeps_key, keeps_disk) = (self.random.chance(500), self.random.chance(500));
        {
            let mut machine = self.machines[node].0.borrow_mut();
            machine.pod_cidrs = cidrs;
            if !keeps_disk {
                machine.disk = Default::default();
                machine.uid = format!("uid-{node}-{lives}");
                machine.given.clear();
            }
            if !keeps_key {
                machine.keys = keys;
            }
        }
        self.on[node] = true;
        self.note(format_args!("node{node} is back"));
        self.after(Duration::ZERO, Event::StartTunnel(node));
        self.after(Duration::ZERO, Event::StartAgent(node));
    }

    fn some_entry(&mut self) -> Option<Entry> {
        let place = self.random.below(self.registry.len().max(1));
        self.registry
            .values()
            .nth(place)
            .map(|listed| listed.entry.clone())
    }

    /// An entry of its own that claims what is another's.
    fn steal(&mut self) {
        let Some(victim) = self.some_entry() else {
            return;
        };
        self.lives += 1;
        let number = 900 + self.random.below(4);
        let mut thief = Entry {
            name: format!("thief{number}"),
            uid: format!("thief-{}", self.lives),
            key: self.keys().public,
            next_key: None,
            pod_cidrs: self.pod_cidrs(number + 4000),
            addresses: self.addresses(number, 9),
            endpoint: None,
            forced: None,
            mtu: Some(1500),
            flaw: None,
        };
        if let Some(old) = self
            .registry
            .get(&thief.name)
            .filter(|_| self.lives.is_multiple_of(2))
        {
            thief = old.entry.clone();
        }
        match self.random.below(7) {
            0 => thief.key = victim.key,
            1 => thief.next_key = Some(victim.key),
            2 => thief.pod_cidrs = victim.pod_cidrs,
            3 => thief.pod_cidrs = victim.pod_cidrs.iter().map(|n| resized(n, 2)).collect(),
            4 => thief.pod_cidrs = victim.pod_cidrs.iter().map(|n| resized(n, -2)).collect(),
            5 => thief.endpoint = Some(victim.endpoints()),
            _ => thief.addresses = victim.addresses,
        }
        self.write(thief);
    }

    fn end_thief(&mut self) {
        let names: Vec<String> = self
            .registry
            .keys()
            .filter(|n| n.starts_with("thief"))
            .cloned()
            .collect();
        if !names.is_empty() {
            let name = &names[self.random.below(names.len())];
            self.delete(name);
        }
    }

    /// Somebody spoils an entry, or repairs one.
    fn spoil(&mut self) {
        let Some(mut entry) = self.some_entry() else {
            return;
        };
        entry.flaw = match entry.flaw {
            Some(_) => None,
            None => Some(Flaw::ALL[self.random.below(Flaw::ALL.len())]),
        };
        self.write(entry);
    }

    /// An operator sets an endpoint, or takes it back.
    fn force(&mut self) {
        let Some(mut entry) = self.some_entry() else {
            return;
        };
        entry.forced = match entry.forced.take() {
            Some(_) => None,
            None => {
                let sockets = entry
                    .addresses
                    .iter()
                    .rev()
                    .map(|a| (*a, DEFAULT_PORT).into());
                let mut sockets: Vec<std::net::SocketAddr> = sockets.collect();
                sockets.dedup_by_key(|s| s.is_ipv6());
                (!sockets.is_empty()).then_some(sockets)
            }
        };
        self.write(entry);
    }

    /// Something else changes the node, one thing at a time: the other protection holds meanwhile.
    fn harm_host(&mut self, node: usize) {
        let kind = self.random.below(6);
        let mut back = false;
        {
            let mut machine = self.machines[node].0.borrow_mut();
            let guarded = machine.cluster.iter().all(|net| {
                let of = |key: &warren_core::state::RouteKey| key.destination == *net;
                machine.kernel.routes.keys().any(of)
            });
            match kind {
                0 if guarded => machine.kernel.filter = None,
                1 if machine.kernel.filter.is_some() => machine.kernel.routes.clear(),
                2 => machine.kernel.rules.clear(),
                3 => machine.kernel.addresses.clear(),
                4 => {
                    machine.delete_link();
                    back = machine.device.is_some();
                }
                _ => {
                    let foreign = machine
                        .kernel
                        .routes
                        .iter_mut()
                        .find(|(_, target)| matches!(target, RouteTarget::Tunnel { .. }));
                    if let Some((_, target)) = foreign {
                        *target = RouteTarget::Tunnel {
                            src: None,
                            mtu_bytes: Some(u32::from(PROTOCOL_AGENT)),
                        };
                    }
                }
            }
            machine.check_ways(None);
        }
        self.note(format_args!("node{node} is harmed ({kind})"));
        if back {
            self.after(Duration::from_millis(100), Event::LinkBack(node));
        }
        match self.random.below(8) {
            // Nobody tells the agent; the tick remains.
            0 => {}
            // Events were lost.
            1 => self.ask(node),
            _ if kind == 0 => self.touch(node, FILTER),
            _ => self.touch(node, NETWORK),
        }
    }

    /// The node's underlay gives it other addresses.
    fn move_node(&mut self, node: usize) {
        let again = 1 + self.random.below(4);
        let addresses = self.addresses(node, again);
        self.note(format_args!("node{node} moves to {addresses:?}"));
        self.machines[node].0.borrow_mut().addresses = addresses;
        self.stir(node);
    }

    /// The node's configuration gives it other pod ranges; its agent starts anew with it.
    fn renumber(&mut self, node: usize) {
        let to = match self.random.below(3) {
            0 => self.random.below(self.machines.len()),
            1 => node,
            _ => self.machines.len() + self.random.below(50),
        };
        let cidrs = self.pod_cidrs(to);
        self.note(format_args!("node{node} is given {cidrs:?}"));
        self.machines[node].0.borrow_mut().pod_cidrs = cidrs;
        self.kill_agent(node);
    }

    /// An entry is deleted and made again under its name, as another life of it.
    fn recreate(&mut self) {
        let Some(mut entry) = self.some_entry() else {
            return;
        };
        self.lives += 1;
        let real = entry.name.starts_with("node");
        self.delete(&entry.name.clone());
        if !real || self.random.chance(300) {
            entry.uid = format!("again-{}", self.lives);
            self.write(entry);
        }
    }

    /// What a node's agent publishes.
    pub(crate) fn entry_of(&self, node: usize) -> Entry {
        let machine = self.machines[node].0.borrow();
        Entry {
            name: machine.name.clone(),
            uid: machine.uid.clone(),
            key: machine.keys.public,
            next_key: None,
            pod_cidrs: machine
                .pod_cidrs
                .iter()
                .copied()
                .collect::<std::collections::BTreeSet<_>>()
                .into_iter()
                .collect(),
            addresses: machine.addresses.clone(),
            endpoint: Some(machine.sockets()),
            forced: None,
            mtu: Some(machine.mtu),
            flaw: None,
        }
    }
}

impl World {
    /// Plays a setup without judging its end; for whoever looks into one.
    pub fn played(setup: Setup) -> Self {
        let mut world = Self::new(setup);
        world.begin();
        world.settle();
        world
    }
}

/// The same prefix, so many bits longer or shorter.
fn resized(net: &IpNet, by: i16) -> IpNet {
    let length = i16::from(net.prefix_len()).saturating_add(by);
    let length = u8::try_from(length).unwrap_or(net.prefix_len());
    match IpNet::new(net.addr(), length) {
        Ok(other) => other.trunc(),
        Err(_) => *net,
    }
}
