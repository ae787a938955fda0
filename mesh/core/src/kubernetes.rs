//! A Kubernetes Node as far as the mesh needs it: all else of the object, such as the list of images
//! and `managedFields`, is skipped while it is parsed.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::consts::annotation;
use crate::node::{NodeUid, NodeView};

/// The type of the Node's condition that tells whether pods have a network.
pub const NETWORK_UNAVAILABLE: &str = "NetworkUnavailable";
/// The type of the addresses that count.
const INTERNAL_IP: &str = "InternalIP";
/// The annotations that count.
const ANNOTATIONS: [&str; 6] = [
    annotation::PUBLIC_KEY,
    annotation::NEXT_PUBLIC_KEY,
    annotation::ENDPOINT,
    annotation::FORCE_ENDPOINT,
    annotation::MTU,
    annotation::DATA_PLANE,
];

/// A Node, as the API server sends it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct NodeObject {
    /// What it is called.
    #[serde(default)]
    pub metadata: NodeMetadata,
    /// What it was given.
    #[serde(default)]
    pub spec: Option<NodeSpec>,
    /// How it is.
    #[serde(default)]
    pub status: Option<NodeStatus>,
}

/// A Node's metadata.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeMetadata {
    /// Its name.
    pub name: String,
    /// The uid of this life of it.
    pub uid: String,
    /// The version of the cluster's data that this is of.
    pub resource_version: Option<String>,
    /// All its annotations.
    pub annotations: Option<BTreeMap<String, String>>,
}

/// A Node's spec.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct NodeSpec {
    /// Its pod ranges. The singular `podCIDR` repeats the first of them, and does not count.
    #[serde(rename = "podCIDRs")]
    pub pod_cidrs: Option<Vec<String>>,
}

/// A Node's status.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct NodeStatus {
    /// All its addresses.
    pub addresses: Option<Vec<NodeAddress>>,
    /// All its conditions.
    pub conditions: Option<Vec<NodeCondition>>,
}

/// One of a Node's addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct NodeAddress {
    /// What kind of address it is.
    #[serde(rename = "type")]
    pub kind: String,
    /// The address.
    pub address: String,
}

/// One of a Node's conditions; its times are texts as the API has them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeCondition {
    /// What it is about.
    #[serde(rename = "type")]
    pub kind: String,
    /// `True`, `False` or `Unknown`.
    pub status: String,
    /// One word for machines.
    pub reason: String,
    /// A line for people.
    pub message: String,
    /// When its status last changed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_transition_time: Option<String>,
    /// When it was last written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_heartbeat_time: Option<String>,
}

impl NodeObject {
    /// What the mesh takes of it: `spec.podCIDRs` alone, the addresses of type InternalIP in their
    /// order, and Warren's own annotations. Nothing is checked yet.
    pub fn view(&self) -> NodeView {
        let addresses = self
            .status
            .iter()
            .flat_map(|s| s.addresses.iter().flatten());
        let internal = addresses.filter(|address| address.kind == INTERNAL_IP);
        let annotation = |key: &str| {
            let value = self.metadata.annotations.as_ref()?.get(key)?;
            Some((key.to_owned(), value.clone()))
        };
        NodeView {
            name: self.metadata.name.clone(),
            uid: NodeUid(self.metadata.uid.clone()),
            pod_cidrs: (self.spec.as_ref())
                .and_then(|spec| spec.pod_cidrs.clone())
                .unwrap_or_default(),
            addresses: internal.map(|address| address.address.clone()).collect(),
            annotations: ANNOTATIONS.into_iter().filter_map(annotation).collect(),
        }
    }

    /// The condition that tells whether pods have a network.
    pub fn network_condition(&self) -> Option<&NodeCondition> {
        let conditions = self
            .status
            .iter()
            .flat_map(|s| s.conditions.iter().flatten());
        { conditions }.find(|condition| condition.kind == NETWORK_UNAVAILABLE)
    }
}
