//! Is the node protected, as the kernel says, and is the tunnel's interface set up?

use std::collections::BTreeSet;

use warren_core::consts::{
    MAIN_TABLE, NFT_TABLE, NODE_TABLE, RULE_PRIORITY, UNREACHABLE_METRIC, rule_comment,
};
use warren_netlink::{RouteKind, protection};

use super::facts::Facts;
use super::finding::{Check, Finding};

const REPAIR: &str = "start warren-agent, which repairs it within 5 s; then: warren status";

pub(super) fn check(facts: &Facts) -> Vec<Finding> {
    let mut check = Check::new("protection");
    let open = "a pod's packets could leave in clear, or reach what they must not; warren-cni \
                makes no pod";
    match protection::rule_comments("inet", NFT_TABLE) {
        Err(e) => check.error(
            format!("cannot read the filter: {e}"),
            "whether the node is protected is not known",
            "run this as root",
        ),
        Ok(None) => check.error(
            format!("nftables table inet {NFT_TABLE} is not loaded"),
            open,
            REPAIR,
        ),
        Ok(Some(comments)) => {
            let found: BTreeSet<&str> = comments.values().flatten().map(String::as_str).collect();
            let missing = rule_comment::REQUIRED
                .iter()
                .filter(|c| !found.contains(*c));
            let missing: Vec<&str> = missing.copied().collect();
            if !missing.is_empty() {
                check.error(
                    format!(
                        "nftables table inet {NFT_TABLE} lacks rules: {}",
                        missing.join(", ")
                    ),
                    open,
                    REPAIR,
                );
            }
        }
    }
    let Ok(net) = facts.net.as_ref().map_err(|e| {
        check.error(
            format!("cannot read the kernel's network: {e}"),
            "routes and addresses were not checked",
            "run this as root",
        );
    }) else {
        return check.done("");
    };
    for range in facts.pod_ranges() {
        let guards = |route: &&warren_netlink::Route| {
            route.table == MAIN_TABLE
                && route.dst == range
                && route.metric == UNREACHABLE_METRIC
                && route.kind == RouteKind::Unreachable
        };
        if !net.routes.iter().any(|route| guards(&route)) {
            check.error(format!("no unreachable route for {range}"), open, REPAIR);
        }
    }
    let node = facts.node.as_ref().ok();
    let own = node.map(|node| node.pod_cidrs.clone()).unwrap_or_default();
    let from = own.into_iter().map(|cidr| {
        (
            "from",
            cidr,
            "this node's pods do not reach other nodes' own addresses",
        )
    });
    let to = facts.pod_ranges().into_iter().map(|range| {
        (
            "to",
            range,
            "a route of others, or a flushed main table, takes pods' packets off their way",
        )
    });
    for (word, net_of_rule, means) in from.chain(to) {
        let ours = |rule: &warren_netlink::Rule| {
            let (given, other) = if word == "from" {
                (rule.from, rule.to)
            } else {
                (rule.to, rule.from)
            };
            rule.priority == RULE_PRIORITY
                && rule.table == NODE_TABLE
                && (given, other) == (Some(net_of_rule), None)
        };
        if !net.rules.iter().any(ours) {
            check.error(
                format!("no rule {word} {net_of_rule} to table {NODE_TABLE}"),
                means,
                REPAIR,
            );
        }
    }
    let interface = &facts.args.interface;
    match facts.tunnel_link() {
        None => check.error(
            format!("the interface {interface} is gone"),
            "pods of other nodes are not reached",
            "restart warren-tunnel, which makes it",
        ),
        Some(link) => {
            if !link.up {
                check.error(
                    format!("the interface {interface} is down"),
                    "pods of other nodes are not reached",
                    format!("ip link set {interface} up"),
                );
            }
            let wanted = facts
                .node
                .as_ref()
                .map(|node| node.tunnel_addresses.clone());
            for address in wanted.unwrap_or_default() {
                let of_link = net.addresses.iter().filter(|a| a.index == link.index);
                if !of_link.map(|a| a.net.addr()).any(|a| a == address) {
                    check.error(
                        format!("the interface {interface} lacks the address {address}"),
                        "the node's own packets to pods have a source that peers refuse",
                        REPAIR,
                    );
                }
            }
        }
    }
    check.done("filter, unreachable routes, rules and addresses are there")
}
