//! A host with the real `warren-tunnel`, configured by the stock `wg`.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use warren_keyring::PublicKey;
use warren_lab::{Host, Lab, Proc, bin, poll_until};

/// The tunnel's port.
pub const PORT: u16 = 51871;
/// How long a program may take to come up.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Node `n` with 10.`n`.0.0/16 and fd0`n`::/64 behind it.
pub struct Node {
    /// The machine.
    pub host: Host,
    /// Its `warren-tunnel`.
    pub tunnel: Proc,
    number: u8,
}

impl Node {
    /// Makes the host and starts the tunnel on it; links come later.
    ///
    /// # Errors
    /// When the host cannot be made or the tunnel does not come up.
    pub fn start(lab: &Lab, number: u8) -> Result<Self> {
        let host = lab.host(&format!("node{number}"))?;
        let tunnel = start_tunnel(&host)?;
        let node = Self {
            host,
            tunnel,
            number,
        };
        node.configure()?;
        Ok(node)
    }

    /// Starts the tunnel again after it was killed; what it had saved is there again.
    ///
    /// # Errors
    /// As [`Node::start`].
    pub fn restart(&mut self) -> Result<()> {
        self.tunnel = start_tunnel(&self.host)?;
        self.configure()
    }

    /// Its address inside the tunnel.
    pub fn address(&self) -> String {
        format!("10.{}.0.1", self.number)
    }

    /// The tunnel's public key.
    ///
    /// # Errors
    /// When `wg` fails.
    pub fn public_key(&self) -> Result<PublicKey> {
        let shown = self.host.run(&["wg", "show", "warren0", "public-key"])?;
        shown.stdout.trim().parse().context("the key that wg shows")
    }

    /// Makes `key` a peer with these prefixes, and routes them.
    ///
    /// # Errors
    /// When `wg` or `ip` fails.
    pub fn add_peer(
        &self,
        key: &PublicKey,
        endpoint: Option<&str>,
        prefixes: &[&str],
    ) -> Result<()> {
        let endpoint = endpoint
            .map(|e| format!(" endpoint {e}"))
            .unwrap_or_default();
        let list = prefixes.join(",");
        let mut script = format!("wg set warren0 peer {key}{endpoint} allowed-ips {list}\n");
        for prefix in prefixes {
            script.push_str(&format!("ip route replace {prefix} dev warren0\n"));
        }
        self.host.sh(&script)?;
        Ok(())
    }

    /// What the status socket says, numbers only.
    ///
    /// # Errors
    /// When the tunnel does not answer.
    pub fn status(&self) -> Result<BTreeMap<String, u64>> {
        let socat = ["socat", "-", "UNIX-CONNECT:/run/warren/tunnel.sock"];
        let text = self.host.run(&socat)?.stdout;
        let numbers = text.lines().filter_map(|line| {
            let (key, value) = line.split_once('=')?;
            Some((key.to_owned(), value.parse().ok()?))
        });
        Ok(numbers.collect())
    }

    /// One number of the status.
    ///
    /// # Errors
    /// When there is no such line.
    pub fn count(&self, key: &str) -> Result<u64> {
        let status = self.status()?;
        status
            .get(key)
            .copied()
            .with_context(|| format!("{key} in {status:?}"))
    }

    /// Waits until an address answers a ping through the tunnel, and tells how long that took.
    ///
    /// # Errors
    /// When it does not within `limit`.
    pub fn wait_ping(&self, address: &str, limit: Duration) -> Result<Duration> {
        let ping = ["ping", "-c1", "-W1", address];
        let answered = || {
            self.host
                .try_run(&ping)
                .is_ok_and(|output| output.success())
        };
        Ok(poll_until(
            limit,
            &format!("a ping to {address}"),
            answered,
        )?)
    }

    /// The tunnel's resident memory in KiB: now, and the most it ever was.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn memory_kib(&self) -> Result<(u64, u64)> {
        let path = format!("/proc/{}/status", self.tunnel.pid());
        let text = std::fs::read_to_string(&path).with_context(|| path.clone())?;
        let field = |key: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(key))?;
            line.split_whitespace().next()?.parse().ok()
        };
        let found = field("VmRSS:").zip(field("VmHWM:"));
        found.with_context(|| format!("memory in {path}"))
    }

    /// Fails with the log's tail when the tunnel has ended.
    ///
    /// # Errors
    /// When it does not run.
    pub fn ensure_running(&self) -> Result<()> {
        ensure!(
            self.tunnel.is_running() && !self.tunnel.log().contains("panicked"),
            "the tunnel has crashed: {}",
            self.tunnel.describe()
        );
        Ok(())
    }

    fn configure(&self) -> Result<()> {
        let n = self.number;
        self.host.sh(&format!(
            "ip address replace 10.{n}.0.1/32 dev warren0
             ip address replace fd0{n}::1/128 dev warren0"
        ))?;
        Ok(())
    }
}

fn start_tunnel(host: &Host) -> Result<Proc> {
    let mut command = Command::new(bin("warren-tunnel")?);
    command.arg("--state-dir").arg(host.dir().join("state"));
    let tunnel = host.spawn(&mut command)?;
    tunnel.wait_log("the tunnel is up", PATIENCE)?;
    Ok(tunnel)
}
