//! A device as the messages of a dump tell it. Free of I/O.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use netlink_packet_wireguard::{
    WireguardAllowedIp, WireguardAllowedIpAttr, WireguardAttribute, WireguardMessage,
    WireguardPeer, WireguardPeerAttribute,
};
use warren_core::uapi::Peer;
use warren_keyring::PublicKey;

/// A WireGuard device of the kernel, without its secrets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WireGuardDevice {
    /// Its key, if it has one.
    pub public_key: Option<PublicKey>,
    /// Its UDP port; 0 until it was brought up without one.
    pub listen_port: u16,
    /// The mark of outgoing UDP packets; 0 is none.
    pub fwmark: u32,
    /// Its peers, in the kernel's order, their preshared keys left out.
    pub peers: Vec<Peer>,
}

impl WireGuardDevice {
    /// Puts the messages of one dump together. A peer with more prefixes than a message takes is
    /// told again in the next one, with its key and what is left of them.
    ///
    /// What cannot be, such as a peer with a key of low order, is left out.
    pub fn of_dump<'a>(messages: impl IntoIterator<Item = &'a WireguardMessage>) -> Self {
        let mut device = Self::default();
        for attribute in messages.into_iter().flat_map(|m| &m.attributes) {
            match attribute {
                WireguardAttribute::PublicKey(key) => {
                    device.public_key = PublicKey::from_bytes(*key).ok();
                }
                WireguardAttribute::ListenPort(port) => device.listen_port = *port,
                WireguardAttribute::Fwmark(mark) => device.fwmark = *mark,
                WireguardAttribute::Peers(peers) => {
                    peers.iter().for_each(|peer| device.take_peer(peer));
                }
                _ => {}
            }
        }
        device
    }

    fn take_peer(&mut self, told: &WireguardPeer) {
        let key = told.iter().find_map(|attribute| match attribute {
            WireguardPeerAttribute::PublicKey(key) => PublicKey::from_bytes(*key).ok(),
            _ => None,
        });
        let Some(key) = key else { return };
        let known = self.peers.last().is_some_and(|last| last.public_key == key);
        if !known {
            self.peers.push(Peer::new(key));
        }
        let Some(peer) = self.peers.last_mut() else {
            return;
        };
        for attribute in told.iter() {
            match attribute {
                WireguardPeerAttribute::Endpoint(endpoint) => peer.endpoint = Some(*endpoint),
                WireguardPeerAttribute::PersistentKeepalive(seconds) => {
                    peer.persistent_keepalive = *seconds;
                }
                WireguardPeerAttribute::LastHandshake(time) => {
                    let seconds = u64::try_from(time.seconds).unwrap_or_default();
                    let nanoseconds = u32::try_from(time.nano_seconds).unwrap_or_default();
                    let time = Duration::new(seconds, nanoseconds.min(999_999_999));
                    peer.last_handshake = (!time.is_zero()).then_some(time);
                }
                WireguardPeerAttribute::RxBytes(bytes) => peer.rx_bytes = *bytes,
                WireguardPeerAttribute::TxBytes(bytes) => peer.tx_bytes = *bytes,
                WireguardPeerAttribute::AllowedIps(prefixes) => {
                    peer.allowed_ips.extend(prefixes.iter().filter_map(prefix));
                }
                _ => {}
            }
        }
    }
}

fn prefix(told: &WireguardAllowedIp) -> Option<IpNet> {
    let mut address = None::<IpAddr>;
    let mut length = None;
    for attribute in told.iter() {
        match attribute {
            WireguardAllowedIpAttr::IpAddr(ip) => address = Some(*ip),
            WireguardAllowedIpAttr::Cidr(bits) => length = Some(*bits),
            _ => {}
        }
    }
    IpNet::new(address?, length?).ok()
}
