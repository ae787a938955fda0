//! The nftables table: its text, and what the kernel makes of it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod namespace;

use std::collections::BTreeSet;

use namespace::{in_namespace, sh};
use warren_agent::host::nft::{Filter, ruleset};
use warren_core::consts::rule_comment;
use warren_core::state::FilterSpec;

fn spec() -> FilterSpec {
    FilterSpec {
        interface: "warren0".into(),
        pod_ranges: ["10.244.0.0/16", "fd00:10:244::/48"]
            .map(|n| n.parse().unwrap())
            .into(),
        own_allowed_ips: [
            "10.244.1.0/24",
            "192.0.2.1/32",
            "fd00:10:244:1::/64",
            "2001:db8::1/128",
        ]
        .map(|n| n.parse().unwrap())
        .into(),
        own_pod_cidrs: ["10.244.1.0/24", "fd00:10:244:1::/64"]
            .map(|n| n.parse().unwrap())
            .into(),
        peer_addresses: ["198.51.100.3/32", "2001:db8:b::3/128"]
            .map(|n| n.parse().unwrap())
            .into(),
        tunnel_v4: Some("10.244.1.1".parse().unwrap()),
        tunnel_v6: Some("fd00:10:244:1::1".parse().unwrap()),
        masquerade: true,
    }
}

#[test]
fn the_text_of_a_dual_stack_node_is_this() {
    assert_eq!(ruleset(&spec()), include_str!("filter/dual-stack.nft"));
}

#[test]
fn every_rule_that_drops_is_asked_for_before_a_pod_is_made() {
    let text = ruleset(&spec());
    let dropping = text
        .lines()
        .filter_map(|line| line.split(" drop comment ").nth(1))
        .map(|comment| comment.trim_matches('"'));
    let dropping: BTreeSet<&str> = dropping.collect();
    assert_eq!(dropping, BTreeSet::from(rule_comment::REQUIRED));
}

#[test]
fn a_node_of_one_family_still_guards_both() {
    let mut v4_only = spec();
    v4_only.pod_ranges.retain(|net| net.addr().is_ipv4());
    v4_only.own_allowed_ips.retain(|net| net.addr().is_ipv4());
    v4_only.own_pod_cidrs.retain(|net| net.addr().is_ipv4());
    v4_only.tunnel_v6 = None;
    v4_only.masquerade = false;
    let text = ruleset(&v4_only);
    for comment in rule_comment::REQUIRED {
        assert!(
            text.contains(&format!("counter drop comment \"{comment}\"")),
            "{comment}"
        );
    }
    assert!(
        !text.contains("masquerade") && !text.contains("snat ip6"),
        "{text}"
    );
}

#[test]
fn the_kernel_takes_it_and_every_foreign_change_is_seen() {
    in_namespace(async || {
        let mut filter = Filter::new();
        assert_eq!(filter.observe().await.unwrap(), None, "nothing is there");
        let spec = spec();
        filter.apply(&spec).await.unwrap();
        assert_eq!(filter.observe().await.unwrap(), Some(spec.clone()));
        for change in [
            "nft flush ruleset",
            "nft flush chain inet warren egress",
            "nft add element inet warren own_v4 '{ 203.0.113.0/24 }'",
            "nft add element inet warren peer_v4 '{ 203.0.113.9 }'",
            "nft delete element inet warren peer_v6 '{ 2001:db8:b::3 }'",
            "nft delete element inet warren pod_v6 '{ fd00:10:244::/48 }'",
            "nft insert rule inet warren ingress accept",
            "nft add rule inet warren egress accept",
            "nft add chain inet warren other",
            "nft 'delete rule inet warren egress handle '$(nft -a list chain inet warren egress \
             | sed -n 's/.*egress-dst-v6.*handle //p')",
            "nft 'chain inet warren egress { policy drop; }'",
        ] {
            sh(change);
            assert_eq!(filter.observe().await.unwrap(), None, "{change}");
            filter.apply(&spec).await.unwrap();
            assert_eq!(
                filter.observe().await.unwrap(),
                Some(spec.clone()),
                "after {change}"
            );
        }
    });
}

#[test]
fn a_start_of_the_agent_trusts_no_table_that_it_finds() {
    in_namespace(async || {
        Filter::new().apply(&spec()).await.unwrap();
        assert_eq!(Filter::new().observe().await.unwrap(), None);
    });
}

#[test]
fn other_tables_stay() {
    in_namespace(async || {
        sh("nft add table inet other");
        let mut filter = Filter::new();
        filter.apply(&spec()).await.unwrap();
        filter.apply(&spec()).await.unwrap();
        assert_eq!(
            sh("nft list tables"),
            "table inet other\ntable inet warren\ntable inet warren-guard\n"
        );
    });
}

#[test]
fn a_refused_table_leaves_the_old_one() {
    in_namespace(async || {
        let mut filter = Filter::new();
        filter.apply(&spec()).await.unwrap();
        let before = sh("nft list table inet warren");
        let mut broken = spec();
        broken.interface = "no \"interface".into();
        let error = filter.apply(&broken).await.unwrap_err().to_string();
        assert!(error.contains("nft -f"), "{error}");
        assert_eq!(sh("nft list table inet warren"), before);
    });
}

#[test]
fn drops_are_counted_by_rule_and_counting_is_no_change() {
    in_namespace(async || {
        let mut filter = Filter::new();
        filter.apply(&spec()).await.unwrap();
        // A way out for pod addresses that is not the tunnel, as when warren0 is gone.
        sh("ip link add eth0 type veth peer name eth1");
        sh("ip link set eth0 up; ip link set eth1 up");
        sh("ip addr add 192.0.2.1/24 dev eth0; ip addr add 2001:db8::1/64 dev eth0 nodad");
        sh("ip neigh add 192.0.2.2 dev eth0 lladdr 02:00:00:00:00:02 nud permanent");
        sh("ip neigh add 2001:db8::2 dev eth0 lladdr 02:00:00:00:00:02 nud permanent");
        sh("ip route add 10.244.0.0/16 via 192.0.2.2");
        sh("ip route add fd00:10:244::/48 via 2001:db8::2");
        sh("ping -c 3 -i 0.05 -W 1 10.244.2.5 || true");
        sh("ping -c 2 -i 0.05 -W 1 fd00:10:244:2::5 || true");
        assert_eq!(filter.observe().await.unwrap(), Some(spec()));
        assert_eq!(filter.drops()["egress-dst-v4"], 3);
        assert_eq!(filter.drops()["egress-dst-v6"], 2);
        assert_eq!(filter.drops()["ingress-src-v4"], 0);
        assert_eq!(filter.drops().len(), rule_comment::REQUIRED.len());

        // Another node's address, a table that somebody took away, and an agent that starts anew:
        // what was counted stays counted.
        let mut other = spec();
        other.peer_addresses.clear();
        filter.apply(&other).await.unwrap();
        assert_eq!(filter.observe().await.unwrap(), Some(other.clone()));
        let in_kernel = || sh("nft list table inet warren");
        let counted = "counter packets 3 bytes 252 drop comment \"warren:egress-dst-v4\"";
        assert!(in_kernel().contains(counted), "{}", in_kernel());
        sh("nft delete table inet warren");
        assert_eq!(filter.observe().await.unwrap(), None);
        filter.apply(&other).await.unwrap();
        assert!(in_kernel().contains(counted), "{}", in_kernel());
        let mut started_anew = Filter::new();
        started_anew.observe().await.unwrap();
        started_anew.apply(&other).await.unwrap();
        assert!(in_kernel().contains(counted), "{}", in_kernel());
        assert_eq!(started_anew.drops()["egress-dst-v4"], 3);
    });
}

#[test]
fn other_peer_addresses_change_elements_and_no_rule() {
    in_namespace(async || {
        let mut filter = Filter::new();
        filter.apply(&spec()).await.unwrap();
        let handles = || sh("nft -a list table inet warren | grep -o 'comment.*handle.*'");
        let before = handles();
        let mut more = spec();
        for other in 1..=200u8 {
            let net = format!("203.0.113.{other}/32").parse().unwrap();
            more.peer_addresses.insert(net);
        }
        more.own_allowed_ips
            .remove(&"192.0.2.1/32".parse().unwrap());
        for wanted in [more.clone(), spec(), more] {
            filter.apply(&wanted).await.unwrap();
            assert_eq!(filter.observe().await.unwrap(), Some(wanted));
            assert_eq!(handles(), before);
        }
        let sets = sh("nft list set inet warren own_v4; nft list set inet warren peer_v4");
        assert!(!sets.contains("192.0.2.1"), "{sets}");
        assert!(sets.contains("203.0.113.200"), "{sets}");
        // A hole that was made since the last look is no part of what is kept.
        sh("nft insert rule inet warren egress accept");
        filter.apply(&spec()).await.unwrap();
        assert_eq!(filter.observe().await.unwrap(), Some(spec()));
        assert!(!sh("nft list chain inet warren egress").contains("\taccept\n"));
    });
}

#[test]
fn single_peer_addresses_come_and_go_and_whoever_else_changes_them_is_seen() {
    in_namespace(async || {
        let mut filter = Filter::new();
        filter.apply(&spec()).await.unwrap();
        assert_eq!(filter.observe().await.unwrap(), Some(spec()));
        let nets = |texts: &[&str]| texts.iter().map(|t| t.parse().unwrap()).collect();
        let joined = nets(&["203.0.113.7/32", "2001:db8:b::7/128"]);
        filter.change_peers(&joined, &nets(&[])).unwrap();
        assert!(filter.is_as_loaded(), "our own change is known as such");
        let mut more = spec();
        more.peer_addresses.extend(&joined);
        assert_eq!(filter.observe().await.unwrap(), Some(more.clone()));
        let sets = || sh("nft list set inet warren peer_v4; nft list set inet warren peer_v6");
        assert!(sets().contains("203.0.113.7") && sets().contains("2001:db8:b::7"));
        sh("nft add table inet other");
        assert!(!filter.is_as_loaded(), "somebody changed something");
        assert_eq!(filter.observe().await.unwrap(), Some(more));
        filter.change_peers(&nets(&[]), &joined).unwrap();
        assert_eq!(filter.observe().await.unwrap(), Some(spec()));
        assert!(!sets().contains("203.0.113.7") && !sets().contains("2001:db8:b::7"));
        // What is not there cannot be taken out: nothing has changed then.
        let missing = nets(&["203.0.113.8/32"]);
        assert!(filter.change_peers(&joined, &missing).is_err());
        assert_eq!(filter.observe().await.unwrap(), Some(spec()));
        sh("nft flush set inet warren peer_v4");
        assert_eq!(filter.observe().await.unwrap(), None);
        assert!(filter.change_peers(&joined, &nets(&[])).is_err());
    });
}
