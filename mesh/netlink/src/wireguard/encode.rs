//! A change of a device as the messages that carry it out. Free of I/O.

use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::{Emitable, NetlinkBuffer};
use netlink_packet_wireguard::{
    WireguardAddressFamily, WireguardAllowedIp, WireguardAllowedIpAttr, WireguardAllowedIpFlags,
    WireguardAttribute, WireguardCmd, WireguardDeviceFlags, WireguardMessage, WireguardPeer,
    WireguardPeerAttribute, WireguardPeerFlags,
};
use warren_core::uapi::{AllowedIpUpdate, PeerUpdate, SetRequest};
use warren_keyring::PublicKey;
use zeroize::{Zeroize, Zeroizing};

/// Length of `struct nlmsghdr` (linux/netlink.h).
const MESSAGE_HEADER: usize = 16;
/// Length of `struct genlmsghdr` (linux/genetlink.h).
const FAMILY_HEADER: usize = 4;
/// `WG_GENL_VERSION` (linux/wireguard.h).
const VERSION: u8 = 1;
/// How many bytes of peers one message takes: an attribute has at most 64 KiB, and the default send
/// buffer takes some 200 KiB.
const PEERS_ROOM: usize = 32 * 1024;
/// How many prefixes stand in one entry of a peer, each of at most 52 bytes: a peer with more comes
/// several times.
const PREFIXES: usize = 256;

/// How a peer loses a single prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removal {
    /// By `WGALLOWEDIP_F_REMOVE_ME`, which Linux 6.16 and newer know. Older ones refuse the message
    /// with EINVAL.
    Flagged,
    /// On any kernel: the prefix moves to a peer of this key, which nobody has, and that peer is
    /// removed, in one message. No other prefix is touched, at no moment.
    ///
    /// INVARIANT: no other peer is to have the prefix, for it would lose it too.
    ThrowAway(PublicKey),
}

/// One message that changes a device. Its secrets are wiped when it is dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct SetMessage(WireguardMessage);

/// Makes the messages of a request, to be sent in order.
///
/// The kernel carries a message out entry by entry. A prefix moves from one peer to another
/// without a moment between, but readers may see an entry's prefixes come one by one.
pub fn set_messages(interface: &str, request: &SetRequest, removal: Removal) -> Vec<SetMessage> {
    let mut messages = Vec::new();
    let mut head = device_attributes(interface, request);
    let (mut peers, mut used) = (Vec::new(), 0);
    for update in &request.peers {
        for peer in entries(update, removal) {
            let length = peer.as_slice().buffer_len() + 4;
            if used + length > PEERS_ROOM {
                let head = std::mem::replace(&mut head, name_of(interface));
                messages.push(message(head, std::mem::take(&mut peers)));
                used = 0;
            }
            used += length;
            peers.push(peer);
        }
    }
    if head.len() > 1 || !peers.is_empty() {
        messages.push(message(head, peers));
    }
    messages
}

impl SetMessage {
    /// The message.
    pub fn message(&self) -> &WireguardMessage {
        &self.0
    }

    /// Whether a kernel older than 6.16 refuses it for a prefix that it removes.
    pub fn has_flagged_removals(&self) -> bool {
        let flagged = |attribute: &WireguardAllowedIpAttr| {
            matches!(attribute, WireguardAllowedIpAttr::Flags(flags)
                if flags.contains(WireguardAllowedIpFlags::RemoveMe))
        };
        let peers = self.0.attributes.iter().filter_map(|a| match a {
            WireguardAttribute::Peers(peers) => Some(peers),
            _ => None,
        });
        let prefixes = peers
            .flatten()
            .flat_map(|peer| &peer.0)
            .filter_map(|a| match a {
                WireguardPeerAttribute::AllowedIps(prefixes) => Some(prefixes),
                _ => None,
            });
        prefixes
            .flatten()
            .any(|prefix| prefix.0.iter().any(flagged))
    }

    /// The whole message for the kernel, in a buffer that wipes itself.
    pub(crate) fn encode(&self, family: u16, flags: u16, sequence: u32) -> Zeroizing<Vec<u8>> {
        encode(&self.0, family, flags, sequence)
    }
}

impl Drop for SetMessage {
    fn drop(&mut self) {
        wipe(&mut self.0);
    }
}

impl std::fmt::Debug for SetMessage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SetMessage(redacted)")
    }
}

/// Wipes the secrets of a message.
pub(super) fn wipe(message: &mut WireguardMessage) {
    for attribute in &mut message.attributes {
        match attribute {
            WireguardAttribute::PrivateKey(key) => key.zeroize(),
            WireguardAttribute::Peers(peers) => {
                for attribute in peers.iter_mut().flat_map(|peer| &mut peer.0) {
                    if let WireguardPeerAttribute::PresharedKey(key) = attribute {
                        key.zeroize();
                    }
                }
            }
            _ => {}
        }
    }
}

/// Writes the headers and the attributes.
pub(super) fn encode(
    message: &WireguardMessage,
    family: u16,
    flags: u16,
    sequence: u32,
) -> Zeroizing<Vec<u8>> {
    let headers = MESSAGE_HEADER + FAMILY_HEADER;
    let length = headers + message.buffer_len();
    let mut bytes = Zeroizing::new(vec![0; length]);
    let mut header = NetlinkBuffer::new(&mut bytes[..]);
    header.set_length(u32::try_from(length).unwrap_or(u32::MAX));
    header.set_message_type(family);
    header.set_flags(flags);
    header.set_sequence_number(sequence);
    bytes[MESSAGE_HEADER] = message.cmd.into();
    bytes[MESSAGE_HEADER + 1] = VERSION;
    message.emit(&mut bytes[headers..]);
    bytes
}

fn message(mut attributes: Vec<WireguardAttribute>, peers: Vec<WireguardPeer>) -> SetMessage {
    if !peers.is_empty() {
        attributes.push(WireguardAttribute::Peers(peers));
    }
    SetMessage(WireguardMessage {
        cmd: WireguardCmd::SetDevice,
        attributes,
    })
}

fn name_of(interface: &str) -> Vec<WireguardAttribute> {
    // Room for all that a message has: a vector that grows leaves a copy of the key behind.
    let mut attributes = Vec::with_capacity(6);
    attributes.push(WireguardAttribute::IfName(interface.to_owned()));
    attributes
}

fn device_attributes(interface: &str, request: &SetRequest) -> Vec<WireguardAttribute> {
    let mut out = name_of(interface);
    match &request.private_key {
        Some(Some(key)) => out.push(WireguardAttribute::PrivateKey(*key.as_bytes())),
        // The key of zero bytes says "none".
        Some(None) => out.push(WireguardAttribute::PrivateKey(
            [0; WireguardAttribute::WG_KEY_LEN],
        )),
        None => {}
    }
    out.extend(request.listen_port.map(WireguardAttribute::ListenPort));
    out.extend(request.fwmark.map(WireguardAttribute::Fwmark));
    if request.replace_peers {
        let flags = WireguardDeviceFlags::ReplacePeers;
        out.push(WireguardAttribute::Flags(flags));
    }
    out
}

/// The entries of one peer's update, in order.
fn entries(update: &PeerUpdate, removal: Removal) -> Vec<WireguardPeer> {
    let mut first = vec![key_of(update.public_key)];
    let mut flags = WireguardPeerFlags::empty();
    flags.set(WireguardPeerFlags::RemoveMe, update.remove);
    flags.set(WireguardPeerFlags::UpdateOnly, update.update_only);
    if update.remove {
        first.push(WireguardPeerAttribute::Flags(flags));
        return vec![WireguardPeer(first)];
    }
    flags.set(
        WireguardPeerFlags::ReplaceAllowedIps,
        update.replace_allowed_ips,
    );
    if !flags.is_empty() {
        first.push(WireguardPeerAttribute::Flags(flags));
    }
    if let Some(key) = &update.preshared_key {
        first.push(WireguardPeerAttribute::PresharedKey(*key.as_bytes()));
    }
    first.extend(update.endpoint.map(WireguardPeerAttribute::Endpoint));
    let keepalive = update.persistent_keepalive;
    first.extend(keepalive.map(WireguardPeerAttribute::PersistentKeepalive));
    let mut out = vec![WireguardPeer(first)];
    let is_removal = |a: &AllowedIpUpdate| matches!(a, AllowedIpUpdate::Remove(_));
    let runs = update
        .allowed_ips
        .chunk_by(|a, b| is_removal(a) == is_removal(b));
    for chunk in runs.flat_map(|run| run.chunks(PREFIXES)) {
        let prefixes = |flags| chunk.iter().map(|p| prefix(p, flags)).collect();
        match removal {
            Removal::ThrowAway(key) if chunk.iter().any(is_removal) => {
                out.push(WireguardPeer(vec![
                    key_of(key),
                    prefixes_of(prefixes(false)),
                ]));
                let flags = WireguardPeerFlags::RemoveMe;
                out.push(WireguardPeer(vec![
                    key_of(key),
                    WireguardPeerAttribute::Flags(flags),
                ]));
            }
            _ => out.push(WireguardPeer(vec![
                key_of(update.public_key),
                // The first entry made it, if it was to be made.
                WireguardPeerAttribute::Flags(WireguardPeerFlags::UpdateOnly),
                prefixes_of(prefixes(true)),
            ])),
        }
    }
    out
}

fn key_of(key: PublicKey) -> WireguardPeerAttribute {
    WireguardPeerAttribute::PublicKey(*key.as_bytes())
}

fn prefixes_of(prefixes: Vec<WireguardAllowedIp>) -> WireguardPeerAttribute {
    WireguardPeerAttribute::AllowedIps(prefixes)
}

fn prefix(update: &AllowedIpUpdate, with_flags: bool) -> WireguardAllowedIp {
    let (net, remove): (&IpNet, bool) = match update {
        AllowedIpUpdate::Add(net) => (net, false),
        AllowedIpUpdate::Remove(net) => (net, true),
    };
    let address = net.trunc().addr();
    let family = match address {
        IpAddr::V4(_) => WireguardAddressFamily::Ipv4,
        IpAddr::V6(_) => WireguardAddressFamily::Ipv6,
    };
    let mut out = vec![
        WireguardAllowedIpAttr::Family(family),
        WireguardAllowedIpAttr::IpAddr(address),
        WireguardAllowedIpAttr::Cidr(net.prefix_len()),
    ];
    if remove && with_flags {
        let flags = WireguardAllowedIpFlags::RemoveMe;
        out.push(WireguardAllowedIpAttr::Flags(flags));
    }
    WireguardAllowedIp(out)
}
