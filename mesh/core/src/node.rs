//! Nodes as a registry tells of them ([`NodeView`]), and as planning believes them
//! ([`NodeRecord`]); what lies between is [`NodeReject`], which is data shown to people.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use warren_keyring::PublicKey;

use crate::consts::annotation;
use crate::endpoint::{EndpointError, Endpoints};
use crate::reject::NodeReject;
use crate::status::DataPlaneKind;

/// The longest node name: a DNS subdomain (RFC 1123, as Kubernetes limits names).
const MAX_NAME_LEN: usize = 253;
/// The longest uid: Kubernetes uses 36-character UUIDs, a file registry may use others.
const MAX_UID_LEN: usize = 128;
/// The most podCIDRs a node may have; Kubernetes allows one a family.
const MAX_POD_CIDRS: usize = 8;
/// The most addresses of a node that are believed.
const MAX_ADDRESSES: usize = 16;

/// A node's name: a DNS subdomain of at most 253 characters, as Kubernetes has it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NodeName(String);

impl NodeName {
    /// Checks and wraps a name.
    ///
    /// # Errors
    /// [`NodeReject::BadName`] when it is empty, too long, or no DNS subdomain.
    pub fn new(name: impl Into<String>) -> Result<Self, NodeReject> {
        let name = name.into();
        let label_ok = |label: &str| {
            let edge =
                |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
            edge(label.chars().next())
                && edge(label.chars().next_back())
                && label
                    .chars()
                    .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
        };
        if name.len() > MAX_NAME_LEN || !name.split('.').all(label_ok) {
            return Err(NodeReject::BadName {
                name: crate::reject::shorten(&name),
            });
        }
        Ok(Self(name))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for NodeName {
    type Error = NodeReject;
    fn try_from(name: String) -> Result<Self, NodeReject> {
        Self::new(name)
    }
}

impl From<NodeName> for String {
    fn from(name: NodeName) -> String {
        name.0
    }
}

/// Tells one life of a node from the next: a node deleted and made again under the same name has
/// another uid.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NodeUid(pub String);

/// A node as the registry holds it: text, not yet believed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeView {
    /// The node's name.
    pub name: String,
    /// The uid of this life of the node.
    #[serde(default)]
    pub uid: NodeUid,
    /// The node's pod ranges (`spec.podCIDRs`).
    #[serde(default, rename = "podCIDRs")]
    pub pod_cidrs: Vec<String>,
    /// The node's own addresses (`status.addresses` of type InternalIP), in order of preference.
    #[serde(default)]
    pub addresses: Vec<String>,
    /// The node's annotations; all but those of `warren.network/` are ignored.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
}

/// What parsing a node needs to know of the mesh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MeshRanges {
    /// The cluster's pod ranges; every podCIDR must lie inside one of them.
    pub cluster_cidrs: BTreeSet<IpNet>,
    /// Ranges that no podCIDR and no node address may touch: Services, the API server.
    pub reserved_cidrs: BTreeSet<IpNet>,
    /// The UDP port of an endpoint that only an address is known of.
    pub default_port: u16,
}

/// A node that can be planned with: every field checked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// The node's name.
    pub name: NodeName,
    /// The uid of this life of the node.
    pub uid: NodeUid,
    /// The node's WireGuard key.
    pub public_key: PublicKey,
    /// The key that the node is about to change to.
    pub next_public_key: Option<PublicKey>,
    /// The node's pod ranges: no host bits, inside the cluster's, disjoint from one another.
    pub pod_cidrs: BTreeSet<IpNet>,
    /// The node's own unicast addresses, in the registry's order.
    pub addresses: Vec<IpAddr>,
    /// Where the node's tunnel is reached.
    pub endpoints: Endpoints,
    /// The MTU of the node's underlay in bytes, 576 to 65535, if it published one.
    pub mtu: Option<u32>,
    /// Whether the node's data plane answers questions about the path: `warren-tunnel` does.
    #[serde(default = "knows_probes")]
    pub path_probes: bool,
}

/// As of records that were saved before nodes told of their data plane.
fn knows_probes() -> bool {
    true
}

impl NodeRecord {
    /// Believes a node, or says why not.
    ///
    /// # Errors
    /// The first [`NodeReject`] met; a node without a key yet is [`NodeReject::NoPublicKey`].
    pub fn parse(view: &NodeView, ranges: &MeshRanges) -> Result<Self, NodeReject> {
        let name = NodeName::new(view.name.as_str())?;
        if view.uid.0.len() > MAX_UID_LEN {
            return Err(NodeReject::BadUid {
                len: view.uid.0.len(),
            });
        }
        let text = |key: &'static str| -> Result<Option<&str>, NodeReject> {
            match view.annotations.get(key) {
                Some(v) if v.len() > annotation::MAX_LEN => Err(NodeReject::AnnotationTooLong {
                    key: key.into(),
                    len: v.len(),
                }),
                other => Ok(other.map(String::as_str)),
            }
        };
        let key = |key: &'static str| -> Result<Option<PublicKey>, NodeReject> {
            text(key)?
                .map(|v| {
                    PublicKey::from_base64(v).map_err(|e| NodeReject::BadPublicKey {
                        key: key.into(),
                        cause: e.to_string(),
                    })
                })
                .transpose()
        };
        let public_key = key(annotation::PUBLIC_KEY)?.ok_or(NodeReject::NoPublicKey)?;
        let next_public_key = key(annotation::NEXT_PUBLIC_KEY)?;
        let pod_cidrs = parse_pod_cidrs(&view.pod_cidrs, ranges)?;
        let addresses = parse_addresses(&view.addresses, ranges)?;
        let endpoints = parse_endpoints(
            text(annotation::FORCE_ENDPOINT)?,
            text(annotation::ENDPOINT)?,
            &addresses,
            ranges,
        )?;
        let mtu = text(annotation::MTU)?
            .map(|v| match v.parse::<u32>() {
                Ok(mtu @ 576..=65535) => Ok(mtu),
                _ => Err(NodeReject::BadMtu {
                    value: crate::reject::shorten(v),
                }),
            })
            .transpose()?;
        let data_plane = text(annotation::DATA_PLANE)?;
        let path_probes = data_plane.is_none_or(|v| v == DataPlaneKind::Userspace.as_str());
        Ok(Self {
            name,
            uid: view.uid.clone(),
            public_key,
            next_public_key,
            pod_cidrs,
            addresses,
            endpoints,
            mtu,
            path_probes,
        })
    }
}

/// Checks one podCIDR by itself.
///
/// # Errors
/// [`NodeReject::BadPodCidr`] for text that is no prefix, host bits, IPv4-mapped prefixes, and
/// prefixes too long to hold a tunnel address and a pod.
pub fn parse_pod_cidr(text: &str) -> Result<IpNet, NodeReject> {
    let bad = |why| NodeReject::BadPodCidr {
        cidr: crate::reject::shorten(text),
        why,
    };
    let net: IpNet = text.parse().map_err(|_| bad("not an address prefix"))?;
    if net != net.trunc() {
        return Err(bad("has host bits set"));
    }
    if let IpNet::V6(v6) = net
        && v6.addr().to_ipv4_mapped().is_some()
    {
        return Err(bad("is IPv4-mapped"));
    }
    if net.prefix_len() == 0 {
        return Err(bad("covers every address"));
    }
    if net.max_prefix_len() - net.prefix_len() < 2 {
        return Err(bad("too small: it must hold at least four addresses"));
    }
    Ok(net)
}

/// Checks a node's podCIDRs.
///
/// # Errors
/// The first [`NodeReject`] met; none at all is [`NodeReject::NoPodCidr`].
pub fn parse_pod_cidrs(
    texts: &[String],
    ranges: &MeshRanges,
) -> Result<BTreeSet<IpNet>, NodeReject> {
    if texts.is_empty() {
        return Err(NodeReject::NoPodCidr);
    }
    if texts.len() > MAX_POD_CIDRS {
        return Err(NodeReject::TooManyPodCidrs {
            count: texts.len(),
            max: MAX_POD_CIDRS,
        });
    }
    let mut out: BTreeSet<IpNet> = BTreeSet::new();
    for text in texts {
        let net = parse_pod_cidr(text)?;
        if !ranges.cluster_cidrs.iter().any(|c| c.contains(&net)) {
            return Err(NodeReject::ForeignPodCidr { cidr: net });
        }
        if let Some(other) = ranges.reserved_cidrs.iter().find(|r| overlap(r, &net)) {
            return Err(NodeReject::ReservedPodCidr {
                cidr: net,
                reserved: *other,
            });
        }
        if out.iter().any(|o| overlap(o, &net)) {
            return Err(NodeReject::BadPodCidr {
                cidr: net.to_string(),
                why: "overlaps another podCIDR of the same node",
            });
        }
        out.insert(net);
    }
    Ok(out)
}

/// Whether two prefixes share an address: prefixes nest or are disjoint.
pub fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(b) || b.contains(a)
}

/// Checks a node's addresses; each is there once in the result, in the given order.
///
/// # Errors
/// The first [`NodeReject`] met.
pub fn parse_addresses(texts: &[String], ranges: &MeshRanges) -> Result<Vec<IpAddr>, NodeReject> {
    if texts.len() > MAX_ADDRESSES {
        return Err(NodeReject::TooManyAddresses {
            count: texts.len(),
            max: MAX_ADDRESSES,
        });
    }
    let mut out = Vec::with_capacity(texts.len());
    for text in texts {
        let bad = |why| NodeReject::BadAddress {
            address: crate::reject::shorten(text),
            why,
        };
        let address: IpAddr = text.parse().map_err(|_| bad("not an IP address"))?;
        if let Some(why) = crate::endpoint::unusable(address) {
            return Err(bad(why));
        }
        if ranges.cluster_cidrs.iter().any(|c| c.contains(&address)) {
            return Err(bad("lies inside the cluster's pod ranges"));
        }
        if ranges.reserved_cidrs.iter().any(|c| c.contains(&address)) {
            return Err(bad("lies inside a reserved range"));
        }
        if !out.contains(&address) {
            out.push(address);
        }
    }
    Ok(out)
}

/// force-endpoint, then endpoint, then the node's addresses with the default port.
fn parse_endpoints(
    forced: Option<&str>,
    found: Option<&str>,
    addresses: &[IpAddr],
    ranges: &MeshRanges,
) -> Result<Endpoints, NodeReject> {
    let (key, parsed) = match (forced, found) {
        (Some(v), _) => (annotation::FORCE_ENDPOINT, v.parse::<Endpoints>()),
        (None, Some(v)) => (annotation::ENDPOINT, v.parse::<Endpoints>()),
        (None, None) => {
            let endpoints = Endpoints::from_addresses(addresses, ranges.default_port);
            return if endpoints.is_empty() {
                Err(NodeReject::NoEndpoint)
            } else {
                Ok(endpoints)
            };
        }
    };
    let bad = |cause: EndpointError| NodeReject::BadEndpoint {
        key: key.into(),
        cause: cause.to_string(),
    };
    let endpoints = parsed.map_err(bad)?;
    // A tunnel packet that is itself routed into the tunnel never leaves the node.
    if let Some(inside) = endpoints
        .iter()
        .find(|e| ranges.cluster_cidrs.iter().any(|c| c.contains(&e.ip())))
    {
        return Err(bad(EndpointError::InPodRange {
            address: inside.ip(),
        }));
    }
    Ok(endpoints)
}
