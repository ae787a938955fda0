//! Clusters for the tests.
// Each test program uses a part of it.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use std::collections::BTreeMap;

use serde_json::json;
use warren_core::kubernetes::NodeObject;
use warren_core::status::{
    AgentStatus, DataPlaneKind, DegradedStatus, Health, NodeState, PeerState, PeerStatus,
    RejectStatus,
};
use warren_keyring::PublicKey;
use warren_kubectl::facts::{
    Component, DaemonSetFacts, DoctorFacts, Facts, Right, Trial, TrialEnd, WarrenPod,
};
use warren_text::finding::Finding;

/// The generation of the present template of both DaemonSets.
pub const TEMPLATE: &str = "4";

pub fn key(number: u8) -> PublicKey {
    PublicKey::from_bytes([number * 0x11; 32]).unwrap()
}

pub fn name(number: u8) -> String {
    format!("node{number}")
}

/// A Node that is as it should be.
pub fn node(number: u8) -> NodeObject {
    let object = json!({
        "metadata": {
            "name": name(number),
            "uid": format!("uid-{number}"),
            "annotations": {
                "warren.network/public-key": key(number).to_base64(),
                "warren.network/endpoint": format!("192.0.2.{number}:51871"),
                "example.org/other": "x",
            },
        },
        "spec": {"podCIDRs": [format!("10.244.{number}.0/24")]},
        "status": {
            "addresses": [{"type": "InternalIP", "address": format!("192.0.2.{number}")}],
            "conditions": [{
                "type": "NetworkUnavailable",
                "status": "False",
                "reason": "WarrenIsUp",
                "message": "Warren protects this node's pods, and its tunnel answers",
            }],
        },
    });
    serde_json::from_value(object).unwrap()
}

pub fn annotate(node: &mut NodeObject, key: &str, value: Option<&str>) {
    let annotations = node.metadata.annotations.as_mut().unwrap();
    match value {
        Some(value) => annotations.insert(key.to_owned(), value.to_owned()),
        None => annotations.remove(key),
    };
}

pub fn peer(number: u8) -> PeerStatus {
    let endpoint = format!("192.0.2.{number}:51871").parse().unwrap();
    PeerStatus {
        node: name(number),
        public_key: key(number),
        state: PeerState::Up,
        endpoint: Some(endpoint),
        published_endpoint: endpoint,
        pod_cidrs: vec![format!("10.244.{number}.0/24").parse().unwrap()],
        addresses: Vec::new(),
        mtu_bytes: 1440,
        latest_handshake: Some(1_799_999_989),
        handshake_age_seconds: Some(10 + u64::from(number)),
        rx_bytes: 0,
        tx_bytes: 0,
        notice: None,
        untrusted_key: None,
        degraded: None,
    }
}

/// What the agent of a node says among `count` of them, when all is well.
pub fn agent(number: u8, count: u8) -> AgentStatus {
    AgentStatus {
        version: "0.1.0".to_owned(),
        node: name(number),
        state: NodeState::Ok,
        degraded: Vec::new(),
        tunnel_version: Some("0.1.0".to_owned()),
        public_key: Some(key(number)),
        key_age_seconds: Some(3 * 86_400 + 4 * 3600),
        data_plane: DataPlaneKind::Userspace,
        interface: "warren0".to_owned(),
        endpoints: vec![format!("192.0.2.{number}:51871").parse().unwrap()],
        pod_cidrs: vec![format!("10.244.{number}.0/24").parse().unwrap()],
        cluster_cidrs: vec!["10.244.0.0/16".parse().unwrap()],
        protected: true,
        tunnel: Health {
            ok: true,
            detail: "listening on port 51871".to_owned(),
        },
        registry: Health {
            ok: true,
            detail: "Nodes of the Kubernetes API".to_owned(),
        },
        synced: true,
        problems: Vec::new(),
        peers: (1..=count).filter(|n| *n != number).map(peer).collect(),
        rejected: Vec::new(),
        filter_drops: BTreeMap::new(),
    }
}

pub fn pod(number: u8, component: Component) -> WarrenPod {
    WarrenPod {
        name: format!("warren-{}-{number}", component.as_str()),
        node: Some(name(number)),
        component,
        running: true,
        ready: true,
        ending: false,
        state: "Running".to_owned(),
        template_generation: Some(TEMPLATE.to_owned()),
    }
}

/// A cluster in which all is well.
pub fn cluster(count: u8) -> Facts {
    let both = [Component::Agent, Component::Tunnel];
    Facts {
        api: "https://192.0.2.250:6443".to_owned(),
        namespace: "warren-system".to_owned(),
        nodes: (1..=count).map(node).collect(),
        pods: (1..=count)
            .flat_map(|n| both.map(|component| pod(n, component)))
            .collect(),
        agents: (1..=count)
            .map(|n| (name(n), Ok(agent(n, count))))
            .collect(),
    }
}

/// What the agent of a node said, to be changed.
pub fn said(facts: &mut Facts, number: u8) -> &mut AgentStatus {
    facts
        .agents
        .get_mut(&name(number))
        .unwrap()
        .as_mut()
        .unwrap()
}

/// What the agent of `number` said of `other`, to be changed.
pub fn said_of(facts: &mut Facts, number: u8, other: u8) -> &mut PeerStatus {
    let peers = &mut said(facts, number).peers;
    peers.iter_mut().find(|p| p.node == name(other)).unwrap()
}

pub fn no_answer() -> DegradedStatus {
    DegradedStatus {
        reason: "no-answer".to_owned(),
        message: "nothing received from it for 17 s".to_owned(),
    }
}

pub fn reject(node: &str, waiting: bool) -> RejectStatus {
    RejectStatus {
        node: node.to_owned(),
        reason: "DuplicateKey".to_owned(),
        message: "its key is that of node1".to_owned(),
        waiting,
    }
}

pub fn daemon_set(name: &str, count: u8) -> DaemonSetFacts {
    let strategy = match name {
        "warren-tunnel" => "OnDelete",
        _ => "RollingUpdate",
    };
    DaemonSetFacts {
        namespace: "warren-system".to_owned(),
        name: name.to_owned(),
        strategy: strategy.to_owned(),
        desired: i32::from(count),
        ready: i32::from(count),
        updated: i32::from(count),
        template_generation: Some(TEMPLATE.to_owned()),
        observed: true,
    }
}

/// A finding of a node's doctor, as JSON has it.
pub fn finding(severity: &str, text: &str) -> Finding {
    serde_json::from_value(json!({
        "check": "disk",
        "severity": severity,
        "finding": text,
        "meaning": "",
        "action": "",
    }))
    .unwrap()
}

/// A doctor's view of a cluster in which all is well.
pub fn well(count: u8) -> DoctorFacts {
    DoctorFacts {
        facts: cluster(count),
        server: Ok((1, 36)),
        daemon_sets: Ok(vec![
            daemon_set("warren-agent", count),
            daemon_set("warren-tunnel", count),
        ]),
        rights: Right::ALL.map(|right| (right, Ok(true))).to_vec(),
        trials: Trial::ALL
            .map(|trial| (trial, Ok(TrialEnd::Denied)))
            .to_vec(),
        doctors: (1..=count)
            .map(|n| (name(n), Ok(vec![finding("ok", "there is room")])))
            .collect(),
    }
}
