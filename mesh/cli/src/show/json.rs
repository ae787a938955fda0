//! Devices as JSON, with the members of wireguard-tools' `wg-json`: an object of interfaces, each
//! with an object of peers by public key; what is zero or absent is left out. Each peer has its
//! `node` too, when it is known, and secret keys are `(hidden)` as in the form for people.

use std::collections::BTreeMap;

use serde::Serialize;
use warren_core::uapi::Peer;

use super::fields::handshake_seconds;
use super::human::{prefix, secret};
use super::{HIDDEN, NamedDevice, NodeNames, ShownDevice};
use crate::Environment;
use crate::text;

/// Writes devices as an indented JSON object.
pub fn json(devices: &[NamedDevice], names: &NodeNames, environment: &Environment) -> String {
    let devices: BTreeMap<&str, DeviceJson> = devices
        .iter()
        .map(|(interface, device)| {
            (
                interface.as_str(),
                DeviceJson::new(device, names, environment),
            )
        })
        .collect();
    // Strings as keys and integers as values: nothing here can fail to become JSON.
    let text = serde_json::to_string(&devices).unwrap_or_default();
    crate::json::indent(&text).unwrap_or_default()
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct DeviceJson<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    private_key: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    public_key: Option<String>,
    #[serde(skip_serializing_if = "is_zero")]
    listen_port: u64,
    #[serde(skip_serializing_if = "is_zero")]
    fwmark: u64,
    peers: BTreeMap<String, PeerJson<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct PeerJson<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    preshared_key: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    endpoint: Option<String>,
    #[serde(skip_serializing_if = "is_zero")]
    latest_handshake: u64,
    #[serde(skip_serializing_if = "is_zero")]
    transfer_rx: u64,
    #[serde(skip_serializing_if = "is_zero")]
    transfer_tx: u64,
    #[serde(skip_serializing_if = "is_zero")]
    persistent_keepalive: u64,
    allowed_ips: Vec<String>,
}

impl<'a> DeviceJson<'a> {
    fn new(shown: &ShownDevice, names: &'a NodeNames, environment: &Environment) -> Self {
        let device = &shown.device;
        let private_key = device.private_key.as_ref();
        let private_key = private_key.map(|key| secret(key.to_base64(), environment));
        Self {
            private_key: private_key.or(shown.hidden_key.map(|_| HIDDEN.to_owned())),
            public_key: shown.public_key().map(|key| key.to_base64()),
            listen_port: device.listen_port.into(),
            fwmark: device.fwmark.into(),
            peers: device
                .peers
                .iter()
                .map(|peer| {
                    (
                        peer.public_key.to_base64(),
                        PeerJson::new(peer, names, environment),
                    )
                })
                .collect(),
        }
    }
}

impl<'a> PeerJson<'a> {
    fn new(peer: &Peer, names: &'a NodeNames, environment: &Environment) -> Self {
        Self {
            node: names.get(&peer.public_key).map(String::as_str),
            preshared_key: peer
                .preshared_key
                .as_ref()
                .map(|key| secret(key.to_base64(), environment)),
            endpoint: peer.endpoint.map(text::endpoint),
            latest_handshake: handshake_seconds(peer),
            transfer_rx: peer.rx_bytes,
            transfer_tx: peer.tx_bytes,
            persistent_keepalive: peer.persistent_keepalive.into(),
            allowed_ips: peer.allowed_ips.iter().map(|ip| prefix(ip, "/")).collect(),
        }
    }
}

// The signature is serde's.
#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_zero(value: &u64) -> bool {
    *value == 0
}
