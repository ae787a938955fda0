//! One end of a tunnel, driven by `wg` and `ip` alone.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use warren_keyring::PrivateKey;
use warren_lab::poll_for;

use crate::Result;
use crate::implementation::Implementation;
use crate::machine::{Background, Machine};

/// How long anything may take that is expected to happen.
const PATIENCE: Duration = Duration::from_secs(60);

/// The family of the packets outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outer {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Outer {
    /// Both families.
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];

    /// The address on the link under test whose last number is `last`.
    pub fn address(self, last: u8) -> String {
        match self {
            Self::V4 => format!("192.0.2.{last}"),
            Self::V6 => format!("2001:db8::{last:x}"),
        }
    }

    /// The bytes that WireGuard adds to a packet in this family, its own included.
    pub fn overhead(self) -> u32 {
        match self {
            Self::V4 => 60,
            Self::V6 => 80,
        }
    }
}

/// One end: a machine with an interface of its implementation.
pub struct End {
    /// What runs here.
    pub implementation: &'static dyn Implementation,
    /// Where it runs.
    pub machine: Machine,
    /// Its port.
    pub port: u16,
    /// 1 for ours, 2 for theirs: part of all its addresses.
    number: u8,
    /// The last number of its address on the link.
    last: u8,
    key: PrivateKey,
    process: Option<Background>,
    _servers: Vec<Background>,
}

/// What is set for a peer, beside its allowed IPs.
#[derive(Debug, Clone, Copy, Default)]
pub struct PeerSettings<'a> {
    /// The family of its endpoint; none leaves the endpoint as it is.
    pub endpoint: Option<Outer>,
    /// The preshared key in base64; none clears it.
    pub preshared_key: Option<&'a str>,
    /// Seconds between keepalives; none ends them.
    pub keepalive_seconds: Option<u16>,
}

/// What `wg show dump` says of the peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerDump {
    /// Where it was last heard of.
    pub endpoint: Option<SocketAddr>,
    /// Seconds since 1970; 0 for never; none where the implementation does not tell.
    pub latest_handshake: Option<u64>,
    /// Bytes received from it.
    pub rx_bytes: u64,
    /// Bytes sent to it.
    pub tx_bytes: u64,
}

impl End {
    pub(crate) fn new(
        implementation: &'static dyn Implementation,
        machine: Machine,
        number: u8,
    ) -> Result<Self> {
        let tool = machine.program("lab-tool")?;
        let serve = |what, port| machine.spawn(&[&tool, what, "--port", port]);
        let servers = vec![serve("tcp-serve", "7000")?, serve("stream-serve", "7001")?];
        Ok(Self {
            implementation,
            port: 0,
            number,
            last: number,
            key: PrivateKey::generate()?,
            process: None,
            _servers: servers,
            machine,
        })
    }

    /// Starts anew: another key, no peer, the usual addresses.
    ///
    /// # Errors
    ///
    /// When the implementation does not come up; so for all that follow.
    pub fn start(&mut self, mtu_bytes: u32) -> Result {
        let name = self.implementation.interface();
        self.process = None;
        let socket = format!("/var/run/wireguard/{name}.sock");
        self.machine.try_run(&["ip", "link", "delete", name])?;
        self.machine.run(&["rm", "-f", &socket])?;
        self.process = self.implementation.start(&self.machine, mtu_bytes)?;
        // `wg` takes a socket that is not listened on yet for a dead one, and removes it.
        let listening = match self.process {
            Some(_) => format!("test -S {socket} && sleep 0.05 && wg show {name}"),
            None => format!("wg show {name}"),
        };
        self.wait("the implementation to be up", |end| {
            let looked = end.machine.try_run(&["sh", "-c", &listening])?;
            Ok(looked.code == Some(0))
        })?;
        self.key = PrivateKey::generate()?;
        self.port = 51_820 + u16::from(self.number);
        let (own, other) = (self.number, 3 - self.number);
        let mut script = self.private_key_script();
        let _ = write!(
            script,
            "wg set {name} listen-port {port}
             ip link set {name} mtu {mtu_bytes}
             ip link set {name} up
             ip address add 10.{own}.0.1/32 dev {name}
             ip address add fd0{own}::1/128 dev {name}
             ip route add 10.{other}.0.0/24 dev {name}
             ip -6 route add fd0{other}::/64 dev {name}
             ip address flush dev eth0 scope global\n",
            port = self.port,
        );
        self.last = own;
        for outer in Outer::BOTH {
            script += &self.address_script("add", outer);
        }
        // Until a new link is ready its IPv6 addresses are, and are not taken as a source.
        script += "while ip -6 address | grep -q tentative; do sleep 0.05; done";
        self.machine.sh(&script).map(drop)
    }

    fn address_script(&self, verb: &str, outer: Outer) -> String {
        let bits = if outer == Outer::V4 { 24 } else { 64 };
        let address = outer.address(self.last);
        format!("ip address {verb} {address}/{bits} dev eth0\n")
    }

    fn private_key_script(&self) -> String {
        format!(
            "umask 077
             echo '{}' > /run/interop.key
             wg set {} private-key /run/interop.key\n",
            *self.key.to_base64(),
            self.implementation.interface()
        )
    }

    /// Its public key.
    pub fn public_key(&self) -> String {
        self.key.public_key().to_base64()
    }

    /// Gives it another private key.
    ///
    /// # Errors
    ///
    /// With what `wg` said; so for all that change the configuration.
    pub fn change_key(&mut self) -> Result {
        self.key = PrivateKey::generate()?;
        self.machine.sh(&self.private_key_script()).map(drop)
    }

    /// Runs `wg set` on its interface.
    ///
    /// # Errors
    ///
    /// As [`change_key`](Self::change_key).
    pub fn set(&self, arguments: &[&str]) -> Result {
        let argv = [&["wg", "set", self.implementation.interface()], arguments].concat();
        self.machine.run(&argv).map(drop)
    }

    /// Adds the other end as a peer, with its endpoint where `outer` says so.
    ///
    /// # Errors
    ///
    /// As [`change_key`](Self::change_key).
    pub fn add_peer(&self, other: &End, outer: Option<Outer>) -> Result {
        let endpoint = outer;
        let settings = PeerSettings {
            endpoint,
            ..PeerSettings::default()
        };
        self.set_peer(other, &settings)
    }

    /// Sets everything of the other end as a peer, known already or not.
    ///
    /// # Errors
    ///
    /// As [`change_key`](Self::change_key).
    pub fn set_peer(&self, other: &End, settings: &PeerSettings<'_>) -> Result {
        let (name, key, n) = (
            self.implementation.interface(),
            other.public_key(),
            other.number,
        );
        let mut script = String::from("umask 077\n");
        if !self.implementation.changes_peers() {
            let _ = writeln!(script, "wg set {name} peer {key} remove");
        }
        let psk = match settings.preshared_key {
            Some(psk) => {
                let _ = writeln!(script, "echo '{psk}' > /run/interop.psk");
                "/run/interop.psk"
            }
            // An empty file clears it.
            None => "/dev/null",
        };
        let keepalive = settings
            .keepalive_seconds
            .map_or_else(|| "off".into(), |seconds| seconds.to_string());
        let _ = write!(
            script,
            "wg set {name} peer {key} preshared-key {psk} persistent-keepalive {keepalive} \
             allowed-ips 10.{n}.0.0/24,fd0{n}::/64"
        );
        if let Some(outer) = settings.endpoint {
            let _ = write!(script, " endpoint {}", other.endpoint(outer));
        }
        self.machine.sh(&script).map(drop)
    }

    /// Removes the peer of that key.
    ///
    /// # Errors
    ///
    /// As [`change_key`](Self::change_key).
    pub fn remove_peer(&self, public_key: &str) -> Result {
        self.set(&["peer", public_key, "remove"])
    }

    /// Where it is heard at.
    pub fn endpoint(&self, outer: Outer) -> String {
        match outer {
            Outer::V4 => format!("{}:{}", outer.address(self.last), self.port),
            Outer::V6 => format!("[{}]:{}", outer.address(self.last), self.port),
        }
    }

    /// Moves it to another address on the link.
    ///
    /// # Errors
    ///
    /// With what `ip` said.
    pub fn move_to(&mut self, outer: Outer, last: u8) -> Result {
        let remove = self.address_script("del", outer);
        self.last = last;
        let add = self.address_script("add", outer);
        self.machine.sh(&(remove + &add)).map(drop)
    }

    /// Moves it to another port.
    ///
    /// # Errors
    ///
    /// As [`change_key`](Self::change_key).
    pub fn listen_on(&mut self, port: u16) -> Result {
        self.port = port;
        self.set(&["listen-port", &port.to_string()])
    }

    /// What it says of the other end.
    ///
    /// # Errors
    ///
    /// When the other end is not its peer.
    pub fn dump(&self, other: &End) -> Result<PeerDump> {
        let text = self
            .machine
            .run(&["wg", "show", self.implementation.interface(), "dump"])?;
        let key = other.public_key();
        let peer = text.lines().find(|line| line.starts_with(&key));
        let fields: Vec<&str> = peer.unwrap_or_default().split('\t').collect();
        let [_, _, endpoint, _, handshake, rx, tx, _] = fields[..] else {
            bail!("no peer {key} on {}: {text}", self.machine.name());
        };
        let tells = self.implementation.tells_handshakes();
        Ok(PeerDump {
            endpoint: endpoint.parse().ok(),
            latest_handshake: tells.then(|| handshake.parse()).transpose()?,
            rx_bytes: rx.parse()?,
            tx_bytes: tx.parse()?,
        })
    }

    /// Its addresses inside the tunnel.
    pub fn inner(&self) -> [String; 2] {
        [
            format!("10.{}.0.1", self.number),
            format!("fd0{}::1", self.number),
        ]
    }

    /// Pings an address until it answers; none within the time is an error.
    ///
    /// # Errors
    ///
    /// As [`wait`](Self::wait).
    pub fn reaches(&self, address: &str) -> Result {
        self.wait(&format!("an answer of {address}"), |end| end.pings(address))
    }

    /// Whether one ping is answered within a second.
    ///
    /// # Errors
    ///
    /// When `ping` cannot be run.
    pub fn pings(&self, address: &str) -> Result<bool> {
        self.pings_within(address, "1")
    }

    /// Whether one ping is answered at all: a busy machine takes its time, and what is lost is lost.
    ///
    /// # Errors
    ///
    /// When `ping` cannot be run.
    pub fn hears(&self, address: &str) -> Result<bool> {
        self.pings_within(address, "20")
    }

    fn pings_within(&self, address: &str, seconds: &str) -> Result<bool> {
        let ping = ["ping", "-c1", "-W", seconds, address];
        Ok(self.machine.try_run(&ping)?.code == Some(0))
    }

    /// Sends bytes to the other end by TCP, which must come out as they went in.
    ///
    /// # Errors
    ///
    /// With what the sender said.
    pub fn send_tcp(&self, to: &str, bytes: u64) -> Result {
        let tool = self.machine.program("lab-tool")?;
        let to = SocketAddr::new(to.parse()?, 7000).to_string();
        let argv = [&tool, "tcp-send", &to, "--bytes", &bytes.to_string()];
        let said = self.machine.run(&argv)?;
        let said: serde_json::Value = serde_json::from_str(&said)?;
        ensure!(
            said["digest_equal"] == true && said["bytes"] == bytes,
            "{said}"
        );
        Ok(())
    }

    /// Starts a stream of numbers that the other end sends back for some seconds.
    ///
    /// # Errors
    ///
    /// When it cannot be started.
    pub fn start_stream(&self, to: &str, seconds: u64) -> Result<Stream> {
        let tool = self.machine.program("lab-tool")?;
        let to = SocketAddr::new(to.parse()?, 7001).to_string();
        let seconds_text = seconds.to_string();
        let argv = [&tool, "stream-send", &to, "--seconds", &seconds_text];
        Ok(Stream {
            sender: self.machine.spawn(&argv)?,
            limit: Duration::from_secs(seconds) + PATIENCE,
        })
    }

    /// Waits until something is so.
    ///
    /// # Errors
    ///
    /// When it is not so in time, with the end of the implementation's log.
    pub fn wait(&self, what: &str, mut condition: impl FnMut(&End) -> Result<bool>) -> Result {
        let start = Instant::now();
        let mut error = None;
        let waited = poll_for(PATIENCE, what, || match condition(self) {
            Ok(true) => Some(()),
            Ok(false) => None,
            Err(e) => {
                error = Some(e);
                Some(())
            }
        });
        match (waited, error) {
            (_, Some(e)) => Err(e),
            (Ok(()), None) => Ok(()),
            (Err(e), None) => {
                Err(e).with_context(|| format!("after {:?}\n{}", start.elapsed(), self.describe()))
            }
        }
    }

    /// Its state and the end of its log, for messages.
    pub fn describe(&self) -> String {
        let name = self.implementation.interface();
        let shown = self.machine.try_run(&["wg", "show", name]);
        let log = self.process.as_ref().map(Background::describe);
        format!(
            "{} on {}:\n{}\n{}",
            self.implementation.name(),
            self.machine.name(),
            shown.map_or_else(|e| e.to_string(), |answer| answer.stdout),
            log.unwrap_or_default()
        )
    }
}

/// A stream of numbers under way.
#[derive(Debug)]
pub struct Stream {
    sender: Background,
    limit: Duration,
}

impl Stream {
    /// Waits for its end: every number must have come back in order. Returns the longest time
    /// without one.
    ///
    /// # Errors
    ///
    /// With what the sender said.
    pub fn finish(self) -> Result<Duration> {
        let said = self.sender.finish(self.limit)?;
        let said: serde_json::Value = serde_json::from_str(&said)?;
        ensure!(
            said["error"].is_null() && said["in_order"] == true && said["sent"] == said["echoed"],
            "{said}"
        );
        let longest = said["longest_stall_ms"].as_f64();
        Ok(Duration::from_secs_f64(
            longest.context("no longest stall")? / 1e3,
        ))
    }
}
