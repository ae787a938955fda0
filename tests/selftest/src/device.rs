//! An interface of either kind, driven by `wg` and `ip`.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use warren_keyring::PrivateKey;
use warren_lab::{Host, Proc, bin, poll_for, poll_until};

use crate::Result;
use crate::kind::Kind;

/// How long anything may take that is expected to happen.
const LIMIT: Duration = Duration::from_secs(30);

/// A WireGuard interface.
#[derive(Debug)]
pub struct Device {
    /// What it is.
    pub kind: Kind,
    /// Where `wg` finds it, and where its datagrams go out.
    pub host: Host,
    /// The interface's name.
    pub name: String,
    key: PrivateKey,
    process: Option<Proc>,
}

impl Device {
    /// Makes it, down and without a key, as `ip link add` does.
    ///
    /// # Errors
    ///
    /// When it does not come up; so for all that follow.
    pub fn bare(kind: Kind, host: &Host, name: &str) -> Result<Self> {
        let process = match kind {
            Kind::Kernel => {
                host.run(&["ip", "link", "add", name, "type", "wireguard"])?;
                None
            }
            Kind::Ours => {
                let program = bin("warren-tunnel")?;
                let program = program.to_string_lossy();
                let started = host.spawn_argv(&[&*program, "-f", "--log", "info", name])?;
                started.wait_log("the tunnel is up", LIMIT)?;
                Some(started)
            }
        };
        Ok(Self {
            kind,
            host: host.clone(),
            name: name.to_owned(),
            key: PrivateKey::generate()?,
            process,
        })
    }

    /// Makes it with a key of its own and this port.
    ///
    /// # Errors
    ///
    /// As [`bare`](Self::bare).
    pub fn new(kind: Kind, host: &Host, name: &str, port: u16) -> Result<Self> {
        let mut device = Self::bare(kind, host, name)?;
        device.set_key(PrivateKey::generate()?)?;
        device.set(&["listen-port", &port.to_string()])?;
        Ok(device)
    }

    /// Gives it that private key.
    ///
    /// # Errors
    ///
    /// With what `wg` said.
    pub fn set_key(&mut self, key: PrivateKey) -> Result {
        let file = self.secret("key", &key.to_base64())?;
        self.set(&["private-key", &file])?;
        self.key = key;
        Ok(())
    }

    /// Its public key, in base64.
    pub fn public_key(&self) -> String {
        self.key.public_key().to_base64()
    }

    /// Writes a key to a file that `wg` on this host can read, and returns its path.
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    pub fn secret(&self, name: &str, base64: &str) -> Result<String> {
        let path = self.host.dir().join(format!("{}-{name}", self.name));
        fs::write(&path, format!("{base64}\n")).context("write a key")?;
        Ok(path.to_string_lossy().into_owned())
    }

    /// Runs `wg set` on it.
    ///
    /// # Errors
    ///
    /// With what `wg` said.
    pub fn set(&self, arguments: &[&str]) -> Result {
        let argv = [&["wg", "set", &self.name], arguments].concat();
        self.host.run(&argv).map(drop).map_err(Into::into)
    }

    /// Sets something of a peer.
    ///
    /// # Errors
    ///
    /// With what `wg` said.
    pub fn set_peer(&self, public_key: &str, arguments: &[&str]) -> Result {
        self.set(&[&["peer", public_key], arguments].concat())
    }

    /// Runs `wg show` on it.
    ///
    /// # Errors
    ///
    /// With what `wg` said.
    pub fn show(&self, what: &str) -> Result<String> {
        Ok(self.host.run(&["wg", "show", &self.name, what])?.stdout)
    }

    /// What `wg show` says of one peer, in its fields.
    fn of_peer(&self, what: &str, public_key: &str) -> Result<Vec<String>> {
        let shown = self.show(what)?;
        let line = shown.lines().find_map(|line| {
            let rest = line.strip_prefix(public_key)?;
            Some(rest.split_whitespace().map(str::to_owned).collect())
        });
        line.with_context(|| format!("no peer {public_key} on {}: {shown}", self.host.name()))
    }

    /// Where it sends to.
    ///
    /// # Errors
    ///
    /// When there is no such peer.
    pub fn endpoint(&self, public_key: &str) -> Result<String> {
        Ok(self.of_peer("endpoints", public_key)?.concat())
    }

    /// Bytes received from a peer, and sent to it.
    ///
    /// # Errors
    ///
    /// When there is no such peer.
    pub fn transfer(&self, public_key: &str) -> Result<(u64, u64)> {
        let fields = self.of_peer("transfer", public_key)?;
        let [rx, tx] = &fields[..] else {
            bail!("not two numbers: {fields:?}");
        };
        Ok((rx.parse()?, tx.parse()?))
    }

    /// The time of a peer's last handshake in seconds since 1970; 0 for none.
    ///
    /// # Errors
    ///
    /// When there is no such peer.
    pub fn latest_handshake(&self, public_key: &str) -> Result<u64> {
        let fields = self.of_peer("latest-handshakes", public_key)?;
        fields.concat().parse().context("not a time")
    }

    /// Bytes received and sent by the interface, as the kernel's link statistics count.
    ///
    /// # Errors
    ///
    /// When the interface is not on this host.
    pub fn link_bytes(&self) -> Result<(u64, u64)> {
        let said = self
            .host
            .run(&["ip", "-json", "-stats", "link", "show", &self.name])?;
        let json = said.json()?;
        let bytes = |way| json[0]["stats64"][way]["bytes"].as_u64();
        bytes("rx")
            .zip(bytes("tx"))
            .with_context(|| format!("no statistics: {json}"))
    }

    /// Runs a script where `$dev` is its name.
    ///
    /// # Errors
    ///
    /// With what the script said.
    pub fn sh(&self, script: &str) -> Result<String> {
        let script = format!("dev={}\n{script}", self.name);
        Ok(self.host.sh(&script)?.stdout)
    }

    /// Waits until something is so.
    ///
    /// # Errors
    ///
    /// When it is not so in time, with what the device looks like then.
    pub fn wait(&self, what: &str, mut condition: impl FnMut(&Self) -> Result<bool>) -> Result {
        let waited = poll_for(LIMIT, what, || match condition(self) {
            Ok(true) => Some(Ok(())),
            Ok(false) => None,
            Err(error) => Some(Err(error)),
        });
        waited
            .with_context(|| self.describe())
            .and_then(|result| result)
    }

    /// Its state and the end of its log, for messages.
    pub fn describe(&self) -> String {
        let shown = self.host.try_run(&["wg", "show", &self.name]);
        let log = self.process.as_ref().map(Proc::describe);
        format!(
            "{:?} on {}:\n{}\n{}",
            self.kind,
            self.host.name(),
            shown.map_or_else(|e| e.to_string(), |said| said.stdout + &said.stderr),
            log.unwrap_or_default()
        )
    }

    /// Removes the interface; a process that serves it ends.
    ///
    /// # Errors
    ///
    /// When there is none, or the process goes on.
    pub fn remove(self) -> Result {
        self.host.run(&["ip", "link", "delete", &self.name])?;
        self.wait_ended()
    }

    /// Waits until the process that serves it has ended, where there is one.
    ///
    /// # Errors
    ///
    /// When it goes on, or ends with an error.
    pub fn wait_ended(&self) -> Result {
        let Some(process) = &self.process else {
            return Ok(());
        };
        let status = process.wait_timeout(LIMIT)?;
        ensure!(status.success(), "{status}: {}", process.describe());
        let socket = format!("/var/run/wireguard/{}.sock", self.name);
        poll_until(LIMIT, "its socket to be gone", || {
            let there = self.host.try_run(&["test", "-e", &socket]);
            there.is_ok_and(|said| !said.success())
        })?;
        Ok(())
    }
}
