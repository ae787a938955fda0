//! The forms of `wg show` for scripts: no names, no colours, peers in the device's own order.

use std::fmt::{Display, Write as _};

use warren_core::uapi::{Device, Peer};
use warren_keyring::PresharedKey;

use super::human::prefix;
use super::{HIDDEN, ShownDevice};
use crate::args::Field;
use crate::text;

/// Writes one field of a device, or its dump. `with_interface` begins each line with its name, as
/// `all` does. `wg show all endpoints` of wireguard-tools 1.0.20210914 does so on the first line
/// alone, unlike all its other fields: that is not followed.
pub fn fields(interface: &str, shown: &ShownDevice, field: Field, with_interface: bool) -> String {
    let device = &shown.device;
    let start = if with_interface {
        format!("{interface}\t")
    } else {
        String::new()
    };
    let device_line = || match field {
        Field::PublicKey => Some(or_none(shown.public_key())),
        Field::PrivateKey => Some(private_key(shown)),
        Field::ListenPort => Some(device.listen_port.to_string()),
        Field::Fwmark => Some(fwmark(device)),
        Field::Dump => Some(format!(
            "{}\t{}\t{}\t{}",
            private_key(shown),
            or_none(shown.public_key()),
            device.listen_port,
            fwmark(device),
        )),
        _ => None,
    };
    let mut out = String::new();
    let lines = device_line().into_iter().chain(
        device
            .peers
            .iter()
            .filter_map(|peer| peer_line(peer, field)),
    );
    for line in lines {
        // Writing to a string cannot fail.
        let _ = writeln!(out, "{start}{line}");
    }
    out
}

fn peer_line(peer: &Peer, field: Field) -> Option<String> {
    let value = match field {
        Field::PublicKey | Field::PrivateKey | Field::ListenPort | Field::Fwmark => return None,
        Field::Peers => return Some(peer.public_key.to_base64()),
        Field::PresharedKeys => preshared_key(peer),
        Field::Endpoints => or_none(peer.endpoint.map(text::endpoint)),
        Field::AllowedIps => prefixes(peer, " "),
        Field::LatestHandshakes => handshake_seconds(peer).to_string(),
        Field::PersistentKeepalive => keepalive(peer),
        Field::Transfer => format!("{}\t{}", peer.rx_bytes, peer.tx_bytes),
        Field::Dump => format!(
            "{}\t{}\t{}\t{}\t{}\t{}\t{}",
            preshared_key(peer),
            or_none(peer.endpoint.map(text::endpoint)),
            prefixes(peer, ","),
            handshake_seconds(peer),
            peer.rx_bytes,
            peer.tx_bytes,
            keepalive(peer),
        ),
    };
    Some(format!("{}\t{value}", peer.public_key))
}

/// Seconds since the Unix epoch; 0 when there was no handshake.
pub(super) fn handshake_seconds(peer: &Peer) -> u64 {
    peer.last_handshake.map_or(0, |time| time.as_secs())
}

fn private_key(shown: &ShownDevice) -> String {
    match (&shown.device.private_key, shown.hidden_key) {
        (Some(key), _) => key.to_base64().to_string(),
        (None, Some(_)) => HIDDEN.to_owned(),
        (None, None) => or_none(None::<String>),
    }
}

fn preshared_key(peer: &Peer) -> String {
    let key = peer.preshared_key.as_ref().map(PresharedKey::to_base64);
    or_none(key.map(|key| key.to_string()))
}

fn fwmark(device: &Device) -> String {
    match device.fwmark {
        0 => "off".to_owned(),
        mark => format!("{mark:#x}"),
    }
}

fn keepalive(peer: &Peer) -> String {
    match peer.persistent_keepalive {
        0 => "off".to_owned(),
        seconds => seconds.to_string(),
    }
}

fn prefixes(peer: &Peer, separator: &str) -> String {
    let prefixes: Vec<String> = peer.allowed_ips.iter().map(|ip| prefix(ip, "/")).collect();
    or_none((!prefixes.is_empty()).then(|| prefixes.join(separator)))
}

fn or_none(value: Option<impl Display>) -> String {
    value.map_or_else(|| "(none)".to_owned(), |value| value.to_string())
}
