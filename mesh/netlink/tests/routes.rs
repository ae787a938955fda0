//! Routes, rules and look-ups against the real kernel.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use common::{
    MAIN_TABLE, NODE_TABLE, PROTOCOL, UNREACHABLE_METRIC, has, namespaces, run, veth, within,
};
use ipnet::IpNet;
use warren_netlink::{
    Family, Netlink, Netns, Route, RouteKind, RouteLookup, RouteLookupOptions, Rule, sysctl,
};

const BOTH: [(&str, &str, &str); 2] = [
    // destination, own address, somewhere in the destination
    ("10.244.2.0/24", "10.244.1.1/32", "10.244.2.7"),
    ("fd00:2::/64", "fd00:1::1/128", "fd00:2::7"),
];

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

async fn ours(netlink: &Netlink) -> Vec<Route> {
    let mut routes = netlink.routes(None).await.unwrap();
    routes.retain(|route| route.protocol == PROTOCOL);
    routes.sort();
    routes
}

async fn lookup(netlink: &Netlink, dst: &str) -> Option<RouteLookup> {
    netlink
        .route_to(ip(dst), RouteLookupOptions::default())
        .await
        .unwrap()
}

#[test]
fn a_route_reads_back_as_it_was_written_in_every_table() {
    let Some([near, far]) = namespaces() else {
        return;
    };
    within(&near, async |netlink| {
        let (link, _) = veth(&netlink, "wrn0", &far, "eth0").await;
        let mut expected = Vec::new();
        for (dst, own, _) in BOTH {
            netlink.add_address(link.index, net(own)).await.unwrap();
            for table in [MAIN_TABLE, NODE_TABLE] {
                let tunnel = Route {
                    src: Some(net(own).addr()),
                    mtu: Some(1380),
                    metric: 1024,
                    ..Route::on_link(table, net(dst), link.index, PROTOCOL)
                };
                let guard = Route::unreachable(table, net(dst), UNREACHABLE_METRIC, PROTOCOL);
                for route in [tunnel, guard] {
                    netlink.add_route(&route).await.unwrap();
                    let again = netlink.add_route(&route).await.unwrap_err();
                    assert!(again.is_exists(), "{again}");
                    expected.push(route);
                }
            }
        }
        expected.sort();
        assert_eq!(ours(&netlink).await, expected);
        let v6_only = netlink.routes(Some(Family::V6)).await.unwrap();
        assert!(v6_only.iter().all(|route| route.dst.addr().is_ipv6()));

        for route in &expected {
            netlink.delete_route(route).await.unwrap();
            let gone = netlink.delete_route(route).await.unwrap_err();
            assert!(gone.is_not_found(), "{gone}");
        }
        assert_eq!(ours(&netlink).await, []);
    });
}

#[test]
fn the_guard_takes_over_when_the_unicast_route_goes() {
    let Some([near, far]) = namespaces() else {
        return;
    };
    within(&near, async |netlink| {
        let (link, _) = veth(&netlink, "wrn0", &far, "eth0").await;
        for (dst, own, inside) in BOTH {
            netlink.add_address(link.index, net(own)).await.unwrap();
            let guard = Route::unreachable(MAIN_TABLE, net(dst), UNREACHABLE_METRIC, PROTOCOL);
            let tunnel = Route {
                src: Some(net(own).addr()),
                mtu: Some(1380),
                ..Route::on_link(MAIN_TABLE, net(dst), link.index, PROTOCOL)
            };
            netlink.add_route(&guard).await.unwrap();
            netlink.add_route(&tunnel).await.unwrap();
            let way = lookup(&netlink, inside).await.unwrap();
            let expected = RouteLookup {
                oif: link.index,
                gateway: None,
                prefsrc: Some(net(own).addr()),
                mtu: Some(1380),
            };
            assert_eq!(way, expected);
        }
        // The links's end takes its routes along, the guards stay.
        netlink.delete_link(link.index).await.unwrap();
        for (_, _, inside) in BOTH {
            assert_eq!(lookup(&netlink, inside).await, None);
        }
        let left = ours(&netlink).await;
        assert_eq!(left.len(), 2);
        assert!(
            left.iter()
                .all(|route| route.kind == RouteKind::Unreachable)
        );
    });
}

#[test]
fn deleting_a_route_that_is_gone_spares_others_of_its_destination() {
    let Some([near, far]) = namespaces() else {
        return;
    };
    within(&near, async |netlink| {
        let (link, _) = veth(&netlink, "wrn0", &far, "eth0").await;
        for (dst, _, _) in BOTH {
            let wanted = Route::on_link(MAIN_TABLE, net(dst), link.index, PROTOCOL);
            let higher = Route {
                metric: 5000,
                ..wanted
            };
            // In IPv6 the refusing route has even the same metric.
            let metric = wanted.metric.max(1);
            let guard = Route::unreachable(MAIN_TABLE, net(dst), metric, PROTOCOL);
            netlink.add_route(&higher).await.unwrap();
            netlink.add_route(&guard).await.unwrap();
            let gone = netlink.delete_route(&wanted).await.unwrap_err();
            assert!(gone.is_not_found(), "{gone}");
            netlink.delete_route(&guard).await.unwrap();

            let same_metric = Route { metric, ..wanted };
            netlink.add_route(&same_metric).await.unwrap();
            let gone = netlink.delete_route(&guard).await.unwrap_err();
            assert!(gone.is_not_found(), "{gone}");
            netlink.delete_route(&same_metric).await.unwrap();
            netlink.delete_route(&higher).await.unwrap();
        }
    });
}

#[test]
fn replacing_leaves_exactly_one_route_of_a_metric() {
    let Some([near, far]) = namespaces() else {
        return;
    };
    if !has("ip") {
        return;
    }
    within(&near, async |netlink| {
        let (one, _) = veth(&netlink, "wrn0", &far, "eth0").await;
        let (two, _) = veth(&netlink, "wrn1", &far, "eth1").await;
        netlink
            .add_address(one.index, net("10.9.0.1/24"))
            .await
            .unwrap();
        netlink
            .add_address(one.index, net("fd09::1/64"))
            .await
            .unwrap();
        let prefix = Route::on_link(MAIN_TABLE, net("fd09::/64"), one.index, 2);
        netlink.add_route(&prefix).await.unwrap();
        for (dst, gateway) in [("10.244.2.0/24", "10.9.0.2"), ("fd00:2::/64", "fd09::2")] {
            let on_one = Route {
                metric: 1024,
                ..Route::on_link(MAIN_TABLE, net(dst), one.index, PROTOCOL)
            };
            let by_gateway = Route {
                metric: 1024,
                ..Route::by_gateway(MAIN_TABLE, net(dst), one.index, ip(gateway), PROTOCOL)
            };
            let on_two = Route {
                oif: Some(two.index),
                ..on_one
            };
            let smaller = Route {
                mtu: Some(1300),
                ..on_two
            };
            let refusing = Route::unreachable(MAIN_TABLE, net(dst), 1024, PROTOCOL);
            let guard = Route::unreachable(MAIN_TABLE, net(dst), UNREACHABLE_METRIC, PROTOCOL);
            netlink.replace_route(&guard).await.unwrap();
            let steps = [
                on_one, on_two, smaller, smaller, by_gateway, refusing, by_gateway, on_one,
            ];
            for wanted in steps {
                netlink.replace_route(&wanted).await.unwrap();
                assert_eq!(
                    ours(&netlink).await,
                    [wanted, guard].sorted(),
                    "after {wanted}"
                );
            }
            // Someone else adds a second one of the same metric.
            let family = if ip(gateway).is_ipv4() { "-4" } else { "-6" };
            let foreign = ["route", "append", dst, "dev", "wrn1", "metric", "1024"];
            run("ip", &[&[family][..], &foreign].concat(), "");
            let all = netlink.routes(None).await.unwrap();
            assert_eq!(all.iter().filter(|route| route.dst == net(dst)).count(), 3);
            netlink.replace_route(&smaller).await.unwrap();
            let all = netlink.routes(None).await.unwrap();
            let left: Vec<_> = all
                .into_iter()
                .filter(|route| route.dst == net(dst))
                .collect();
            assert_eq!(left.sorted(), [smaller, guard].sorted());
            netlink.delete_route(&smaller).await.unwrap();
            netlink.delete_route(&guard).await.unwrap();
        }
    });
}

trait Sorted {
    fn sorted(self) -> Vec<Route>;
}

impl<R: Into<Vec<Route>>> Sorted for R {
    fn sorted(self) -> Vec<Route> {
        let mut routes = self.into();
        routes.sort();
        routes
    }
}

#[test]
fn a_route_on_link_gateway_needs_no_address_there() {
    let Some([near, far]) = namespaces() else {
        return;
    };
    within(&near, async |netlink| {
        let (link, _) = veth(&netlink, "eth0", &far, "wrn0").await;
        netlink
            .add_address(link.index, net("10.9.0.1/32"))
            .await
            .unwrap();
        for (dst, gateway) in [("0.0.0.0/0", "169.254.1.1"), ("::/0", "fe80::1")] {
            let route = Route {
                onlink: true,
                ..Route::by_gateway(MAIN_TABLE, net(dst), link.index, ip(gateway), 152)
            };
            netlink.add_route(&route).await.unwrap();
            let all = netlink.routes(Some(Family::of(ip(gateway)))).await.unwrap();
            assert!(all.contains(&route), "{all:?}");
        }
        let way = lookup(&netlink, "192.0.2.1").await.unwrap();
        assert_eq!(
            (way.oif, way.gateway),
            (link.index, Some(ip("169.254.1.1")))
        );
        let way = lookup(&netlink, "2001:db8::1").await.unwrap();
        assert_eq!((way.oif, way.gateway), (link.index, Some(ip("fe80::1"))));

        let far_away = Route::by_gateway(
            MAIN_TABLE,
            net("10.1.0.0/16"),
            link.index,
            ip("10.2.0.1"),
            152,
        );
        let error = netlink.add_route(&far_away).await.unwrap_err();
        assert!(
            error.to_string().contains("gateway"),
            "the kernel's words are missing: {error}"
        );
    });
}

#[test]
fn rules_of_both_families_read_back_and_foreign_ones_are_not_taken_for_ours() {
    let Some([near]) = namespaces() else { return };
    if !has("ip") {
        return;
    }
    within(&near, async |netlink| {
        let rule = |from: &str| {
            let from = net(from);
            Rule {
                family: Family::of(from.addr()),
                priority: 5187,
                from: Some(from),
                to: None,
                table: NODE_TABLE,
                protocol: PROTOCOL,
            }
        };
        let towards = |to: &str| Rule {
            from: None,
            to: Some(net(to)),
            ..rule(to)
        };
        let wanted = [
            rule("10.244.1.0/24"),
            rule("fd00:1::/64"),
            towards("10.244.0.0/16"),
            towards("fd00::/48"),
        ];
        // They look like ours, but for one selector more.
        let foreign = "rule add from 10.244.1.0/24 fwmark 1 lookup 51871 prio 5187 protocol 4";
        let inverted = "rule add not from 10.244.1.0/24 lookup 51871 prio 5188 protocol 4";
        for arguments in [foreign, inverted] {
            run("ip", &arguments.split(' ').collect::<Vec<_>>(), "");
        }
        let before = netlink.rules().await.unwrap();
        assert!(
            before.iter().all(|rule| rule.protocol != PROTOCOL),
            "{before:?}"
        );
        for rule in &wanted {
            assert!(!netlink.rules().await.unwrap().contains(rule));
            netlink.add_rule(rule).await.unwrap();
            let again = netlink.add_rule(rule).await.unwrap_err();
            assert!(again.is_exists(), "{again}");
        }
        let rules = netlink.rules().await.unwrap();
        for rule in &wanted {
            assert_eq!(rules.iter().filter(|other| *other == rule).count(), 1);
        }
        let main = Rule {
            family: Family::V4,
            priority: 32766,
            from: None,
            to: None,
            table: MAIN_TABLE,
            protocol: 2,
        };
        assert!(rules.contains(&main), "{rules:?}");
        for rule in &wanted {
            netlink.delete_rule(rule).await.unwrap();
            assert!(!netlink.rules().await.unwrap().contains(rule));
        }
        run(
            "ip",
            &"rule del fwmark 1 protocol 4"
                .split(' ')
                .collect::<Vec<_>>(),
            "",
        );
        let mixed = Rule {
            family: Family::V6,
            ..wanted[0]
        };
        assert!(
            netlink
                .add_rule(&mixed)
                .await
                .unwrap_err()
                .to_string()
                .contains("family")
        );
    });
}

#[test]
fn a_lookup_follows_marks_and_bound_links() {
    let Some([near, far]) = namespaces() else {
        return;
    };
    if !has("ip") {
        return;
    }
    within(&near, async |netlink| {
        let (one, _) = veth(&netlink, "wrn0", &far, "eth0").await;
        let (two, _) = veth(&netlink, "wrn1", &far, "eth1").await;
        for (dst, own, inside) in BOTH {
            netlink.add_address(one.index, net(own)).await.unwrap();
            let family = if ip(inside).is_ipv4() { "-4" } else { "-6" };
            run(
                "ip",
                &[family, "rule", "add", "fwmark", "7", "lookup", "51871"],
                "",
            );
            let first = Route::on_link(MAIN_TABLE, net(dst), one.index, PROTOCOL);
            let bound = Route {
                metric: 2000,
                oif: Some(two.index),
                ..first
            };
            let marked = Route {
                table: NODE_TABLE,
                oif: Some(two.index),
                ..first
            };
            for route in [first, bound, marked] {
                netlink.add_route(&route).await.unwrap();
            }
            let way = async |options| {
                netlink
                    .route_to(ip(inside), options)
                    .await
                    .unwrap()
                    .unwrap()
                    .oif
            };
            assert_eq!(way(RouteLookupOptions::default()).await, one.index);
            assert_eq!(
                way(RouteLookupOptions {
                    mark: Some(7),
                    oif: None
                })
                .await,
                two.index
            );
            assert_eq!(
                way(RouteLookupOptions {
                    mark: None,
                    oif: Some(two.index)
                })
                .await,
                two.index
            );
        }
        assert_eq!(lookup(&netlink, "192.0.2.1").await, None);
        assert_eq!(lookup(&netlink, "2001:db8::1").await, None);
    });
}

/// ```text
///  near: eth0 .1  --1500--  router: left .2, right .1  --1300--  far: eth0 .2
/// ```
#[test]
fn a_lookup_shows_the_mtu_that_the_path_taught() {
    let Some([near, router, far]) = namespaces() else {
        return;
    };
    let address = |ns: &Netns, index, text: &'static str| {
        within(ns, async |netlink| {
            netlink.add_address(index, net(text)).await.unwrap()
        })
    };
    let route = |ns: &Netns, route: Route| {
        within(ns, async |netlink| netlink.add_route(&route).await.unwrap())
    };
    let (eth0, left) = within(&near, async |netlink| {
        veth(&netlink, "eth0", &router, "left").await
    });
    let (right, last) = within(&router, async |netlink| {
        veth(&netlink, "right", &far, "eth0").await
    });
    within(&router, async |netlink| {
        sysctl::write("net/ipv4/ip_forward", "1").unwrap();
        sysctl::write("net/ipv6/conf/all/forwarding", "1").unwrap();
        netlink.set_mtu(right.index, 1300).await.unwrap();
    });
    for (a, b, c, d, near_net, far_net) in [
        (
            "10.1.0.1/24",
            "10.1.0.2/24",
            "10.2.0.1/24",
            "10.2.0.2/24",
            "10.1.0.0/24",
            "10.2.0.0/24",
        ),
        (
            "fd01::1/64",
            "fd01::2/64",
            "fd02::1/64",
            "fd02::2/64",
            "fd01::/64",
            "fd02::/64",
        ),
    ] {
        address(&near, eth0.index, a);
        address(&router, left.index, b);
        address(&router, right.index, c);
        address(&far, last.index, d);
        let (b, c, d) = (net(b).addr(), net(c).addr(), net(d).addr());
        if b.is_ipv6() {
            route(
                &near,
                Route::on_link(MAIN_TABLE, net(near_net), eth0.index, 2),
            );
            route(
                &router,
                Route::on_link(MAIN_TABLE, net(near_net), left.index, 2),
            );
            route(
                &router,
                Route::on_link(MAIN_TABLE, net(far_net), right.index, 2),
            );
            route(
                &far,
                Route::on_link(MAIN_TABLE, net(far_net), last.index, 2),
            );
        }
        route(
            &near,
            Route::by_gateway(MAIN_TABLE, net(far_net), eth0.index, b, 4),
        );
        route(
            &far,
            Route::by_gateway(MAIN_TABLE, net(near_net), last.index, c, 4),
        );

        within(&near, async |netlink| {
            let way = netlink
                .route_to(d, RouteLookupOptions::default())
                .await
                .unwrap()
                .unwrap();
            assert_eq!((way.gateway, way.mtu), (Some(b), None));
            let socket = UdpSocket::bind(SocketAddr::new(net(a).addr(), 0)).unwrap();
            let give_up = Instant::now() + Duration::from_secs(30);
            loop {
                // Refused once the kernel has learned that it is too large.
                let _ = socket.send_to(&[0; 1400], SocketAddr::new(d, 9));
                tokio::time::sleep(Duration::from_millis(20)).await;
                let way = netlink
                    .route_to(d, RouteLookupOptions::default())
                    .await
                    .unwrap()
                    .unwrap();
                if way.mtu.is_some() || Instant::now() > give_up {
                    assert_eq!(way.mtu, Some(1300));
                    break;
                }
            }
            // An exception is not a route.
            let routes = netlink.routes(None).await.unwrap();
            assert!(
                routes
                    .iter()
                    .all(|route| !(route.dst.contains(&d) && route.mtu.is_some()))
            );
        });
    }
}

#[test]
fn thousands_of_routes_are_dumped_whole() {
    let Some([near, far]) = namespaces() else {
        return;
    };
    within(&near, async |netlink| {
        let (link, _) = veth(&netlink, "wrn0", &far, "eth0").await;
        for number in 0..2000u32 {
            let dst = std::net::Ipv4Addr::from_bits(0x0a00_0000 | number << 8);
            let dst = IpNet::new(dst.into(), 24).unwrap();
            let route = Route::on_link(NODE_TABLE, dst, link.index, PROTOCOL);
            netlink.replace_route(&route).await.unwrap();
        }
        assert_eq!(ours(&netlink).await.len(), 2000);
        // Several dumps at once take turns.
        let dumps = (netlink.routes(None), netlink.routes(None));
        let (one, two) = tokio::join!(dumps.0, dumps.1);
        assert_eq!(one.unwrap(), two.unwrap());
        // A dump given up half-way does not disturb the next.
        for _ in 0..20 {
            let _ = tokio::time::timeout(Duration::from_micros(300), netlink.routes(None)).await;
            assert_eq!(ours(&netlink).await.len(), 2000);
        }
    });
}
