//! A node: a machine with Warren's two daemons.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use serde_json::Value;
use warren_lab::{Host, Link, Proc, bin};

use crate::mesh::{CLUSTER_V4, CLUSTER_V6};
use crate::pod::MeshPod;

/// How long a program may take to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// Says whose WireGuard the nodes use: `kernel` for all, `mixed` for those of even numbers; else
/// `warren-tunnel`'s. `make test-kernel` sets it.
const DATA_PLANE: &str = "WARREN_E2E_DATA_PLANE";

/// A machine on the underlay with `warren-tunnel` and `warren-agent`, or with the agent alone.
#[derive(Debug)]
pub struct Node {
    /// Its number: in its name, its addresses and its pod ranges.
    pub number: u8,
    /// The machine.
    pub host: Host,
    /// Its cable.
    pub link: Link,
    /// Its addresses on the underlay, preferred first; its agent finds them out when there are none.
    pub addresses: Vec<String>,
    /// The running `warren-tunnel`.
    pub tunnel: Option<Proc>,
    /// The running `warren-agent`.
    pub agent: Option<Proc>,
    /// Whether it uses the kernel's WireGuard in the place of `warren-tunnel`.
    pub in_kernel: bool,
    /// Its pod ranges, one of each family.
    pub pod_cidrs: [String; 2],
    /// What its programs find in their environment besides the test's own.
    pub env: Vec<(String, String)>,
    registry: PathBuf,
}

impl Node {
    pub(crate) fn new(
        host: Host,
        number: u8,
        addresses: Vec<String>,
        registry: PathBuf,
        link: Link,
    ) -> Self {
        Self {
            number,
            host,
            link,
            addresses,
            tunnel: None,
            agent: None,
            in_kernel: match std::env::var(DATA_PLANE).as_deref() {
                Ok("kernel") => true,
                Ok("mixed") => number.is_multiple_of(2),
                _ => false,
            },
            pod_cidrs: [
                format!("10.244.{number}.0/24"),
                format!("fd00:244:0:{number:x}::/64"),
            ],
            env: Vec::new(),
            registry,
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        self.host.name()
    }

    /// Its pod ranges.
    pub fn pod_cidrs(&self) -> [String; 2] {
        self.pod_cidrs.clone()
    }

    /// The addresses of its `warren0`.
    pub fn tunnel_addresses(&self) -> [String; 2] {
        [
            format!("10.244.{}.1", self.number),
            format!("fd00:244:0:{:x}::1", self.number),
        ]
    }

    /// Its directory for state, kept over a reboot.
    pub fn state_dir(&self) -> PathBuf {
        self.host.dir().join("state")
    }

    /// Where its agent puts the CNI configuration.
    pub fn conflist_path(&self) -> PathBuf {
        self.host.dir().join("cni").join("10-warren.conflist")
    }

    /// Starts both daemons.
    pub fn start(&mut self) -> Result<()> {
        self.start_tunnel()?;
        self.start_agent()
    }

    /// Starts `warren-tunnel`, where the node has one.
    pub fn start_tunnel(&mut self) -> Result<()> {
        if self.in_kernel {
            return Ok(());
        }
        let mut command = Command::new(bin("warren-tunnel")?);
        command.arg("--state-dir").arg(self.state_dir());
        command.envs(self.env.clone());
        self.tunnel = Some(self.host.spawn(&mut command)?);
        Ok(())
    }

    /// Ends what carries its traffic, as if the node had left; its agent must have ended.
    pub fn end_data_plane(&mut self) -> Result<()> {
        match self.tunnel.take() {
            Some(tunnel) => tunnel.kill(),
            None => drop(self.host.sh("ip link delete warren0")?),
        }
        Ok(())
    }

    /// Gives it a new key, as operators do.
    pub fn renew_key(&mut self) -> Result<()> {
        let daemon = match self.in_kernel {
            true => self.agent.take(),
            false => self.tunnel.take(),
        };
        daemon
            .context("the daemon with the key does not run")?
            .kill();
        std::fs::remove_file(self.state_dir().join("private.key"))?;
        match self.in_kernel {
            true => self.start_agent(),
            false => self.start_tunnel(),
        }
    }

    /// Starts `warren-agent` with the file registry.
    pub fn start_agent(&mut self) -> Result<()> {
        std::fs::create_dir_all(self.host.dir().join("cni"))?;
        let mut command = Command::new(bin("warren-agent")?);
        command
            .args(["--node-name", self.name()])
            .arg("--registry-dir")
            .arg(&self.registry)
            .args(["--cluster-cidrs", &format!("{CLUSTER_V4},{CLUSTER_V6}")])
            .args(["--pod-cidrs", &self.pod_cidrs().join(",")])
            .arg("--state-dir")
            .arg(self.state_dir())
            .arg("--cni-conf-dir")
            .arg(self.host.dir().join("cni"));
        if self.in_kernel {
            command.args(["--data-plane", "kernel"]);
        }
        if !self.addresses.is_empty() {
            command.args(["--node-addresses", &self.addresses.join(",")]);
        }
        command.envs(self.env.clone());
        self.agent = Some(self.host.spawn(&mut command)?);
        Ok(())
    }

    /// Attaches a pod by `warren-cni` with the agent's configuration.
    pub fn attach(&self, name: &str) -> Result<MeshPod> {
        MeshPod::attach(self, name)
    }

    /// Its agent's status document.
    pub fn status(&self) -> Result<Value> {
        let out = self.warren(&["status", "--json"])?;
        serde_json::from_str(&out.1)
            .with_context(|| format!("status of {}: {}", self.name(), out.1))
    }

    /// Runs `warren` there and gives its exit code and standard output.
    pub fn warren(&self, args: &[&str]) -> Result<(i32, String)> {
        let mut command = Command::new(bin("warren")?);
        command.args(args).envs(self.env.clone());
        let out = self.host.output(&mut command, ANSWER_LIMIT)?;
        Ok((out.status.code().unwrap_or(-1), out.stdout))
    }

    /// What its agent says of the peer that is node `other`.
    pub fn peer_status(&self, other: &Node) -> Result<Value> {
        let status = self.status()?;
        let peers = status["peers"].as_array().cloned().unwrap_or_default();
        let found = peers.into_iter().find(|p| p["node"] == *other.name());
        found.ok_or_else(|| anyhow!("{} does not know {}: {status}", self.name(), other.name()))
    }

    /// Reads a file of the node, such as its CNI configuration.
    pub fn read(&self, path: &Path) -> Result<String> {
        std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))
    }

    /// The ends of its daemons' logs, for messages.
    pub fn describe(&self) -> String {
        let logs = [&self.tunnel, &self.agent].map(|p| p.as_ref().map(Proc::describe));
        format!(
            "--- {}\n{}",
            self.name(),
            logs.into_iter().flatten().collect::<Vec<_>>().join("\n")
        )
    }
}
