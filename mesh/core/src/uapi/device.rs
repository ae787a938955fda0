//! The state of a device, as `get` answers it.

use std::net::SocketAddr;
use std::time::Duration;

use ipnet::IpNet;
use warren_keyring::{PresharedKey, PrivateKey, PublicKey};
use zeroize::Zeroizing;

use super::UapiError;
use super::value::{self, Lines};
use super::writer::{DEVICE_ROOM, PEER_ROOM, PREFIX_ROOM, Writer};

/// The state of a WireGuard device.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Device {
    /// The device's key, if it has one. `wg` shows no public key without it.
    pub private_key: Option<PrivateKey>,
    /// The UDP port it listens on; 0 when it does not listen.
    pub listen_port: u16,
    /// The mark of outgoing UDP packets; 0 is none.
    pub fwmark: u32,
    /// The peers, in the order of the answer.
    pub peers: Vec<Peer>,
}

/// The state of one peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// The peer's name.
    pub public_key: PublicKey,
    /// The preshared key, if there is one.
    pub preshared_key: Option<PresharedKey>,
    /// Where the peer was last heard from, or where it was said to be.
    pub endpoint: Option<SocketAddr>,
    /// When the last handshake was completed, since the Unix epoch; `None` if there was none.
    pub last_handshake: Option<Duration>,
    /// Received bytes, as counted by WireGuard.
    pub rx_bytes: u64,
    /// Sent bytes, as counted by WireGuard.
    pub tx_bytes: u64,
    /// The persistent keepalive interval in seconds; 0 is off.
    pub persistent_keepalive: u16,
    /// Whether the peer may be asked how large packets to it may be. Ours: `path_probes=true` is
    /// written where it is so, and nothing else, so that other devices' answers look as ever.
    pub path_probes: bool,
    /// The peer's prefixes, in the order of the answer.
    pub allowed_ips: Vec<IpNet>,
}

impl Device {
    /// Parses a whole answer to `get`, its `errno=` included; keys that are not known are passed
    /// over.
    ///
    /// # Errors
    /// [`UapiError::Refused`] when the device answered with an error, [`UapiError::Incomplete`]
    /// when the answer breaks off, [`UapiError::NotKeyValue`], [`UapiError::Value`],
    /// [`UapiError::Key`] and [`UapiError::Trailing`] when the text is no answer.
    pub fn parse(text: &str) -> Result<Self, UapiError> {
        let mut device = Self::default();
        let mut lines = Lines::new(text);
        while let Some((key, value)) = lines.next()? {
            match key {
                "errno" => {
                    let errno = value::errno("errno", value)?;
                    return match lines.next()? {
                        Some(_) => Err(UapiError::Trailing),
                        None if errno != 0 => Err(UapiError::Refused { errno }),
                        None => lines.end().map(|()| device),
                    };
                }
                "public_key" => {
                    device
                        .peers
                        .push(Peer::new(value::public_key("public_key", value)?));
                }
                _ => match device.peers.last_mut() {
                    Some(peer) => peer.take_line(key, value)?,
                    None => device.take_line(key, value)?,
                },
            }
        }
        Err(UapiError::Incomplete)
    }

    /// Writes the answer to `get` as wireguard-go does, without the `errno=` and the empty line
    /// that [`answer_errno`](super::answer_errno) adds.
    pub fn to_text(&self) -> Zeroizing<String> {
        let prefixes: usize = self.peers.iter().map(|peer| peer.allowed_ips.len()).sum();
        let mut text =
            Writer::with_room(DEVICE_ROOM + self.peers.len() * PEER_ROOM + prefixes * PREFIX_ROOM);
        if let Some(private_key) = &self.private_key {
            text.secret("private_key", &private_key.to_hex());
        }
        if self.listen_port != 0 {
            text.field("listen_port", self.listen_port);
        }
        if self.fwmark != 0 {
            text.field("fwmark", self.fwmark);
        }
        for peer in &self.peers {
            peer.write(&mut text);
        }
        text.finish()
    }

    fn take_line(&mut self, key: &str, value: &str) -> Result<(), UapiError> {
        match key {
            "private_key" => self.private_key = value::private_key("private_key", value)?,
            "listen_port" => self.listen_port = value::port("listen_port", value)?,
            "fwmark" => self.fwmark = value::mark("fwmark", value)?,
            _ => {}
        }
        Ok(())
    }
}

impl Peer {
    /// Makes the state of a peer with which nothing has happened yet.
    pub fn new(public_key: PublicKey) -> Self {
        Self {
            public_key,
            preshared_key: None,
            endpoint: None,
            last_handshake: None,
            rx_bytes: 0,
            tx_bytes: 0,
            persistent_keepalive: 0,
            path_probes: false,
            allowed_ips: Vec::new(),
        }
    }

    fn take_line(&mut self, key: &str, value: &str) -> Result<(), UapiError> {
        match key {
            "preshared_key" => {
                let preshared_key = value::preshared_key("preshared_key", value)?;
                self.preshared_key = (!preshared_key.is_zero()).then_some(preshared_key);
            }
            "protocol_version" => value::protocol_version("protocol_version", value)?,
            "endpoint" => self.endpoint = Some(value::endpoint("endpoint", value)?),
            "last_handshake_time_sec" => {
                let seconds = value::count("last_handshake_time_sec", value)?;
                self.set_handshake(seconds, self.handshake().subsec_nanos());
            }
            "last_handshake_time_nsec" => {
                let nanoseconds = value::nanoseconds("last_handshake_time_nsec", value)?;
                self.set_handshake(self.handshake().as_secs(), nanoseconds);
            }
            "tx_bytes" => self.tx_bytes = value::count("tx_bytes", value)?,
            "rx_bytes" => self.rx_bytes = value::count("rx_bytes", value)?,
            "persistent_keepalive_interval" => {
                self.persistent_keepalive = value::seconds("persistent_keepalive_interval", value)?;
            }
            "path_probes" => self.path_probes = value::boolean("path_probes", value)?,
            "allowed_ip" => self.allowed_ips.push(value::prefix("allowed_ip", value)?),
            _ => {}
        }
        Ok(())
    }

    fn handshake(&self) -> Duration {
        self.last_handshake.unwrap_or_default()
    }

    /// INVARIANT: `nanoseconds` is less than a second, so that nothing is carried and nothing
    /// overflows.
    fn set_handshake(&mut self, seconds: u64, nanoseconds: u32) {
        let time = Duration::new(seconds, nanoseconds);
        self.last_handshake = (!time.is_zero()).then_some(time);
    }

    fn write(&self, text: &mut Writer) {
        text.field("public_key", self.public_key.to_hex());
        match &self.preshared_key {
            Some(preshared_key) => text.secret("preshared_key", &preshared_key.to_hex()),
            None => text.secret("preshared_key", &PresharedKey::ZERO.to_hex()),
        }
        text.field("protocol_version", 1);
        if let Some(endpoint) = self.endpoint {
            text.field("endpoint", endpoint);
        }
        text.field("last_handshake_time_sec", self.handshake().as_secs());
        text.field("last_handshake_time_nsec", self.handshake().subsec_nanos());
        text.field("tx_bytes", self.tx_bytes);
        text.field("rx_bytes", self.rx_bytes);
        text.field("persistent_keepalive_interval", self.persistent_keepalive);
        if self.path_probes {
            text.field("path_probes", true);
        }
        for prefix in &self.allowed_ips {
            text.field("allowed_ip", prefix.trunc());
        }
    }
}
