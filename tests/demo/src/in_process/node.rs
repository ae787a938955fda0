//! A node: one thread that owns an engine, the sockets and the pods, and takes each packet to its
//! end before it takes the next.

use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use ipnet::IpNet;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::EventFd;
use warren_core::uapi;
use warren_tunnel::{Counters, Engine, Now, Outbox};

use super::inspect::Inspection;
use super::planned::UNDERLAY_MTU;
use super::pod::{Pod, Received, Sent};
use super::wire::Wire;

/// Datagrams taken from one socket before the timers are looked at again.
const BATCH: usize = 64;
/// More than any datagram here has.
const DATAGRAM_MAX: usize = 2048;

/// What a node is asked to do. A pod is named by its place among its node's.
pub(super) enum Command {
    Ping {
        pod: usize,
        target: IpAddr,
        count: u16,
        answer: SyncSender<Duration>,
    },
    Send {
        pod: usize,
        target: IpAddr,
        blocks: u64,
        answer: SyncSender<Sent>,
    },
    Received {
        pod: usize,
        answer: SyncSender<Vec<Received>>,
    },
    /// Hands a packet to the tunnel as it is, past the rule by which a node's kernel refuses a
    /// source that is not its pod's.
    Forge(Vec<u8>),
    Status(SyncSender<Status>),
    Stop,
}

/// A picture of a node.
pub(super) struct Status {
    pub(super) peers: Vec<uapi::Peer>,
    pub(super) counters: Counters,
    /// What was put on the sockets.
    pub(super) outer: Inspection,
    /// What was handed to the engine to be sealed.
    pub(super) inner: Inspection,
    /// Packets from pod to pod of this node.
    pub(super) local_packets: u64,
    /// Datagrams that a socket had no room for.
    pub(super) not_sent: u64,
    /// Packets that each pod has seen.
    pub(super) pods_seen: Vec<u64>,
}

/// What a node is made of.
pub(super) struct NodeParts {
    pub(super) engine: Engine,
    pub(super) wire: Wire,
    pub(super) pods: Vec<Pod>,
    pub(super) pod_cidrs: BTreeSet<IpNet>,
    pub(super) commands: Receiver<Command>,
    pub(super) wake: Arc<EventFd>,
}

/// The node, ready to run.
pub(super) struct Node {
    parts: NodeParts,
    out: Outbox,
    /// Packets that pods have sent and that are not on their way yet.
    made: VecDeque<Vec<u8>>,
    outer: Inspection,
    inner: Inspection,
    local_packets: u64,
    not_sent: u64,
}

impl Node {
    pub(super) fn new(parts: NodeParts) -> Self {
        Self {
            parts,
            out: Outbox::new(),
            made: VecDeque::new(),
            outer: Inspection::default(),
            inner: Inspection::default(),
            local_packets: 0,
            not_sent: 0,
        }
    }

    /// Runs until it is asked to stop, or until nobody can ask it any more.
    pub(super) fn run(mut self) -> Result<()> {
        let mut buffer = [0; DATAGRAM_MAX];
        loop {
            self.wait()?;
            if self.obey()? {
                return Ok(());
            }
            self.receive(&mut buffer)?;
            self.do_due()?;
        }
    }

    fn wait(&mut self) -> Result<()> {
        let pods = self.parts.pods.iter().filter_map(Pod::timeout);
        let due = self.parts.engine.poll_timeout().into_iter().chain(pods);
        let timeout = match due.min() {
            None => PollTimeout::NONE,
            Some(at) => {
                // Rounded up: woken too early, the loop would spin until the deadline.
                let left = at.saturating_duration_since(Instant::now());
                let milliseconds = left.as_micros().div_ceil(1000);
                PollTimeout::from(u16::try_from(milliseconds).unwrap_or(u16::MAX))
            }
        };
        let watched = |descriptor| PollFd::new(descriptor, PollFlags::POLLIN);
        let mut watched: Vec<PollFd<'_>> = [self.parts.wake.as_fd()]
            .into_iter()
            .chain(self.parts.wire.descriptors())
            .map(watched)
            .collect();
        match poll(&mut watched, timeout) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(error) => Err(error).context("cannot wait for the sockets"),
        }
    }

    /// Carries out what the main thread has asked for; tells whether to stop.
    fn obey(&mut self) -> Result<bool> {
        // Read first: a command that comes after the last look signals anew. Nothing to read is
        // an error of a descriptor that does not block.
        let _ = self.parts.wake.read();
        loop {
            let command = match self.parts.commands.try_recv() {
                Ok(command) => command,
                Err(TryRecvError::Empty) => return Ok(false),
                Err(TryRecvError::Disconnected) => return Ok(true),
            };
            match command {
                Command::Ping {
                    pod,
                    target,
                    count,
                    answer,
                } => {
                    let pod = pod_mut(&mut self.parts.pods, pod)?;
                    pod.ping(target, count, answer, &mut self.made)?;
                }
                Command::Send {
                    pod,
                    target,
                    blocks,
                    answer,
                } => {
                    let pod = pod_mut(&mut self.parts.pods, pod)?;
                    pod.send(target, blocks, answer, &mut self.made)?;
                }
                // Whoever asked may have given up waiting.
                Command::Received { pod, answer } => {
                    let pod = pod_mut(&mut self.parts.pods, pod)?;
                    let _ = answer.try_send(pod.received());
                }
                Command::Forge(packet) => self.seal(&packet),
                Command::Status(answer) => drop(answer.try_send(self.status())),
                Command::Stop => return Ok(true),
            }
            self.settle()?;
        }
    }

    fn receive(&mut self, buffer: &mut [u8]) -> Result<()> {
        for socket in self.parts.wire.sockets() {
            for _ in 0..BATCH {
                match socket.recv_from(buffer) {
                    Ok((len, source)) => self.parts.engine.handle_datagram(
                        Now::read(),
                        source,
                        &buffer[..len],
                        &mut self.out,
                    ),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(error).context("cannot receive a datagram"),
                }
            }
        }
        self.settle()
    }

    fn do_due(&mut self) -> Result<()> {
        let now = Now::read();
        let due = self.parts.engine.poll_timeout();
        if due.is_some_and(|at| at <= now.monotonic) {
            self.parts.engine.handle_timers(now, &mut self.out);
        }
        while let Some(query) = self.parts.engine.poll_path_query() {
            self.parts.engine.handle_path_mtu(now, query, UNDERLAY_MTU);
        }
        for pod in &mut self.parts.pods {
            if pod.timeout().is_some_and(|at| at <= now.monotonic) {
                pod.poll(&mut self.made)?;
            }
        }
        self.settle()
    }

    /// Takes everything to its end: pods' packets to pods of this node or into the engine, its
    /// datagrams to the sockets and its packets to the pods, until nothing is left.
    fn settle(&mut self) -> Result<()> {
        loop {
            while let Some(packet) = self.made.pop_front() {
                self.route(&packet)?;
            }
            if self.out.is_empty() {
                return Ok(());
            }
            for (to, datagram) in self.out.datagrams() {
                self.outer.look(datagram);
                let sent = self.parts.wire.send(to, datagram)?;
                self.not_sent += u64::from(!sent);
            }
            for packet in self.out.packets() {
                deliver(&mut self.parts.pods, packet, &mut self.made)?;
            }
            self.out.clear();
        }
    }

    /// Does what a node's routes do: its own podCIDRs lie behind its pods, all else is the tunnel's.
    fn route(&mut self, packet: &[u8]) -> Result<()> {
        let own = |address| self.parts.pod_cidrs.iter().any(|c| c.contains(&address));
        if destination(packet).is_some_and(own) {
            self.local_packets += 1;
            return deliver(&mut self.parts.pods, packet, &mut self.made);
        }
        self.seal(packet);
        Ok(())
    }

    fn seal(&mut self, packet: &[u8]) {
        self.inner.look(packet);
        self.parts
            .engine
            .handle_tun_packet(Now::read(), packet, &mut self.out);
    }

    fn status(&self) -> Status {
        Status {
            peers: self.parts.engine.get().peers,
            counters: self.parts.engine.counters().clone(),
            outer: self.outer,
            inner: self.inner,
            local_packets: self.local_packets,
            not_sent: self.not_sent,
            pods_seen: self.parts.pods.iter().map(|pod| pod.packets_seen).collect(),
        }
    }
}

/// Hands a packet to the pod that has its destination, if there is one.
fn deliver(pods: &mut [Pod], packet: &[u8], made: &mut VecDeque<Vec<u8>>) -> Result<()> {
    let to = destination(packet);
    match pods
        .iter_mut()
        .find(|pod| to.is_some_and(|to| pod.address.has(to)))
    {
        Some(pod) => pod.handle_packet(packet, made),
        None => Ok(()),
    }
}

fn destination(packet: &[u8]) -> Option<IpAddr> {
    match packet.first()? >> 4 {
        4 => Some(<[u8; 4]>::try_from(packet.get(16..20)?).ok()?.into()),
        6 => Some(<[u8; 16]>::try_from(packet.get(24..40)?).ok()?.into()),
        _ => None,
    }
}

fn pod_mut(pods: &mut [Pod], place: usize) -> Result<&mut Pod> {
    pods.get_mut(place)
        .with_context(|| format!("the node has no pod number {place}"))
}
