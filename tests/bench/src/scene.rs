//! Two nodes with a pod each, and one contender between them.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};
use warren_e2e::{Mesh, MeshPod, Node};
use warren_lab::{Host, Link, Proc, poll_until};

use crate::contender::Contender;

const UP_LIMIT: Duration = Duration::from_secs(30);
/// What `warren-agent` gives a node with an underlay of 1,500 bytes.
const MTU: u32 = 1440;

/// Two pods on two nodes.
pub(crate) struct Scene {
    /// The pod that sends.
    pub(crate) a: MeshPod,
    /// The pod that receives.
    pub(crate) b: MeshPod,
    /// The programs that serve `warren0`, of the sender's node and of the receiver's; none for a veth.
    pub(crate) daemons: Vec<i32>,
    _processes: Vec<Proc>,
    _links: Vec<Link>,
    mesh: Mesh,
}

/// What a node's `warren0` has, and what another program's gets.
struct Settings {
    private_key: String,
    public_key: String,
    /// One line for each address, and one for each route, as `ip` says and takes them.
    addresses: Vec<String>,
    routes: Vec<String>,
}

impl Scene {
    /// Makes the nodes and pods, and exchanges the tunnel.
    pub(crate) fn new(name: &str, contender: Contender) -> Result<Self> {
        let mut mesh = Mesh::underlay(name)?;
        let hosts = [mesh.lab.host("node1")?, mesh.lab.host("node2")?];
        let link = mesh.lab.connect(
            hosts[0].end("eth0").addr("192.0.2.1/24"),
            hosts[1].end("eth0").addr("192.0.2.2/24"),
        )?;
        for (number, host) in (1..).zip(hosts) {
            let address = format!("192.0.2.{number}");
            let node = mesh.adopt(host, number, &[&address], link.clone());
            node.env = contender.env();
            node.start()?;
        }
        mesh.wait_connected(UP_LIMIT)?;
        let (a, b) = (mesh.node(1).attach("a")?, mesh.node(2).attach("b")?);
        let mut scene = Self {
            a,
            b,
            daemons: Vec::new(),
            _processes: Vec::new(),
            _links: vec![link],
            mesh,
        };
        match contender {
            Contender::Warren | Contender::Spinning => scene.keep_tunnel()?,
            other => scene.exchange(other)?,
        }
        let ping = ["ping", "-c1", "-W1", &scene.b.v4];
        poll_until(UP_LIMIT, "a ping between the pods", || {
            scene.a.pod.try_run(&ping).is_ok_and(|ping| ping.success())
        })
        .with_context(|| scene.describe())?;
        Ok(scene)
    }

    /// What each node has, for messages.
    fn describe(&self) -> String {
        let show = "wg show; ip -4 address; ip -4 rule; ip -4 route show table all | grep -v local";
        let nodes = self.mesh.nodes.iter();
        let texts = nodes.map(|node| match node.host.sh(show) {
            Ok(output) => format!("--- {}\n{}", node.name(), output.stdout),
            Err(error) => format!("--- {}: {error}", node.name()),
        });
        texts.collect::<Vec<_>>().join("\n")
    }

    /// The agents end for this one too, so that their work is nobody's.
    fn keep_tunnel(&mut self) -> Result<()> {
        for number in [1, 2] {
            let node = self.mesh.node_mut(number);
            end(&mut node.agent)?;
            let tunnel = node.tunnel.as_ref().context("the node has no tunnel")?;
            self.daemons.push(tunnel.pid());
        }
        Ok(())
    }

    fn exchange(&mut self, contender: Contender) -> Result<()> {
        let settings = [1, 2].map(|number| Settings::read(self.mesh.node(number)));
        let [one, two] = settings;
        let settings = [one?, two?];
        for number in [1, 2] {
            let node = self.mesh.node_mut(number);
            end(&mut node.agent)?;
            end(&mut node.tunnel)?;
            node.host.sh("ip link delete warren0")?;
        }
        if contender == Contender::Veth {
            let hosts = [1, 2].map(|number| self.mesh.node(number).host.clone());
            let [one, two] = &hosts;
            let ends = (one.end("warren0"), two.end("warren0"));
            self._links.push(self.mesh.lab.connect(ends.0, ends.1)?);
            for host in &hosts {
                // Each asks the other for the pods' hardware addresses.
                host.sh("sysctl -qw net.ipv4.conf.warren0.proxy_arp=1")?;
            }
        } else {
            for number in [1, 2] {
                let host = self.mesh.node(number).host.clone();
                let process = start(&host, contender)?;
                self.daemons.push(process.pid());
                self._processes.push(process);
            }
        }
        for (number, [own, other]) in [(1, [0, 1]), (2, [1, 0])] {
            let host = &self.mesh.node(number).host;
            settings[own].apply(host, &settings[other], 3 - number, contender)?;
        }
        Ok(())
    }
}

fn end(process: &mut Option<Proc>) -> Result<()> {
    if let Some(process) = process.take() {
        process.kill();
        process.wait_timeout(UP_LIMIT)?;
    }
    Ok(())
}

/// Starts another program than Warren's for `warren0`, and waits until it answers `wg`.
pub(crate) fn start(host: &Host, contender: Contender) -> Result<Proc> {
    let program = contender.program().context("it has no program")?;
    let mut command = Command::new(program);
    match contender {
        Contender::Boringtun => {
            // It reads the MTU once, when it opens the interface.
            host.sh(&format!(
                "ip tuntap add warren0 mode tun multi_queue && ip link set warren0 mtu {MTU}"
            ))?;
            command.args(["--foreground", "--disable-drop-privileges", "warren0"]);
        }
        _ => {
            command.args(["-f", "warren0"]);
        }
    }
    let process = host.spawn(&mut command)?;
    poll_until(UP_LIMIT, "the other program", || {
        host.try_run(&["wg", "show", "warren0"])
            .is_ok_and(|wg| wg.success())
    })?;
    Ok(process)
}

impl Settings {
    fn read(node: &Node) -> Result<Self> {
        let run = |script: &str| -> Result<String> { Ok(node.host.sh(script)?.stdout) };
        let lines = |text: String| text.lines().map(str::to_owned).collect::<Vec<_>>();
        let addresses = run("ip -4 -o address show dev warren0")?;
        let addresses = addresses.lines().filter_map(|line| {
            let mut words = line.split_whitespace().skip_while(|word| *word != "inet");
            words.nth(1).map(str::to_owned)
        });
        Ok(Self {
            private_key: std::fs::read_to_string(node.state_dir().join("private.key"))?,
            public_key: run("wg show warren0 public-key")?.trim().to_owned(),
            addresses: addresses.collect(),
            // Those of the pods name the address of `warren0` as their source, and go with it.
            routes: lines(run(
                "ip -4 route show table all type unicast | grep -E ' dev (warren0|wrn)'",
            )?),
        })
    }

    fn apply(&self, host: &Host, peer: &Self, number: u8, contender: Contender) -> Result<()> {
        if contender != Contender::Veth {
            let configuration = format!(
                "[Interface]\nPrivateKey = {}\nListenPort = 51871\n[Peer]\nPublicKey = {}\n\
                 Endpoint = 192.0.2.{number}:51871\n\
                 AllowedIPs = 10.244.{number}.0/24, 192.0.2.{number}/32\n",
                self.private_key.trim(),
                peer.public_key
            );
            let path = host.dir().join("warren0.conf");
            std::fs::write(&path, configuration)?;
            let path = path.display();
            host.sh(&format!("wg setconf warren0 {path} && rm {path}"))?;
        }
        host.sh(&format!("ip link set warren0 mtu {MTU} up"))?;
        for address in &self.addresses {
            host.sh(&format!("ip address add {address} dev warren0"))?;
        }
        for route in &self.routes {
            host.sh(&format!("ip route replace {route}"))?;
        }
        Ok(())
    }
}
