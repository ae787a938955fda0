//! The cluster: the underlay, the nodes and the control plane.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use warren_apiserver::{ControlPlane, Identity, Options, program};
use warren_lab::{Bridge, Detached, Host, Lab, Proc};

use crate::dns;
use crate::node::{Credentials, Node};
use crate::places::prepared;
use crate::run;
use crate::settings::{API_SERVICE, CLUSTER_CIDRS, ProxyMode, ProxySettings, SERVICE_CIDRS};
/// How long a busy machine may take for what takes seconds on an idle one.
pub const PATIENCE: Duration = Duration::from_secs(180);
/// The port of the probe on the host outside.
pub const OUTSIDE_PORT: u16 = 8082;

const OUTSIDE_ADDRESSES: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(192, 0, 2, 254)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0xfe)),
];
/// How many of the last events a picture has.
const EVENTS_SHOWN: usize = 20;
/// The most nodes that can join; each has its tokens from the start.
pub const NODES_MAX: u8 = 5;
/// The user of the API server's own certificate, by which kubelets know it.
const KUBELET_CLIENT: &str = "kube-apiserver-kubelet-client";
const SCHEDULER: &str = "system:kube-scheduler";
const PROXY: &str = "system:kube-proxy";

/// A running cluster; all of it ends with it, or with this process, however that ends.
pub struct Cluster {
    /// The nodes, node1 with the control plane first.
    pub nodes: Vec<Node>,
    /// The control plane.
    pub plane: ControlPlane,
    /// The gateway of the nodes' default routes: outside the cluster, on the underlay.
    pub outside: Host,
    scheduler: Option<Proc>,
    lan: Bridge,
    /// The lab; last, so that everything above ends before it.
    pub lab: Lab,
}

impl Cluster {
    /// Makes `count` machines with containerd and the images of the test's own pods, and a control plane on
    /// the first one. No node is registered yet: see [`Cluster::register`].
    ///
    /// # Errors
    /// What does not come up, with the end of its log.
    pub fn start(name: &str, count: u8) -> Result<Self> {
        let lab = Lab::new(name)?;
        let lan = lab.bridge("lan")?;
        let outside = lab.router("outside")?;
        lab.connect(
            outside
                .end("eth0")
                .addr("192.0.2.254/24")
                .addr("2001:db8::fe/64"),
            lan.port(),
        )?;
        let mut nodes = Vec::new();
        for number in 1..=count {
            nodes.push(machine(&lab, &lan, number)?);
        }
        let first = nodes.first().context("a cluster has a node")?;
        let host = first.host.clone();
        let options = options(&host, first.addresses);
        let plane = std::thread::scope(|scope| {
            let starting: Vec<_> = nodes
                .iter_mut()
                .map(|node| scope.spawn(|| prepare(node)))
                .collect();
            let plane = ControlPlane::start(&host, options);
            for thread in starting {
                thread
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            }
            plane
        })?;
        let mut cluster = Self {
            nodes,
            plane,
            outside,
            scheduler: None,
            lan,
            lab,
        };
        cluster.start_scheduler()?;
        for index in 0..cluster.nodes.len() {
            cluster.give_credentials(index)?;
        }
        Ok(cluster)
    }

    /// Adds a machine with containerd and the images, as [`Cluster::start`] does.
    ///
    /// # Errors
    /// As there.
    pub fn add_machine(&mut self) -> Result<usize> {
        let number = u8::try_from(self.nodes.len() + 1)?;
        let mut node = machine(&self.lab, &self.lan, number)?;
        prepare(&mut node)?;
        self.nodes.push(node);
        self.give_credentials(self.nodes.len() - 1)?;
        Ok(self.nodes.len() - 1)
    }

    /// Starts the kubelet and kube-proxy of a node.
    ///
    /// # Errors
    /// Those of the lab.
    pub fn register(&mut self, index: usize, proxy: ProxySettings) -> Result<()> {
        let node = &mut self.nodes[index];
        node.start_proxy(proxy)?;
        node.start_kubelet()
    }

    /// Registers all nodes, kube-proxy's modes taking turns: iptables, nftables, iptables.
    ///
    /// # Errors
    /// Those of the lab.
    pub fn register_all(&mut self) -> Result<()> {
        for index in 0..self.nodes.len() {
            let mode = [ProxyMode::Iptables, ProxyMode::Nftables][index % 2];
            let settings = ProxySettings {
                mode,
                knows_cluster_cidr: true,
            };
            self.register(index, settings)?;
        }
        Ok(())
    }

    /// Starts a probe on the host outside, on [`OUTSIDE_PORT`]; it ends when dropped.
    ///
    /// # Errors
    /// Those of the lab.
    pub fn start_outside_probe(&self) -> Result<Proc> {
        let mut command = Command::new(prepared("bin/probe"));
        command.args(["serve", &format!("-port={OUTSIDE_PORT}")]);
        command.env("PROBE_NAME", "outside");
        Ok(self.outside.spawn(&mut command)?)
    }

    /// The addresses of the host outside: IPv4, IPv6.
    pub fn outside_addresses(&self) -> [IpAddr; 2] {
        OUTSIDE_ADDRESSES
    }

    /// Applies CoreDNS, and lets the scheduler place it.
    ///
    /// # Errors
    /// What kubectl says.
    pub fn deploy_dns(&self) -> Result<()> {
        self.apply(&dns::objects())
    }

    /// Waits until all of CoreDNS is there.
    ///
    /// # Errors
    /// What kubectl says.
    pub fn wait_dns(&self) -> Result<()> {
        let wait = [
            "rollout",
            "status",
            "-n",
            "kube-system",
            "deployment/coredns",
            "--timeout=150s",
        ];
        self.kubectl(&wait).map(drop)
    }

    /// Waits until a node's kube-proxy has programmed all that it knows of, in both families.
    ///
    /// # Errors
    /// It has not in time.
    pub fn wait_proxy(&self, node: &str) -> Result<()> {
        const SYNCED: &str = "kubeproxy_sync_proxy_rules_last_timestamp_seconds{";
        const QUEUED: &str = "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds{";
        let host = &self.node(node).host;
        self.wait("kube-proxy", PATIENCE, || {
            let arguments = ["call", "GET", "http://127.0.0.1:10249/metrics"];
            let metrics = run::ask(host, prepared("bin/probe"), &arguments, b"", PATIENCE)?;
            // Of both families, in the same order.
            let times = |name| -> Vec<f64> {
                let lines = metrics.lines().filter_map(|line| line.strip_prefix(name));
                let values = lines.filter_map(|line: &str| line.rsplit(' ').next());
                values.filter_map(|value| value.parse().ok()).collect()
            };
            let (synced, queued) = (times(SYNCED), times(QUEUED));
            let done = synced
                .iter()
                .zip(&queued)
                .filter(|(s, q)| **s > 0.0 && s >= q);
            Ok(done.count() == 2)
        })
        .map(drop)
    }

    /// The node of this name.
    ///
    /// # Panics
    /// When there is none: a slip in the test itself.
    pub fn node(&self, name: &str) -> &Node {
        let found = self.nodes.iter().find(|node| node.name() == name);
        found.unwrap_or_else(|| panic!("the test's cluster has no {name}"))
    }

    /// As [`Cluster::node`], to change it.
    ///
    /// # Panics
    /// As there.
    pub fn node_mut(&mut self, name: &str) -> &mut Node {
        let found = self.nodes.iter_mut().find(|node| node.name() == name);
        found.unwrap_or_else(|| panic!("the test's cluster has no {name}"))
    }

    /// What can be said of it when something failed: nodes, pods, events.
    pub fn picture(&self) -> String {
        let told = |arguments: &[&str]| match self.try_kubectl(arguments) {
            Ok(output) => output.stdout + &output.stderr,
            Err(error) => format!("{error:#}\n"),
        };
        let mut text = told(&["get", "nodes", "-o", "wide"]);
        text += &told(&["get", "pods", "-A", "-o", "wide"]);
        let events = told(&[
            "get",
            "events",
            "-A",
            "--field-selector=type!=Normal",
            "--sort-by=.metadata.creationTimestamp",
        ]);
        let lines: Vec<&str> = events.lines().collect();
        text + &lines[lines.len().saturating_sub(EVENTS_SHOWN)..].join("\n")
    }

    /// Copies the logs of all programs and of all containers to where they stay.
    ///
    /// # Errors
    /// Those of the files.
    pub fn keep_logs(&self) -> Result<PathBuf> {
        let kept = std::env::temp_dir().join(format!("warren-cluster-logs.{}", std::process::id()));
        let copy = |from: PathBuf, to: &str| -> Result<()> {
            std::fs::create_dir_all(kept.join(to))?;
            let from = from.join(".").display().to_string();
            let to = kept.join(to).display().to_string();
            self.outside.run(&["cp", "-rL", &from, &to])?;
            Ok(())
        };
        copy(self.lab.dir().join("logs"), "programs")?;
        for node in &self.nodes {
            copy(node.path("/var/log/pods"), node.name())?;
        }
        Ok(kept)
    }

    /// Leaves the cluster running after this process.
    ///
    /// # Errors
    /// Those of the lab.
    pub fn detach(self) -> Result<Detached> {
        let Self {
            nodes,
            plane,
            scheduler,
            lab,
            ..
        } = self;
        // What ends when it is dropped is to stay.
        std::mem::forget((nodes, plane, scheduler));
        Ok(lab.detach()?)
    }

    /// How a person looks around in it.
    pub fn how_to_enter(&self) -> String {
        let mut text = String::new();
        for node in &self.nodes {
            text.push_str(&format!("{}: {}\n", node.name(), node.host.enter_command()));
        }
        text.push_str(&format!(
            "on node1: {} --kubeconfig {} get nodes\nlogs: {}\n",
            program("kubectl").display(),
            self.plane.directory().join("admin.kubeconfig").display(),
            self.lab.dir().join("logs").display(),
        ));
        text
    }

    fn give_credentials(&mut self, index: usize) -> Result<()> {
        let name = self.nodes[index].name().to_owned();
        let token = Identity::kubelet(&name).token();
        let kubelet = self
            .plane
            .write_kubeconfig(&format!("kubelet-{name}"), &token)?;
        let token = identity(PROXY).token();
        let credentials = Credentials {
            ca: self.plane.directory().join("ca.crt"),
            kubelet,
            proxy: self.plane.write_kubeconfig("kube-proxy", &token)?,
        };
        self.nodes[index].set_credentials(credentials);
        Ok(())
    }

    fn start_scheduler(&mut self) -> Result<()> {
        let token = identity(SCHEDULER).token();
        let kubeconfig = self.plane.write_kubeconfig("kube-scheduler", &token)?;
        let kubeconfig = kubeconfig.display();
        let arguments = [
            program("kube-scheduler").display().to_string(),
            format!("--kubeconfig={kubeconfig}"),
            format!("--authentication-kubeconfig={kubeconfig}"),
            format!("--authorization-kubeconfig={kubeconfig}"),
            "--leader-elect=false".into(),
        ];
        self.scheduler = Some(self.plane.host().spawn_argv(&arguments)?);
        Ok(())
    }
}

fn machine(lab: &Lab, lan: &Bridge, number: u8) -> Result<Node> {
    let host = lab.host(&format!("node{number}"))?;
    let addresses: [IpAddr; 2] = [
        IpAddr::from([192, 0, 2, number]),
        format!("2001:db8::{number}").parse()?,
    ];
    let end = host
        .end("eth0")
        .addr(&format!("{}/24", addresses[0]))
        .addr(&format!("{}/64", addresses[1]))
        .via("192.0.2.254")
        .via("2001:db8::fe");
    let link = lab.connect(end, lan.port())?;
    Node::new(host, addresses, link)
}

/// Starts what a machine has before it becomes a node.
fn prepare(node: &mut Node) -> Result<()> {
    node.install_plugins(&["loopback", "portmap"])?;
    node.start_containerd()?;
    node.import_own_images()
}

fn identity(user: &str) -> Identity {
    Identity::new(user, &[])
}

fn options(host: &Host, addresses: [IpAddr; 2]) -> Options {
    let directory = ControlPlane::directory_on(host);
    let file = |end: &str| directory.join(format!("{KUBELET_CLIENT}.{end}"));
    let kubelets = (1..=NODES_MAX).map(|n| Identity::kubelet(&format!("node{n}")));
    let others = [SCHEDULER, PROXY].map(identity);
    Options {
        addresses: addresses.to_vec(),
        cluster_cidrs: CLUSTER_CIDRS.map(str::to_owned).to_vec(),
        service_cidrs: SERVICE_CIDRS.map(str::to_owned).to_vec(),
        identities: kubelets.chain(others).collect(),
        controllers: vec!["*"],
        apiserver_flags: vec![
            format!("--kubelet-client-certificate={}", file("crt").display()),
            format!("--kubelet-client-key={}", file("key").display()),
            "--kubelet-preferred-address-types=InternalIP".into(),
        ],
        also_reached_by: API_SERVICE.parse().into_iter().collect(),
        certificates: vec![(KUBELET_CLIENT, &["system:masters"])],
        ..Options::default()
    }
}
