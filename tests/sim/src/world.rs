//! Nodes, the registry, the network between them, and the one clock that all of it goes by.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use warren_agent::pace::{TICK, TUNNEL_TICK};
use warren_clock_tests::clock;
use warren_keyring::{PrivateKey, PublicKey};
use warren_tunnel::{Now, Outbox};

use crate::agent::{Agent, Told};
use crate::device::{Device, Keys};
use crate::entry::Listed;
use crate::machine::{Desk, Machine};
use crate::mutation::Mutation;
use crate::port::Port;
use crate::random::Random;
use crate::registry::brief;
use crate::shelf::Shelf;
use crate::trace::Trace;
use crate::upkeep::NETWORK;

/// When the story begins: 2023-11-14.
const START: Duration = Duration::from_secs(1_700_000_000);
/// What every payload holds and no datagram may.
pub const MARKER: &[u8] = b"warren-clear-text";

/// How a world is made.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// All of chance.
    pub seed: u64,
    /// How many nodes; `None` leaves it to chance (3 to 16).
    pub nodes: Option<usize>,
    /// The bug that is planted.
    pub mutation: Option<Mutation>,
    /// Whether the story is printed.
    pub print: bool,
}

/// How bad things are, in times in a thousand.
#[derive(Clone, Copy, Debug, Default)]
pub struct Weather {
    /// Events that are lost.
    pub lost: u32,
    /// Events that come twice.
    pub twice: u32,
    /// Datagrams that are lost.
    pub loss: u32,
    /// The longest that an event takes.
    pub delay: Duration,
    /// The longest that a datagram takes.
    pub jitter: Duration,
}

/// Something that happens.
#[derive(Debug)]
pub enum Event {
    /// The registry tells an agent something.
    Told(usize, u64, Told),
    /// The registry lists everything for an agent.
    Relist(usize, u64),
    /// An agent looks at everything.
    Tick(usize, u64),
    /// An agent looks for its tunnel.
    Seek(usize, u64),
    /// An agent's reconcile is due.
    Due(usize, u64),
    /// A repair is due.
    Repair(usize, u64),
    /// A datagram arrives.
    Datagram(SocketAddr, SocketAddr, Vec<u8>),
    /// An engine's timers are due.
    Timers(usize),
    /// A tunnel starts, if it does not run.
    StartTunnel(usize),
    /// An agent starts, if it does not run.
    StartAgent(usize),
    /// A tunnel makes its interface anew.
    LinkBack(usize),
    /// Something is done to the cluster.
    Act,
}

/// The whole cluster.
pub struct World {
    /// How it was made.
    pub setup: Setup,
    /// All of chance.
    pub random: Random,
    /// The story.
    pub trace: Trace,
    /// The nodes' machines.
    pub machines: Vec<Port>,
    /// Their agents.
    pub agents: Vec<Agent>,
    /// Which machines are switched on.
    pub on: Vec<bool>,
    /// What the registry holds.
    pub registry: BTreeMap<String, Rc<Listed>>,
    /// Which agents the registry is away for.
    pub away: Vec<bool>,
    /// How bad things are.
    pub weather: Weather,
    /// Pairs of nodes with no way between them.
    pub cut: BTreeSet<(usize, usize)>,
    /// The cluster's pod ranges.
    pub cluster: Vec<IpNet>,
    /// What came out of tunnels: the node, and the packet.
    pub delivered: Vec<(usize, Vec<u8>)>,
    /// Whether the devices are engines.
    pub real: bool,
    /// How many things are yet to be done to the cluster.
    pub acts: usize,
    /// How often something was done.
    pub lives: u64,
    events: BTreeMap<(Instant, u64), Event>,
    timers: Vec<Option<Instant>>,
    dues: Vec<Option<Instant>>,
    sequence: u64,
    began: Instant,
    outbox: Outbox,
    /// What must not be and was, the network's.
    pub faults: Vec<String>,
}

impl World {
    /// Makes the nodes of a setup, switched off.
    pub fn new(setup: Setup) -> Self {
        clock::start(START);
        let mut random = Random::new(setup.seed);
        let real = setup.nodes.is_none_or(|n| n <= 16) && random.chance(250);
        let most = if real { 7 } else { 14 };
        let nodes = setup.nodes.unwrap_or_else(|| 3 + random.below(most));
        let large = nodes > 64;
        let cluster: &[&str] = if large {
            &["10.128.0.0/9"]
        } else {
            &["10.128.0.0/9", "fd00:244::/32"]
        };
        let mut world = Self {
            setup,
            random,
            trace: Trace::new(setup.print),
            machines: Vec::new(),
            agents: Vec::new(),
            on: vec![false; nodes],
            registry: BTreeMap::new(),
            away: vec![false; nodes],
            weather: Weather::default(),
            cut: BTreeSet::new(),
            // Constants of the line above.
            cluster: cluster.iter().filter_map(|net| net.parse().ok()).collect(),
            delivered: Vec::new(),
            real,
            acts: 0,
            lives: 0,
            events: BTreeMap::new(),
            timers: vec![None; nodes],
            dues: vec![None; nodes],
            sequence: 0,
            began: Instant::now(),
            outbox: Outbox::new(),
            faults: Vec::new(),
        };
        let shelf = Rc::new(Shelf::default());
        for number in 0..nodes {
            let keys = world.keys();
            let machine = Machine {
                number,
                name: format!("node{number}"),
                uid: format!("uid-{number}-0"),
                keys,
                pod_cidrs: world.pod_cidrs(number),
                addresses: world.addresses(number, 0),
                mtu: [1500, 9000, 1400][world.random.below(3)],
                cluster: world.cluster.clone(),
                kernel: Default::default(),
                device: None,
                disk: Default::default(),
                shelf: Rc::clone(&shelf),
                given: BTreeMap::new(),
                touched: Default::default(),
                registry: Desk::default(),
                has_pods: false,
                pass: Default::default(),
                done: Vec::new(),
                faults: Vec::new(),
                mutation: setup.mutation,
                probe_every: if large { 997 } else { 1 },
                late: Vec::new(),
                steps: 0,
            };
            world.machines.push(Port(Rc::new(RefCell::new(machine))));
            world.agents.push(Agent::dead(true));
        }
        world
    }

    /// Makes a key pair.
    pub fn keys(&mut self) -> Keys {
        loop {
            let bytes = self.random.bytes();
            let private = PrivateKey::from_bytes(bytes).ok().filter(|_| self.real);
            let public = match &private {
                Some(private) => Ok(private.public_key()),
                None => PublicKey::from_bytes(bytes),
            };
            if let Ok(public) = public {
                return Keys { private, public };
            }
        }
    }

    /// The pod ranges with this number.
    pub fn pod_cidrs(&self, number: usize) -> Vec<IpNet> {
        let texts = [
            format!("10.{}.{}.0/24", 128 + number / 256, number % 256),
            format!("fd00:244:{number:x}::/64"),
        ];
        let known = |net: &IpNet| self.cluster.iter().any(|range| range.contains(net));
        texts
            .iter()
            .filter_map(|text| text.parse().ok())
            .filter(known)
            .collect()
    }

    /// The addresses of a node, `again` times changed. Some nodes lack a family, some prefer IPv6.
    pub fn addresses(&self, number: usize, again: usize) -> Vec<IpAddr> {
        let v4 = IpAddr::from([
            172,
            16 + again as u8,
            (number / 250) as u8,
            (number % 250) as u8 + 1,
        ]);
        let v6 = IpAddr::from([0x2001, 0xdb8, again as u16, 0, 0, 0, 0, number as u16 + 1]);
        match number % 7 {
            _ if self.cluster.len() == 1 => vec![v4],
            3 => vec![v4],
            4 | 5 => vec![v6, v4],
            6 => vec![v6],
            _ => vec![v4, v6],
        }
    }

    /// The time since the beginning.
    pub fn elapsed(&self) -> Duration {
        Instant::now().saturating_duration_since(self.began)
    }

    /// Takes note of something.
    pub fn note(&mut self, what: std::fmt::Arguments<'_>) {
        let at = self.elapsed();
        self.trace.note(at, what);
    }

    /// Lets something happen after a while.
    pub fn after(&mut self, delay: Duration, event: Event) {
        self.sequence += 1;
        self.events
            .insert((Instant::now() + delay, self.sequence), event);
    }

    /// Whether nothing is under way but what never ends.
    pub fn is_quiet(&self) -> bool {
        let ends = |e: &Event| matches!(e, Event::Told(..) | Event::Act);
        !self.events.values().any(ends)
    }

    /// Lets everything happen that is due in the time given; stops at the first fault.
    pub fn run(&mut self, time: Duration) {
        let end = Instant::now() + time;
        while self.fault().is_none() {
            let Some(entry) = self.events.first_entry().filter(|e| e.key().0 <= end) else {
                clock::advance(end.saturating_duration_since(Instant::now()));
                return;
            };
            let ((at, _), event) = entry.remove_entry();
            clock::advance(at.saturating_duration_since(Instant::now()));
            self.happen(event);
        }
    }

    /// The first thing that must not be.
    pub fn fault(&self) -> Option<String> {
        let machines = self
            .machines
            .iter()
            .find_map(|m| m.0.borrow().faults.first().cloned());
        self.faults.first().cloned().or(machines)
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Told(agent, life, told) => {
                if self.agents[agent].life == life && self.agents[agent].runs() {
                    self.note(format_args!("node{agent} hears {}", brief(&told)));
                    let port = self.machines[agent].clone();
                    self.agents[agent].tell(&told, &port.0.borrow());
                    self.agents[agent].pace.handle_news(Instant::now());
                    self.due(agent);
                }
            }
            Event::Relist(agent, life) => {
                if self.agents[agent].life == life && self.agents[agent].runs() {
                    self.relist(agent);
                    let next = Duration::from_secs(10) + self.random.time(Duration::from_secs(20));
                    self.after(next, Event::Relist(agent, life));
                }
            }
            Event::Tick(agent, life) => {
                if self.agents[agent].life == life && self.agents[agent].runs() {
                    self.agents[agent].pace.handle_tick(Instant::now());
                    self.due(agent);
                    self.after(TICK, Event::Tick(agent, life));
                }
            }
            Event::Seek(agent, life) => {
                if self.agents[agent].life == life && self.agents[agent].runs() {
                    let answers = self.machines[agent].0.borrow().device.is_some();
                    if answers && self.agents[agent].pace.seeks_tunnel() {
                        self.agents[agent].pace.handle_tunnel(Instant::now());
                        self.due(agent);
                    }
                    self.after(TUNNEL_TICK, Event::Seek(agent, life));
                }
            }
            Event::Due(agent, life) => {
                let due = self.agents[agent].pace.poll_due();
                self.dues[agent] = None;
                if self.agents[agent].life == life && self.agents[agent].runs() {
                    match due {
                        Some(at) if at <= Instant::now() => self.reconcile(agent),
                        _ => self.due(agent),
                    }
                }
            }
            Event::Repair(agent, life) => self.handle_repair(agent, life),
            Event::Datagram(from, to, bytes) => self.arrive(from, to, &bytes),
            Event::Timers(node) => {
                self.timers[node] = None;
                self.with_engine(node, |engine, now, out| engine.handle_timers(now, out));
            }
            Event::StartTunnel(node) => self.start_tunnel(node),
            Event::StartAgent(node) => self.start_agent(node),
            Event::LinkBack(node) => {
                let link = warren_core::state::ObservedLink {
                    mtu_bytes: 1420,
                    up: false,
                };
                self.machines[node]
                    .0
                    .borrow_mut()
                    .kernel
                    .link
                    .get_or_insert(link);
                self.touch(node, NETWORK);
            }
            Event::Act => self.act(),
        }
    }

    /// The registry told something, or the kernel lost events.
    pub fn ask(&mut self, agent: usize) {
        self.agents[agent].pace.handle_event(Instant::now());
        self.due(agent);
    }

    pub(crate) fn due(&mut self, agent: usize) {
        let Some(at) = self.agents[agent].pace.poll_due() else {
            return;
        };
        if self.dues[agent].is_none_or(|known| at < known) {
            self.dues[agent] = Some(at);
            let life = self.agents[agent].life;
            self.after(
                at.saturating_duration_since(Instant::now()),
                Event::Due(agent, life),
            );
        }
    }

    fn reconcile(&mut self, node: usize) {
        let port = self.machines[node].clone();
        {
            let mut machine = port.0.borrow_mut();
            let own = self.registry.get(&machine.name).cloned();
            machine.registry = Desk {
                reachable: !self.away[node],
                own,
                written: None,
            };
        }
        let alive = self.agents[node].reconcile(&port);
        let written = port.0.borrow_mut().registry.written.take();
        let touched = self.tell_what_was_done(node, "");
        if !alive {
            self.agent_was_killed(node);
        }
        if let Some(entry) = written {
            self.write(entry);
        }
        self.drain(node);
        self.due(node);
        // Our own changes raise events too.
        self.touch(node, touched);
    }

    /// Starts a node's agent.
    pub fn start_agent(&mut self, node: usize) {
        if self.agents[node].runs() || !self.on[node] {
            return;
        }
        self.note(format_args!("node{node}'s agent starts"));
        let port = self.machines[node].clone();
        self.agents[node].start(&port);
        let life = self.agents[node].life;
        self.dues[node] = None;
        self.due(node);
        self.after(TICK, Event::Tick(node, life));
        self.after(TUNNEL_TICK, Event::Seek(node, life));
        let list = self.random.time(Duration::from_secs(1));
        self.after(list, Event::Relist(node, life));
    }

    /// Starts a node's tunnel.
    pub fn start_tunnel(&mut self, node: usize) {
        if !self.on[node] || self.machines[node].0.borrow().device.is_some() {
            return;
        }
        self.note(format_args!("node{node}'s tunnel starts"));
        let seed = self.random.any();
        self.machines[node].0.borrow_mut().start_tunnel(seed);
        self.with_engine(node, |engine, now, _| engine.start_handshakes(now));
        self.touch(node, NETWORK);
    }

    fn arrive(&mut self, from: SocketAddr, to: SocketAddr, bytes: &[u8]) {
        let Some(node) = self.machine_at(to) else {
            return;
        };
        self.note(format_args!(
            "node{node} hears {} bytes from {from}",
            bytes.len()
        ));
        if self.setup.mutation == Some(Mutation::KeysEndEarly) && self.keys_ended(node, from, bytes)
        {
            return;
        }
        self.with_engine(node, |engine, now, out| {
            engine.handle_datagram(now, from, bytes, out);
        });
    }

    /// A bug's doing: data of keys of 90 s is taken for that of keys at their end.
    fn keys_ended(&self, node: usize, from: SocketAddr, bytes: &[u8]) -> bool {
        let machine = self.machines[node].0.borrow();
        let Some(device) = machine.device.as_ref().filter(|_| bytes[0] == 4) else {
            return false;
        };
        let peers = device.state().peers;
        let sender = peers.iter().find(|peer| peer.endpoint == Some(from));
        let age = sender.and_then(|peer| device.keys_age(&peer.public_key));
        age.is_some_and(|age| age > Duration::from_secs(90))
    }

    /// The running tunnel that listens there.
    pub fn machine_at(&self, socket: SocketAddr) -> Option<usize> {
        let listens = |node: &usize| {
            let machine = self.machines[*node].0.borrow();
            self.on[*node]
                && machine.device.is_some()
                && machine.addresses.contains(&socket.ip())
                && socket.port() == warren_core::consts::DEFAULT_PORT
        };
        (0..self.machines.len()).find(listens)
    }

    /// Lends a node's engine, and sees to what it puts out.
    pub fn with_engine(
        &mut self,
        node: usize,
        work: impl FnOnce(&mut warren_tunnel::Engine, Now, &mut Outbox),
    ) {
        let port = self.machines[node].clone();
        if let Some(Device::Engine(engine)) = &mut port.0.borrow_mut().device {
            work(engine, Now::read(), &mut self.outbox);
        }
        self.drain(node);
    }

    fn drain(&mut self, node: usize) {
        let port = self.machines[node].clone();
        let machine = port.0.borrow();
        let packets: Vec<Vec<u8>> = self.outbox.packets().map(<[u8]>::to_vec).collect();
        let sent: Vec<(SocketAddr, Vec<u8>)> = self
            .outbox
            .datagrams()
            .map(|(to, bytes)| (to, bytes.to_vec()))
            .collect();
        self.outbox.clear();
        for packet in packets {
            self.note(format_args!("node{node} receives {} bytes", packet.len()));
            self.delivered.push((node, packet));
        }
        for (to, bytes) in sent {
            if bytes.windows(MARKER.len()).any(|w| w == MARKER) || !(1..=4).contains(&bytes[0]) {
                self.faults
                    .push(format!("node{node} sends a payload in clear to {to}"));
            }
            self.note(format_args!(
                "node{node} sends {} bytes to {to}",
                bytes.len()
            ));
            let from = machine
                .sockets()
                .into_iter()
                .find(|s| s.is_ipv6() == to.is_ipv6());
            let there = self.machine_at(to);
            let cut = there.is_some_and(|other| self.is_cut(node, other));
            let lost = cut || self.random.chance(self.weather.loss);
            let delay = Duration::from_millis(1) + self.random.time(self.weather.jitter);
            if let Some(from) = from.filter(|_| !lost) {
                self.after(delay, Event::Datagram(from, to, bytes));
            }
        }
        drop(machine);
        let mut machine = port.0.borrow_mut();
        let next = match &mut machine.device {
            Some(Device::Engine(engine)) => engine.poll_timeout(),
            _ => None,
        };
        drop(machine);
        if let Some(at) = next
            && self.timers[node].is_none_or(|known| at < known)
        {
            self.timers[node] = Some(at);
            self.after(
                at.saturating_duration_since(Instant::now()),
                Event::Timers(node),
            );
        }
    }

    /// Whether there is no way between two nodes.
    pub fn is_cut(&self, a: usize, b: usize) -> bool {
        self.cut.contains(&(a.min(b), a.max(b)))
    }
}
