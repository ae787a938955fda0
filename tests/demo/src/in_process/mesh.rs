//! The three nodes, and how the main thread speaks to them.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError, Sender, SyncSender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use nix::sys::eventfd::{EfdFlags, EventFd};
use warren_keyring::PublicKey;
use warren_tunnel::{Engine, EngineConfig, Now};

use super::bulk::BLOCK_BYTES;
use super::node::{Command, Node, NodeParts, Status};
use super::planned::{Identity, peers_of};
use super::pod::{Pod, PodAddress, Received, Sent};
use super::wire::Wire;

const NODES: u8 = 3;
const POD_NAMES: [&str; 2] = ["a", "b"];
/// A node answers at once unless it has ended.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(1);

/// A running node.
pub(super) struct NodeHandle {
    pub(super) name: String,
    pub(super) public_key: PublicKey,
    /// Where its sockets are.
    pub(super) sockets: Vec<SocketAddr>,
    pub(super) pods: Vec<PodAddress>,
    commands: Sender<Command>,
    wake: Arc<EventFd>,
    thread: JoinHandle<Result<()>>,
}

/// The running nodes.
pub(super) struct Mesh {
    pub(super) nodes: Vec<NodeHandle>,
    /// Whether loopback has ::1 here.
    pub(super) ipv6: bool,
    started: Instant,
}

impl Mesh {
    /// Starts the nodes, with peers as planned.
    pub(super) fn start() -> Result<Self> {
        let ipv6 = Wire::has_ipv6()?;
        let mut identities = Vec::new();
        let mut wires = Vec::new();
        let mut endpoints = BTreeMap::new();
        for number in 1..=NODES {
            let identity = Identity::new(number, ipv6)?;
            let wire = Wire::bind(ipv6 && number != 1)?;
            endpoints.extend(identity.endpoints(&wire.addresses()?)?);
            identities.push(identity);
            wires.push(wire);
        }
        let started = Instant::now();
        let mut nodes = Vec::new();
        for (identity, wire) in identities.iter().zip(wires) {
            let now = Now::read();
            let seed = now.unix.as_nanos() as u64 ^ u64::from(identity.number) << 56;
            let config = EngineConfig::new(Some(identity.private_key.clone()), seed);
            let mut engine = Engine::new(config);
            engine.apply(now, &peers_of(identity, &identities, &endpoints)?)?;
            nodes.push(NodeHandle::start(identity, engine, wire)?);
        }
        Ok(Self {
            nodes,
            ipv6,
            started,
        })
    }

    /// Waits until every node has had a handshake with every other; tells how long after the start.
    pub(super) fn wait_connected(&self, limit: Duration) -> Result<Duration> {
        loop {
            let mut missing = Vec::new();
            for node in &self.nodes {
                for peer in node.status()?.peers {
                    if peer.last_handshake.is_none() {
                        let other = &self.by_key(&peer.public_key)?.name;
                        missing.push(format!("{} with {other}", node.name));
                    }
                }
            }
            let took = self.started.elapsed();
            if missing.is_empty() {
                return Ok(took);
            }
            ensure!(
                took < limit,
                "no handshake within {limit:?}: {}; is UDP on loopback filtered?",
                missing.join(", ")
            );
            thread::sleep(LOOK_EVERY);
        }
    }

    /// Returns the node of that number.
    pub(super) fn node(&self, number: u8) -> Result<&NodeHandle> {
        let place = usize::from(number).checked_sub(1);
        place
            .and_then(|place| self.nodes.get(place))
            .with_context(|| format!("there is no node{number}"))
    }

    /// Returns the node that has the key.
    pub(super) fn by_key(&self, key: &PublicKey) -> Result<&NodeHandle> {
        self.nodes
            .iter()
            .find(|node| node.public_key == *key)
            .with_context(|| format!("no node has the key {key}"))
    }

    /// Returns all pods, node by node.
    pub(super) fn pods(&self) -> impl Iterator<Item = &PodAddress> {
        self.nodes.iter().flat_map(|node| &node.pods)
    }

    /// Returns the pod of that name on a node.
    pub(super) fn pod(&self, node: u8, name: &str) -> Result<&PodAddress> {
        let name = format!("node{node}/{name}");
        self.pods()
            .find(|pod| pod.name == name)
            .with_context(|| format!("there is no pod {name}"))
    }

    /// Returns where one node sends to, to reach another.
    pub(super) fn endpoint(&self, from: u8, to: u8) -> Result<SocketAddr> {
        let (from, to) = (self.node(from)?, self.node(to)?);
        let peers = from.status()?.peers;
        let peer = peers.iter().find(|peer| peer.public_key == to.public_key);
        peer.and_then(|peer| peer.endpoint)
            .with_context(|| format!("{} has no endpoint of {}", from.name, to.name))
    }

    /// Sends echo requests from a pod and returns the mean round-trip time.
    pub(super) fn ping(
        &self,
        from: &PodAddress,
        target: IpAddr,
        count: u16,
        limit: Duration,
    ) -> Result<Duration> {
        let (node, pod) = self.place(from)?;
        node.ask(limit, |answer| Command::Ping {
            pod,
            target,
            count,
            answer,
        })
    }

    /// Sends a stream from a pod; returns when all of it is acknowledged.
    pub(super) fn send(
        &self,
        from: &PodAddress,
        target: IpAddr,
        bytes: u64,
        limit: Duration,
    ) -> Result<Sent> {
        ensure!(
            bytes.is_multiple_of(BLOCK_BYTES),
            "{bytes} bytes are no whole blocks of {BLOCK_BYTES}"
        );
        let (node, pod) = self.place(from)?;
        node.ask(limit, |answer| Command::Send {
            pod,
            target,
            blocks: bytes / BLOCK_BYTES,
            answer,
        })
    }

    /// Returns what a pod has received.
    pub(super) fn received(&self, by: &PodAddress) -> Result<Vec<Received>> {
        let (node, pod) = self.place(by)?;
        node.ask(ANSWER_LIMIT, |answer| Command::Received { pod, answer })
    }

    /// Returns the number of packets that were handed to a pod.
    pub(super) fn packets_seen(&self, by: &PodAddress) -> Result<u64> {
        let (node, pod) = self.place(by)?;
        let seen = node.status()?.pods_seen;
        seen.get(pod)
            .copied()
            .with_context(|| format!("{} is not on its node", by.name))
    }

    /// Ends all nodes.
    ///
    /// # Errors
    /// The first error that ended a node before.
    pub(super) fn stop(self) -> Result<()> {
        for node in &self.nodes {
            // One that has ended already tells why below.
            let _ = node.tell(Command::Stop);
        }
        let mut result = Ok(());
        for node in self.nodes {
            let ended = match node.thread.join() {
                Ok(ended) => ended.with_context(|| format!("{} failed", node.name)),
                Err(_) => Err(anyhow!("the thread of {} panicked", node.name)),
            };
            result = result.and(ended);
        }
        result
    }

    fn place(&self, pod: &PodAddress) -> Result<(&NodeHandle, usize)> {
        let node = self.node(pod.node)?;
        let place = node.pods.iter().position(|known| known == pod);
        let place = place.with_context(|| format!("{} is not on its node", pod.name))?;
        Ok((node, place))
    }
}

impl NodeHandle {
    fn start(identity: &Identity, engine: Engine, wire: Wire) -> Result<Self> {
        let wake = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
        let wake = Arc::new(wake);
        let (commands, receiver) = mpsc::channel();
        let pods = pods_of(identity)?;
        let sockets = wire.addresses()?;
        let node = Node::new(NodeParts {
            engine,
            wire,
            pods: pods.iter().cloned().map(Pod::new).collect(),
            pod_cidrs: identity.pod_cidrs.clone(),
            commands: receiver,
            wake: Arc::clone(&wake),
        });
        let thread = thread::Builder::new()
            .name(identity.name())
            .spawn(|| node.run())
            .context("cannot start a node's thread")?;
        Ok(Self {
            name: identity.name(),
            public_key: identity.public_key,
            sockets,
            pods,
            commands,
            wake,
            thread,
        })
    }

    /// Returns a picture of the node.
    pub(super) fn status(&self) -> Result<Status> {
        self.ask(ANSWER_LIMIT, Command::Status)
    }

    /// Has the node's tunnel seal a packet that none of its pods has sent.
    pub(super) fn forge(&self, packet: Vec<u8>) -> Result<()> {
        self.tell(Command::Forge(packet))
    }

    fn tell(&self, command: Command) -> Result<()> {
        self.commands
            .send(command)
            .map_err(|_| anyhow!("{} has ended", self.name))?;
        self.wake.write(1).context("cannot wake a node up")?;
        Ok(())
    }

    fn ask<T>(&self, limit: Duration, command: impl FnOnce(SyncSender<T>) -> Command) -> Result<T> {
        let (answer, answers) = mpsc::sync_channel(1);
        self.tell(command(answer))?;
        answers.recv_timeout(limit).map_err(|error| match error {
            RecvTimeoutError::Timeout => anyhow!("{} gives no answer within {limit:?}", self.name),
            RecvTimeoutError::Disconnected => anyhow!("{} has ended", self.name),
        })
    }
}

/// The first addresses that IPAM would give: `.0` names the network, `.1` is the tunnel's.
fn pods_of(identity: &Identity) -> Result<Vec<PodAddress>> {
    let number = identity.number;
    let pod = |(place, name): (u8, &str)| -> Result<PodAddress> {
        Ok(PodAddress {
            node: number,
            name: format!("node{number}/{name}"),
            v4: [10, 244, number, place].into(),
            v6: format!("fd00:244:0:{number:x}::{place:x}").parse()?,
        })
    };
    (2..).zip(POD_NAMES).map(pod).collect()
}
