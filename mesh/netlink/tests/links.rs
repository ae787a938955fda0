//! Links, addresses, neighbours, sysctls and namespaces against the real kernel.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use common::{has, namespaces, run, veth, within};
use ipnet::IpNet;
use warren_netlink::{Netlink, NetlinkError, VethPeer, VethSpec, sysctl};

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

const NEAR_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x01];
const FAR_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x02];

#[test]
fn a_veth_is_made_with_its_peer_straight_in_the_other_namespace() {
    let Some([near, far]) = namespaces() else {
        return;
    };
    within(&near, async |netlink| {
        let peer = VethPeer {
            name: "eth0",
            netns: &far,
            mac: Some(FAR_MAC),
            mtu: 1400,
        };
        let spec = VethSpec {
            name: "wrn0",
            alias: Some("container-1"),
            group: 0,
            mtu: 1450,
            mac: Some(NEAR_MAC),
            peer,
        };
        netlink.add_veth(&spec).await.unwrap();

        let link = netlink.link_by_name("wrn0").await.unwrap().unwrap();
        assert_eq!((link.mtu, link.mac), (1450, Some(NEAR_MAC)));
        assert_eq!(link.alias.as_deref(), Some("container-1"));
        assert_eq!(link.kind.as_deref(), Some("veth"));
        assert!(!link.up && !link.carrier);

        let inside = Netlink::open_in(&far).unwrap();
        let peer = inside.link_by_name("eth0").await.unwrap().unwrap();
        assert_eq!((peer.mtu, peer.mac), (1400, Some(FAR_MAC)));
        assert_eq!(link.lower, Some(peer.index));
        assert_eq!(netlink.link_by_name("eth0").await.unwrap(), None);

        let again = netlink.add_veth(&spec).await.unwrap_err();
        assert!(again.is_exists(), "{again}");
        assert!(
            again
                .to_string()
                .starts_with("add veth wrn0 with peer eth0: "),
            "{again}"
        );

        netlink.delete_link(link.index).await.unwrap();
        assert_eq!(inside.link_by_index(peer.index).await.unwrap(), None);
        let gone = netlink.delete_link(link.index).await.unwrap_err();
        assert!(gone.is_not_found(), "{gone}");
    });
}

#[test]
fn a_veth_whose_alias_is_refused_is_not_left_behind() {
    let Some([near, far]) = namespaces() else {
        return;
    };
    within(&near, async |netlink| {
        let peer = VethPeer {
            name: "eth0",
            netns: &far,
            mac: None,
            mtu: 1500,
        };
        let long = "x".repeat(300);
        let spec = VethSpec {
            name: "wrn0",
            alias: Some(&long),
            group: 0,
            mtu: 1500,
            mac: None,
            peer,
        };
        let error = netlink.add_veth(&spec).await.unwrap_err();
        assert!(
            error.to_string().starts_with("set alias of link wrn0: "),
            "{error}"
        );
        assert_eq!(netlink.link_by_name("wrn0").await.unwrap(), None);
    });
}

#[test]
fn a_link_is_switched_resized_and_named() {
    let Some([near, far]) = namespaces() else {
        return;
    };
    within(&near, async |netlink| {
        let (link, _) = veth(&netlink, "wrn0", &far, "eth0").await;
        netlink.set_mtu(link.index, 1300).await.unwrap();
        netlink.set_alias(link.index, "pod").await.unwrap();
        let now = netlink.link_by_index(link.index).await.unwrap().unwrap();
        assert_eq!((now.up, now.carrier, now.mtu), (true, true, 1300));
        assert_eq!(now.alias.as_deref(), Some("pod"));
        assert!(netlink.links().await.unwrap().contains(&now));

        netlink.set_down(link.index).await.unwrap();
        netlink.set_alias(link.index, "").await.unwrap();
        let now = netlink.link_by_name("wrn0").await.unwrap().unwrap();
        assert_eq!((now.up, now.alias), (false, None));
    });
}

#[test]
fn a_tun_device_is_read_without_a_hardware_address() {
    let Some([near]) = namespaces() else { return };
    if !has("ip") {
        return;
    }
    within(&near, async |netlink| {
        let add = "tuntap add mode tun name warren0 multi_queue";
        run("ip", &add.split(' ').collect::<Vec<_>>(), "");
        let link = netlink.link_by_name("warren0").await.unwrap().unwrap();
        assert_eq!(
            (link.kind.as_deref(), link.mac, link.mtu),
            (Some("tun"), None, 1500)
        );
        assert!(netlink.links().await.unwrap().contains(&link));
        netlink.set_up(link.index).await.unwrap();
        for address in ["10.244.1.1/32", "fd00:1::1/128"] {
            assert!(netlink.add_address(link.index, net(address)).await.unwrap());
        }
        let addresses = netlink.addresses(Some(link.index)).await.unwrap();
        assert!(addresses.iter().all(|address| !address.tentative));
        assert!(addresses.len() >= 2);
    });
}

#[test]
fn a_name_longer_than_the_kernel_allows_is_an_error() {
    let Some([near]) = namespaces() else { return };
    within(&near, async |netlink| {
        let error = netlink.link_by_name("sixteen-bytes-xx").await.unwrap_err();
        assert_eq!(error.errno(), Some(libc::ERANGE), "{error}");
    });
}

#[test]
fn a_hundred_links_are_listed_from_a_dump_of_many_datagrams() {
    let Some([near, far]) = namespaces() else {
        return;
    };
    within(&near, async |netlink| {
        for number in 0..100 {
            let (name, far_name) = (format!("wrn{number}"), format!("eth{number}"));
            let peer = VethPeer {
                name: &far_name,
                netns: &far,
                mac: None,
                mtu: 1500,
            };
            let spec = VethSpec {
                name: &name,
                alias: None,
                group: 0,
                mtu: 1500,
                mac: None,
                peer,
            };
            netlink.add_veth(&spec).await.unwrap();
        }
        let links = netlink.links().await.unwrap();
        assert_eq!(
            links
                .iter()
                .filter(|link| link.name.starts_with("wrn"))
                .count(),
            100
        );
    });
}

/// ```text
///  near: wrn0 10.9.0.1/32 fd09::1/128  ---  far: eth0 10.9.0.2/32 fd09::2/128
/// ```
#[test]
fn addresses_work_at_once_with_permanent_neighbours_and_no_resolution() {
    let Some([near, far]) = namespaces() else {
        return;
    };
    within(&near, async |netlink| {
        let (link, peer) = veth(&netlink, "wrn0", &far, "eth0").await;
        let inside = Netlink::open_in(&far).unwrap();
        let pairs = [
            ("10.9.0.1/32", "10.9.0.2/32"),
            ("fd09::1/128", "fd09::2/128"),
        ];
        for (here, there) in pairs {
            let (here, there) = (net(here), net(there));
            assert!(netlink.add_address(link.index, here).await.unwrap());
            assert!(
                !netlink.add_address(link.index, here).await.unwrap(),
                "it is there already"
            );
            assert!(inside.add_address(peer.index, there).await.unwrap());
            for (side, link, other, target) in [
                (&netlink, &link, &peer, there),
                (&inside, &peer, &link, here),
            ] {
                let mac = other.mac.unwrap();
                // The second one replaces the first.
                side.add_neighbour(link.index, target.addr(), [2, 2, 2, 2, 2, 2])
                    .await
                    .unwrap();
                side.add_neighbour(link.index, target.addr(), mac)
                    .await
                    .unwrap();
                let found = side.neighbours(link.index).await.unwrap();
                let found: Vec<_> = found
                    .iter()
                    .filter(|entry| entry.address == target.addr())
                    .collect();
                assert_eq!(found.len(), 1);
                assert_eq!((found[0].mac, found[0].permanent), (Some(mac), true));
                let route = warren_netlink::Route::on_link(254, target, link.index, 152);
                side.add_route(&route).await.unwrap();
            }
            // A tentative address could not be bound.
            let server = far
                .run(|| UdpSocket::bind(SocketAddr::new(there.addr(), 0)))
                .unwrap();
            let server = server.unwrap();
            server
                .set_read_timeout(Some(Duration::from_secs(30)))
                .unwrap();
            let client = UdpSocket::bind(SocketAddr::new(here.addr(), 0)).unwrap();
            client
                .send_to(b"hello", server.local_addr().unwrap())
                .unwrap();
            let (length, sender) = server.recv_from(&mut [0; 16]).unwrap();
            assert_eq!((length, sender.ip()), (5, here.addr()));
        }

        let addresses = netlink.addresses(Some(link.index)).await.unwrap();
        for (here, _) in pairs {
            let found = addresses
                .iter()
                .find(|address| address.net == net(here))
                .unwrap();
            assert!(!found.tentative && !found.dad_failed && found.scope == 0);
            netlink.delete_address(link.index, net(here)).await.unwrap();
            let gone = netlink
                .delete_address(link.index, net(here))
                .await
                .unwrap_err();
            assert!(gone.is_not_found(), "{gone}");
        }
        let left = netlink.addresses(None).await.unwrap();
        assert!(
            left.iter()
                .all(|address| pairs.iter().all(|(here, _)| address.net != net(here)))
        );
    });
}

#[test]
fn an_address_for_a_missing_link_is_not_found() {
    let Some([near]) = namespaces() else { return };
    within(&near, async |netlink| {
        let error = netlink
            .add_address(4711, net("10.0.0.1/32"))
            .await
            .unwrap_err();
        assert!(error.is_not_found(), "{error}");
        let error = netlink
            .add_neighbour(4711, ip("10.0.0.1"), NEAR_MAC)
            .await
            .unwrap_err();
        assert!(error.is_not_found(), "{error}");
    });
}

#[test]
fn two_threads_in_different_namespaces_do_not_see_each_others_links() {
    let Some([left, right, far]) = namespaces() else {
        return;
    };
    let barrier = std::sync::Barrier::new(2);
    let visit = |ns, mine: &'static str, others: &'static str| {
        within(ns, async |netlink| {
            veth(&netlink, mine, &far, mine).await;
            barrier.wait();
            assert!(netlink.link_by_name(mine).await.unwrap().is_some());
            assert_eq!(netlink.link_by_name(others).await.unwrap(), None);
            barrier.wait();
        });
    };
    std::thread::scope(|scope| {
        scope.spawn(|| visit(&left, "left0", "right0"));
        scope.spawn(|| visit(&right, "right0", "left0"));
    });
}

#[test]
fn a_sysctl_is_written_in_its_namespace_only_and_dots_in_names_work() {
    let Some([near, far]) = namespaces() else {
        return;
    };
    let before = sysctl::read("net/ipv4/ip_forward").unwrap();
    within(&near, async |netlink| {
        veth(&netlink, "eth0.5", &far, "eth0").await;
        let key = "net/ipv4/conf/eth0.5/rp_filter";
        sysctl::write(key, "1").unwrap();
        assert_eq!(sysctl::read(key).unwrap(), "1");
        assert!(sysctl::write_if_different(key, "2").unwrap());
        assert!(!sysctl::write_if_different(key, "2").unwrap());
        sysctl::write("net/ipv4/ip_forward", "1").unwrap();
        assert_eq!(sysctl::read("net/ipv4/ip_forward").unwrap(), "1");

        let missing = sysctl::read("net/ipv4/conf/none/rp_filter").unwrap_err();
        assert_eq!(missing.kind(), std::io::ErrorKind::NotFound);
        assert!(
            missing
                .to_string()
                .contains("/proc/sys/net/ipv4/conf/none/rp_filter")
        );
        assert!(sysctl::write("net/ipv4/ip_forward", "nonsense").is_err());
    });
    assert_eq!(sysctl::read("net/ipv4/ip_forward").unwrap(), before);
}

#[test]
fn a_closure_runs_inside_and_the_caller_stays_outside() {
    let Some([near]) = namespaces() else { return };
    let inode = || std::fs::read_link("/proc/thread-self/ns/net").unwrap();
    let before = inode();
    let inside = near.run(inode).unwrap();
    assert_ne!(inside, before);
    assert_eq!(inode(), before);
    let own = warren_netlink::Netns::of_pid(std::process::id()).unwrap();
    // The process's main thread never leaves the machine's namespace.
    assert_eq!(own.run(inode).unwrap(), before);
}

#[test]
fn a_file_that_is_no_namespace_is_an_error() {
    let Some([_near]) = namespaces() else { return };
    let ns = warren_netlink::Netns::from_path(std::path::Path::new("/proc/self/comm")).unwrap();
    assert_eq!(
        ns.run(|| ()).unwrap_err().raw_os_error(),
        Some(libc::EINVAL)
    );
}

#[test]
fn outside_a_runtime_opening_is_an_error_not_a_panic() {
    assert!(matches!(Netlink::open(), Err(NetlinkError::Socket { .. })));
    assert!(matches!(Netlink::watch(), Err(NetlinkError::Socket { .. })));
}

#[test]
fn a_request_after_the_runtimes_end_says_that_the_connection_is_closed() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let netlink = runtime.block_on(async { Netlink::open().unwrap() });
    drop(runtime);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let error = runtime.block_on(netlink.links()).unwrap_err();
    assert!(matches!(error, NetlinkError::Closed { .. }), "{error}");
}
