//! Nodes and states for the tests of planning, made by number.
#![allow(dead_code)] // each test binary uses its own part of it

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use warren_core::consts::annotation;
use warren_core::node::NodeView;
use warren_core::status::DataPlaneKind;
use warren_core::{Endpoints, LocalNode, NodeName, NodeUid, Settings};
use warren_keyring::{PrivateKey, PublicKey};

/// The key of node `n`: the same in every run.
pub(crate) fn key(n: u8) -> PublicKey {
    let mut secret = [n; 32];
    secret[0] = 0x40;
    PrivateKey::from_bytes(secret).unwrap().public_key()
}

pub(crate) fn settings() -> Settings {
    Settings::new(nets(&["10.244.0.0/16", "fd00:244::/32"]))
}

pub(crate) fn nets(texts: &[&str]) -> BTreeSet<ipnet::IpNet> {
    texts.iter().map(|t| t.parse().unwrap()).collect()
}

/// Node `n`: 192.0.2.n and 2001:db8::n, pods in 10.244.n.0/24 and fd00:244:n::/64.
pub(crate) fn view(n: u8) -> NodeView {
    NodeView {
        name: format!("node{n}"),
        uid: NodeUid(format!("uid-{n}")),
        pod_cidrs: vec![format!("10.244.{n}.0/24"), format!("fd00:244:{n:x}::/64")],
        addresses: vec![format!("192.0.2.{n}"), format!("2001:db8::{n:x}")],
        annotations: BTreeMap::from([(annotation::PUBLIC_KEY.into(), key(n).to_string())]),
    }
}

pub(crate) fn views(list: impl IntoIterator<Item = NodeView>) -> BTreeMap<String, NodeView> {
    list.into_iter().map(|v| (v.name.clone(), v)).collect()
}

/// This node is node 1.
pub(crate) fn local() -> LocalNode {
    let addresses: Vec<IpAddr> = vec!["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()];
    LocalNode {
        name: NodeName::new("node1").unwrap(),
        uid: NodeUid("uid-1".into()),
        public_key: key(1),
        pod_cidrs: nets(&["10.244.1.0/24", "fd00:244:1::/64"]),
        endpoints: Endpoints::from_addresses(&addresses, 51871),
        addresses,
        underlay_mtu_bytes: 1500,
        data_plane: DataPlaneKind::Userspace,
    }
}
