//! The event stream and the protection check against the real kernel.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeMap;
use std::time::Duration;

use common::{NODE_TABLE, PROTOCOL, has, namespaces, run, veth, within};
use warren_netlink::{EventStream, Family, NetEvent, Netlink, Route, Rule, protection};

async fn expect(events: &mut EventStream, wanted: NetEvent) {
    let wait = async { while events.next().await.unwrap() != wanted {} };
    let seen = tokio::time::timeout(Duration::from_secs(5), wait).await;
    assert!(seen.is_ok(), "no {wanted:?} event within 5 s");
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
        expect(&mut events, NetEvent::Link).await;
        for (own, dst) in [("10.9.0.1/32", "10.8.0.0/16"), ("fd09::1/128", "fd08::/64")] {
            let (own, dst): (ipnet::IpNet, ipnet::IpNet) =
                (own.parse().unwrap(), dst.parse().unwrap());
            drain(&mut events).await;
            netlink.add_address(link.index, own).await.unwrap();
            expect(&mut events, NetEvent::Address).await;

            let route = Route::on_link(NODE_TABLE, dst, link.index, PROTOCOL);
            drain(&mut events).await;
            netlink.add_route(&route).await.unwrap();
            expect(&mut events, NetEvent::Route).await;
            drain(&mut events).await;
            netlink.delete_route(&route).await.unwrap();
            expect(&mut events, NetEvent::Route).await;

            let rule = Rule {
                family: Family::of(dst.addr()),
                priority: 5187,
                from: Some(dst),
                table: NODE_TABLE,
                protocol: PROTOCOL,
            };
            drain(&mut events).await;
            netlink.add_rule(&rule).await.unwrap();
            expect(&mut events, NetEvent::Rule).await;
        }
        drain(&mut events).await;
        netlink.set_down(link.index).await.unwrap();
        expect(&mut events, NetEvent::Link).await;
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
