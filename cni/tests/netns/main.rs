//! The real program on a real kernel.
//!
//! ```text
//!   pod a (own netns)        node (own netns)             pod b (own netns)
//!   eth0 10.244.1.x/32       wrn.... | warren0 | wrn....       eth0 10.244.1.y/32
//!        fd00:0:0:1::x/128           |  .1 ::1 |                    fd00:0:0:1::y/128
//!          \__________ veth ________/           \_______ veth _______/
//! ```
//!
//! `warren0` is a veth here: the tunnel itself is not under test.

#![allow(
    clippy::unwrap_used,
    reason = "in a test a failed step is a failed test"
)]

mod caller;
mod world;

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use warren_core::consts::rule_comment;
use world::{CLUSTER, Ns, Reply, World, require_root};

/// Ends a test where namespaces cannot be made.
macro_rules! world {
    () => {
        match require_root() {
            true => World::new(),
            false => return,
        }
    };
}

fn addresses(result: &Value) -> (String, String) {
    let bare = |i: usize| {
        let text = result["ips"][i]["address"].as_str().unwrap();
        text.split('/').next().unwrap().to_owned()
    };
    (bare(0), bare(1))
}

fn mac(result: &Value, interface: usize) -> String {
    result["interfaces"][interface]["mac"]
        .as_str()
        .unwrap()
        .to_owned()
}

#[track_caller]
fn refused(reply: &Reply, code: u32, words: &[&str]) {
    assert!(!reply.success, "{reply:?}");
    let json = reply.json();
    assert_eq!(json["code"], code, "{json}");
    let text = json["msg"].as_str().unwrap();
    assert!(words.iter().all(|word| text.contains(word)), "{text}");
    assert!(
        json["cniVersion"].is_string() && json["details"].is_string(),
        "{json}"
    );
}

#[test]
fn two_pods_reach_each_other_with_the_first_packet() {
    let world = world!();
    let (a, b) = (Ns::new(), Ns::new());
    let first = world.add("a", &a).ok();
    let second = world.add("b", &b).ok();
    let ((a4, a6), (b4, b6)) = (addresses(&first), addresses(&second));
    assert_ne!((&a4, &a6), (&b4, &b6));
    for (from, to) in [(&a, &b4), (&a, &b6), (&b, &a4), (&b, &a6)] {
        from.sh(&format!("ping -n -c 1 -W 10 {to}"));
    }
    // Pod to node and node to pod.
    for to in ["10.244.1.1", "fd00:0:0:1::1"] {
        a.sh(&format!("ping -n -c 1 -W 10 {to}"));
    }
    for to in [&a4, &a6] {
        world.node.sh(&format!("ping -n -c 1 -W 10 {to}"));
    }
    a.sh("ping -n -c 1 -W 10 127.0.0.1");
    a.sh("ping -n -c 1 -W 10 ::1");
    // Nothing of it was against the filter.
    let rules = world.node.sh("nft list table inet warren");
    let counted: Vec<&str> = rules
        .lines()
        .filter(|line| line.contains("counter"))
        .collect();
    assert_eq!(counted.len(), rule_comment::REQUIRED.len());
    assert!(
        counted.iter().all(|line| line.contains("packets 0 ")),
        "{counted:#?}"
    );
}

#[test]
fn both_ends_are_exactly_as_published() {
    let world = world!();
    let pod = Ns::new();
    let result = world.add("c1", &pod).ok();
    let (v4, v6) = addresses(&result);
    let host = result["interfaces"][0]["name"].as_str().unwrap();
    let (host_mac, pod_mac) = (mac(&result, 0), mac(&result, 1));

    let link = world.node.json(&format!("ip -j link show {host}"));
    assert_eq!(link[0]["ifalias"], "c1");
    assert_eq!(
        (&link[0]["mtu"], &link[0]["address"]),
        (&json!(1400), &json!(host_mac))
    );
    let link = pod.json("ip -j link show eth0");
    assert_eq!(
        (&link[0]["mtu"], &link[0]["address"]),
        (&json!(1400), &json!(pod_mac))
    );
    assert_eq!(link[0]["operstate"], "UP");

    let lines = |ns: &Ns, command: &str| -> Vec<String> {
        let text = ns.sh(command);
        let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
        let mut lines: Vec<String> = text.lines().map(words).filter(|l| !l.is_empty()).collect();
        lines.sort();
        lines
    };
    // One address a family, and no link-local one on either end.
    assert_eq!(
        lines(&pod, "ip -br addr show eth0")[0]
            .split_once("UP ")
            .unwrap()
            .1,
        format!("{v4}/32 {v6}/128")
    );
    assert!(!pod.sh("ip -6 addr show eth0").contains("tentative"));
    assert_eq!(
        world
            .node
            .sh(&format!("ip addr show {host}"))
            .matches("inet")
            .count(),
        0
    );

    assert_eq!(
        lines(&pod, "ip -4 route"),
        [
            "169.254.1.1 dev eth0 scope link",
            "default via 169.254.1.1 dev eth0"
        ]
    );
    assert_eq!(
        lines(&pod, "ip -6 route"),
        [
            "default via fe80::1 dev eth0 metric 1024 pref medium".to_owned(),
            "fe80::1 dev eth0 metric 1024 pref medium".to_owned(),
        ]
    );
    assert_eq!(
        lines(&world.node, &format!("ip -4 route show dev {host}")),
        [format!("{v4} proto 152 scope link src 10.244.1.1")]
    );
    assert_eq!(
        lines(&world.node, &format!("ip -6 route show dev {host}")),
        [format!(
            "{v6} proto 152 src fd00:0:0:1::1 metric 1024 pref medium"
        )]
    );
    assert_eq!(
        lines(&pod, "ip neigh show dev eth0"),
        [
            format!("169.254.1.1 lladdr {host_mac} PERMANENT"),
            format!("fe80::1 lladdr {host_mac} PERMANENT"),
        ]
    );
    let mut expected = [&v4, &v6].map(|a| format!("{a} lladdr {pod_mac} PERMANENT"));
    expected.sort();
    assert_eq!(
        lines(&world.node, &format!("ip neigh show dev {host}")),
        expected
    );
    for (ns, name) in [(&pod, "eth0"), (&world.node, host)] {
        let accept_ra = ns.sh(&format!("cat /proc/sys/net/ipv6/conf/{name}/accept_ra"));
        assert_eq!(accept_ra.trim(), "0");
    }
}

#[test]
fn ipv6_works_where_the_runtime_switched_it_off() {
    let world = world!();
    let pod = Ns::new();
    pod.sh("echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6");
    pod.sh("echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6");
    world.add("c1", &pod).ok();
    pod.sh("ping -n -c 1 -W 10 fd00:0:0:1::1");
}

#[test]
fn a_node_of_one_family_attaches_pods_of_one_family() {
    let world = world!();
    for (i, (cidr, ping)) in [
        ("10.244.1.0/24", "10.244.1.1"),
        ("fd00:0:0:1::/64", "fd00:0:0:1::1"),
    ]
    .into_iter()
    .enumerate()
    {
        world.write_node(&[cidr], &CLUSTER);
        let pod = Ns::new();
        let result = world.add(&format!("c{i}"), &pod).ok();
        assert_eq!(result["ips"].as_array().unwrap().len(), 1);
        assert_eq!(result["routes"].as_array().unwrap().len(), 1);
        pod.sh(&format!("ping -n -c 1 -W 10 {ping}"));
    }
}

#[test]
fn add_is_refused_while_the_node_is_not_protected() {
    let world = world!();
    let pod = Ns::new();
    let untouched = |what: &str| {
        assert!(
            world.pod_links().is_empty() && pod.links() == ["lo"],
            "{what}"
        );
        assert!(world.reservations().is_empty(), "{what}");
    };
    let record = std::fs::read(world.state().join("node.json")).unwrap();
    std::fs::remove_file(world.state().join("node.json")).unwrap();
    refused(&world.add("c1", &pod), 11, &["not ready", "node.json"]);
    std::fs::write(world.state().join("node.json"), &record[..record.len() / 2]).unwrap();
    refused(&world.add("c1", &pod), 11, &["not ready", "node.json"]);
    world.write_node(&["192.0.2.0/24"], &CLUSTER);
    refused(&world.add("c1", &pod), 11, &["192.0.2.0/24", "inside none"]);
    untouched("record");
    std::fs::write(world.state().join("node.json"), &record).unwrap();

    for comment in rule_comment::REQUIRED {
        world.load_rules(Some(comment));
        refused(&world.add("c1", &pod), 11, &["lacks rules", comment]);
    }
    world.node.sh("nft delete table inet warren");
    refused(&world.add("c1", &pod), 11, &["not loaded"]);
    untouched("rules");
    world.load_rules(None);

    world
        .node
        .sh("ip -6 route del unreachable fd00::/48 metric 4294967280");
    refused(&world.add("c1", &pod), 11, &["unreachable", "fd00::/48"]);
    untouched("routes");
    world
        .node
        .sh("ip -6 route add unreachable fd00::/48 metric 4294967280 proto 151");
    world.add("c1", &pod).ok();
}

#[test]
fn a_step_that_fails_leaves_nothing_behind() {
    let world = world!();
    let pod = Ns::new();
    // The last route of all is taken already.
    world
        .node
        .sh("ip -6 route add fd00:0:0:1::2 dev warren0 metric 1024");
    refused(&world.add("c1", &pod), 100, &["add route", "fd00:0:0:1::2"]);
    assert_eq!(pod.links(), ["lo"]);
    assert!(world.pod_links().is_empty());
    assert!(world.reservations().is_empty());
    assert!(!world.node.sh("ip route").contains("wrn"));
    // The next address is free, so that one stray route does not stop the node.
    world.add("c1", &pod).ok();
}

#[test]
fn a_second_add_fails_and_leaves_the_first_one_whole() {
    let world = world!();
    let (pod, other) = (Ns::new(), Ns::new());
    world.add("c1", &pod).ok();
    let before = (
        world.reservations(),
        world.pod_links(),
        pod.sh("ip addr; ip route; ip -6 route"),
    );
    refused(&world.add("c1", &pod), 4, &["CNI_IFNAME", "eth0"]);
    refused(&world.add("c1", &other), 100, &["exists already", "c1"]);
    assert_eq!(other.links(), ["lo"]);
    let after = (
        world.reservations(),
        world.pod_links(),
        pod.sh("ip addr; ip route; ip -6 route"),
    );
    assert_eq!(before, after);
    pod.sh("ping -n -c 1 -W 10 10.244.1.1");
    // Another interface of the same container is another attachment.
    let second = world.call(
        "ADD",
        "c1",
        Some(&pod),
        &[("CNI_IFNAME", "net1")],
        &world.conf(),
    );
    // It would have the same gateway and the same default route.
    refused(&second, 100, &["169.254.1.1/32", "eth0", "one interface"]);
    assert_eq!(world.reservations().len(), 1);
    assert_eq!(pod.links(), ["eth0", "lo"]);
}

#[test]
fn beside_another_plugins_default_route_ours_needs_a_priority_of_its_own() {
    let world = world!();
    let pod = Ns::new();
    pod.sh("ip link add first type veth peer name other
            ip link set first up; ip link set other up
            ip route add default dev first
            ip -6 route add default dev first");
    refused(
        &world.add("c1", &pod),
        100,
        &["0.0.0.0/0", "first", "priority"],
    );
    assert_eq!(pod.links(), ["first", "lo", "other"]);
    assert!(world.reservations().is_empty() && world.pod_links().is_empty());
    let mut conf = world.conf();
    conf["routes"] =
        json!([{"dst": "0.0.0.0/0", "priority": 300}, {"dst": "::/0", "priority": 3000}]);
    let result = world.call("ADD", "c1", Some(&pod), &[], &conf).ok();
    assert_eq!(result["routes"][0]["priority"], 300);
    assert!(
        pod.sh("ip route")
            .contains("default via 169.254.1.1 dev eth0 metric 300")
    );
    assert!(
        pod.sh("ip -6 route")
            .contains("default via fe80::1 dev eth0 metric 3000")
    );
    conf["prevResult"] = result;
    world.call("CHECK", "c1", Some(&pod), &[], &conf).done();
}

#[test]
fn the_longest_names_are_attached_and_longer_ones_refused_before_anything_is_made() {
    let world = world!();
    let pod = Ns::new();
    let ifname = [("CNI_IFNAME", "a23456789012345")];
    let conf = world.conf();
    let id = "a".repeat(254);
    world.call("ADD", &id, Some(&pod), &ifname, &conf).ok();
    assert_eq!(pod.links(), ["a23456789012345", "lo"]);
    let longer = world.call("ADD", &"b".repeat(255), Some(&Ns::new()), &[], &conf);
    refused(&longer, 4, &["CNI_CONTAINERID", "254"]);
    world.call("DEL", &id, None, &ifname, &conf).done();
    assert_eq!(pod.links(), ["lo"]);
    assert!(world.reservations().is_empty() && world.pod_links().is_empty());
}

#[test]
fn a_log_that_cannot_be_opened_keeps_no_pod_from_being_removed() {
    let world = world!();
    let pod = Ns::new();
    world.add("c1", &pod).ok();
    let mut conf = world.conf();
    conf["logFile"] = json!("/no/such/folder/log");
    refused(
        &world.call("ADD", "c2", Some(&Ns::new()), &[], &conf),
        5,
        &["logFile", "/no/such/folder/log"],
    );
    let removed = world.call("DEL", "c1", None, &[], &conf);
    removed.done();
    assert!(
        removed.stderr.contains("/no/such/folder/log"),
        "{removed:?}"
    );
    assert!(world.reservations().is_empty() && world.pod_links().is_empty());
    conf["cni.dev/valid-attachments"] = json!([]);
    world.add("c3", &pod).ok();
    world.call("GC", "", None, &[], &conf).done();
    assert!(world.reservations().is_empty() && world.pod_links().is_empty());
}

#[test]
fn an_interface_of_someone_else_in_the_pod_is_not_touched() {
    let world = world!();
    let pod = Ns::new();
    pod.sh("ip link add eth0 type veth peer name other");
    refused(&world.add("c1", &pod), 4, &["CNI_IFNAME"]);
    assert_eq!(pod.links(), ["eth0", "lo", "other"]);
    assert!(world.reservations().is_empty());
}

#[test]
fn namespaces_that_cannot_be_a_pods_are_refused() {
    let world = world!();
    let with = |path: &str| world.call("ADD", "c1", None, &[("CNI_NETNS", path)], &world.conf());
    refused(
        &with("/run/netns/no-such-thing"),
        4,
        &["CNI_NETNS", "no-such-thing"],
    );
    refused(&with("/etc/hostname"), 4, &["CNI_NETNS"]);
    refused(&with("/proc/self/ns/net"), 4, &["CNI_NETNS", "node itself"]);
    refused(&with("/proc/self/ns/uts"), 4, &["CNI_NETNS"]);
    refused(&with("/etc"), 4, &["CNI_NETNS"]);
    // Opened like a file, this one would keep the call waiting for ever.
    let fifo = world.state().join("fifo");
    let made = std::process::Command::new("mkfifo").arg(&fifo).status();
    assert!(made.unwrap().success());
    let mut waiting = world.spawn(
        "ADD",
        "c1",
        None,
        &[("CNI_NETNS", fifo.to_str().unwrap())],
        &world.conf(),
    );
    let deadline = Instant::now() + Duration::from_secs(30);
    while waiting.try_wait().unwrap().is_none() {
        if Instant::now() > deadline {
            waiting.kill().unwrap();
            panic!("it waits for a writer of {fifo:?}");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let out = waiting.wait_with_output().unwrap();
    let answer = String::from_utf8(out.stdout).unwrap();
    assert!(
        answer.contains("CNI_NETNS") && answer.contains("\"code\":4"),
        "{answer}"
    );
    assert!(world.reservations().is_empty() && world.pod_links().is_empty());
}

#[test]
fn del_is_idempotent_and_needs_nothing() {
    let world = world!();
    // Nothing was ever added, and there is no state at all.
    world.del("never").done();
    let pod = Ns::new();
    let result = world.add("c1", &pod).ok();
    let mut conf = world.conf();
    conf["prevResult"] = json!({});
    world.call("DEL", "c1", Some(&pod), &[], &conf).done();
    assert_eq!(pod.links(), ["lo"]);
    assert!(world.pod_links().is_empty() && world.reservations().is_empty());
    assert!(!world.node.sh("ip route; ip -6 route").contains("proto 152"));
    world.call("DEL", "c1", Some(&pod), &[], &conf).done();
    conf["prevResult"] = json!({"ips": 7});
    world
        .call(
            "DEL",
            "c1",
            None,
            &[("CNI_NETNS", "/run/netns/gone")],
            &conf,
        )
        .done();
    // The address cools down: the next pod gets another one.
    assert_ne!(addresses(&world.add("c1", &pod).ok()), addresses(&result));

    // The namespace vanishes, and the agent's record with it.
    drop(pod);
    std::fs::remove_file(world.state().join("node.json")).unwrap();
    world.del("c1").done();
    assert!(world.pod_links().is_empty() && world.reservations().is_empty());
    std::fs::remove_dir_all(world.state()).unwrap();
    world.del("c1").done();
}

#[test]
fn del_keeps_what_belongs_to_another_container() {
    let world = world!();
    let pod = Ns::new();
    world.add("c1", &pod).ok();
    let name = world.pod_links().remove(0);
    world
        .node
        .sh(&format!("ip link set {name} alias someone-else"));
    world.del("c1").done();
    assert_eq!(world.pod_links(), [&*name]);
}

#[test]
fn damaged_state_is_set_aside_and_made_anew_from_the_running_pods() {
    let world = world!();
    let (a, b, c) = (Ns::new(), Ns::new(), Ns::new());
    let first = addresses(&world.add("a", &a).ok());
    let second = addresses(&world.add("b", &b).ok());
    let file = world.state().join("ipam/warren.json");
    let damaged = b"{\"format\":1";
    std::fs::write(&file, damaged).unwrap();
    let third = addresses(&world.add("c", &c).ok());
    assert!(third.0 != first.0 && third.0 != second.0);
    assert_eq!(world.reservations().len(), 3);
    let aside = std::fs::read_dir(file.parent().unwrap())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.to_string_lossy().contains("damaged"))
        .unwrap();
    assert_eq!(std::fs::read(aside).unwrap(), damaged);
    // And once more, without any file at all.
    std::fs::remove_dir_all(file.parent().unwrap()).unwrap();
    world.del("a").done();
    world.add("a2", &a).ok();
    world.del("b").done();
    let mut left: Vec<_> = world
        .reservations()
        .iter()
        .map(|r| r["containerId"].as_str().unwrap().to_owned())
        .collect();
    left.sort();
    assert_eq!(left, ["a2", "c"]);
}

#[test]
fn what_a_runtime_left_behind_is_reserved_no_longer_than_the_pool_needs() {
    let world = world!();
    world.write_node(&["10.244.1.0/29", "fd00:0:0:1::/64"], &CLUSTER);
    let kept = Ns::new();
    let kept_addresses = addresses(&world.add("kept", &kept).ok());
    for i in 0..4 {
        // The namespace goes without a DEL, and the interface with it.
        world.add(&format!("gone{i}"), &Ns::new()).ok();
    }
    for _ in 0..3000 {
        if world.pod_links().len() == 1 {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let next = Ns::new();
    refused(&world.add("next", &next), 11, &["1 taken", "4 freed"]);
    let left = world.reservations();
    assert_eq!(left.len(), 1);
    assert_eq!(
        left[0]["addresses"],
        json!([kept_addresses.0, kept_addresses.1])
    );
}

#[test]
fn add_and_del_of_one_attachment_exclude_each_other() {
    let world = world!();
    for round in 0..6 {
        let pod = Ns::new();
        let conf = world.conf();
        // As of a runtime that gave the ADD up and calls DEL while it still runs.
        let add = world.spawn("ADD", "c1", Some(&pod), &[], &conf);
        std::thread::sleep(std::time::Duration::from_millis(3 * round));
        let del = world.spawn("DEL", "c1", None, &[], &conf);
        let added = add.wait_with_output().unwrap().status.success();
        let deleted = del.wait_with_output().unwrap();
        assert!(deleted.status.success(), "{deleted:?}");
        // Either the DEL came first, and all of it is there; or nothing is.
        let whole = (world.pod_links().len(), world.reservations().len());
        assert!(whole == (0, 0) || (added && whole == (1, 1)), "{whole:?}");
        world.del("c1").done();
    }
}

#[test]
fn a_used_up_range_is_told_with_its_numbers() {
    let world = world!();
    world.write_node(&["10.244.1.0/30", "fd00:0:0:1::/64"], &CLUSTER);
    let (a, b) = (Ns::new(), Ns::new());
    world.add("a", &a).ok();
    refused(
        &world.add("b", &b),
        11,
        &["10.244.1.0/30", "1 taken", "0 freed"],
    );
    world.del("a").done();
    refused(&world.add("b", &b), 11, &["0 taken", "1 freed"]);
    assert!(world.reservations().is_empty() && b.links() == ["lo"]);
}

#[test]
fn pods_attached_at_once_get_different_addresses() {
    let world = world!();
    let pods: Vec<Ns> = (0..8).map(|_| Ns::new()).collect();
    let results: Vec<Value> = std::thread::scope(|scope| {
        let calls: Vec<_> = pods
            .iter()
            .enumerate()
            .map(|(i, pod)| {
                let world = &world;
                scope.spawn(move || world.add(&format!("c{i}"), pod).ok())
            })
            .collect();
        calls.into_iter().map(|call| call.join().unwrap()).collect()
    });
    let distinct: std::collections::BTreeSet<_> = results.iter().map(addresses).collect();
    assert_eq!(distinct.len(), 8);
    for pod in &pods {
        for (v4, v6) in &distinct {
            pod.sh(&format!(
                "ping -n -c 1 -W 10 {v4} && ping -n -c 1 -W 10 {v6}"
            ));
        }
    }
}

#[test]
fn calls_killed_at_any_moment_are_cleaned_up_by_del() {
    let world = world!();
    for i in 0..30u64 {
        let pod = Ns::new();
        let id = format!("k{i}");
        let mut child = world.spawn("ADD", &id, Some(&pod), &[], &world.conf());
        std::thread::sleep(std::time::Duration::from_micros(i * 400));
        // It may have ended already.
        let _ = child.kill();
        child.wait().unwrap();
        world.del(&id).done();
        assert_eq!(pod.links(), ["lo"], "{id}");
        assert!(
            world.pod_links().is_empty() && world.reservations().is_empty(),
            "{id}"
        );
    }
}

#[test]
fn every_version_is_answered_in_that_version_and_logs_go_to_the_file() {
    let world = world!();
    for version in ["0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let pod = Ns::new();
        let mut conf = world.conf();
        conf["cniVersion"] = json!(version);
        conf["logFile"] = json!(world.state().join("cni.log"));
        conf["logLevel"] = json!("trace");
        conf["mtu"] = json!(1300);
        conf["dns"] = json!({"nameservers": ["10.0.0.53"]});
        conf["prevResult"] = json!({"interfaces": [{"name": "before"}]});
        let id = format!("v{version}");
        let reply = world.call("ADD", &id, Some(&pod), &[], &conf);
        let result = reply.ok();
        assert_eq!(reply.stderr, "");
        assert_eq!(result["cniVersion"], version);
        assert_eq!(result["interfaces"][0], json!({"name": "before"}));
        assert_eq!(result["ips"][1]["interface"], 2);
        assert_eq!(result["dns"], conf["dns"]);
        assert_eq!(result["ips"][0]["version"] == "4", version < "1.0.0");
        assert_eq!(result["interfaces"][2]["mtu"] == 1300, version == "1.1.0");
        assert_eq!(pod.json("ip -j link show eth0")[0]["mtu"], 1300);
    }
    let log = std::fs::read_to_string(world.state().join("cni.log")).unwrap();
    assert!(log.contains("v1.1.0/eth0") && log.contains("ADD"), "{log}");
}
