//! The table as text, in nft's own language.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use ipnet::IpNet;
use warren_core::consts::{NFT_TABLE, UNMASQUERADED_GROUP, VETH_PREFIX, rule_comment as rule};
use warren_core::state::FilterSpec;

use super::{Counted, Counters};

/// How the names of the sets of peers' addresses start. They hold single addresses, not intervals, so
/// that one address can be added without a look at the others.
pub(super) const PEER_SETS: &str = "peer";

/// How the names of the sets of pod ranges start that quoted packets' destinations are looked up in: nft
/// takes what lies within an ICMP message for a number, not for an address.
const QUOTED_SETS: &str = "quoted";
/// Where an ICMP error has the destination of the packet that it quotes: behind its own 8 bytes, as far as
/// the address is in an IPv4 or IPv6 header; in bits from the start of the message, and how many.
const QUOTED_V4: &str = "@th,192,32";
const QUOTED_V6: &str = "@th,256,128";

/// Whether two filters have the same rules, so that only elements of sets may differ.
pub(super) fn same_rules(one: &FilterSpec, other: &FilterSpec) -> bool {
    let rules_of = |spec: &FilterSpec| FilterSpec {
        pod_ranges: BTreeSet::new(),
        own_allowed_ips: BTreeSet::new(),
        own_pod_cidrs: BTreeSet::new(),
        peer_addresses: BTreeSet::new(),
        ..spec.clone()
    };
    rules_of(one) == rules_of(other)
}

/// The transaction that gives each set that differs its new elements.
pub(super) fn set_changes(old: &FilterSpec, new: &FilterSpec) -> String {
    let mut out = String::new();
    for ((name, before), (_, after)) in named_sets(old).into_iter().zip(named_sets(new)) {
        if before == after {
            continue;
        }
        for (family, ipv6) in [("v4", false), ("v6", true)] {
            let set = format!("inet {NFT_TABLE} {name}_{family}");
            let elements = elements(name, after, ipv6);
            let _ = writeln!(out, "flush set {set}");
            if !elements.is_empty() {
                let _ = writeln!(out, "add element {set} {{ {elements} }}");
            }
        }
    }
    out
}

fn named_sets(spec: &FilterSpec) -> [(&'static str, &BTreeSet<IpNet>); 5] {
    [
        ("pod", &spec.pod_ranges),
        (QUOTED_SETS, &spec.pod_ranges),
        ("own", &spec.own_allowed_ips),
        ("ownpod", &spec.own_pod_cidrs),
        (PEER_SETS, &spec.peer_addresses),
    ]
}

fn elements(name: &str, prefixes: &BTreeSet<IpNet>, ipv6: bool) -> String {
    let of_family = prefixes.iter().filter(|net| net.addr().is_ipv6() == ipv6);
    let elements: Vec<String> = of_family
        .map(|net| match name {
            PEER_SETS => net.addr().to_string(),
            QUOTED_SETS => range(net),
            _ => net.to_string(),
        })
        .collect();
    elements.join(", ")
}

/// A prefix as the numbers from its first address to its last.
fn range(net: &IpNet) -> String {
    match net {
        IpNet::V4(net) => format!(
            "{:#x}-{:#x}",
            net.network().to_bits(),
            net.broadcast().to_bits()
        ),
        IpNet::V6(net) => format!(
            "{:#x}-{:#x}",
            net.network().to_bits(),
            net.broadcast().to_bits()
        ),
    }
}

/// The whole batch, in nft's own language.
pub fn ruleset(spec: &FilterSpec) -> String {
    ruleset_with(spec, &Counters::new())
}

/// The same, with rules that have counted already.
pub(super) fn ruleset_with(spec: &FilterSpec, counters: &Counters) -> String {
    let tunnel = &spec.interface;
    let mut out = String::new();
    // `add` first: deleting a table that is not there would fail the batch.
    let _ = writeln!(
        out,
        "add table inet {NFT_TABLE}\ndelete table inet {NFT_TABLE}"
    );
    let _ = writeln!(out, "table inet {NFT_TABLE} {{");
    for (name, prefixes) in named_sets(spec) {
        sets(&mut out, name, prefixes);
    }

    let drop = |comment: &str| {
        let counted = match counters.get(comment) {
            Some(Counted { packets, bytes }) if *packets > 0 => {
                format!(" packets {packets} bytes {bytes}")
            }
            _ => String::new(),
        };
        format!("counter{counted} drop comment \"{comment}\"")
    };
    let accept = |name: &str| format!("accept comment \"{}{name}\"", rule::PREFIX);
    let pods = format!("iifname \"{VETH_PREFIX}*\"");
    // Before destination NAT and connection tracking: what pretends to be of a pod, or asks for
    // one in clear, is gone before anything can rewrite it.
    chain(
        &mut out,
        "ingress",
        "type filter hook prerouting priority raw; policy accept;",
        [
            format!("iifname \"lo\" {}", accept("ingress-lo")),
            format!(
                "{pods} fib saddr . iif oif missing {}",
                drop(rule::ANTISPOOF)
            ),
            format!("{pods} ip6 saddr fe80::/10 {}", drop(rule::POD_LINK_LOCAL)),
            format!("{pods} ip daddr 127.0.0.0/8 {}", drop(rule::POD_LOOPBACK)),
            format!(
                "{pods} ip6 daddr ::ffff:0.0.0.0/96 {}",
                drop(rule::POD_MAPPED)
            ),
            // What is not the node's own, such as a cloud's metadata, is forwarded as any other.
            format!(
                "{pods} ip daddr 169.254.0.0/16 fib daddr type local {}",
                drop(rule::POD_TO_LINK_LOCAL_V4)
            ),
            format!(
                "{pods} ip6 daddr fe80::/10 {}",
                drop(rule::POD_TO_LINK_LOCAL_V6)
            ),
            format!("{pods} {}", accept("ingress-pod")),
            format!("iifname \"{tunnel}\" {}", accept("ingress-tunnel")),
            format!("ip saddr @pod_v4 {}", drop(rule::INGRESS_SRC_V4)),
            format!("ip6 saddr @pod_v6 {}", drop(rule::INGRESS_SRC_V6)),
            format!("ip daddr @pod_v4 {}", drop(rule::INGRESS_DST_V4)),
            format!("ip6 daddr @pod_v6 {}", drop(rule::INGRESS_DST_V6)),
        ],
    );
    // After source NAT: at the forward hook masqueraded traffic still has its pod's source.
    chain(
        &mut out,
        "egress",
        "type filter hook postrouting priority 300; policy accept;",
        [
            format!("oifname \"lo\" {}", accept("egress-lo")),
            format!("oifname \"{tunnel}\" {}", accept("egress-tunnel")),
            format!("oifname \"{VETH_PREFIX}*\" {}", accept("egress-pod")),
            format!("ip saddr @pod_v4 {}", drop(rule::EGRESS_SRC_V4)),
            format!("ip6 saddr @pod_v6 {}", drop(rule::EGRESS_SRC_V6)),
            format!("ip daddr @pod_v4 {}", drop(rule::EGRESS_DST_V4)),
            format!("ip6 daddr @pod_v6 {}", drop(rule::EGRESS_DST_V6)),
            // A node tells another one that a pod cannot be reached: with the first bytes of what was sent
            // to the pod, from and to the nodes' own addresses.
            format!(
                "icmp type {{ destination-unreachable, redirect, time-exceeded, parameter-problem }} \
                 {QUOTED_V4} @{QUOTED_SETS}_v4 {}",
                drop(rule::EGRESS_QUOTE_V4)
            ),
            format!(
                "icmpv6 type {{ destination-unreachable, packet-too-big, time-exceeded, \
                 parameter-problem }} {QUOTED_V6} @{QUOTED_SETS}_v6 {}",
                drop(rule::EGRESS_QUOTE_V6)
            ),
        ],
    );
    // Without the rule or the table for node addresses such a packet would take the underlay; the
    // egress chain no longer knows it, for it has the node's source by then.
    chain(
        &mut out,
        "pod-to-node",
        "type filter hook forward priority filter; policy accept;",
        [
            format!(
                "{pods} oifname != \"{tunnel}\" ip daddr @peer_v4 {}",
                drop(rule::POD_TO_NODE_V4)
            ),
            format!(
                "{pods} oifname != \"{tunnel}\" ip6 daddr @peer_v6 {}",
                drop(rule::POD_TO_NODE_V6)
            ),
        ],
    );
    let mut nat = Vec::new();
    let comment = |name: &str| format!("comment \"{}{name}\"", rule::PREFIX);
    if let Some(source) = spec.tunnel_v4 {
        let to = format!("snat ip to {source} {}", comment("snat-v4"));
        nat.push(format!("oifname \"{tunnel}\" ip saddr != @own_v4 {to}"));
    }
    if let Some(source) = spec.tunnel_v6 {
        let to = format!("snat ip6 to {source} {}", comment("snat-v6"));
        nat.push(format!("oifname \"{tunnel}\" ip6 saddr != @own_v6 {to}"));
    }
    if spec.masquerade {
        nat.push(format!("oifname \"lo\" {}", accept("nat-lo")));
        nat.push(format!("oifname \"{tunnel}\" {}", accept("nat-tunnel")));
        nat.push(format!("oifname \"{VETH_PREFIX}*\" {}", accept("nat-pod")));
        nat.push(format!(
            "iifgroup {UNMASQUERADED_GROUP} accept comment \"{}\"",
            rule::NAT_UNMASQUERADED
        ));
        let to = |comment: &str| format!("masquerade comment \"{comment}\"");
        nat.push(format!(
            "ip saddr @ownpod_v4 ip daddr != @pod_v4 {}",
            to(rule::MASQUERADE_V4)
        ));
        nat.push(format!(
            "ip6 saddr @ownpod_v6 ip6 daddr != @pod_v6 {}",
            to(rule::MASQUERADE_V6)
        ));
    }
    chain(
        &mut out,
        "source-nat",
        "type nat hook postrouting priority srcnat; policy accept;",
        nat,
    );
    let clamp = "tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu";
    chain(
        &mut out,
        "mss",
        "type filter hook forward priority mangle; policy accept;",
        [
            format!("oifname \"{tunnel}\" {clamp} {}", comment("mss-out")),
            format!("iifname \"{tunnel}\" {clamp} {}", comment("mss-in")),
        ],
    );
    out.push_str("}\n");
    out
}

/// The set of each family, also when it is empty: the rules are the same on every node.
fn sets(out: &mut String, name: &str, prefixes: &BTreeSet<IpNet>) {
    let kinds = match name {
        QUOTED_SETS => [format!("typeof {QUOTED_V4}"), format!("typeof {QUOTED_V6}")],
        _ => ["type ipv4_addr".to_owned(), "type ipv6_addr".to_owned()],
    };
    for ((family, ipv6), kind) in [("v4", false), ("v6", true)].into_iter().zip(kinds) {
        let elements = elements(name, prefixes, ipv6);
        let _ = writeln!(out, "\tset {name}_{family} {{");
        // An element may lie inside another one; without auto-merge that is an error.
        let how = match name {
            PEER_SETS => "",
            _ => "; flags interval; auto-merge",
        };
        let _ = writeln!(out, "\t\t{kind}{how}");
        if !elements.is_empty() {
            let _ = writeln!(out, "\t\telements = {{ {elements} }}");
        }
        out.push_str("\t}\n");
    }
}

fn chain(out: &mut String, name: &str, head: &str, rules: impl IntoIterator<Item = String>) {
    let _ = writeln!(out, "\tchain {name} {{\n\t\t{head}");
    for rule in rules {
        let _ = writeln!(out, "\t\t{rule}");
    }
    out.push_str("\t}\n");
}
