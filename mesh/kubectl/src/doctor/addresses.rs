//! Ranges, keys and endpoints of all Nodes together.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use ipnet::IpNet;
use warren_core::endpoint::Endpoints;
use warren_core::node::{overlap, parse_pod_cidr};
use warren_keyring::PublicKey;
use warren_text::finding::Check;

use super::Case;
use warren_core::consts::annotation;
use warren_core::kubernetes::NodeObject;

pub(super) fn ranges(case: &Case<'_>, check: &mut Check) -> String {
    let facts = &case.facts.facts;
    let agents = facts.agents.values().flatten();
    let cluster: BTreeSet<IpNet> = agents
        .flat_map(|a| a.cluster_cidrs.iter().copied())
        .collect();
    let mut known: Vec<(IpNet, &str)> = Vec::new();
    for node in &facts.nodes {
        let name = node.metadata.name.as_str();
        let given = node
            .spec
            .as_ref()
            .and_then(|spec| spec.pod_cidrs.as_deref());
        let given = given.unwrap_or_default();
        if given.is_empty() {
            check.error(
                format!("node {name} has no podCIDRs"),
                "no pod can start on it",
                "run kube-controller-manager with --allocate-node-cidrs and --cluster-cidr; is its range used up?",
            );
        }
        for text in given {
            let cidr = match parse_pod_cidr(text) {
                Ok(cidr) => cidr,
                Err(reject) => {
                    check.error(
                        format!("node {name}: {reject}"),
                        "other nodes refuse it",
                        "a Node's podCIDRs cannot be changed: delete the Node and let it register anew",
                    );
                    continue;
                }
            };
            if !cluster.is_empty() && !cluster.iter().any(|range| range.contains(&cidr)) {
                check.error(
                    format!("podCIDR {cidr} of node {name} is outside the agents' cluster-cidrs"),
                    "other nodes refuse it",
                    "give the agents the range that kube-controller-manager has as --cluster-cidr (chart: clusterCIDRs)",
                );
            }
            known.push((cidr, name));
        }
    }
    // Prefixes nest or are disjoint, so that in this order an overlap is with the one that began last.
    known.sort();
    let mut open: Vec<(IpNet, &str)> = Vec::new();
    for (cidr, name) in &known {
        open.retain(|(earlier, _)| overlap(earlier, cidr));
        for (earlier, other) in &open {
            check.error(
                format!("podCIDR {cidr} of node {name} overlaps {earlier} of node {other}"),
                "one of the two is refused by the other nodes, or both are",
                "delete the newer Node and let it register anew",
            );
        }
        open.push((*cidr, name));
    }
    format!("{} podCIDRs, none overlaps another", known.len())
}

pub(super) fn keys(case: &Case<'_>, check: &mut Check) -> String {
    let mut owners: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for node in &case.facts.facts.nodes {
        let name = node.metadata.name.as_str();
        let Some(text) = annotated(node, annotation::PUBLIC_KEY) else {
            check.error(
                format!("node {name} publishes no key"),
                "other nodes have no tunnel to it",
                format!("does its agent run, and may it write its Node? kubectl warren status; kubectl describe node {name}"),
            );
            continue;
        };
        match PublicKey::from_base64(text) {
            Ok(key) => owners.entry(key.to_base64()).or_default().push(name),
            Err(error) => check.error(
                format!("node {name}: annotation {}: {error}", annotation::PUBLIC_KEY),
                "other nodes refuse it",
                format!("restart its agent; if it stays: kubectl --as=$USER --as-group=warren:operators annotate node {name} {}-", annotation::PUBLIC_KEY),
            ),
        }
    }
    let count = owners.len();
    for (key, names) in owners.iter().filter(|(_, names)| names.len() > 1) {
        check.error(
            format!("nodes {} publish one key, {key}", names.join(", ")),
            "to WireGuard they are one: only the first keeps its traffic; was a machine cloned with /var/lib/warren?",
            "on the clone: remove /var/lib/warren/private.key, and delete its pod of warren-tunnel",
        );
    }
    format!("{count} keys, each of one node")
}

pub(super) fn endpoints(case: &Case<'_>, check: &mut Check) -> String {
    let mut owners: BTreeMap<SocketAddr, Vec<&str>> = BTreeMap::new();
    let mut forced = Vec::new();
    for node in &case.facts.facts.nodes {
        let name = node.metadata.name.as_str();
        let force =
            annotated(node, annotation::FORCE_ENDPOINT).map(|v| (annotation::FORCE_ENDPOINT, v));
        let found = annotated(node, annotation::ENDPOINT).map(|v| (annotation::ENDPOINT, v));
        if force.is_some() {
            forced.push(name.to_owned());
        }
        let Some((key, value)) = force.or(found) else {
            continue;
        };
        match value.parse::<Endpoints>() {
            Ok(endpoints) => {
                for endpoint in endpoints.iter() {
                    owners.entry(*endpoint).or_default().push(name);
                }
            }
            Err(error) => check.error(
                format!("node {name}: annotation {key}: {error}"),
                "other nodes refuse it",
                format!("kubectl --as=$USER --as-group=warren:operators annotate --overwrite node {name} {key}=IP:PORT"),
            ),
        }
    }
    for (endpoint, names) in owners.iter().filter(|(_, names)| names.len() > 1) {
        check.error(
            format!("nodes {} have one endpoint, {endpoint}", names.join(", ")),
            "only one of them can be reached there; others are refused",
            format!(
                "give each its own: kubectl --as=$USER --as-group=warren:operators annotate --overwrite node NODE {}=IP:PORT",
                annotation::FORCE_ENDPOINT
            ),
        );
    }
    match forced.as_slice() {
        [] => format!("{} endpoints, each of one node", owners.len()),
        forced => format!(
            "{} endpoints, each of one node; set by an operator ({}): {}",
            owners.len(),
            annotation::FORCE_ENDPOINT,
            super::few(forced)
        ),
    }
}

fn annotated<'a>(node: &'a NodeObject, key: &str) -> Option<&'a str> {
    node.metadata
        .annotations
        .as_ref()?
        .get(key)
        .map(String::as_str)
}
