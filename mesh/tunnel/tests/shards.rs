//! A node with four shards, and nodes with one: what arrives, in which order, and who moved it.
//!
//! ```text
//!   hub, four shards               node1 ... node8, one shard each
//!   warren0 10.100.0.1, fd64::1    warren0 10.n.0.1, fd0n::1
//!   eth0 192.0.2.100 --- lan ----- eth0 192.0.2.n
//! ```

#![allow(clippy::unwrap_used)] // helpers of tests

mod uapi_device;

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use uapi_device::{PATIENCE, Socket, TUNNEL, private_key, public_key};
use warren_lab::{Host, Lab, LabError, Link, Proc, Signal, poll_until, require};

type Result<T = ()> = std::result::Result<T, LabError>;

const HUB: u32 = 100;
const NODES: u32 = 8;
const PORT: u16 = 51820;
/// How long a flow may stand still on a machine that is busy otherwise.
const STANDSTILL: Duration = Duration::from_secs(30);

#[test]
fn every_flow_arrives_whole_and_in_order_over_four_shards() -> Result {
    require!();
    check_flows("shards", Bpf::Allowed)
}

#[test]
fn where_bpf_is_refused_one_shard_reads_for_all_and_flows_keep_their_order() -> Result {
    require!();
    check_flows("one-reader", Bpf::Refused)
}

#[test]
fn prefixes_that_move_between_shards_lose_no_packet_and_no_order() -> Result {
    require!();
    let net = Net::start("moves", 2, Bpf::Allowed)?;
    let shards = net.hub.shards();
    let peers: Vec<u64> = shards.iter().map(|shard| shard["peers"]).collect();
    assert_eq!(peers, [0, 0, 1, 1], "each node has a shard of its own");
    for node in &net.nodes {
        node.host.sh("ip address add 10.99.0.1/32 dev warren0
             ip address add fd99::1/128 dev warren0 nodad")?;
    }
    net.hub
        .host
        .sh("ip route add 10.99.0.0/24 dev warren0 src 10.100.0.1
         ip route add fd99::/64 dev warren0 src fd64::1")?;
    let give_to = |node: u32| {
        let key = public_key(node);
        let lines = format!("public_key={key}\nallowed_ip=10.99.0.0/24\nallowed_ip=fd99::/64\n");
        net.hub.uapi.set(&lines);
    };
    give_to(1);
    const PACKETS: u64 = 6_000;
    let flows = ["10.99.0.1", "fd99::1"].map(|to| {
        // Whoever has the prefix listens at the same address and port.
        let receivers = net.nodes.iter().map(|node| node.udp(to, 7777));
        let sender = net.hub.udp(hub_address(to), 0);
        Flow::new("moved", sender, receivers.collect(), PACKETS)
    });
    let mut moves = 0;
    thread::scope(|scope| {
        for flow in &flows {
            flow.run(scope, None);
        }
        let mut next = 150;
        let mut given_up = Instant::now() + STANDSTILL;
        while flows.iter().any(|flow| !flow.has_ended()) && Instant::now() < given_up {
            if flows.iter().map(Flow::received).sum::<u64>() >= next {
                next += 300;
                moves += 1;
                give_to(1 + moves % 2);
                given_up = Instant::now() + STANDSTILL;
            }
            thread::sleep(Duration::from_millis(1));
        }
    });
    for flow in &flows {
        flow.check_whole(&net);
        let by_node = flow.by_receiver();
        assert!(by_node.iter().all(|count| *count > 100), "{by_node:?}");
    }
    assert!(moves >= 20, "{moves} moves");
    let handed_over: u64 = net.hub.shards().iter().map(|s| s["handed_over"]).sum();
    println!("{moves} moves, {handed_over} frames handed over");
    Ok(())
}

#[test]
fn a_restart_with_other_shards_takes_the_interface_over() -> Result {
    require!();
    let mut net = Net::start_with("restart", 3, &["--shards", "1"], Bpf::Allowed)?;
    let seen = |net: &Net| {
        let shown = "ip -o link show warren0 | cut -d: -f1; ip -o address show warren0; ip route; ip -6 route";
        let lines = net.hub.host.sh(shown)?.stdout;
        Result::Ok(lines.replace(" linkdown", "").replace(" \n", "\n"))
    };
    let before = seen(&net)?;
    for (shards, bpf, queues) in [
        ("4", Bpf::Allowed, 4),
        ("2", Bpf::Allowed, 2),
        ("1", Bpf::Allowed, 1),
        ("4", Bpf::Refused, 1),
        ("16", Bpf::Allowed, 16),
        ("1", Bpf::Refused, 1),
    ] {
        net.hub.tunnel.signal(Signal::SIGTERM);
        let ended = net.hub.tunnel.wait_timeout(PATIENCE)?;
        assert!(ended.success(), "{}", net.hub.tunnel.describe());
        net.hub.tunnel = start(&net.hub.host, &["--shards", shards], bpf)?;
        // The file has another one.
        net.hub.set_private_key();
        assert_eq!(net.hub.count("shards").to_string(), shards);
        assert_eq!(net.hub.count("tun_queues"), queues, "{shards} shards");
        assert_eq!(seen(&net)?, before, "{shards} shards");
        net.wait_for_pings()?;
    }
    Ok(())
}

#[test]
fn an_interface_that_others_delete_comes_back_to_all_shards() -> Result {
    require!();
    for (name, bpf, queues) in [("back", Bpf::Allowed, 4), ("back-one", Bpf::Refused, 1)] {
        let net = Net::start(name, 4, bpf)?;
        net.hub.host.run(&["ip", "link", "delete", "warren0"])?;
        poll_until(PATIENCE, "the interface", || {
            let shown = net.hub.host.try_run(&["ip", "link", "show", "warren0"]);
            shown.is_ok_and(|shown| shown.success()) && net.hub.count("tun_queues") == queues
        })?;
        net.hub.configure(&net.others(HUB))?;
        net.wait_for_pings()?;
    }
    Ok(())
}

#[test]
fn a_new_port_a_new_key_and_new_peers_reach_all_shards() -> Result {
    require!();
    let net = Net::start("changes", 4, Bpf::Allowed)?;
    net.hub.uapi.set("listen_port=51999\nfwmark=7\n");
    net.wait_for_pings()?;
    let got = net.hub.uapi.get();
    assert!(got.contains("listen_port=51999\nfwmark=7\n"), "{got}");
    // A port that is taken is refused, and nothing is changed anywhere.
    let taken = net.hub.host.in_netns(|| UdpSocket::bind("0.0.0.0:52000"))?;
    let before = net.hub.uapi.configuration();
    let lines = format!(
        "listen_port=52000\npublic_key={}\nremove=true\n",
        public_key(1)
    );
    let answer = net.hub.uapi.say(uapi_device::request(&lines).as_bytes());
    assert!(!answer.contains("errno=0"), "{answer}");
    assert_eq!(net.hub.uapi.configuration(), before);
    drop(taken);
    net.wait_for_pings()?;
    // One goes, which leaves the others where they are; and comes back.
    net.hub
        .uapi
        .set(&format!("public_key={}\nremove=true\n", public_key(2)));
    assert_eq!(net.hub.count("peers"), 3);
    let peers: Vec<u64> = net.hub.shards().iter().map(|s| s["peers"]).collect();
    assert_eq!(peers, [1, 1, 0, 1]);
    net.hub.introduce(&[2]);
    net.wait_for_pings()?;
    // With another key all sessions end; with the old one they come again.
    let (old, new) = (private_key(HUB).to_hex(), private_key(77).to_hex());
    net.hub.uapi.set(&format!("private_key={}\n", *new));
    assert!(!net.pings(&net.nodes[0]));
    net.hub.uapi.set(&format!("private_key={}\n", *old));
    net.wait_for_pings()?;
    let got = net.hub.uapi.get();
    let keys = got
        .lines()
        .filter_map(|line| line.strip_prefix("public_key="));
    let keys: Vec<&str> = keys.collect();
    assert!(keys.len() == 4 && keys.is_sorted(), "{keys:?}");
    Ok(())
}

#[test]
fn initiations_reach_the_shard_of_whoever_made_them() -> Result {
    require!();
    let net = Net::make("initiations", 4, &["--shards", "4"], Bpf::Allowed)?;
    for node in &net.nodes {
        // The hub does not know where they are, so that it cannot begin.
        let (v4, v6) = addresses(node.n);
        let key = public_key(node.n);
        let lines = format!("public_key={key}\nallowed_ip={v4}/32\nallowed_ip={v6}/128\n");
        net.hub.uapi.set(&lines);
        node.introduce(&[HUB]);
    }
    for node in &net.nodes {
        poll_until(STANDSTILL, "a ping", || {
            let ping = node.host.try_run(&["ping", "-c1", "-W1", "10.100.0.1"]);
            ping.is_ok_and(|ping| ping.success())
        })?;
    }
    let shards = net.hub.shards();
    let peers: Vec<u64> = shards.iter().map(|shard| shard["peers"]).collect();
    assert_eq!(peers, [1; 4]);
    assert!(shards[0]["handed_over"] >= 3, "{shards:?}");
    assert_eq!(net.hub.count("handshakes"), 4);
    let got = net.hub.uapi.get();
    for node in &net.nodes {
        let endpoint = format!("endpoint=192.0.2.{}:{PORT}\n", node.n);
        assert!(got.contains(&endpoint), "{endpoint} in {got}");
    }
    Ok(())
}

fn check_flows(name: &str, bpf: Bpf) -> Result {
    let net = Net::start(name, NODES, bpf)?;
    let shards = net.hub.shards();
    assert_eq!(shards.len(), 4);
    assert!(shards.iter().all(|shard| shard["peers"] == 2), "{shards:?}");
    let queues = if bpf == Bpf::Allowed { 4 } else { 1 };
    assert_eq!(net.hub.count("tun_queues"), queues);

    // No queue on the way can overflow, so that nothing may be missing.
    let flows = net.flows(1_500);
    thread::scope(|scope| flows.iter().for_each(|flow| flow.run(scope, None)));
    for flow in &flows {
        flow.check_whole(&net);
    }
    let shards = net.hub.shards();
    println!("{shards:?}");
    let all = |key| shards.iter().all(|shard| shard[key] > 0);
    assert!(
        all("udp_rx_messages"),
        "each peer's datagrams reach its shard: {shards:?}"
    );
    match bpf {
        Bpf::Allowed => assert!(all("tun_rx_frames"), "{shards:?}"),
        Bpf::Refused => {
            let read_by_others = shards[1..].iter().map(|s| s["tun_rx_frames"]).sum::<u64>();
            assert_eq!(read_by_others, 0);
            assert!(shards[0]["handed_over"] > 3_000, "{shards:?}");
        }
    }

    // Under load that fills queues packets may be missing, but none overtakes another one.
    let flows = net.flows(3_000);
    thread::scope(|scope| {
        let bulk = net.bulk(scope);
        for flow in &flows {
            flow.run(scope, Some(Duration::from_millis(20)));
        }
        for transfer in bulk {
            transfer.join().unwrap();
        }
    });
    let received: u64 = flows.iter().map(Flow::received).sum();
    println!("{received} of {} packets beside bulk", 3_000 * flows.len());
    for flow in &flows {
        flow.check_order();
        assert!(flow.received() > 0, "{}", flow.name);
    }
    assert_eq!(net.hub.count("drop_wrong_source"), 0);
    assert_eq!(net.hub.count("drop_unknown_index"), 0);
    Ok(())
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Bpf {
    Allowed,
    Refused,
}

struct Node {
    host: Host,
    uapi: Socket,
    tunnel: Proc,
    n: u32,
}

fn start(host: &Host, options: &[&str], bpf: Bpf) -> Result<Proc> {
    let mut command = match bpf {
        Bpf::Allowed => Command::new(TUNNEL),
        Bpf::Refused => {
            let mut command = Command::new("setpriv");
            command.args(["--bounding-set=-bpf,-sys_admin", TUNNEL]);
            command
        }
    };
    let (state, uapi) = (host.dir().join("state"), host.dir().join("uapi"));
    command.args(options).arg("--state-dir").arg(state);
    let tunnel = host.spawn(command.arg("--uapi-dir").arg(uapi))?;
    tunnel.wait_log("the tunnel is up", PATIENCE)?;
    Ok(tunnel)
}

impl Node {
    fn start(lab: &Lab, n: u32, options: &[&str], bpf: Bpf) -> Result<Self> {
        let host = lab.host(&if n == HUB {
            "hub".to_owned()
        } else {
            format!("node{n}")
        })?;
        let tunnel = start(&host, options, bpf)?;
        let uapi = Socket(host.dir().join("uapi/warren0.sock"));
        let node = Self {
            host,
            uapi,
            tunnel,
            n,
        };
        node.set_private_key();
        node.uapi.set(&format!("listen_port={PORT}\n"));
        Ok(node)
    }

    fn set_private_key(&self) {
        let key = private_key(self.n).to_hex();
        self.uapi.set(&format!("private_key={}\n", *key));
    }

    /// What the agent would do: addresses and routes.
    fn configure(&self, others: &[u32]) -> Result {
        let (v4, v6) = addresses(self.n);
        let mut script = format!(
            "ip link set warren0 up
             ip address add {v4}/32 dev warren0
             ip address add {v6}/128 dev warren0 nodad\n"
        );
        for other in others {
            let to = addresses(*other);
            script += &format!("ip route add {} dev warren0 src {v4}\n", to.0);
            script += &format!("ip route add {} dev warren0 src {v6}\n", to.1);
        }
        self.host.sh(&script).map(drop)
    }

    fn introduce(&self, others: &[u32]) {
        let mut lines = String::new();
        for other in others {
            let (v4, v6) = addresses(*other);
            lines += &format!(
                "public_key={}\nendpoint=192.0.2.{other}:{PORT}\nallowed_ip={v4}/32\nallowed_ip={v6}/128\n",
                public_key(*other)
            );
        }
        self.uapi.set(&lines);
    }

    fn udp(&self, address: &str, port: u16) -> UdpSocket {
        let at = SocketAddr::new(address.parse().unwrap(), port);
        let socket = self.host.in_netns(|| UdpSocket::bind(at)).unwrap().unwrap();
        let wait = Duration::from_millis(100);
        socket.set_read_timeout(Some(wait)).unwrap();
        socket
    }

    fn status(&self) -> String {
        let socat = ["socat", "-", "UNIX-CONNECT:/run/warren/tunnel.sock"];
        self.host.run(&socat).unwrap().stdout
    }

    fn count(&self, key: &str) -> u64 {
        let text = self.status();
        let mut lines = text.lines();
        let value = lines.find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        let value = value.and_then(|value| value.parse().ok());
        value.unwrap_or_else(|| panic!("{key} in {text}"))
    }

    /// What the status tells of each shard.
    fn shards(&self) -> Vec<std::collections::BTreeMap<String, u64>> {
        let text = self.status();
        let lines = text.lines().filter_map(|line| line.strip_prefix("shard="));
        let fields = |line: &str| {
            let pairs = line.split(' ').filter_map(|field| field.split_once('='));
            pairs
                .map(|(key, value)| (key.to_owned(), value.parse().unwrap()))
                .collect()
        };
        lines.map(fields).collect()
    }
}

/// The inner addresses of a node.
fn addresses(n: u32) -> (String, String) {
    (format!("10.{n}.0.1"), format!("fd{n:02x}::1"))
}

/// The hub's address of the same family.
fn hub_address(other: &str) -> &'static str {
    if other.contains(':') {
        "fd64::1"
    } else {
        "10.100.0.1"
    }
}

struct Net {
    hub: Node,
    nodes: Vec<Node>,
    _links: Vec<Link>,
    _lab: Lab,
}

impl Net {
    fn start(name: &str, nodes: u32, bpf: Bpf) -> Result<Self> {
        Self::start_with(name, nodes, &["--shards", "4"], bpf)
    }

    fn start_with(name: &str, nodes: u32, options: &[&str], bpf: Bpf) -> Result<Self> {
        let net = Self::make(name, nodes, options, bpf)?;
        for node in [&net.hub].into_iter().chain(&net.nodes) {
            node.introduce(&net.others(node.n));
        }
        net.wait_for_pings()?;
        Ok(net)
    }

    /// All there is but for who knows whom.
    fn make(name: &str, nodes: u32, options: &[&str], bpf: Bpf) -> Result<Self> {
        let lab = Lab::new(name)?;
        let lan = lab.bridge("lan")?;
        let hub = Node::start(&lab, HUB, options, bpf)?;
        let nodes = (1..=nodes).map(|n| Node::start(&lab, n, &["--shards", "1"], Bpf::Allowed));
        let nodes = nodes.collect::<Result<Vec<_>>>()?;
        let mut links = Vec::new();
        for node in [&hub].into_iter().chain(&nodes) {
            let end = node
                .host
                .end("eth0")
                .addr(&format!("192.0.2.{}/24", node.n));
            links.push(lab.connect(end, lan.port())?);
        }
        let net = Self {
            hub,
            nodes,
            _links: links,
            _lab: lab,
        };
        for node in [&net.hub].into_iter().chain(&net.nodes) {
            node.configure(&net.others(node.n))?;
        }
        Ok(net)
    }

    /// Whom a node knows.
    fn others(&self, n: u32) -> Vec<u32> {
        match n {
            HUB => self.nodes.iter().map(|node| node.n).collect(),
            _ => vec![HUB],
        }
    }

    fn pings(&self, node: &Node) -> bool {
        let (v4, v6) = addresses(node.n);
        [v4, v6].iter().all(|address| {
            let ping = self.hub.host.try_run(&["ping", "-c1", "-W1", address]);
            ping.is_ok_and(|ping| ping.success())
        })
    }

    fn wait_for_pings(&self) -> Result {
        for node in &self.nodes {
            poll_until(STANDSTILL, "a ping", || self.pings(node))?;
        }
        Ok(())
    }

    /// One flow for each node, direction and family.
    fn flows(&self, packets: u64) -> Vec<Flow> {
        let mut flows = Vec::new();
        for node in &self.nodes {
            let (v4, v6) = addresses(node.n);
            for at in [v4, v6] {
                let name = format!("hub and {at}");
                let of_hub = || self.hub.udp(hub_address(&at), 0);
                let of_node = || node.udp(&at, 0);
                flows.push(Flow::new(&name, of_hub(), vec![of_node()], packets));
                flows.push(Flow::new(&name, of_node(), vec![of_hub()], packets));
            }
        }
        flows
    }

    /// A transfer by TCP for each node, by turns of direction and family.
    fn bulk<'s>(
        &'s self,
        scope: &'s thread::Scope<'s, '_>,
    ) -> Vec<thread::ScopedJoinHandle<'s, ()>> {
        let mut transfers = Vec::new();
        for node in &self.nodes {
            let (v4, v6) = addresses(node.n);
            let at = if node.n % 2 == 0 { v4 } else { v6 };
            let (from, to, at) = match node.n % 4 < 2 {
                true => (node, &self.hub, hub_address(&at).to_owned()),
                false => (&self.hub, node, at),
            };
            let at = SocketAddr::new(at.parse::<IpAddr>().unwrap(), 7000 + node.n as u16);
            let listener = to.host.in_netns(|| TcpListener::bind(at)).unwrap().unwrap();
            transfers.push(scope.spawn(move || {
                let (mut stream, _) = listener.accept().unwrap();
                stream.set_read_timeout(Some(STANDSTILL)).unwrap();
                let mut got = Vec::new();
                stream.read_to_end(&mut got).unwrap();
                assert!(
                    got == pattern(),
                    "{} bytes, of {}",
                    got.len(),
                    pattern().len()
                );
            }));
            let mut stream = from
                .host
                .in_netns(|| TcpStream::connect(at))
                .unwrap()
                .unwrap();
            scope.spawn(move || stream.write_all(&pattern()).unwrap());
        }
        transfers
    }
}

/// Bytes that repeat at no length that anything is cut at.
fn pattern() -> Vec<u8> {
    let byte = |n: usize| (n % 251) as u8 ^ (n / 65_521) as u8;
    (0..6_000_000).map(byte).collect()
}

/// Numbered packets from one socket to one address, whoever has it.
struct Flow {
    name: String,
    sender: UdpSocket,
    receivers: Vec<(UdpSocket, AtomicU64)>,
    packets: u64,
    overtaken: AtomicU64,
    repeated: AtomicU64,
    ended: AtomicBool,
}

impl Flow {
    /// How many packets may be under way: all flows together fill no queue.
    const WINDOW: u64 = 12;

    fn new(name: &str, sender: UdpSocket, receivers: Vec<UdpSocket>, packets: u64) -> Self {
        sender.connect(receivers[0].local_addr().unwrap()).unwrap();
        let receivers = receivers
            .into_iter()
            .map(|socket| (socket, AtomicU64::new(0)));
        let receivers = receivers.collect();
        Self {
            name: name.to_owned(),
            sender,
            receivers,
            packets,
            overtaken: AtomicU64::new(0),
            repeated: AtomicU64::new(0),
            ended: AtomicBool::new(false),
        }
    }

    fn received(&self) -> u64 {
        self.by_receiver().iter().sum()
    }

    fn by_receiver(&self) -> Vec<u64> {
        let counts = self.receivers.iter();
        counts
            .map(|(_, count)| count.load(Ordering::Acquire))
            .collect()
    }

    fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// Sends and receives until all has arrived, or nothing does for long. `lossy`: a window that is not
    /// acknowledged for so long counts as lost.
    fn run<'s>(&'s self, scope: &'s thread::Scope<'s, '_>, lossy: Option<Duration>) {
        for (socket, count) in &self.receivers {
            scope.spawn(move || self.receive(socket, count));
        }
        scope.spawn(move || {
            let mut counted_lost = 0;
            for number in 0..self.packets {
                let mut moved_at = (Instant::now(), self.received());
                while number >= self.received() + counted_lost + Self::WINDOW {
                    thread::sleep(Duration::from_micros(100));
                    let received = self.received();
                    if received != moved_at.1 {
                        moved_at = (Instant::now(), received);
                    } else if lossy.is_some_and(|limit| moved_at.0.elapsed() > limit) {
                        counted_lost = number - received;
                    } else if moved_at.0.elapsed() > STANDSTILL {
                        self.ended.store(true, Ordering::Release);
                        return;
                    }
                }
                let mut packet = [0; 1300];
                packet[..8].copy_from_slice(&number.to_be_bytes());
                let len = if number % 3 == 0 { 100 } else { 1300 };
                // The queue before the TUN may be full, which is a loss like others.
                if self.sender.send(&packet[..len]).is_err() {
                    assert!(lossy.is_some(), "{}", self.name);
                }
            }
            let until = Instant::now() + lossy.unwrap_or(STANDSTILL);
            while self.received() < self.packets && Instant::now() < until {
                thread::sleep(Duration::from_millis(1));
            }
            self.ended.store(true, Ordering::Release);
        });
    }

    fn receive(&self, socket: &UdpSocket, count: &AtomicU64) {
        let mut last = None;
        let mut room = [0; 2000];
        loop {
            match socket.recv(&mut room) {
                Ok(len) => {
                    assert!(len == 100 || len == 1300, "{len} bytes");
                    let number = u64::from_be_bytes(room[..8].try_into().unwrap());
                    if last == Some(number) {
                        self.repeated.fetch_add(1, Ordering::Relaxed);
                    } else if last.is_some_and(|last| number < last) {
                        self.overtaken.fetch_add(1, Ordering::Relaxed);
                    }
                    last = last.max(Some(number));
                    count.fetch_add(1, Ordering::AcqRel);
                }
                Err(_) if self.has_ended() => return,
                Err(_) => {}
            }
        }
    }

    fn check_order(&self) {
        let (overtaken, repeated) = (&self.overtaken, &self.repeated);
        assert_eq!(
            overtaken.load(Ordering::Relaxed),
            0,
            "overtaken: {}",
            self.name
        );
        assert_eq!(
            repeated.load(Ordering::Relaxed),
            0,
            "repeated: {}",
            self.name
        );
    }

    fn check_whole(&self, net: &Net) {
        self.check_order();
        let received = self.received();
        assert_eq!(
            received,
            self.packets,
            "{}: {}",
            self.name,
            net.hub.status()
        );
    }
}
