//! The underlay and the nodes on it.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use warren_lab::{Allow, Bridge, Capture, ClearTextRules, End, Host, Lab, Link, patience};

use crate::node::Node;
use crate::traffic::MARKER;

/// The cluster's IPv4 pod range.
pub const CLUSTER_V4: &str = "10.244.0.0/16";
/// The cluster's IPv6 pod range.
pub const CLUSTER_V6: &str = "fd00:244::/48";

/// The tunnel's UDP port.
const WIREGUARD_PORT: u16 = 51871;
/// How long a mesh may take to come up; CI machines are slow and shared.
const UP_LIMIT: Duration = Duration::from_secs(60);

/// A lab with Warren's nodes in it.
#[derive(Debug)]
pub struct Mesh {
    /// The nodes, node1 first.
    pub nodes: Vec<Node>,
    /// The router between the two subnets.
    pub router: Host,
    lan_a: Bridge,
    lan_b: Bridge,
    links: Vec<Link>,
    registry: PathBuf,
    /// The lab; last, so that everything above ends before it.
    pub lab: Lab,
}

impl Mesh {
    /// Makes the underlay, and no node yet.
    pub fn underlay(name: &str) -> Result<Self> {
        let lab = Lab::new(name)?;
        let (lan_a, lan_b) = (lab.bridge("lan-a")?, lab.bridge("lan-b")?);
        let router = lab.router("router")?;
        let a = router
            .end("lan-a")
            .addr("192.0.2.254/24")
            .addr("2001:db8:a::ff/64");
        let b = router
            .end("lan-b")
            .addr("198.51.100.254/24")
            .addr("2001:db8:b::ff/64");
        let links = vec![lab.connect(a, lan_a.port())?, lab.connect(b, lan_b.port())?];
        let registry = lab.dir().join("registry");
        std::fs::create_dir(&registry).context("create the registry's directory")?;
        Ok(Self {
            nodes: Vec::new(),
            router,
            lan_a,
            lan_b,
            links,
            registry,
            lab,
        })
    }

    /// Makes the underlay and starts nodes 1 to `count` on it.
    pub fn start(name: &str, count: u8) -> Result<Self> {
        let mut mesh = Self::underlay(name)?;
        for number in 1..=count {
            mesh.add_node(number)?.start()?;
        }
        mesh.wait_connected(UP_LIMIT)?;
        Ok(mesh)
    }

    /// Adds node `number`'s machine (1 to 99), without starting anything on it.
    pub fn add_node(&mut self, number: u8) -> Result<&mut Node> {
        let host = self.lab.host(&format!("node{number}"))?;
        let end = host.end("eth0");
        let (addresses, end, lan) = match number {
            1 => (
                vec!["192.0.2.1".into()],
                end.addr("192.0.2.1/24").via("192.0.2.254"),
                &self.lan_a,
            ),
            3 => {
                let end = end.addr("198.51.100.3/24").via("198.51.100.254");
                let end = end.addr("2001:db8:b::3/64").via("2001:db8:b::ff");
                (
                    vec!["2001:db8:b::3".into(), "198.51.100.3".into()],
                    end,
                    &self.lan_b,
                )
            }
            n => {
                let (v4, v6) = (format!("192.0.2.{n}"), format!("2001:db8:a::{n}"));
                let end = end.addr(&format!("{v4}/24")).via("192.0.2.254");
                let end = end.addr(&format!("{v6}/64")).via("2001:db8:a::ff");
                (vec![v6, v4], end, &self.lan_a)
            }
        };
        let link = self.lab.connect(end, lan.port())?;
        self.links.push(link.clone());
        self.nodes.push(Node::new(
            host,
            number,
            addresses,
            self.registry.clone(),
            link,
        ));
        self.nodes.last_mut().context("a node was just added")
    }

    /// Makes a host of the test's own making node `number`, without starting anything on it. With
    /// no addresses given, its agent finds them out.
    pub fn adopt(&mut self, host: Host, number: u8, addresses: &[&str], link: Link) -> &mut Node {
        self.links.push(link.clone());
        let addresses = addresses.iter().map(|a| (*a).to_owned()).collect();
        let registry = self.registry.clone();
        let node = Node::new(host, number, addresses, registry, link);
        self.nodes.push(node);
        let last = self.nodes.len() - 1;
        &mut self.nodes[last]
    }

    /// Counts a link of the test's own making to the underlay.
    pub fn watch(&mut self, link: Link) {
        self.links.push(link);
    }

    /// A port of the first subnet's switch, for a link of the test's own making.
    pub fn lan_a_port(&self) -> End {
        self.lan_a.port()
    }

    /// Node `number`, which must exist.
    ///
    /// # Panics
    /// When there is no such node: a slip in the test itself.
    pub fn node(&self, number: u8) -> &Node {
        let found = self.nodes.iter().find(|n| n.number == number);
        found.unwrap_or_else(|| panic!("the test's mesh has no node{number}"))
    }

    /// As [`node`](Self::node), to change it.
    ///
    /// # Panics
    /// As [`node`](Self::node).
    pub fn node_mut(&mut self, number: u8) -> &mut Node {
        let found = self.nodes.iter_mut().find(|n| n.number == number);
        found.unwrap_or_else(|| panic!("the test's mesh has no node{number}"))
    }

    /// Every link of the underlay: what a capture must watch.
    pub fn underlay_links(&self) -> &[Link] {
        &self.links
    }

    /// Captures every link of the underlay and judges each packet: nothing with a pod's address in
    /// any header or with the payload's marker, and nothing at all but WireGuard, what every
    /// healthy underlay carries, and `also`.
    pub fn capture(&self, also: &[Allow]) -> Result<Capture> {
        let taps: Vec<_> = self.links.iter().map(Link::tap).collect();
        let rules = ClearTextRules {
            pod_ranges: vec![CLUSTER_V4.parse()?, CLUSTER_V6.parse()?],
            marker: MARKER.into(),
            wireguard_ports: vec![WIREGUARD_PORT],
            allow: Allow::usual()
                .into_iter()
                .chain(also.iter().copied())
                .collect(),
        };
        Ok(self.lab.capture(&taps, rules)?)
    }

    /// The directory of the file registry.
    pub fn registry(&self) -> &std::path::Path {
        &self.registry
    }

    /// Waits until every node is ready, has a session with every other, as its status says, and has
    /// the routes to the other's pods. A tunnel starts a handshake with each new peer at once.
    pub fn wait_connected(&self, limit: Duration) -> Result<Duration> {
        let (start, limit) = (std::time::Instant::now(), patience(limit));
        loop {
            let Some(trouble) = self.not_connected() else {
                return Ok(start.elapsed());
            };
            if start.elapsed() > limit {
                let logs: Vec<String> = self.nodes.iter().map(Node::describe).collect();
                bail!("after {limit:?}: {trouble}\n{}", logs.join("\n"));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// The status names a peer before its routes are there.
    fn not_routed(&self, node: &Node) -> Option<String> {
        let script = "for table in main 51871; do for family in -4 -6; do
                          ip $family route show table $table proto 151 2>/dev/null || true
                      done; done";
        let routes = match node.host.sh(script) {
            Ok(out) => out.stdout,
            Err(e) => return Some(format!("{}: {e}", node.name())),
        };
        let others = self.nodes.iter().filter(|o| o.number != node.number);
        for range in others.flat_map(|other| &other.pod_cidrs) {
            let way = format!("{range} dev warren0 ");
            let ways = routes.lines().filter(|line| line.starts_with(&way)).count();
            if ways < 2 {
                return Some(format!("{} has no routes to {range}", node.name()));
            }
        }
        None
    }

    fn not_connected(&self) -> Option<String> {
        for node in &self.nodes {
            let status = match node.status() {
                Ok(status) => status,
                Err(e) => return Some(format!("{} does not answer: {e:#}", node.name())),
            };
            if status["protected"] != true {
                return Some(format!("{} is not protected: {status}", node.name()));
            }
            if !node.conflist_path().exists() {
                return Some(format!("{} has no CNI configuration", node.name()));
            }
            for other in self.nodes.iter().filter(|o| o.number != node.number) {
                let peers = status["peers"].as_array().cloned().unwrap_or_default();
                let up = |p: &serde_json::Value| p["node"] == *other.name() && p["state"] == "up";
                if !peers.iter().any(up) {
                    return Some(format!(
                        "{} has no session with {}",
                        node.name(),
                        other.name()
                    ));
                }
            }
            if let Some(trouble) = self.not_routed(node) {
                return Some(trouble);
            }
        }
        None
    }
}
