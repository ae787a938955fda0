//! Why a node is not planned with. A reject is data: it is shown by `warren status`, as a metric,
//! and later as an Event on the Node.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use thiserror::Error;
use warren_keyring::PublicKey;

use crate::consts::annotation;
use crate::node::NodeName;

/// Why a node was refused. The texts are for the operator who must repair it.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum NodeReject {
    /// The name is no DNS subdomain.
    #[error("node name \"{name}\" is not a DNS subdomain of at most 253 characters")]
    BadName {
        /// The name, shortened.
        name: String,
    },
    /// The uid is too long.
    #[error("node uid of {len} bytes; at most 128 are allowed")]
    BadUid {
        /// Its length in bytes.
        len: usize,
    },
    /// The node has published no key yet: its agent or tunnel has not started.
    #[error("no public key published yet: is warren-agent running there?")]
    NoPublicKey,
    /// A key annotation that is no usable key.
    #[error("annotation {key}: {cause}")]
    BadPublicKey {
        /// The annotation.
        key: String,
        /// What is wrong with it.
        cause: String,
    },
    /// An annotation over its limit.
    #[error("annotation {key} has {len} bytes; at most {max} are allowed", max = annotation::MAX_LEN)]
    AnnotationTooLong {
        /// The annotation.
        key: String,
        /// Its length in bytes.
        len: usize,
    },
    /// An endpoint annotation that is no list of endpoints.
    #[error("annotation {key}: {cause}")]
    BadEndpoint {
        /// The annotation.
        key: String,
        /// What is wrong with it.
        cause: String,
    },
    /// Neither an endpoint annotation nor a usable address.
    #[error(
        "no endpoint: neither {} nor a node address is set",
        annotation::ENDPOINT
    )]
    NoEndpoint,
    /// The node shares no outer family with this one.
    #[error("no common outer family: this node has {ours}, that node {theirs}")]
    NoCommonFamily {
        /// This node's endpoints.
        ours: String,
        /// That node's endpoints.
        theirs: String,
    },
    /// The MTU annotation is no number in range.
    #[error(
        "annotation {} is \"{value}\"; allowed are 576 to 65535",
        annotation::MTU
    )]
    BadMtu {
        /// Its value, shortened.
        value: String,
    },
    /// The node has no pod range.
    #[error("no podCIDR assigned yet")]
    NoPodCidr,
    /// More pod ranges than a node may have.
    #[error("{count} podCIDRs; at most {max} are allowed")]
    TooManyPodCidrs {
        /// How many it has.
        count: usize,
        /// How many it may have.
        max: usize,
    },
    /// A pod range that is no clean prefix.
    #[error("podCIDR {cidr} {why}")]
    BadPodCidr {
        /// Its text, shortened.
        cidr: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A pod range outside the cluster's.
    #[error("podCIDR {cidr} is outside the cluster's pod ranges")]
    ForeignPodCidr {
        /// The range.
        cidr: IpNet,
    },
    /// A pod range that overlaps a reserved one.
    #[error("podCIDR {cidr} overlaps the reserved range {reserved}")]
    ReservedPodCidr {
        /// The range.
        cidr: IpNet,
        /// The reserved range.
        reserved: IpNet,
    },
    /// More addresses than a node may have.
    #[error("{count} node addresses; at most {max} are allowed")]
    TooManyAddresses {
        /// How many it has.
        count: usize,
        /// How many it may have.
        max: usize,
    },
    /// A node address that cannot be one.
    #[error("node address {address} {why}")]
    BadAddress {
        /// Its text, shortened.
        address: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The node publishes this node's key.
    #[error("publishes this node's own public key {public_key}: was a disk or a machine cloned?")]
    OwnKey {
        /// The key.
        public_key: PublicKey,
    },
    /// Two nodes publish one key.
    #[error("public key {public_key} is also published by node {with}")]
    DuplicateKey {
        /// The key.
        public_key: PublicKey,
        /// The other node.
        with: NodeName,
    },
    /// Two nodes' pod ranges overlap.
    #[error("podCIDR {cidr} overlaps {other} of node {with}")]
    PodCidrOverlap {
        /// This node's range.
        cidr: IpNet,
        /// The other's.
        other: IpNet,
        /// The other node.
        with: NodeName,
    },
    /// Two nodes publish one endpoint.
    #[error("endpoint {endpoint} is also published by node {with}")]
    EndpointConflict {
        /// The endpoint.
        endpoint: SocketAddr,
        /// The other node.
        with: NodeName,
    },
}

impl NodeReject {
    /// A short, stable word for metrics and Events, in the manner of Kubernetes reasons.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::BadName { .. } | Self::BadUid { .. } => "InvalidNode",
            Self::NoPublicKey => "NoPublicKey",
            Self::BadPublicKey { .. } => "InvalidPublicKey",
            Self::AnnotationTooLong { .. } => "AnnotationTooLong",
            Self::BadEndpoint { .. } => "InvalidEndpoint",
            Self::NoEndpoint => "NoEndpoint",
            Self::NoCommonFamily { .. } => "NoCommonFamily",
            Self::BadMtu { .. } => "InvalidMtu",
            Self::NoPodCidr => "NoPodCIDR",
            Self::TooManyPodCidrs { .. }
            | Self::BadPodCidr { .. }
            | Self::ForeignPodCidr { .. }
            | Self::ReservedPodCidr { .. } => "InvalidPodCIDR",
            Self::TooManyAddresses { .. } | Self::BadAddress { .. } => "InvalidAddress",
            Self::OwnKey { .. } | Self::DuplicateKey { .. } => "DuplicateKey",
            Self::PodCidrOverlap { .. } => "PodCIDROverlap",
            Self::EndpointConflict { .. } => "EndpointConflict",
        }
    }

    /// Whether the node is merely not ready yet, which needs nobody's attention.
    pub fn is_waiting(&self) -> bool {
        matches!(self, Self::NoPublicKey | Self::NoPodCidr)
    }
}

/// What of an accepted node was not believed: the node works, that address or key does not.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum NodeNotice {
    /// The address belongs to another node; pods reach it as they reach the outside.
    #[error(
        "node address {address} is also claimed by node {with}; pods do not reach it by the tunnel"
    )]
    AddressConflict {
        /// The address.
        address: IpAddr,
        /// The other node.
        with: NodeName,
    },
    /// The node publishes another key than the one it was first seen with, and keys are pinned.
    #[error(
        "publishes another public key, {published}; {held} is kept until `warren trust {node}` is \
         run on this node"
    )]
    KeyHeld {
        /// The node.
        node: NodeName,
        /// The key that is kept.
        held: PublicKey,
        /// The key that it publishes.
        published: PublicKey,
    },
}

impl NodeNotice {
    /// A short, stable word, in the manner of Kubernetes reasons.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::AddressConflict { .. } => "AddressConflict",
            Self::KeyHeld { .. } => "PublicKeyHeld",
        }
    }
}

/// Cuts text that comes from outside to what fits a line of status.
pub(crate) fn shorten(text: &str) -> String {
    const MAX_CHARS: usize = 64;
    let clean = |c: char| if c.is_control() { '\u{fffd}' } else { c };
    let mut out: String = text.chars().take(MAX_CHARS).map(clean).collect();
    if text.chars().nth(MAX_CHARS).is_some() {
        out.push('…');
    }
    out
}
