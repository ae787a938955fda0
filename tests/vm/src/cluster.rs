//! Machines on a private network.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::bail;
use warren_lab::{Allow, Bridge, Capture, ClearTextRules, Lab};

use crate::machine::Machine;
use crate::payload::{self, Version};
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

impl Cluster {
    /// Starts machines and makes them nodes of a mesh that is up; node1 with the programs of this version, the others
    /// with the current ones.
    ///
    /// # Errors
    ///
    /// With what did not come up. What the machines tell of it is kept beside the build's output.
    pub fn start(name: &str, settings: Settings, first: Version) -> Result<Self> {
        let lab = Lab::new(name)?;
        let lan = lab.bridge("lan")?;
        let mut cluster = Self {
            machines: Vec::new(),
            settings,
            lan,
            lab,
        };
        match cluster.bring_up(first) {
            Ok(()) => Ok(cluster),
            Err(e) => {
                cluster.collect_logs();
                Err(match cluster.keep_logs() {
                    Some(dir) => e.context(format!("logs are kept in {}", dir.display())),
                    None => e,
                })
            }
        }
    }

    fn bring_up(&mut self, first: Version) -> Result {
        let start = Instant::now();
        let archive = self.lab.dir().join("payload.tar");
        for number in 1..=self.settings.machines {
            let host = self.lab.host(&format!("node{number}"))?;
            if number == 1 {
                payload::pack(&host, &archive, first == Version::Earlier)?;
            }
            let link = self.lab.connect(host.end("eth0"), self.lan.port())?;
            let mut machine = Machine::new(host, number, link, &self.settings, &archive)?;
            machine.power_on()?;
            self.machines.push(machine);
        }
        for machine in &mut self.machines {
            machine.wait_up()?;
        }
        println!("machines up after {:.1?}", start.elapsed());
        self.each(|machine| {
            machine.unpack()?;
            let version = if machine.number == 1 {
                first
            } else {
                Version::Current
            };
            machine.provision(&self.settings, version)
        })?;
        println!("nodes made after {:.1?}", start.elapsed());
        self.wait_connected()?;
        println!("the mesh is up after {:.1?}", start.elapsed());
        Ok(())
    }

    /// Does something with all machines at once: each waits most of the time.
    fn each(&self, what: impl Fn(&Machine) -> Result + Sync) -> Result {
        let results: Vec<Result> = std::thread::scope(|scope| {
            let started: Vec<_> = self
                .machines
                .iter()
                .map(|machine| scope.spawn(|| what(machine)))
                .collect();
            let panicked = |_| anyhow::anyhow!("a thread with a machine of its own panicked");
            started
                .into_iter()
                .map(|thread| thread.join().map_err(panicked).flatten())
                .collect()
        });
        results.into_iter().collect()
    }

    /// Makes the cluster what it was at the start, whatever a test has left: cables whole, machines on, no pods, the mesh
    /// up.
    ///
    /// # Errors
    ///
    /// With what cannot be had.
    pub fn tidy(&mut self) -> Result {
        for machine in &mut self.machines {
            machine.link.restore()?;
            if !machine.is_on() {
                machine.power_on()?;
                machine.wait_up()?;
            }
        }
        self.each(|machine| {
            machine.sh("for pod in $(ls /run/netns 2>/dev/null); do pod del $pod; done")?;
            Ok(())
        })?;
        self.wait_connected()
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

    /// Waits until every node is protected, has its CNI configuration and a session with every other. A pair that has had
    /// nothing to say is given something, for it has no session.
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
            let mut peers = status["peers"].as_array().into_iter().flatten();
            let peer = peers.find(|peer| peer["node"] == *other.name());
            let state = peer.map_or("", |peer| peer["state"].as_str().unwrap_or_default());
            if state == "idle" {
                let address = self.settings.tunnel_address(other.number);
                let _ = machine.try_sh(&format!("ping -n -q -c 1 -W 5 {address}"));
            }
            if state != "up" {
                let other = other.name();
                return Some(format!("{name} has no session with {other}: {status}"));
            }
        }
        match machine.try_sh("test -s /etc/cni/net.d/10-warren.conflist") {
            Ok(output) if output.success() => None,
            _ => Some(format!("{name} has no CNI configuration")),
        }
    }

    /// Asks the machines what tells of a failure, as far as they still answer; it becomes part of the logs.
    pub fn collect_logs(&self) {
        let dir = self.lab.dir().join("logs");
        for machine in &self.machines {
            machine.collect_logs(&dir);
        }
    }

    /// Copies the logs of all programs, consoles among them, to where they stay.
    pub fn keep_logs(&self) -> Option<PathBuf> {
        self.lab.keep_logs()
    }
}
