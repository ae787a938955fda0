//! Machines on a private network.

use std::time::{Duration, Instant};

use anyhow::bail;
use warren_lab::{Allow, Bridge, Capture, ClearTextRules, Lab};

use crate::machine::Machine;
use crate::payload::Payload;
use crate::settings::Settings;
use crate::{MARKER, Result};

/// How long a mesh may take to come up once its nodes run.
const CONNECTED: Duration = Duration::from_secs(300);
const WIREGUARD_PORT: u16 = 51871;
/// The file registry's way from node to node.
const REGISTRY_PORT: u16 = 2222;

/// Machines on a private network.
#[derive(Debug)]
pub struct Cluster {
    /// The machines, node1 first.
    pub machines: Vec<Machine>,
    /// What they are like.
    pub settings: Settings,
    lan: Bridge,
    // Last, so that the machines end before it.
    lab: Lab,
}

/// Starts machines, makes them nodes of a mesh that is up, and runs a test on them. When it fails, what the machines
/// tell is kept beside the build's output.
///
/// # Panics
///
/// When the test fails, with its error and the place of the logs.
pub fn with_cluster(
    name: &str,
    settings: Settings,
    payloads: &[Payload],
    test: impl FnOnce(&mut Cluster) -> Result,
) {
    let mut cluster = match Cluster::new(name, settings) {
        Ok(cluster) => cluster,
        Err(e) => panic!("{e:#}"),
    };
    let result = cluster.start(payloads).and_then(|()| test(&mut cluster));
    if let Err(e) = result {
        cluster.collect_logs();
        // The lab keeps its logs when it ends by a panic.
        panic!("{e:#}");
    }
}

impl Cluster {
    fn new(name: &str, settings: Settings) -> Result<Self> {
        let lab = Lab::new(name)?;
        let lan = lab.bridge("lan")?;
        Ok(Self {
            machines: Vec::new(),
            settings,
            lan,
            lab,
        })
    }

    /// `payloads` are those of node1, node2 and so on; the nodes beyond have the last one's, and the default if none.
    fn start(&mut self, payloads: &[Payload]) -> Result {
        let start = Instant::now();
        for number in 1..=self.settings.machines {
            let host = self.lab.host(&format!("node{number}"))?;
            let link = self.lab.connect(host.end("eth0"), self.lan.port())?;
            let index = usize::from(number - 1).min(payloads.len().saturating_sub(1));
            let archive = host.dir().join("payload.tar");
            let payload = payloads.get(index).cloned().unwrap_or_default();
            payload.pack(&host, &archive)?;
            let mut machine = Machine::new(host, number, link, &self.settings, &archive)?;
            machine.power_on()?;
            self.machines.push(machine);
        }
        for machine in &mut self.machines {
            machine.wait_up()?;
        }
        println!("machines up after {:.1?}", start.elapsed());
        self.provision()?;
        self.wait_connected()?;
        println!("the mesh is up after {:.1?}", start.elapsed());
        Ok(())
    }

    fn provision(&self) -> Result {
        // At once: each waits most of the time.
        let results: Vec<Result> = std::thread::scope(|scope| {
            let started: Vec<_> = self
                .machines
                .iter()
                .map(|machine| scope.spawn(|| machine.provision(&self.settings)))
                .collect();
            let panicked = |_| anyhow::anyhow!("a thread that provisioned panicked");
            started
                .into_iter()
                .map(|thread| thread.join().map_err(panicked).flatten())
                .collect()
        });
        results.into_iter().collect()
    }

    /// Machine `number`.
    ///
    /// # Panics
    /// When there is no such machine: a slip in the test itself.
    pub fn machine(&self, number: u8) -> &Machine {
        let found = self.machines.iter().find(|m| m.number == number);
        found.unwrap_or_else(|| panic!("the test has no node{number}"))
    }

    /// As [`machine`](Self::machine), to change it.
    ///
    /// # Panics
    /// As [`machine`](Self::machine).
    pub fn machine_mut(&mut self, number: u8) -> &mut Machine {
        let found = self.machines.iter_mut().find(|m| m.number == number);
        found.unwrap_or_else(|| panic!("the test has no node{number}"))
    }

    /// Captures the private network and judges each packet: nothing with a pod's address in any header or with the
    /// payload's marker, and nothing at all but WireGuard, the registry's connections, what every healthy network
    /// carries, and `also`.
    ///
    /// # Errors
    ///
    /// Those of the lab.
    pub fn capture(&self, also: &[Allow]) -> Result<Capture> {
        let taps: Vec<_> = self.machines.iter().map(|m| m.link.tap()).collect();
        let cluster_cidrs = self.settings.cluster_cidrs();
        let ranges: std::result::Result<Vec<_>, _> =
            cluster_cidrs.split(',').map(str::parse).collect();
        let rules = ClearTextRules {
            pod_ranges: ranges?,
            marker: MARKER.into(),
            wireguard_ports: vec![WIREGUARD_PORT],
            allow: Allow::usual()
                .into_iter()
                .chain([Allow::Tcp(REGISTRY_PORT)])
                .chain(also.iter().copied())
                .collect(),
        };
        Ok(self.lab.capture(&taps, rules)?)
    }

    /// Waits until every node is protected, has its CNI configuration and a session with every other.
    ///
    /// # Errors
    ///
    /// With what is not so.
    pub fn wait_connected(&self) -> Result {
        let start = Instant::now();
        for machine in &self.machines {
            while let Some(trouble) = self.not_connected(machine) {
                if start.elapsed() > CONNECTED {
                    bail!("after {CONNECTED:?}: {trouble}");
                }
                std::thread::sleep(Duration::from_millis(500));
            }
        }
        Ok(())
    }

    fn not_connected(&self, machine: &Machine) -> Option<String> {
        let name = machine.name();
        let status = match machine.status() {
            Ok(status) => status,
            Err(e) => return Some(format!("{e:#}")),
        };
        if status["protected"] != true {
            return Some(format!("{name} is not protected: {status}"));
        }
        for other in self.machines.iter().filter(|o| o.number != machine.number) {
            let peers = status["peers"].as_array().into_iter().flatten();
            let up = |p: &serde_json::Value| p["node"] == *other.name() && p["state"] == "up";
            if !peers.into_iter().any(up) {
                let other = other.name();
                return Some(format!("{name} has no session with {other}: {status}"));
            }
        }
        match machine.try_sh("test -s /etc/cni/net.d/10-warren.conflist") {
            Ok(output) if output.success() => None,
            _ => Some(format!("{name} has no CNI configuration")),
        }
    }

    fn collect_logs(&self) {
        let dir = self.lab.dir().join("logs");
        for machine in &self.machines {
            machine.collect_logs(&dir);
        }
    }
}
