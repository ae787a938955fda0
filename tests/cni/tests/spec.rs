//! The CNI specification 1.1.0, what plugins MUST and SHOULD do, one test each. The section that a
//! test is of is in its documentation; where the reference plugins' own suites check more, it says
//! so.

#![allow(
    clippy::unwrap_used,
    reason = "in a test a failed step is a failed test"
)]

use serde_json::{Value, json};
use warren_cni_suite::world::addresses;
use warren_cni_suite::{Ns, schema, world};

const VERSIONS: [&str; 4] = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"];
const POD: [(&str, &str); 4] = [
    ("CNI_CONTAINERID", "c1"),
    ("CNI_NETNS", "/run/netns/c1"),
    ("CNI_IFNAME", "eth0"),
    ("CNI_PATH", "/opt/cni/bin"),
];

/// Section 1, "Plugin configuration objects": plugin objects may contain additional fields; and
/// section 3, "Deriving request configuration": other fields are passed through unaltered.
#[test]
fn fields_that_are_not_known_are_tolerated_by_every_verb() {
    let world = world!();
    let pod = Ns::new();
    let mut conf = world.conf();
    conf["keyA"] = json!(["some more", {"plugin": "specific"}]);
    conf["cni.dev/something-new"] = json!(7);
    let result = world.call("ADD", "c1", Some(&pod), &[], &conf).ok();
    conf["prevResult"] = result;
    world.call("CHECK", "c1", Some(&pod), &[], &conf).done();
    world.call("DEL", "c1", Some(&pod), &[], &conf).done();
    world.run(&[("CNI_COMMAND", "STATUS")], Some(&conf)).done();
    world
        .run(&[("CNI_COMMAND", "GC"), POD[3]], Some(&conf))
        .done();
}

/// Section 1, "Plugin configuration objects": `dns` and `ipMasq` keep their common meaning where a
/// plugin consumes them.
#[test]
fn well_known_fields_mean_what_they_mean_everywhere() {
    let world = world!();
    let pod = Ns::new();
    let mut conf = world.conf();
    conf["dns"] = json!({"nameservers": ["10.0.0.53"], "domain": "a.example", "search": ["b.example"],
                         "options": ["ndots:2"]});
    conf["ipMasq"] = json!(false);
    let result = world.call("ADD", "c1", Some(&pod), &[], &conf).ok();
    assert_eq!(result["dns"], conf["dns"]);
    // Not masqueraded, and so not let out either: counted, and never seen outside.
    let out = pod.try_sh("ping -n -c 2 -W 1 192.0.2.9");
    assert!(!out.status.success());
    let rules = world.node.sh("nft list chain inet warren egress");
    let line = rules
        .lines()
        .find(|l| l.contains("warren:egress-src-v4"))
        .unwrap();
    assert!(!line.contains("packets 0 "), "{line}");
    // The same pod with masquerade reaches it.
    let other = Ns::new();
    world.add("c2", &other).ok();
    other.sh("ping -n -c 1 -W 10 192.0.2.9 && ping -n -c 1 -W 10 2001:db8::9");
}

/// Section 1, "Configuration format": the network's name starts with an alphanumeric character,
/// followed by such, underscore, dot or hyphen. Code 7.
#[test]
fn a_networks_name_that_is_not_allowed_is_refused() {
    let world = world!();
    for name in ["", ".a", "-a", "_a", "a/b", "a b", "a\u{e4}"] {
        let mut conf = world.conf();
        conf["name"] = json!(name);
        world
            .call("DEL", "c1", None, &[], &conf)
            .refused(7, &["name"]);
    }
}

/// Section 2, "Parameters": the container id must not be empty, and matches the same form. The
/// interface's name: the plugin returns an error where it cannot use it. Code 4, naming the variable.
#[test]
fn parameters_that_are_not_allowed_are_refused_by_name() {
    let world = world!();
    let pod = Ns::new();
    for (name, bad) in [
        ("CNI_CONTAINERID", "_a"),
        ("CNI_CONTAINERID", "a/b"),
        ("CNI_CONTAINERID", "a\nb"),
        ("CNI_IFNAME", ".."),
        ("CNI_IFNAME", "a/b"),
        ("CNI_IFNAME", "a:b"),
        ("CNI_IFNAME", "a b"),
        ("CNI_IFNAME", "sixteen-bytes-xx"),
        ("CNI_ARGS", "no-pair"),
        ("CNI_ARGS", "UNKNOWN=1"),
    ] {
        for verb in ["ADD", "CHECK"] {
            let reply = world.call(verb, "c1", Some(&pod), &[(name, bad)], &world.conf());
            reply.refused(4, &[name]);
        }
    }
    assert_eq!(pod.links(), ["lo"]);
    assert!(world.reserved().is_empty());
}

/// Section 2, "CNI operations", "Required environment parameters" of each operation; code 4 names
/// the variables (section 5, "Error"), all of them at once.
#[test]
fn each_verb_names_all_missing_variables_at_once() {
    let world = world!();
    let cases: [(&str, &[&str]); 4] = [
        ("ADD", &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"]),
        ("CHECK", &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"]),
        ("DEL", &["CNI_CONTAINERID", "CNI_IFNAME"]),
        ("GC", &["CNI_PATH"]),
    ];
    for (verb, required) in cases {
        world
            .run(&[("CNI_COMMAND", verb)], None)
            .refused(4, required);
        for missing in required {
            let mut env = vec![("CNI_COMMAND", verb)];
            env.extend(POD.iter().filter(|(name, _)| name != missing));
            let reply = world.run(&env, Some(&world.conf()));
            reply.refused(4, &[missing]);
            let text = reply.json()["msg"].as_str().unwrap().to_owned();
            let others = required.iter().filter(|name| *name != missing);
            assert!(others.clone().all(|name| !text.contains(name)), "{text}");
        }
    }
    world.run(&[], None).refused(4, &["CNI_COMMAND"]);
    world
        .run(&[("CNI_COMMAND", "UPDATE")], None)
        .refused(4, &["CNI_COMMAND", "UPDATE"]);
}

/// Section 2, "DEL": CNI_NETNS is optional.
#[test]
fn del_needs_no_namespace() {
    let world = world!();
    let pod = Ns::new();
    world.add("c1", &pod).ok();
    world.call("DEL", "c1", None, &[], &world.conf()).done();
    assert_eq!(pod.links(), ["lo"]);
}

/// Section 2, "Errors": the return code is 0 on success and another one on failure, where an error
/// result should be put out; section 5, "Error": its form and codes.
#[test]
fn failures_exit_with_an_error_result() {
    let world = world!();
    let pod = Ns::new();
    let add = |change: &dyn Fn(&mut Value)| {
        let mut conf = world.conf();
        change(&mut conf);
        world.call("ADD", "c1", Some(&pod), &[], &conf)
    };
    add(&|conf| conf["cniVersion"] = json!("0.2.0")).refused(1, &["0.2.0"]);
    add(&|conf| conf["cniVersion"] = json!("2.0.0")).refused(1, &["2.0.0"]);
    add(&|conf| drop(conf.as_object_mut().unwrap().remove("cniVersion"))).refused(1, &[]);
    let ports = json!({"portMappings": [{"hostPort": 80}]});
    let reply = add(&|conf| conf["runtimeConfig"] = ports.clone());
    reply.refused(2, &["runtimeConfig.portMappings", "[{\"hostPort\":80}]"]);
    add(&|conf| conf["mtu"] = json!(9)).refused(7, &["mtu = 9"]);
    add(&|conf| conf["prevResult"] = json!({"ips": 7})).refused(7, &["prevResult"]);
    let mut env = vec![("CNI_COMMAND", "ADD")];
    env.extend(POD);
    world.run(&env, None).refused(6, &["empty"]);
    world.run(&env, Some(&json!([1]))).refused(6, &[]);
    // The version of the error is the one in use.
    let mut old = world.conf_of("0.4.0");
    old["mtu"] = json!(9);
    let reply = world.call("ADD", "c1", Some(&pod), &[], &old);
    assert_eq!(reply.json()["cniVersion"], "0.4.0");
    assert!(world.reserved().is_empty() && pod.links() == ["lo"]);
}

/// Section 2, "ADD": creates the interface CNI_IFNAME inside the container at CNI_NETNS.
#[test]
fn add_creates_the_interface_of_that_name() {
    let world = world!();
    let pod = Ns::new();
    let env = [("CNI_IFNAME", "a-name.of_15_b")];
    world
        .call("ADD", "c1", Some(&pod), &env, &world.conf())
        .ok();
    assert_eq!(pod.links(), ["a-name.of_15_b", "lo"]);
    pod.sh("ping -n -c 1 -W 10 10.244.1.1 && ping -n -c 1 -W 10 fd00:0:0:1::1");
}

/// Section 2, "ADD": on success the result is put out; section 5, "ADD Success": its form in each
/// version, with the version supplied on input.
#[test]
fn results_are_of_the_version_asked_for() {
    let world = world!();
    for version in VERSIONS {
        let pod = Ns::new();
        let mut conf = world.conf_of(version);
        conf["dns"] = json!({"nameservers": ["10.0.0.53"]});
        conf["routes"] =
            json!([{"dst": "203.0.113.0/24", "mtu": 1300, "advmss": 1000, "priority": 5}]);
        let id = format!("c{version}");
        let result = world.call("ADD", &id, Some(&pod), &[], &conf).ok();
        schema::check_result(&result, version);
        let sandbox = &result["interfaces"][1]["sandbox"];
        assert_eq!(*sandbox, pod.path());
        let route = pod.json("ip -j route show 203.0.113.0/24");
        assert_eq!(route[0]["metric"], 5);
        assert!(route[0]["metrics"][0]["mtu"] == 1300 && route[0]["metrics"][0]["advmss"] == 1000);
        assert_eq!(result["routes"][2]["mtu"] == 1300, version == "1.1.0");
        // The result tells what the kernel has.
        let link = pod.json("ip -j addr show eth0");
        assert_eq!(result["interfaces"][1]["mac"], link[0]["address"]);
        if version == "1.1.0" {
            assert_eq!(result["interfaces"][1]["mtu"], link[0]["mtu"]);
        }
        let held = link[0]["addr_info"].as_array().unwrap().iter();
        let held: Vec<&str> = held.map(|a| a["local"].as_str().unwrap()).collect();
        assert_eq!(addresses(&result), held);
    }
}

/// Section 2, "ADD": a `prevResult` MUST be handled, by passing it through or modifying it.
#[test]
fn add_keeps_and_extends_the_previous_result() {
    let world = world!();
    let pod = Ns::new();
    let previous = json!({
        "cniVersion": "1.1.0",
        "interfaces": [{"name": "before", "mac": "02:00:00:00:00:01", "sandbox": "/x", "mtu": 9000,
                        "socketPath": "/run/s", "pciID": "0000:00:1f.6"}],
        "ips": [{"address": "198.18.0.5/15", "gateway": "198.18.0.1", "interface": 0}],
        "routes": [{"dst": "198.18.0.0/15", "gw": "198.18.0.1", "mtu": 1200, "table": 9, "scope": 0}],
        "dns": {"domain": "before.example"},
    });
    let mut conf = world.conf();
    conf["prevResult"] = previous.clone();
    let result = world.call("ADD", "c1", Some(&pod), &[], &conf).ok();
    for key in ["interfaces", "ips", "routes"] {
        assert_eq!(result[key][0], previous[key][0], "{key}");
    }
    assert_eq!(result["dns"], previous["dns"]);
    assert_eq!(result["interfaces"].as_array().unwrap().len(), 3);
    assert_eq!(
        (
            &result["ips"][1]["interface"],
            &result["ips"][2]["interface"]
        ),
        (&json!(2), &json!(2))
    );
    conf["prevResult"] = result;
    world.call("CHECK", "c1", Some(&pod), &[], &conf).done();
}

/// Section 2, "ADD": an interface of that name in the container MUST be an error.
#[test]
fn add_onto_a_name_that_exists_fails_and_touches_nothing() {
    let world = world!();
    let pod = Ns::new();
    pod.sh("ip link add eth0 type veth peer name other && ip addr add 198.18.0.1/24 dev eth0");
    let before = pod.sh("ip addr; ip route");
    world.add("c1", &pod).refused(4, &["CNI_IFNAME", "eth0"]);
    assert_eq!(pod.sh("ip addr; ip route"), before);
    assert!(world.reserved().is_empty() && world.pod_links().is_empty());
    // Our own, too; and the pod goes on.
    let pod = Ns::new();
    world.add("c2", &pod).ok();
    world.add("c2", &pod).refused(4, &["CNI_IFNAME"]);
    pod.sh("ping -n -c 1 -W 10 10.244.1.1");
    assert_eq!(world.reserved(), ["c2"]);
}

/// Section 2, "DEL": deletes the interface, and all that ADD made.
#[test]
fn del_removes_what_add_made() {
    let world = world!();
    let pod = Ns::new();
    let before = (
        world.node.sh("ip link; ip route; ip -6 route; ip neigh"),
        pod.links(),
    );
    world.add("c1", &pod).ok();
    world
        .call("DEL", "c1", Some(&pod), &[], &world.conf())
        .done();
    assert_eq!(
        (
            world.node.sh("ip link; ip route; ip -6 route; ip neigh"),
            pod.links()
        ),
        before
    );
    assert!(world.reserved().is_empty());
}

/// Section 2, "DEL": plugins should return without error if `prevResult` is empty.
#[test]
fn del_succeeds_with_an_empty_a_missing_and_a_broken_previous_result() {
    let world = world!();
    for previous in [
        json!({}),
        Value::Null,
        json!({"ips": 7}),
        json!("x"),
        json!({"interfaces": []}),
    ] {
        let pod = Ns::new();
        world.add("c1", &pod).ok();
        let mut conf = world.conf();
        conf["prevResult"] = previous;
        world.call("DEL", "c1", Some(&pod), &[], &conf).done();
        assert_eq!(pod.links(), ["lo"]);
    }
}

/// Section 2, "DEL": completes without error even if resources or state are missing; the address is
/// released although the namespace is gone.
#[test]
fn del_succeeds_after_namespace_interface_and_state_vanished() {
    let world = world!();
    let pod = Ns::new();
    world.add("c1", &pod).ok();
    drop(pod);
    let gone = [("CNI_NETNS", "/run/netns/no-such-thing")];
    world.call("DEL", "c1", None, &gone, &world.conf()).done();
    assert!(world.reserved().is_empty() && world.pod_links().is_empty());

    let pod = Ns::new();
    world.add("c2", &pod).ok();
    pod.sh("ip link del eth0");
    world
        .call("DEL", "c2", Some(&pod), &[], &world.conf())
        .done();
    assert!(world.reserved().is_empty());

    world.add("c3", &pod).ok();
    std::fs::remove_dir_all(world.state()).unwrap();
    world
        .call("DEL", "c3", Some(&pod), &[], &world.conf())
        .done();
    assert!(world.pod_links().is_empty());
}

/// Section 2, "DEL": multiple DEL calls for the same pair MUST be accepted; one without an ADD, too,
/// and one after an ADD that failed (section 3, "Lifecycle & Ordering").
#[test]
fn del_succeeds_twice_and_without_an_add() {
    let world = world!();
    world.del("never").done();
    let pod = Ns::new();
    world.add("c1", &pod).ok();
    world.del("c1").done();
    world.del("c1").done();
    world.node.sh("nft delete table inet warren");
    world.add("c2", &pod).refused(11, &[]);
    world
        .call("DEL", "c2", Some(&pod), &[], &world.conf())
        .done();
}

/// Section 2, "DEL": a slip in the configuration that does not matter for a removal does not hinder
/// it ("to the fullest extent possible").
#[test]
fn del_succeeds_with_a_configuration_that_add_would_refuse() {
    let world = world!();
    let pod = Ns::new();
    world.add("c1", &pod).ok();
    let mut conf = world.conf();
    conf["mtu"] = json!("wide");
    conf["runtimeConfig"] = json!({"portMappings": []});
    world
        .call("DEL", "c1", Some(&pod), &[("CNI_ARGS", "x")], &conf)
        .done();
    assert!(world.pod_links().is_empty() && world.reserved().is_empty());
}

/// Section 2, "CHECK": must handle being called immediately after ADD; from 0.4.0 on.
#[test]
fn check_passes_right_after_add_in_every_version_that_has_it() {
    let world = world!();
    for version in VERSIONS {
        let pod = Ns::new();
        let id = format!("c{version}");
        let result = world
            .call("ADD", &id, Some(&pod), &[], &world.conf_of(version))
            .ok();
        let reply = world.check(&id, &pod, &result);
        match version {
            "0.3.1" => reply.refused(1, &["CHECK", "0.4.0"]),
            _ => reply.done(),
        }
    }
}

/// Section 2, "CHECK": must consult `prevResult`, which the runtime must include.
#[test]
fn check_needs_the_previous_result_and_consults_it() {
    let world = world!();
    let pod = Ns::new();
    let result = world.add("c1", &pod).ok();
    world
        .call("CHECK", "c1", Some(&pod), &[], &world.conf())
        .refused(7, &["prevResult"]);
    world
        .check("c1", &pod, &json!({"cniVersion": "1.1.0"}))
        .refused(102, &["prevResult", "eth0"]);
    let mut other = result.clone();
    other["ips"][0]["address"] = json!("10.244.1.77/32");
    world
        .check("c1", &pod, &other)
        .refused(102, &["prevResult", &addresses(&result)[0]]);
    let mut other = result.clone();
    other["interfaces"][1]["mac"] = json!("02:00:00:00:00:07");
    world
        .check("c1", &pod, &other)
        .refused(102, &["eth0", "02:00:00:00:00:07"]);
    world.check("c1", &pod, &result).done();
}

/// Section 2, "CHECK": should return an error if an interface, address or route of the result is
/// missing or in an invalid state, or a resource beside it, such as reservations and firewall rules;
/// and if the container is generally unreachable.
#[test]
fn check_sees_every_kind_of_damage() {
    let world = world!();
    let kinds: [(&str, &str, &[&str]); 17] = [
        ("pod", "ip link del eth0", &["eth0", "missing"]),
        ("pod", "ip link set eth0 down", &["eth0", "down"]),
        ("pod", "ip link set eth0 name eth9", &["eth0", "missing"]),
        (
            "pod",
            "ip link set eth0 address 02:00:00:00:00:09",
            &["eth0", "hardware address"],
        ),
        ("pod", "ip link set eth0 mtu 9000", &["eth0", "MTU"]),
        (
            "pod",
            "ip addr flush dev eth0 scope global",
            &["address", "/32", "/128"],
        ),
        ("pod", "ip -4 addr flush dev eth0", &["address", "/32"]),
        ("pod", "ip route del default", &["0.0.0.0/0"]),
        ("pod", "ip -6 route del default", &["::/0"]),
        ("pod", "ip route del 169.254.1.1", &["169.254.1.1/32"]),
        (
            "pod",
            "ip neigh del 169.254.1.1 dev eth0",
            &["neighbour 169.254.1.1"],
        ),
        (
            "pod",
            "ip neigh replace fe80::1 lladdr 02:00:00:00:00:01 dev eth0",
            &["neighbour fe80::1"],
        ),
        ("node", "ip link set $HOST down", &["$HOST", "down"]),
        ("node", "ip route del $V4", &["route to $V4/32"]),
        ("node", "ip -6 route del $V6", &["route to $V6/128"]),
        ("node", "ip neigh del $V6 dev $HOST", &["neighbour $V6"]),
        ("node", "ip link del $HOST", &["$HOST", "missing"]),
    ];
    for (where_, command, words) in kinds {
        let pod = Ns::new();
        let result = world.add("c1", &pod).ok();
        let host = result["interfaces"][0]["name"].as_str().unwrap();
        let ips = addresses(&result);
        let fill = |text: &str| {
            text.replace("$HOST", host)
                .replace("$V4", &ips[0])
                .replace("$V6", &ips[1])
        };
        world.check("c1", &pod, &result).done();
        match where_ {
            "pod" => pod.sh(&fill(command)),
            _ => world.node.sh(&fill(command)),
        };
        let words: Vec<String> = words.iter().map(|word| fill(word)).collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        world.check("c1", &pod, &result).refused(102, &words);
        world
            .call("DEL", "c1", Some(&pod), &[], &world.conf())
            .done();
    }
}

/// Section 2, "CHECK": firewall rules, reservations and the node's protection.
#[test]
fn check_sees_a_lost_reservation_and_a_lost_filter() {
    let world = world!();
    let pod = Ns::new();
    let result = world.add("c1", &pod).ok();
    world.node.sh("nft flush chain inet warren egress");
    world
        .check("c1", &pod, &result)
        .refused(11, &["not protected", "egress"]);
    world.load_rules(true);
    let file = world.state().join("ipam/warren.json");
    let kept = std::fs::read(&file).unwrap();
    let mut pool: Value = serde_json::from_slice(&kept).unwrap();
    pool["reservations"] = json!([]);
    std::fs::write(&file, pool.to_string()).unwrap();
    world
        .check("c1", &pod, &result)
        .refused(102, &["not reserved"]);
    std::fs::write(&file, kept).unwrap();
    world.check("c1", &pod, &result).done();
    // A range that the agent's protection no longer covers is no protection.
    world
        .node
        .sh("ip -6 route del unreachable fd00::/48 metric 4294967280");
    world.check("c1", &pod, &result).refused(11, &["fd00::/48"]);
}

/// Section 2, "CHECK": must allow for a later plugin to have modified networking resources.
#[test]
fn check_tolerates_what_later_plugins_changed() {
    let world = world!();
    let pod = Ns::new();
    let mut result = world.add("c1", &pod).ok();
    // Further interfaces, addresses and routes; a route taken away, with the result; another table.
    pod.sh(
        "ip link add net1 type veth peer name net1p && ip link set net1 up
            ip addr add 198.18.0.1/24 dev eth0
            ip route add 203.0.113.0/24 via 169.254.1.1
            ip route add default via 169.254.1.1 dev eth0 table 100 onlink
            ip route del default && ip -6 route del default
            ip link set eth0 mtu 1300",
    );
    result["routes"]
        .as_array_mut()
        .unwrap()
        .retain(|route| route["dst"] != "::/0");
    let interfaces = result["interfaces"].as_array_mut().unwrap();
    interfaces.push(json!({"name": "net1", "mac": "02:00:00:00:00:01", "sandbox": pod.path()}));
    result["ips"]
        .as_array_mut()
        .unwrap()
        .push(json!({"address": "198.18.0.1/24", "interface": 1}));
    world.check("c1", &pod, &result).done();
}

/// Section 2, "CHECK", and section 5, code 3: a container of which there is nothing.
#[test]
fn check_of_a_container_that_was_never_added_says_so() {
    let world = world!();
    let pod = Ns::new();
    let result = world.add("c1", &pod).ok();
    world.check("c2", &pod, &result).refused(3, &["c2/eth0"]);
    drop(pod);
    let mut conf = world.conf();
    conf["prevResult"] = result;
    let gone = [("CNI_NETNS", "/run/netns/no-such-thing")];
    world
        .call("CHECK", "c1", None, &gone, &conf)
        .refused(4, &["CNI_NETNS"]);
}

/// Section 2, "STATUS": zero if the plugin is ready to service ADD requests, and no output.
#[test]
fn status_of_a_ready_node_is_success() {
    let world = world!();
    world.status().done();
    let mut conf = world.conf_of("1.0.0");
    conf["x"] = json!(1);
    world
        .run(&[("CNI_COMMAND", "STATUS")], Some(&conf))
        .refused(1, &["STATUS", "1.1.0"]);
}

/// Section 2, "STATUS", code 50: ADD requests cannot be serviced; and resources are exhausted.
#[test]
fn status_50_says_that_add_cannot_work() {
    let world = world!();
    let pod = Ns::new();
    world.node.sh("nft delete table inet warren");
    world.status().refused(50, &["not protected", "not loaded"]);
    world.add("c1", &pod).refused(11, &["not protected"]);
    world.load_rules(true);
    world
        .node
        .sh("ip route del unreachable 10.244.0.0/16 metric 4294967280");
    world.status().refused(50, &["10.244.0.0/16"]);
    world
        .node
        .sh("ip route add unreachable 10.244.0.0/16 metric 4294967280 proto 151");
    world.status().done();

    world.write_node(&["10.244.1.0/30", "fd00:0:0:1::/64"]);
    world.status().done();
    world.add("c1", &pod).ok();
    world.status().refused(50, &["10.244.1.0/30", "1 taken"]);
    world
        .add("c2", &Ns::new())
        .refused(11, &["10.244.1.0/30", "1 taken"]);

    std::fs::remove_file(world.state().join("node.json")).unwrap();
    world.status().refused(50, &["node.json"]);
}

/// Section 2, "STATUS", code 51: existing containers may have limited connectivity.
#[test]
fn status_51_says_that_the_tunnel_is_dead() {
    let world = world!();
    world.stop_tunnel();
    world.status().refused(51, &["tunnel", "tunnel.sock"]);
    world.start_tunnel();
    world.status().done();
    world.node.sh("ip link set warren0 down");
    world.status().refused(51, &["warren0"]);
}

/// Section 2, "STATUS": plugins MUST NOT rely on STATUS being called, and expect other operations
/// even if it returns an error. A protected node attaches pods while its tunnel is down.
#[test]
fn add_check_and_del_work_while_status_fails() {
    let world = world!();
    world.stop_tunnel();
    let pod = Ns::new();
    let result = world.add("c1", &pod).ok();
    world.check("c1", &pod, &result).done();
    pod.sh("ping -n -c 1 -W 10 10.244.1.1");
    world.del("c1").done();
}

/// Section 2, "VERSION", and section 5, "Version": the version of the input, and the supported ones.
#[test]
fn version_answers_with_and_without_input() {
    let world = world!();
    let version = [("CNI_COMMAND", "VERSION")];
    for asked in ["0.3.1", "0.4.0", "1.0.0", "1.1.0", "9.9.9"] {
        let result = world
            .run(&version, Some(&json!({"cniVersion": asked})))
            .ok();
        assert_eq!(
            result,
            json!({"cniVersion": asked, "supportedVersions": VERSIONS})
        );
    }
    let result = world.run(&version, None).ok();
    assert_eq!(result["supportedVersions"], json!(VERSIONS));
}

/// Section 2, "GC": removes what belongs to attachments that are not in the list; no output.
#[test]
fn gc_removes_what_is_not_listed_and_keeps_what_is() {
    let world = world!();
    let pods: Vec<Ns> = (0..3).map(|_| Ns::new()).collect();
    for (pod, id) in pods.iter().zip(["a", "b", "c"]) {
        world.add(id, pod).ok();
    }
    world
        .gc(&[("a", "eth0"), ("c", "eth1"), ("not-here", "eth0")])
        .done();
    assert_eq!(world.reserved(), ["a"]);
    assert_eq!(world.pod_links().len(), 1);
    assert_eq!((pods[0].links().len(), pods[1].links().len()), (2, 1));
    pods[0].sh("ping -n -c 1 -W 10 10.244.1.1");
    world.gc(&[]).done();
    assert!(world.reserved().is_empty() && world.pod_links().is_empty());
    world.gc(&[]).done();
}

/// Section 2, "GC": without the list nothing is known to be stale; a list that is none removes
/// nothing either.
#[test]
fn gc_without_a_list_removes_nothing() {
    let world = world!();
    let pod = Ns::new();
    world.add("c1", &pod).ok();
    let gc = [("CNI_COMMAND", "GC"), POD[3]];
    world.run(&gc, Some(&world.conf())).done();
    for bad in [
        json!({}),
        json!("c1"),
        json!([{"containerID": "c1"}]),
        json!([["c1", "eth0"]]),
    ] {
        let mut conf = world.conf();
        conf["cni.dev/valid-attachments"] = bad;
        world
            .run(&gc, Some(&conf))
            .refused(7, &["cni.dev/valid-attachments"]);
    }
    world
        .run(&gc, Some(&world.conf_of("1.0.0")))
        .refused(1, &["GC", "1.1.0"]);
    assert_eq!(world.reserved(), ["c1"]);
    pod.sh("ping -n -c 1 -W 10 10.244.1.1");
}

/// Section 2, "GC": should remove as many stale resources as possible, after the namespaces are
/// gone, and whatever state is left.
#[test]
fn gc_removes_leaks_of_every_kind() {
    let world = world!();
    let (kept, stale) = (Ns::new(), Ns::new());
    world.add("kept", &kept).ok();
    // A reservation without its namespace.
    world.add("gone", &Ns::new()).ok();
    // An interface whose reservation was lost.
    world.add("stale", &stale).ok();
    let file = world.state().join("ipam/warren.json");
    let mut pool: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    let reservations = pool["reservations"].as_array_mut().unwrap();
    reservations.retain(|r| r["containerId"] != "stale");
    std::fs::write(&file, pool.to_string()).unwrap();
    world.gc(&[("kept", "eth0")]).done();
    assert_eq!(world.reserved(), ["kept"]);
    assert_eq!(world.pod_links().len(), 1);
    assert_eq!(stale.links(), ["lo"]);
    kept.sh("ping -n -c 1 -W 10 10.244.1.1");
}

/// Section 2, "GC": the list is of this network's attachments; other networks' are not touched.
#[test]
fn gc_leaves_other_networks_alone() {
    let world = world!();
    let (ours, theirs) = (Ns::new(), Ns::new());
    world.add("ours", &ours).ok();
    let mut other = world.conf();
    other["name"] = json!("second");
    world.call("ADD", "theirs", Some(&theirs), &[], &other).ok();
    world.gc(&[]).done();
    assert!(world.reserved().is_empty());
    assert_eq!((ours.links().len(), theirs.links().len()), (1, 2));
    theirs.sh("ping -n -c 1 -W 10 10.244.1.1");
}

/// Section 2, "GC": if an error is encountered, a plugin should continue, and report the errors.
#[test]
fn gc_goes_on_past_errors_and_reports_them() {
    let world = world!();
    let (kept, stale, other) = (Ns::new(), Ns::new(), Ns::new());
    world.add("kept", &kept).ok();
    world.add("stale", &stale).ok();
    world.add("other", &other).ok();
    // Half way the address store turns out to be unusable: interfaces go all the same.
    let lock = world.state().join("ipam/.lock");
    std::fs::remove_file(&lock).unwrap();
    std::fs::create_dir(&lock).unwrap();
    let reply = world.gc(&[("kept", "eth0")]);
    assert!(!reply.success);
    let error = reply.json();
    schema::check_error(&error);
    assert!(error["msg"].as_str().unwrap().contains("ipam"), "{error}");
    assert_eq!(
        (stale.links().len(), other.links().len(), kept.links().len()),
        (1, 1, 2)
    );
}

/// Section 3, "Lifecycle & Ordering": plugins must handle being executed concurrently across
/// different containers.
#[test]
fn calls_for_different_containers_may_run_at_once() {
    let world = world!();
    let pods: Vec<Ns> = (0..6).map(|_| Ns::new()).collect();
    let results: Vec<Value> = std::thread::scope(|scope| {
        let add = |(i, pod)| {
            let world = &world;
            scope.spawn(move || world.add(&format!("c{i}"), pod).ok())
        };
        let calls: Vec<_> = pods.iter().enumerate().map(add).collect();
        calls.into_iter().map(|call| call.join().unwrap()).collect()
    });
    let mut all: Vec<String> = results.iter().flat_map(addresses).collect();
    all.sort();
    all.dedup();
    assert_eq!(all.len(), 12);
    std::thread::scope(|scope| {
        for i in 0..pods.len() {
            let world = &world;
            scope.spawn(move || world.del(&format!("c{i}")).done());
        }
    });
    assert!(world.reserved().is_empty() && world.pod_links().is_empty());
}

/// Section 3, "Attachment parameters", and the conventions on `ips` and `mac`: a requested address
/// is given when it is free and in the range; else a clear error, and nothing is made.
#[test]
fn requested_addresses_are_given_or_refused_clearly() {
    let world = world!();
    let ask = |id: &str, pod: &Ns, ips: Value| {
        let mut conf = world.conf();
        conf["runtimeConfig"] = json!({"ips": ips, "mac": "c2:00:00:00:00:01"});
        world.call("ADD", id, Some(pod), &[], &conf)
    };
    let (first, second) = (Ns::new(), Ns::new());
    let result = ask("c1", &first, json!(["10.244.1.77/24", "fd00:0:0:1::77"])).ok();
    assert_eq!(addresses(&result), ["10.244.1.77", "fd00:0:0:1::77"]);
    assert_eq!(result["interfaces"][1]["mac"], "c2:00:00:00:00:01");
    first.sh("ping -n -c 1 -W 10 10.244.1.1 && ping -n -c 1 -W 10 fd00:0:0:1::1");
    let mut conf = world.conf();
    conf["runtimeConfig"] = json!({"ips": ["10.244.1.77"], "mac": "c2:00:00:00:00:01"});
    conf["prevResult"] = result;
    world.call("CHECK", "c1", Some(&first), &[], &conf).done();

    ask("c2", &second, json!(["10.244.1.77"])).refused(11, &["10.244.1.77"]);
    ask("c2", &second, json!(["10.244.2.7"])).refused(7, &["10.244.2.7"]);
    // The node's own, and the network's.
    ask("c2", &second, json!(["10.244.1.1"])).refused(7, &["10.244.1.1"]);
    ask("c2", &second, json!(["10.244.1.255"])).refused(7, &["10.244.1.255"]);
    assert!(second.links() == ["lo"] && world.reserved() == ["c1"]);
    let args = [("CNI_ARGS", "IgnoreUnknown=1;IP=10.244.1.78;X=y")];
    let result = world
        .call("ADD", "c2", Some(&second), &args, &world.conf())
        .ok();
    assert_eq!(addresses(&result)[0], "10.244.1.78");
}

/// Ranges of the configuration: several, bounded, with exclusions and a gateway of their own.
#[test]
fn ranges_of_the_configuration_are_kept_to() {
    let world = world!();
    let mut conf = world.conf();
    conf["ranges"] = json!([
        {"subnet": "10.244.1.0/28", "rangeStart": "10.244.1.4", "rangeEnd": "10.244.1.6",
         "exclude": ["10.244.1.5"], "gateway": "10.244.1.14"},
        {"subnet": "10.244.1.16/28", "rangeStart": "10.244.1.20", "rangeEnd": "10.244.1.20"},
    ]);
    let pods: Vec<Ns> = (0..3).map(|_| Ns::new()).collect();
    let mut given = Vec::new();
    for (i, pod) in pods.iter().enumerate() {
        let result = world
            .call("ADD", &format!("c{i}"), Some(pod), &[], &conf)
            .ok();
        pod.sh("ping -n -c 1 -W 10 10.244.1.1");
        let gateway = if i < 2 { "10.244.1.14" } else { "169.254.1.1" };
        assert_eq!(result["ips"][0]["gateway"], gateway);
        given.extend(addresses(&result));
    }
    assert_eq!(given, ["10.244.1.4", "10.244.1.6", "10.244.1.20"]);
    let more = world.call("ADD", "c3", Some(&Ns::new()), &[], &conf);
    more.refused(11, &["10.244.1.0/28", "3 taken"]);
    // Nobody routes anything else to this node.
    conf["ranges"] = json!([{"subnet": "10.244.9.0/24"}]);
    let foreign = world.call("ADD", "c4", Some(&Ns::new()), &[], &conf);
    foreign.refused(7, &["10.244.9.0/24", "10.244.1.0/24"]);
}

/// `masquerade: true` is a demand: a node whose agent does not masquerade refuses it.
#[test]
fn masquerade_that_the_node_does_not_do_is_refused() {
    let world = world!();
    world.load_rules(false);
    let pod = Ns::new();
    let mut conf = world.conf();
    conf["masquerade"] = json!(true);
    world
        .call("ADD", "c1", Some(&pod), &[], &conf)
        .refused(7, &["masquerade"]);
    assert_eq!(pod.links(), ["lo"]);
    conf["masquerade"] = json!(false);
    world.call("ADD", "c1", Some(&pod), &[], &conf).ok();
}

/// The convention on `aliases`: names that are mapped to the pod's addresses, for whoever resolves
/// names on the node; they come and go with the attachment.
#[test]
fn aliases_are_published_while_the_attachment_lives() {
    let world = world!();
    let hosts = world.run_dir().join("hosts");
    let published = || -> Vec<String> {
        let entries = std::fs::read_dir(&hosts).into_iter().flatten().flatten();
        entries
            .map(|e| std::fs::read_to_string(e.path()).unwrap())
            .collect()
    };
    let add = |id: &str, pod: &Ns| {
        let mut conf = world.conf();
        conf["runtimeConfig"] = json!({"aliases": ["primary-db", "db.example"]});
        let result = world.call("ADD", id, Some(pod), &[], &conf).ok();
        conf["prevResult"] = result;
        conf
    };
    let (pod, other) = (Ns::new(), Ns::new());
    let conf = add("c1", &pod);
    let lines = published();
    let expected = "# warren c1/eth0\n10.244.1.2\tprimary-db db.example\n\
                    fd00:0:0:1::2\tprimary-db db.example\n";
    assert_eq!(lines, [expected]);
    world.call("CHECK", "c1", Some(&pod), &[], &conf).done();
    std::fs::write(hosts.join("foreign"), "10.0.0.1 someone-else\n").unwrap();
    let file = hosts.join(world.pod_links().remove(0));
    std::fs::remove_file(file).unwrap();
    world
        .call("CHECK", "c1", Some(&pod), &[], &conf)
        .refused(102, &["aliases"]);
    add("c2", &other);
    world.del("c1").done();
    assert_eq!(published().len(), 2);
    world.gc(&[]).done();
    assert_eq!(published(), ["10.0.0.1 someone-else\n"]);
    // Without a place for them there is no pod either.
    std::fs::remove_dir_all(&hosts).unwrap();
    std::fs::write(&hosts, "in the way").unwrap();
    let mut conf = world.conf();
    conf["runtimeConfig"] = json!({"aliases": ["db"]});
    let reply = world.call("ADD", "c3", Some(&pod), &[], &conf);
    reply.refused(5, &["aliases"]);
    assert!(pod.links() == ["lo"] && world.reserved().is_empty());
    world.del("c3").done();
}
