//! Where a Node, its agent and the other agents do not say the same. For a moment after each change
//! they do not; what stays is trouble.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use warren_core::consts::annotation;
use warren_core::endpoint::Endpoints;
use warren_core::kubernetes::NodeObject;
use warren_core::status::{AgentStatus, PeerStatus};

use super::report::answered;
use crate::facts::Facts;

/// One thing that is said in two ways.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Disagreement {
    /// What it is about.
    pub kind: Kind,
    /// The node that it is about.
    pub node: String,
    /// What differs, for people.
    pub message: String,
    /// Whose agents say otherwise than the Node.
    pub seen_by: Vec<String>,
}

/// What a disagreement is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// The Node publishes another key than its tunnel has.
    Key,
    /// A peer uses another key than the Node publishes.
    KeyAtPeer,
    /// The Node publishes other endpoints than its agent says.
    Endpoint,
    /// A peer was told another endpoint than the Node publishes.
    EndpointAtPeer,
    /// The agent uses other pod ranges than its Node has.
    PodCidrs,
    /// A peer uses other pod ranges than the Node has.
    PodCidrsAtPeer,
    /// A node is neither a peer nor refused.
    MissingPeer,
    /// A peer has no Node.
    PeerWithoutNode,
    /// Agents are configured with different `cluster-cidrs`.
    ClusterCidrs,
}

/// Collects disagreements; the same one seen by many is one.
#[derive(Default)]
struct Found(BTreeMap<(Kind, String, String), BTreeSet<String>>);

impl Found {
    fn note(&mut self, kind: Kind, node: &str, seen_by: &str, message: String) {
        let key = (kind, node.to_owned(), message);
        self.0.entry(key).or_default().insert(seen_by.to_owned());
    }
}

/// Finds all of them, by what they are about.
pub(super) fn find(facts: &Facts) -> Vec<Disagreement> {
    let mut found = Found::default();
    let nodes: BTreeMap<&str, &NodeObject> = facts
        .nodes
        .iter()
        .map(|node| (node.metadata.name.as_str(), node))
        .collect();
    for (name, status) in answered(facts) {
        if let Some(node) = nodes.get(name) {
            own(&mut found, name, node, status);
        }
        peers(&mut found, name, status, &nodes);
    }
    cluster_cidrs(&mut found, facts);
    let disagreement = |((kind, node, message), by): ((_, _, _), BTreeSet<String>)| Disagreement {
        kind,
        node,
        message,
        seen_by: by.into_iter().collect(),
    };
    found.0.into_iter().map(disagreement).collect()
}

/// A Node and its own agent.
fn own(found: &mut Found, name: &str, node: &NodeObject, status: &AgentStatus) {
    let published = annotated(node, annotation::PUBLIC_KEY);
    if let Some(key) = status.public_key.map(|key| key.to_base64())
        && published != Some(key.as_str())
    {
        let published = published.unwrap_or("no key");
        let message = format!("its Node publishes {published}, and its tunnel has {key}");
        found.note(Kind::Key, name, name, message);
    }
    let endpoints: BTreeSet<_> = status.endpoints.iter().copied().collect();
    let published = annotated(node, annotation::ENDPOINT);
    let parsed = published.and_then(|text| text.parse::<Endpoints>().ok());
    let parsed: BTreeSet<_> = parsed.iter().flat_map(Endpoints::iter).copied().collect();
    if status.public_key.is_some() && parsed != endpoints {
        let published = published.unwrap_or("no endpoint");
        let own = list(&endpoints);
        let message = format!("its Node publishes {published}, and its agent says {own}");
        found.note(Kind::Endpoint, name, name, message);
    }
    let given = pod_cidrs(node);
    let used: BTreeSet<String> = status.pod_cidrs.iter().map(ToString::to_string).collect();
    if given != used {
        let message = format!(
            "its Node has {}, and its agent uses {}",
            list(&given),
            list(&used)
        );
        found.note(Kind::PodCidrs, name, name, message);
    }
}

/// All Nodes and one agent that has them as peers.
fn peers(found: &mut Found, by: &str, status: &AgentStatus, nodes: &BTreeMap<&str, &NodeObject>) {
    let peers: BTreeMap<&str, &PeerStatus> = status
        .peers
        .iter()
        .map(|peer| (peer.node.as_str(), peer))
        .collect();
    for (&name, peer) in &peers {
        match nodes.get(name) {
            Some(node) => one_peer(found, by, node, peer),
            None => {
                let message = "it has no Node, and is still a peer".to_owned();
                found.note(Kind::PeerWithoutNode, name, by, message);
            }
        }
    }
    let refused: BTreeSet<&str> = status.rejected.iter().map(|r| r.node.as_str()).collect();
    for (&name, node) in nodes {
        let known = name == by || peers.contains_key(name) || refused.contains(name);
        if status.synced && !known && annotated(node, annotation::PUBLIC_KEY).is_some() {
            let message = "it is neither a peer nor refused".to_owned();
            found.note(Kind::MissingPeer, name, by, message);
        }
    }
}

fn one_peer(found: &mut Found, by: &str, node: &NodeObject, peer: &PeerStatus) {
    let name = peer.node.as_str();
    let key = peer.public_key.to_base64();
    let published = annotated(node, annotation::PUBLIC_KEY).unwrap_or("no key");
    if published != key {
        let held = match peer.untrusted_key {
            Some(_) => {
                format!("; keys are pinned there: compare it, then `warren trust {name}` there")
            }
            None => String::new(),
        };
        let message = format!("its Node publishes {published}, and its peers use {key}{held}");
        found.note(Kind::KeyAtPeer, name, by, message);
    }
    let forced = annotated(node, annotation::FORCE_ENDPOINT);
    let published = forced.or(annotated(node, annotation::ENDPOINT));
    // Without either, peers take its addresses with a port that is not known here.
    if let Some(Ok(endpoints)) = published.map(str::parse::<Endpoints>)
        && !endpoints.iter().any(|e| *e == peer.published_endpoint)
    {
        let told = peer.published_endpoint;
        let message = format!(
            "its Node publishes {}, and its peers were told {told}",
            list(endpoints.iter())
        );
        found.note(Kind::EndpointAtPeer, name, by, message);
    }
    let given = pod_cidrs(node);
    let used: BTreeSet<String> = peer.pod_cidrs.iter().map(ToString::to_string).collect();
    if given != used {
        let message = format!(
            "its Node has {}, and its peers use {}",
            list(&given),
            list(&used)
        );
        found.note(Kind::PodCidrsAtPeer, name, by, message);
    }
}

fn cluster_cidrs(found: &mut Found, facts: &Facts) {
    let mut groups: BTreeMap<BTreeSet<String>, Vec<&str>> = BTreeMap::new();
    for (name, status) in answered(facts).filter(|(_, status)| !status.cluster_cidrs.is_empty()) {
        let cidrs = status
            .cluster_cidrs
            .iter()
            .map(ToString::to_string)
            .collect();
        groups.entry(cidrs).or_default().push(name);
    }
    let Some(most) = groups
        .iter()
        .max_by_key(|(_, names)| names.len())
        .map(|(cidrs, _)| cidrs.clone())
    else {
        return;
    };
    for (cidrs, names) in groups.iter().filter(|(cidrs, _)| **cidrs != most) {
        for name in names {
            let message = format!(
                "its cluster-cidrs are {}, elsewhere {}",
                list(cidrs),
                list(&most)
            );
            found.note(Kind::ClusterCidrs, name, name, message);
        }
    }
}

fn annotated<'a>(node: &'a NodeObject, key: &str) -> Option<&'a str> {
    let annotations = node.metadata.annotations.as_ref()?;
    annotations.get(key).map(String::as_str)
}

fn pod_cidrs(node: &NodeObject) -> BTreeSet<String> {
    let given = node.spec.as_ref().and_then(|spec| spec.pod_cidrs.as_ref());
    given
        .into_iter()
        .flatten()
        .map(|text| normal(text))
        .collect()
}

/// A range as agents write it.
fn normal(text: &str) -> String {
    text.parse::<ipnet::IpNet>()
        .map_or_else(|_| text.to_owned(), |net| net.to_string())
}

fn list<T: ToString>(items: impl IntoIterator<Item = T>) -> String {
    let items: Vec<String> = items.into_iter().map(|item| item.to_string()).collect();
    match items.as_slice() {
        [] => "none".to_owned(),
        items => items.join(", "),
    }
}
