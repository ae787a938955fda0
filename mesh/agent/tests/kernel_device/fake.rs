//! A kernel with WireGuard that does with each message what Linux does (drivers/net/wireguard/netlink.c):
//! entry by entry, what failed ends it and what came before stays.

use std::collections::BTreeMap;

use ipnet::IpNet;
use netlink_packet_core::{Emitable, NlasIterator, Parseable};
use netlink_packet_wireguard::{
    WireguardAllowedIp, WireguardAllowedIpAttr, WireguardAllowedIpFlags, WireguardAttribute,
    WireguardCmd, WireguardMessage, WireguardPeer, WireguardPeerAttribute, WireguardPeerFlags,
};
use warren_agent::dataplane::{DataPlaneError, Found, WireGuardKernel};
use warren_keyring::{PrivateKey, PublicKey};
use warren_netlink::NetlinkError;
use warren_netlink::wireguard::{SetMessage, WireGuardDevice};

pub(crate) const EINVAL: i32 = 22;
const EEXIST: i32 = 17;
const ENODEV: i32 = 19;
/// How many prefixes one message of a dump takes here, so that peers go on in the next one.
const DUMP_PREFIXES: usize = 3;

type Key = [u8; 32];

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct FakePeer {
    pub(crate) endpoint: Option<std::net::SocketAddr>,
    pub(crate) keepalive: u16,
    /// How many keepalives were sent because they were switched on.
    pub(crate) kicks: usize,
}

#[derive(Debug, Default)]
pub(crate) struct FakeKernel {
    /// The kind of the link, if there is one.
    pub(crate) link: Option<String>,
    pub(crate) mtu_bytes: u32,
    pub(crate) private_key: Option<Key>,
    pub(crate) port: u16,
    pub(crate) peers: BTreeMap<Key, FakePeer>,
    /// Whose each prefix is.
    pub(crate) owners: BTreeMap<IpNet, Key>,
    /// The owners after each single step since the test began to watch; none before.
    pub(crate) moments: Vec<BTreeMap<IpNet, Key>>,
    pub(crate) is_watched: bool,
    pub(crate) messages: usize,
    /// Whether single prefixes can be removed: Linux 6.16.
    pub(crate) knows_removal: bool,
    /// Refuses every message with this error.
    pub(crate) broken: Option<i32>,
    /// Who serves the interface.
    pub(crate) holder: Option<String>,
}

impl FakeKernel {
    fn refuse(operation: &'static str, errno: i32) -> NetlinkError {
        NetlinkError::Kernel {
            operation,
            subject: "warren0".into(),
            errno,
            detail: None,
        }
    }

    /// Begins to watch, or forgets what was seen.
    pub(crate) fn watch(&mut self) {
        self.moments.clear();
        self.is_watched = true;
    }

    fn note(&mut self) {
        if self.is_watched {
            self.moments.push(self.owners.clone());
        }
    }

    fn set_peer(&mut self, told: &WireguardPeer) -> Result<(), i32> {
        let mut key = None;
        let mut flags = WireguardPeerFlags::empty();
        let (mut endpoint, mut keepalive, mut prefixes) = (None, None, None);
        for attribute in told.iter() {
            match attribute {
                WireguardPeerAttribute::PublicKey(told) => key = Some(*told),
                WireguardPeerAttribute::Flags(told) => flags = *told,
                WireguardPeerAttribute::Endpoint(told) => endpoint = Some(*told),
                WireguardPeerAttribute::PersistentKeepalive(told) => keepalive = Some(*told),
                WireguardPeerAttribute::AllowedIps(told) => prefixes = Some(told),
                other => panic!("the kernel is not told {other:?}"),
            }
        }
        let key = key.ok_or(EINVAL)?;
        let known = self.peers.contains_key(&key);
        if flags.contains(WireguardPeerFlags::RemoveMe) {
            self.peers.remove(&key);
            self.owners.retain(|_, owner| *owner != key);
            self.note();
            return Ok(());
        }
        if !known && flags.contains(WireguardPeerFlags::UpdateOnly) {
            return Ok(());
        }
        let peer = self.peers.entry(key).or_default();
        peer.endpoint = endpoint.or(peer.endpoint);
        if flags.contains(WireguardPeerFlags::ReplaceAllowedIps) {
            self.owners.retain(|_, owner| *owner != key);
            self.note();
        }
        for prefix in prefixes.into_iter().flatten() {
            self.set_prefix(key, prefix)?;
            self.note();
        }
        let peer = self.peers.entry(key).or_default();
        if let Some(seconds) = keepalive {
            peer.kicks += usize::from(peer.keepalive == 0 && seconds > 0);
            peer.keepalive = seconds;
        }
        Ok(())
    }

    fn set_prefix(&mut self, key: Key, told: &WireguardAllowedIp) -> Result<(), i32> {
        let (mut address, mut length, mut flags) = (None, None, None);
        for attribute in told.iter() {
            match attribute {
                WireguardAllowedIpAttr::IpAddr(told) => address = Some(*told),
                WireguardAllowedIpAttr::Cidr(told) => length = Some(*told),
                WireguardAllowedIpAttr::Family(_) => {}
                WireguardAllowedIpAttr::Flags(told) => flags = Some(*told),
                other => panic!("the kernel is not told {other:?}"),
            }
        }
        if flags.is_some() && !self.knows_removal {
            return Err(EINVAL);
        }
        let net = IpNet::new(address.ok_or(EINVAL)?, length.ok_or(EINVAL)?).map_err(|_| EINVAL)?;
        if flags.is_some_and(|f| f.contains(WireguardAllowedIpFlags::RemoveMe)) {
            if self.owners.get(&net) == Some(&key) {
                self.owners.remove(&net);
            }
        } else {
            self.owners.insert(net, key);
        }
        Ok(())
    }

    fn dump(&self) -> Vec<WireguardMessage> {
        let message = |attributes| WireguardMessage {
            cmd: WireguardCmd::GetDevice,
            attributes,
        };
        let mut head = vec![WireguardAttribute::ListenPort(self.port)];
        if let Some(key) = self.private_key {
            let private = PrivateKey::from_bytes(key).unwrap();
            let public = *private.public_key().as_bytes();
            head.push(WireguardAttribute::PublicKey(public));
        }
        let mut out = vec![message(head)];
        for (key, peer) in &self.peers {
            let mut first = vec![
                WireguardPeerAttribute::PublicKey(*key),
                WireguardPeerAttribute::PersistentKeepalive(peer.keepalive),
            ];
            first.extend(peer.endpoint.map(WireguardPeerAttribute::Endpoint));
            let own = self.owners.iter().filter(|(_, owner)| *owner == key);
            let nets: Vec<IpNet> = own.map(|(net, _)| *net).collect();
            for (i, chunk) in nets.chunks(DUMP_PREFIXES).enumerate() {
                let again = vec![WireguardPeerAttribute::PublicKey(*key)];
                let mut entry = if i == 0 { first.clone() } else { again };
                let told = chunk.iter().map(|net| {
                    WireguardAllowedIp(vec![
                        WireguardAllowedIpAttr::IpAddr(net.addr()),
                        WireguardAllowedIpAttr::Cidr(net.prefix_len()),
                    ])
                });
                entry.push(WireguardPeerAttribute::AllowedIps(told.collect()));
                out.push(message(vec![WireguardAttribute::Peers(vec![
                    WireguardPeer(entry),
                ])]));
            }
            if nets.is_empty() {
                out.push(message(vec![WireguardAttribute::Peers(vec![
                    WireguardPeer(first),
                ])]));
            }
        }
        out
    }

    /// The private key as the device has it.
    pub(crate) fn public_key(&self) -> Option<PublicKey> {
        let key = PrivateKey::from_bytes(self.private_key?).ok()?;
        Some(key.public_key())
    }
}

/// What was sent, read back from its bytes.
fn received(message: &WireguardMessage) -> Vec<WireguardAttribute> {
    let attributes = message.attributes.as_slice();
    let mut bytes = vec![0; attributes.buffer_len()];
    attributes.emit(&mut bytes);
    assert!(
        bytes.len() < 60 * 1024,
        "a message of {} bytes",
        bytes.len()
    );
    NlasIterator::new(&bytes[..])
        .map(|attribute| WireguardAttribute::parse(&attribute.unwrap()).unwrap())
        .collect()
}

impl WireGuardKernel for FakeKernel {
    fn claim(&mut self, interface: &str) -> Result<(), DataPlaneError> {
        match &self.holder {
            Some(holder) => Err(DataPlaneError::Claimed {
                interface: interface.to_owned(),
                holder: holder.clone(),
            }),
            None => Ok(()),
        }
    }

    async fn find(&mut self, _: &str) -> Result<Found, NetlinkError> {
        Ok(match self.link.as_deref() {
            None => Found::Nothing,
            Some("wireguard") => Found::Device(WireGuardDevice::of_dump(&self.dump())),
            Some(other) => Found::Other(other.to_owned()),
        })
    }

    async fn make_link(&mut self, _: &str, mtu_bytes: u32) -> Result<(), NetlinkError> {
        if self.link.is_some() {
            return Err(Self::refuse("add link", EEXIST));
        }
        self.link = Some("wireguard".into());
        self.mtu_bytes = mtu_bytes;
        Ok(())
    }

    async fn remove_link(&mut self, _: &str) -> Result<(), NetlinkError> {
        *self = Self {
            knows_removal: self.knows_removal,
            ..Self::default()
        };
        Ok(())
    }

    fn set(&mut self, interface: &str, message: &SetMessage) -> Result<(), NetlinkError> {
        self.messages += 1;
        let refuse = |errno| Self::refuse("set device", errno);
        if let Some(errno) = self.broken {
            return Err(refuse(errno));
        }
        if self.link.as_deref() != Some("wireguard") {
            return Err(refuse(ENODEV));
        }
        for attribute in received(message.message()) {
            match attribute {
                WireguardAttribute::IfName(name) => assert_eq!(name, interface),
                WireguardAttribute::PrivateKey(key) => self.private_key = Some(key),
                WireguardAttribute::ListenPort(port) => self.port = port,
                WireguardAttribute::Peers(peers) => {
                    for peer in &peers {
                        self.set_peer(peer).map_err(refuse)?;
                    }
                }
                other => panic!("the kernel is not told {other:?}"),
            }
        }
        Ok(())
    }
}
