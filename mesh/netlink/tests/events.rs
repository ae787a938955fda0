//! The event stream and the protection check against the real kernel.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeMap;
use std::time::Duration;

use common::{NODE_TABLE, PROTOCOL, has, namespaces, run, veth, within};
use warren_netlink::{
    EventStream, Family, Guard, GuardSpec, NetEvent, Netlink, Route, Rule, protection,
};

async fn expect(events: &mut EventStream, wanted: NetEvent) {
    let mut others = Vec::new();
    let wait = async {
        loop {
            let event = events.next().await.unwrap();
            if event == wanted {
                break;
            }
            others.push(event);
        }
    };
    let seen = tokio::time::timeout(Duration::from_secs(30), wait).await;
    assert!(seen.is_ok(), "no {wanted:?} within 30 s, but {others:?}");
}

async fn drain(events: &mut EventStream) {
    while tokio::time::timeout(Duration::from_millis(50), events.next())
        .await
        .is_ok()
    {}
}

#[test]
fn every_kind_of_change_is_seen() {
    let Some([near, far]) = namespaces() else {
        return;
    };
    within(&near, async |netlink| {
        let mut events = Netlink::watch().unwrap();
        let (link, _) = veth(&netlink, "wrn0", &far, "eth0").await;
        let of_link = || NetEvent::Link {
            index: link.index,
            name: "wrn0".into(),
        };
        expect(&mut events, of_link()).await;
        for (own, dst) in [("10.9.0.1/32", "10.8.0.0/16"), ("fd09::1/128", "fd08::/64")] {
            let (own, dst): (ipnet::IpNet, ipnet::IpNet) =
                (own.parse().unwrap(), dst.parse().unwrap());
            drain(&mut events).await;
            netlink.add_address(link.index, own).await.unwrap();
            let of_address = NetEvent::Address {
                index: link.index,
                address: Some(own.addr()),
            };
            expect(&mut events, of_address).await;

            let route = Route::on_link(NODE_TABLE, dst, link.index, PROTOCOL);
            drain(&mut events).await;
            netlink.add_route(&route).await.unwrap();
            let of_route = || NetEvent::Route {
                table: NODE_TABLE,
                dst,
                protocol: PROTOCOL,
            };
            expect(&mut events, of_route()).await;
            drain(&mut events).await;
            netlink.delete_route(&route).await.unwrap();
            expect(&mut events, of_route()).await;

            let rule = Rule {
                family: Family::of(dst.addr()),
                priority: 5187,
                from: Some(dst),
                to: None,
                table: NODE_TABLE,
                protocol: PROTOCOL,
            };
            drain(&mut events).await;
            netlink.add_rule(&rule).await.unwrap();
            expect(&mut events, NetEvent::Rule { priority: 5187 }).await;
        }
        drain(&mut events).await;
        netlink.set_down(link.index).await.unwrap();
        expect(&mut events, of_link()).await;
    });
}

#[test]
fn settings_and_tables_that_change_are_seen() {
    let Some([near]) = namespaces() else { return };
    if !has("nft") {
        return;
    }
    within(&near, async |_| {
        let mut events = Netlink::watch().unwrap();
        assert!(events.sees_tables());
        let setting = |index, forwarding, rp_filter| NetEvent::Setting {
            index,
            forwarding,
            rp_filter,
        };
        for (key, value) in [
            ("net/ipv4/ip_forward", true),
            ("net/ipv4/ip_forward", false),
            ("net/ipv6/conf/all/forwarding", true),
            ("net/ipv6/conf/all/forwarding", false),
        ] {
            drain(&mut events).await;
            warren_netlink::sysctl::write(key, if value { "1" } else { "0" }).unwrap();
            expect(&mut events, setting(None, Some(value), None)).await;
        }
        drain(&mut events).await;
        warren_netlink::sysctl::write("net/ipv4/conf/lo/rp_filter", "2").unwrap();
        expect(&mut events, setting(Some(1), None, Some(2))).await;

        for change in [
            "add table inet warren",
            "add chain inet warren c",
            "add rule inet warren c accept",
            "add set inet warren s { type ipv4_addr; }",
            "add element inet warren s { 192.0.2.1 }",
            "flush set inet warren s",
            "flush chain inet warren c",
            "flush ruleset",
        ] {
            drain(&mut events).await;
            run("nft", &["-f", "-"], change);
            let name = "warren".to_owned();
            expect(&mut events, NetEvent::Table { name }).await;
        }
        drain(&mut events).await;
        run("nft", &["add", "table", "ip", "warren"], "");
        let quiet = Duration::from_millis(100);
        assert!(tokio::time::timeout(quiet, events.next()).await.is_err());
    });
}

const RULESET: &str = r#"
table inet warren {
    set pod_v4 { type ipv4_addr; flags interval; elements = { 10.244.0.0/16 } }
    chain ingress {
        type filter hook prerouting priority raw; policy accept;
        iifname "lo" accept comment "warren:lo"
        iifname "wrn*" fib saddr . iif oif missing counter drop comment "warren:antispoof"
        counter
    }
    chain egress {
        type filter hook postrouting priority 300; policy accept;
        ip saddr @pod_v4 counter drop comment "warren:egress-v4"
    }
    chain empty { }
}
table inet warren2 {
    chain ingress {
        accept comment "warren:not-ours"
    }
}
table ip warren {
    chain ingress {
        accept comment "warren:not-inet"
    }
}
"#;

#[test]
fn comments_of_the_loaded_rules_read_back_by_chain() {
    let Some([near]) = namespaces() else { return };
    if !has("nft") {
        return;
    }
    near.run(|| {
        assert_eq!(protection::rule_comments("inet", "warren").unwrap(), None);
        run("nft", &["-f", "-"], RULESET);
        let started = std::time::Instant::now();
        let comments = protection::rule_comments("inet", "warren").unwrap();
        println!("read in {:?}", started.elapsed());
        let list = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let expected = BTreeMap::from([
            (
                "ingress".to_owned(),
                list(&["warren:lo", "warren:antispoof"]),
            ),
            ("egress".to_owned(), list(&["warren:egress-v4"])),
        ]);
        assert_eq!(comments, Some(expected));

        run("nft", &["flush", "table", "inet", "warren"], "");
        let flushed = protection::rule_comments("inet", "warren").unwrap();
        assert_eq!(flushed, Some(BTreeMap::new()));
        run("nft", &["delete", "table", "inet", "warren"], "");
        assert_eq!(protection::rule_comments("inet", "warren").unwrap(), None);
    })
    .unwrap();
}

#[test]
fn a_table_of_hundreds_of_rules_is_read_whole() {
    let Some([near]) = namespaces() else { return };
    if !has("nft") {
        return;
    }
    near.run(|| {
        let rules: String = (0..500)
            .map(|number| format!("accept comment \"warren:{number}\"\n"))
            .collect();
        run(
            "nft",
            &["-f", "-"],
            &format!("table inet warren {{ chain c {{\n{rules}}}\n}}\n"),
        );
        let comments = protection::rule_comments("inet", "warren")
            .unwrap()
            .unwrap();
        let expected: Vec<String> = (0..500).map(|number| format!("warren:{number}")).collect();
        assert_eq!(comments["c"], expected);
    })
    .unwrap();
}

#[test]
fn an_impossible_table_is_an_error() {
    for name in ["x".repeat(256), "a\0b".to_owned()] {
        let error = protection::rule_comments("inet", &name).unwrap_err();
        assert!(error.to_string().contains("255"), "{error}");
    }
    let error = protection::rule_comments("ipx", "warren").unwrap_err();
    assert!(error.to_string().contains("inet, ip, ip6"), "{error}");
}

#[test]
fn the_owned_table_reads_as_meant_outlives_a_flush_and_goes_with_its_owner() {
    let Some([near]) = namespaces() else { return };
    if !has("nft") {
        return;
    }
    near.run(|| {
        let spec = GuardSpec {
            table: "warren-guard".into(),
            comment_prefix: "warren:".into(),
            tunnel: "warren0".into(),
            veth_prefix: "wrn".into(),
            pod_ranges: vec![
                "10.244.0.0/16".parse().unwrap(),
                "fd00:244::/48".parse().unwrap(),
            ],
            // More than one message of a transaction takes.
            peers: (0..2500)
                .flat_map(|n| {
                    let v4 = std::net::Ipv4Addr::from_bits(0xc0a8_0000 + n);
                    let v6 = std::net::Ipv6Addr::from_bits((0x2001_0db8 << 96) + u128::from(n));
                    [v4.into(), v6.into()]
                })
                .collect(),
        };
        let mut guard = Guard::load(&spec).unwrap();
        let list = || run("nft", &["list", "table", "inet", "warren-guard"], "");
        let listed = list();
        for line in [
            "iifname \"wrn*\" fib saddr . iif oif missing counter packets 0 bytes 0 drop comment \"warren:guard-antispoof\"",
            "iifname \"wrn*\" ip6 saddr fe80::/10 counter packets 0 bytes 0 drop comment \"warren:guard-pod-link-local\"",
            "iifname \"wrn*\" ip daddr 127.0.0.0/8 counter packets 0 bytes 0 drop comment \"warren:guard-pod-loopback\"",
            "iifname \"wrn*\" ip6 daddr ::ffff:0.0.0.0/96 counter packets 0 bytes 0 drop comment \"warren:guard-pod-mapped\"",
            "iifname \"wrn*\" ip6 daddr fe80::/10 counter packets 0 bytes 0 drop comment \"warren:guard-pod-to-link-local-v6\"",
            "iifname \"wrn*\" ip daddr 169.254.0.0/16 fib daddr type local counter packets 0 bytes 0 drop comment \"warren:guard-pod-to-link-local-v4\"",
            "iifname \"wrn*\" oifname != \"warren0\" ip daddr @peer_v4 counter packets 0 bytes 0 drop comment \"warren:guard-pod-to-node-v4\"",
            "iifname \"wrn*\" oifname != \"warren0\" ip6 daddr @peer_v6 counter packets 0 bytes 0 drop comment \"warren:guard-pod-to-node-v6\"",
            "type filter hook forward priority filter + 1; policy accept;",
            "192.168.0.0",
            "192.168.9.195",
            "2001:db8::9c3",
            "iifname \"warren0\" accept comment \"warren:guard-ingress-tunnel\"",
            "ip saddr 10.244.0.0/16 counter packets 0 bytes 0 drop comment \"warren:guard-ingress-src-v4\"",
            "ip6 daddr fd00:244::/48 counter packets 0 bytes 0 drop comment \"warren:guard-ingress-dst-v6\"",
            "oifname \"wrn*\" accept comment \"warren:guard-egress-pod\"",
            "ip6 saddr fd00:244::/48 counter packets 0 bytes 0 drop comment \"warren:guard-egress-src-v6\"",
            "icmp type destination-unreachable @th,192,32 & 0xffff0000 == 0xaf40000 counter packets 0 bytes 0 drop comment \"warren:guard-egress-quote-v4\"",
            "icmpv6 type packet-too-big @th,256,128 & 0xffffffffffff00000000000000000000 == 0xfd000244000000000000000000000000 counter packets 0 bytes 0 drop comment \"warren:guard-egress-quote-v6\"",
            "type filter hook prerouting priority raw + 1; policy accept;",
            "type filter hook postrouting priority 301; policy accept;",
        ] {
            assert!(listed.contains(line), "no `{line}` in {listed}");
        }
        run("nft", &["flush", "ruleset"], "");
        assert_eq!(list(), listed);
        assert!(protection::table_exists("inet", "warren-guard").unwrap());
        // Other peers.
        let others = ["192.0.2.77", "2001:db8::77"].map(|address| address.parse().unwrap());
        guard.set_peers(&others.into()).unwrap();
        let listed = list();
        for line in ["elements = { 192.0.2.77 }", "elements = { 2001:db8::77 }"] {
            assert!(listed.contains(line), "no `{line}` in {listed}");
        }
        guard.set_peers(&std::collections::BTreeSet::new()).unwrap();
        assert!(!list().contains("elements"), "{}", list());
        // One owner a table.
        let second = Guard::load(&spec).unwrap_err();
        assert_eq!(second.errno(), Some(nix::libc::EPERM), "{second}");
        let before = protection::generation().unwrap();
        assert_eq!(protection::generation().unwrap(), before);
        drop(guard);
        let deadline = std::time::Instant::now() + Duration::from_secs(30);
        while protection::table_exists("inet", "warren-guard").unwrap() {
            assert!(std::time::Instant::now() < deadline);
            std::thread::sleep(Duration::from_millis(5));
        }
        run("nft", &["add", "table", "ip", "other"], "");
        assert_ne!(protection::generation().unwrap(), before);
    })
    .unwrap();
}
