//! Whether a pod may be made here: the kernel itself is asked, for a file could say what is no
//! longer so.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::ipam::AddressRange;
use ipnet::IpNet;
use thiserror::Error;
use warren_core::consts::{MAIN_TABLE, NFT_TABLE, NODE_FILE, UNREACHABLE_METRIC, rule_comment};
use warren_core::files::NodeFile;
use warren_netlink::{NetlinkError, Route, RouteKind, SyncNetlink, protection};

/// The chains that the required rules must be in; a rule in a chain that is hooked elsewhere, or
/// not at all, protects nothing.
const INGRESS_CHAIN: &str = "ingress";
const EGRESS_CHAIN: &str = "egress";
const POD_TO_NODE_CHAIN: &str = "pod-to-node";
/// The chain that masquerades.
const SOURCE_NAT_CHAIN: &str = "source-nat";
/// How the comments of the rules of the egress chain go on after the prefix.
const EGRESS_COMMENT: &str = "egress-";
/// There unless the kernel was booted without IPv6.
const IPV6_SETTINGS: &str = "/proc/sys/net/ipv6/conf";
/// Likewise those of the chain for pods' packets to node addresses.
const POD_TO_NODE_COMMENT: &str = "pod-to-node-";

/// Why no pod may be made. All but [`ProtectError::Kernel`] are CNI error code 11.
#[derive(Debug, Error)]
pub enum ProtectError {
    /// The agent has not written its record yet.
    #[error("node not ready: the agent has not written {path:?} yet")]
    NoNodeFile {
        /// The record's file.
        path: PathBuf,
    },
    /// The record cannot be read.
    #[error("node not ready: cannot read {path:?}: {cause}")]
    NodeFile {
        /// The record's file.
        path: PathBuf,
        /// What the system or the parser said.
        cause: io::Error,
    },
    /// The filter's table is not loaded.
    #[error("node not protected: nftables table inet {NFT_TABLE} is not loaded")]
    NoTable,
    /// Rules of the filter are not loaded.
    #[error("node not protected: nftables table inet {NFT_TABLE} lacks rules: {}", .0.join(", "))]
    Rules(Vec<&'static str>),
    /// Unreachable routes are missing.
    #[error(
        "node not protected: no unreachable route of metric {UNREACHABLE_METRIC} for {}",
        .0.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    )]
    Routes(Vec<IpNet>),
    /// Pods would get addresses that neither filter nor routes cover.
    #[error("node not protected: its podCIDR {0} is inside none of the cluster's pod ranges")]
    Outside(IpNet),
    /// Pods are to have IPv6 addresses, and the kernel has no IPv6. CNI error code 100.
    #[error(
        "the kernel of this node has no IPv6 (booted with ipv6.disable=1?), and its pods are to have \
         addresses of {0}: boot it with IPv6, or give the node no IPv6 podCIDR"
    )]
    NoIpv6(IpNet),
    /// The configuration asks for masquerade, which the agent does not do. CNI error code 7.
    #[error(
        "network configuration has masquerade = true: must be false or be left out where the \
         agent's own setting masquerade is false, as on this node"
    )]
    NoMasquerade,
    /// The agent's rules would masquerade a pod that must not be.
    #[error(
        "node not ready: its rules masquerade all pods, and the configuration has masquerade = \
         false; update warren-agent"
    )]
    NoExemption,
    /// The kernel could not be asked. CNI error code 100.
    #[error("cannot tell whether the node is protected: {0}")]
    Kernel(#[from] NetlinkError),
}

/// Reads the agent's record of this node.
///
/// # Errors
/// [`ProtectError::NoNodeFile`] and [`ProtectError::NodeFile`]; the agent will write it.
pub fn load_node(state_dir: &Path) -> Result<NodeFile, ProtectError> {
    let path = state_dir.join(NODE_FILE);
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return Err(ProtectError::NoNodeFile { path });
        }
        Err(cause) => return Err(ProtectError::NodeFile { path, cause }),
    };
    serde_json::from_slice(&bytes).map_err(|e| ProtectError::NodeFile {
        path,
        cause: io::Error::from(e),
    })
}

/// Checks that the kernel holds all that keeps a pod's packets from leaving in clear, and from
/// what they must not reach on the node itself.
///
/// # Errors
/// [`ProtectError`], naming everything of a kind that is missing.
pub fn check(netlink: &mut SyncNetlink, node: &NodeFile) -> Result<(), ProtectError> {
    let comments = protection::rule_comments("inet", NFT_TABLE)?.ok_or(ProtectError::NoTable)?;
    let missing = missing_rules(&comments);
    if !missing.is_empty() {
        return Err(ProtectError::Rules(missing));
    }
    let covered = |cidr: &&IpNet| node.cluster_cidrs.iter().any(|range| range.contains(*cidr));
    if let Some(outside) = node.pod_cidrs.iter().find(|cidr| !covered(cidr)) {
        return Err(ProtectError::Outside(*outside));
    }
    let guards = netlink.routes_of(MAIN_TABLE, RouteKind::Unreachable, None)?;
    let missing = missing_routes(&guards, &node.cluster_cidrs);
    if !missing.is_empty() {
        return Err(ProtectError::Routes(missing));
    }
    Ok(())
}

/// Checks that the kernel has the families that pods are to have addresses of. Where IPv6 is only
/// switched off by sysctl, it is switched on for the pod's own interfaces.
///
/// # Errors
/// [`ProtectError::NoIpv6`].
pub fn check_families(ranges: &[AddressRange]) -> Result<(), ProtectError> {
    let ipv6 = ranges.iter().find(|range| range.is_ipv6());
    match ipv6 {
        Some(range) if !Path::new(IPV6_SETTINGS).exists() => {
            Err(ProtectError::NoIpv6(range.subnet()))
        }
        _ => Ok(()),
    }
}

/// Checks that the node's rules do what the configuration says of masquerade.
///
/// # Errors
/// [`ProtectError::NoMasquerade`], [`ProtectError::NoExemption`], [`ProtectError::Kernel`].
pub fn check_masquerade(wanted: Option<bool>) -> Result<(), ProtectError> {
    let Some(wanted) = wanted else { return Ok(()) };
    let comments = protection::rule_comments("inet", NFT_TABLE)?.ok_or(ProtectError::NoTable)?;
    let rules = comments.get(SOURCE_NAT_CHAIN);
    let has = |comment: &str| rules.is_some_and(|rules| rules.iter().any(|rule| rule == comment));
    let masquerades = has(rule_comment::MASQUERADE_V4) || has(rule_comment::MASQUERADE_V6);
    match wanted {
        true if !masquerades => Err(ProtectError::NoMasquerade),
        false if masquerades && !has(rule_comment::NAT_UNMASQUERADED) => {
            Err(ProtectError::NoExemption)
        }
        _ => Ok(()),
    }
}

/// The required rules that a listing (comments by chain) lacks.
fn missing_rules(comments: &BTreeMap<String, Vec<String>>) -> Vec<&'static str> {
    let present = |comment: &&'static str| {
        let name = comment
            .strip_prefix(rule_comment::PREFIX)
            .unwrap_or(comment);
        let chain = if name.starts_with(EGRESS_COMMENT) {
            EGRESS_CHAIN
        } else if name.starts_with(POD_TO_NODE_COMMENT) {
            POD_TO_NODE_CHAIN
        } else {
            INGRESS_CHAIN
        };
        comments
            .get(chain)
            .is_some_and(|rules| rules.iter().any(|rule| rule == comment))
    };
    rule_comment::REQUIRED
        .into_iter()
        .filter(|comment| !present(comment))
        .collect()
}

/// The ranges that have no `unreachable` route beneath all others.
fn missing_routes(routes: &[Route], ranges: &BTreeSet<IpNet>) -> Vec<IpNet> {
    let guards = |route: &&Route| {
        route.kind == RouteKind::Unreachable
            && route.table == MAIN_TABLE
            && route.metric == UNREACHABLE_METRIC
    };
    let guarded: BTreeSet<IpNet> = routes
        .iter()
        .filter(guards)
        .map(|route| route.dst)
        .collect();
    ranges
        .iter()
        .copied()
        .filter(|range| !guarded.contains(range))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listing() -> BTreeMap<String, Vec<String>> {
        let mut out = BTreeMap::<String, Vec<String>>::new();
        for comment in rule_comment::REQUIRED {
            let chain = if comment.contains("egress") {
                "egress"
            } else if comment.contains("pod-to-node") {
                "pod-to-node"
            } else {
                "ingress"
            };
            out.entry(chain.into()).or_default().push(comment.into());
        }
        out
    }

    #[test]
    fn every_single_rule_is_missed() {
        assert!(missing_rules(&listing()).is_empty());
        for comment in rule_comment::REQUIRED {
            let mut without = listing();
            without
                .values_mut()
                .for_each(|rules| rules.retain(|rule| rule != comment));
            assert_eq!(missing_rules(&without), [comment]);
        }
        assert_eq!(missing_rules(&BTreeMap::new()), rule_comment::REQUIRED);
    }

    #[test]
    fn a_rule_in_another_chain_does_not_count() {
        let mut moved = listing();
        let egress = moved.remove("egress").unwrap();
        moved.insert("not-hooked".into(), egress.clone());
        assert_eq!(missing_rules(&moved), egress);
    }

    #[test]
    fn only_an_unreachable_route_of_our_metric_in_the_main_table_guards() {
        let range: IpNet = "10.244.0.0/16".parse().unwrap();
        let ranges = BTreeSet::from([range]);
        let guard = Route::unreachable(MAIN_TABLE, range, UNREACHABLE_METRIC, 151);
        assert!(missing_routes(&[guard], &ranges).is_empty());
        let narrower = "10.244.0.0/17".parse().unwrap();
        for other in [
            Route::unreachable(100, range, UNREACHABLE_METRIC, 151),
            Route::unreachable(MAIN_TABLE, range, 7, 151),
            Route::unreachable(MAIN_TABLE, narrower, UNREACHABLE_METRIC, 151),
            Route {
                metric: UNREACHABLE_METRIC,
                ..Route::on_link(MAIN_TABLE, range, 2, 151)
            },
        ] {
            assert_eq!(missing_routes(&[other], &ranges), [range], "{other}");
        }
    }
}
