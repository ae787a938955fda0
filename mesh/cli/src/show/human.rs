//! The form of `wg show` for people.

use std::cmp::Reverse;
use std::fmt::Write as _;

use ipnet::IpNet;
use warren_core::uapi::Peer;
use zeroize::Zeroizing;

use super::fields::handshake_seconds;
use super::{HIDDEN, NamedDevice, NodeNames, ShownDevice};
use crate::Environment;
use crate::text::{self, Style, clean};

/// Writes devices with an empty line between.
pub fn humans(devices: &[NamedDevice], names: &NodeNames, environment: &Environment) -> String {
    let texts: Vec<String> = devices
        .iter()
        .map(|(interface, device)| human(interface, device, names, environment))
        .collect();
    texts.join("\n")
}

/// Writes a device and its peers, the newest handshake first. What is zero is left out.
pub fn human(
    interface: &str,
    shown: &ShownDevice,
    names: &NodeNames,
    environment: &Environment,
) -> String {
    let (style, device) = (environment.style, &shown.device);
    let mut page = Page {
        out: style.code(Style::RESET).to_owned(),
        style,
    };
    page.title(Style::GREEN, "interface", interface, "");
    if let Some(key) = shown.public_key() {
        page.line("public key", &key.to_base64());
        let private_key = device.private_key.as_ref();
        let private_key = private_key.map(|key| secret(key.to_base64(), environment));
        page.line("private key", private_key.as_deref().unwrap_or(HIDDEN));
    }
    if device.listen_port != 0 {
        page.line("listening port", &device.listen_port.to_string());
    }
    if device.fwmark != 0 {
        page.line("fwmark", &format!("{:#x}", device.fwmark));
    }
    let mut peers: Vec<&Peer> = device.peers.iter().collect();
    // Stable: peers of one time stay in the device's order. No handshake is the oldest.
    peers.sort_by_key(|peer| Reverse(peer.last_handshake));
    for peer in peers {
        page.out.push('\n');
        page.peer(peer, names, environment);
    }
    page.out
}

/// Writes a prefix, with what stands between its address and its length.
pub(super) fn prefix(prefix: &IpNet, slash: &str) -> String {
    format!(
        "{}{slash}{}",
        text::address(prefix.addr()),
        prefix.prefix_len()
    )
}

/// Hides a secret key unless `WG_HIDE_KEYS=never`.
pub(super) fn secret(key: Zeroizing<String>, environment: &Environment) -> String {
    if environment.hide_keys {
        HIDDEN.to_owned()
    } else {
        key.to_string()
    }
}

struct Page {
    out: String,
    style: Style,
}

impl Page {
    fn peer(&mut self, peer: &Peer, names: &NodeNames, environment: &Environment) {
        let style = self.style;
        let node = names
            .get(&peer.public_key)
            .map(|node| format!("  ({})", clean(node)))
            .unwrap_or_default();
        self.title(Style::YELLOW, "peer", &peer.public_key.to_base64(), &node);
        if let Some(key) = &peer.preshared_key {
            self.line("preshared key", &secret(key.to_base64(), environment));
        }
        if let Some(endpoint) = peer.endpoint {
            self.line("endpoint", &text::endpoint(endpoint));
        }
        let slash = style.paint(Style::CYAN, "/");
        let prefixes: Vec<String> = peer
            .allowed_ips
            .iter()
            .map(|ip| prefix(ip, &slash))
            .collect();
        if prefixes.is_empty() {
            self.line("allowed ips", "(none)");
        } else {
            self.line("allowed ips", &prefixes.join(", "));
        }
        let handshake = handshake_seconds(peer);
        if handshake != 0 {
            let ago = text::ago(handshake, environment.now, style);
            self.line("latest handshake", &ago);
        }
        if peer.rx_bytes != 0 || peer.tx_bytes != 0 {
            let received = text::bytes(peer.rx_bytes, style);
            let sent = text::bytes(peer.tx_bytes, style);
            self.line("transfer", &format!("{received} received, {sent} sent"));
        }
        if peer.persistent_keepalive != 0 {
            let every = text::duration(peer.persistent_keepalive.into(), style);
            self.line("persistent keepalive", &format!("every {every}"));
        }
    }

    fn title(&mut self, colour: &'static str, word: &str, name: &str, remark: &str) {
        let style = self.style;
        // Writing to a string cannot fail.
        let _ = writeln!(
            self.out,
            "{}{}{word}{}: {}{remark}",
            style.code(colour),
            style.code(Style::BOLD),
            style.code(Style::RESET),
            style.paint(colour, name),
        );
    }

    fn line(&mut self, word: &str, value: &str) {
        let word = self.style.paint(Style::BOLD, word);
        let _ = writeln!(self.out, "  {word}: {value}");
    }
}
