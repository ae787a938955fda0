//! The request that changes a device.

use std::net::SocketAddr;

use ipnet::IpNet;
use warren_keyring::{PresharedKey, PrivateKey, PublicKey};
use zeroize::Zeroizing;

use super::UapiError;
use super::error::{Section, ShownKey};
use super::value::{self, Lines};
use super::writer::{DEVICE_ROOM, PEER_ROOM, PREFIX_ROOM, Writer};

/// A change of a device; what is `None` or empty stays as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SetRequest {
    /// The device's new private key; `Some(None)` takes its key away.
    pub private_key: Option<Option<PrivateKey>>,
    /// The UDP port to listen on; 0 lets the kernel choose.
    pub listen_port: Option<u16>,
    /// The mark of outgoing UDP packets; 0 is none.
    pub fwmark: Option<u32>,
    /// Whether all present peers go before `peers` are applied.
    pub replace_peers: bool,
    /// The changes of peers, in order; one peer may come several times.
    pub peers: Vec<PeerUpdate>,
}

/// A change of one peer, which is made if it is not there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerUpdate {
    /// Which peer.
    pub public_key: PublicKey,
    /// Whether the peer goes; all else is then without effect.
    pub remove: bool,
    /// Whether nothing is done if the peer is not there.
    pub update_only: bool,
    /// The new preshared key; the zero key takes it away.
    pub preshared_key: Option<PresharedKey>,
    /// The new endpoint.
    pub endpoint: Option<SocketAddr>,
    /// The new persistent keepalive interval in seconds; 0 switches it off.
    pub persistent_keepalive: Option<u16>,
    /// Whether the peer may be asked how large packets to it may be: `path_probes`, which is ours.
    pub path_probes: Option<bool>,
    /// Whether all present allowed IPs of the peer go before `allowed_ips` are applied.
    pub replace_allowed_ips: bool,
    /// The changes of allowed IPs, in order.
    pub allowed_ips: Vec<AllowedIpUpdate>,
}

/// A change of one allowed IP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AllowedIpUpdate {
    /// The peer has the prefix from now on, whoever had it before: `allowed_ip=CIDR`.
    Add(IpNet),
    /// The peer loses the prefix, if it has it: `allowed_ip=-CIDR`.
    Remove(IpNet),
}

impl SetRequest {
    /// Parses the lines after `set=1`, up to the empty line or the end of the text.
    ///
    /// A line that comes twice counts as the last time. Prefixes lose their host bits.
    ///
    /// # Errors
    /// [`UapiError::NotKeyValue`], [`UapiError::UnknownKey`], [`UapiError::Value`] and
    /// [`UapiError::Key`] for a line that cannot be, [`UapiError::Trailing`] for text after the
    /// empty line. Nothing of the request may then be applied.
    pub fn parse(lines: &str) -> Result<Self, UapiError> {
        let mut request = Self::default();
        let mut lines = Lines::new(lines);
        while let Some((key, value)) = lines.next()? {
            request.take_line(key, value)?;
        }
        lines.end()?;
        Ok(request)
    }

    /// Writes the whole request, from `set=1` to the final empty line.
    pub fn to_text(&self) -> Zeroizing<String> {
        let prefixes: usize = self.peers.iter().map(|peer| peer.allowed_ips.len()).sum();
        let mut text =
            Writer::with_room(DEVICE_ROOM + self.peers.len() * PEER_ROOM + prefixes * PREFIX_ROOM);
        text.field("set", 1);
        match &self.private_key {
            Some(Some(private_key)) => text.secret("private_key", &private_key.to_hex()),
            // The key of zero bytes says "none" in this protocol, for either kind of secret.
            Some(None) => text.secret("private_key", &PresharedKey::ZERO.to_hex()),
            None => {}
        }
        if let Some(port) = self.listen_port {
            text.field("listen_port", port);
        }
        if let Some(mark) = self.fwmark {
            text.field("fwmark", mark);
        }
        if self.replace_peers {
            text.field("replace_peers", true);
        }
        for peer in &self.peers {
            peer.write(&mut text);
        }
        text.empty_line();
        text.finish()
    }

    fn take_line(&mut self, key: &str, value: &str) -> Result<(), UapiError> {
        if key == "public_key" {
            let public_key = value::public_key("public_key", value)?;
            self.peers.push(PeerUpdate::new(public_key));
            return Ok(());
        }
        match self.peers.last_mut() {
            Some(peer) => peer.take_line(key, value),
            None => self.take_device_line(key, value),
        }
    }

    fn take_device_line(&mut self, key: &str, value: &str) -> Result<(), UapiError> {
        match key {
            "private_key" => self.private_key = Some(value::private_key("private_key", value)?),
            "listen_port" => self.listen_port = Some(value::port("listen_port", value)?),
            "fwmark" => self.fwmark = Some(value::mark("fwmark", value)?),
            "replace_peers" => self.replace_peers = value::flag("replace_peers", value)?,
            _ => return Err(unknown(Section::Device, key)),
        }
        Ok(())
    }
}

/// Parses the lines after `set=1` as they come in, so that a wrong one can be answered at once and
/// the text, which may hold keys, need not be kept.
#[derive(Debug, Default)]
pub struct SetParser {
    request: SetRequest,
    lines: usize,
}

impl SetParser {
    /// Takes the next line, without its line feed; not the empty line that ends the request.
    ///
    /// # Errors
    /// As [`SetRequest::parse`]; the request must then be given up.
    pub fn take_line(&mut self, line: &str) -> Result<(), UapiError> {
        self.lines += 1;
        let (key, value) = line
            .split_once('=')
            .ok_or(UapiError::NotKeyValue { line: self.lines })?;
        self.request.take_line(key, value)
    }

    /// Returns the request, after its last line.
    pub fn finish(self) -> SetRequest {
        self.request
    }
}

impl PeerUpdate {
    /// Makes an update that only makes sure that the peer is there.
    pub fn new(public_key: PublicKey) -> Self {
        Self {
            public_key,
            remove: false,
            update_only: false,
            preshared_key: None,
            endpoint: None,
            persistent_keepalive: None,
            path_probes: None,
            replace_allowed_ips: false,
            allowed_ips: Vec::new(),
        }
    }

    fn take_line(&mut self, key: &str, value: &str) -> Result<(), UapiError> {
        match key {
            "remove" => self.remove = value::flag("remove", value)?,
            "update_only" => self.update_only = value::flag("update_only", value)?,
            "preshared_key" => {
                self.preshared_key = Some(value::preshared_key("preshared_key", value)?);
            }
            "endpoint" => self.endpoint = Some(value::endpoint("endpoint", value)?),
            "persistent_keepalive_interval" => {
                let seconds = value::seconds("persistent_keepalive_interval", value)?;
                self.persistent_keepalive = Some(seconds);
            }
            "path_probes" => self.path_probes = Some(value::boolean("path_probes", value)?),
            "replace_allowed_ips" => {
                self.replace_allowed_ips = value::flag("replace_allowed_ips", value)?;
                // The reference works line by line: this one undoes what came before it.
                self.allowed_ips.clear();
            }
            "allowed_ip" => {
                let update = match value.strip_prefix('-') {
                    Some(prefix) => AllowedIpUpdate::Remove(value::prefix("allowed_ip", prefix)?),
                    None => AllowedIpUpdate::Add(value::prefix("allowed_ip", value)?),
                };
                self.allowed_ips.push(update);
            }
            "protocol_version" => value::protocol_version("protocol_version", value)?,
            _ => return Err(unknown(Section::Peer, key)),
        }
        Ok(())
    }

    fn write(&self, text: &mut Writer) {
        text.field("public_key", self.public_key.to_hex());
        // Before `remove`: a server that works line by line makes the peer otherwise.
        if self.update_only {
            text.field("update_only", true);
        }
        if self.remove {
            text.field("remove", true);
        }
        if let Some(preshared_key) = &self.preshared_key {
            text.secret("preshared_key", &preshared_key.to_hex());
        }
        if let Some(endpoint) = self.endpoint {
            text.field("endpoint", endpoint);
        }
        if let Some(seconds) = self.persistent_keepalive {
            text.field("persistent_keepalive_interval", seconds);
        }
        if let Some(path_probes) = self.path_probes {
            text.field("path_probes", path_probes);
        }
        if self.replace_allowed_ips {
            text.field("replace_allowed_ips", true);
        }
        for update in &self.allowed_ips {
            match update {
                AllowedIpUpdate::Add(prefix) => text.field("allowed_ip", prefix.trunc()),
                AllowedIpUpdate::Remove(prefix) => {
                    text.field("allowed_ip", format_args!("-{}", prefix.trunc()));
                }
            }
        }
    }
}

fn unknown(section: Section, key: &str) -> UapiError {
    UapiError::UnknownKey {
        section,
        key: ShownKey::new(key),
    }
}
