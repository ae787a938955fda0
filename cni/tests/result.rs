//! Plans and results: what an attachment is, and how each version of the specification tells it.

#![allow(
    clippy::unwrap_used,
    reason = "in a test a failed step is a failed test"
)]

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;

use serde_json::{Value, json};
use warren_cni::config::{ExtraRoute, PodConf, RangeConf};
use warren_cni::env::{AttachmentId, ContainerId, IfName};
use warren_cni::plan::{AttachPlan, PlanError, host_name, network_mac, plan_add};
use warren_cni::result::{CniResult, Dns, version_result};
use warren_cni::version::CniVersion;
use warren_core::files::NodeFile;
use warren_core::node::NodeName;

fn attachment(container: &str, ifname: &str) -> AttachmentId {
    AttachmentId {
        container_id: ContainerId::new(container).unwrap(),
        ifname: IfName::new(ifname).unwrap(),
    }
}

fn node() -> NodeFile {
    NodeFile {
        name: NodeName::new("node-1").unwrap(),
        interface: "warren0".into(),
        cluster_cidrs: BTreeSet::from(["10.244.0.0/16", "fd00::/48"].map(|c| c.parse().unwrap())),
        pod_cidrs: BTreeSet::from(["10.244.1.0/24", "fd00:0:0:1::/64"].map(|c| c.parse().unwrap())),
        tunnel_addresses: BTreeSet::from(
            ["10.244.1.1", "fd00:0:0:1::1"].map(|a| a.parse().unwrap()),
        ),
        mtu_bytes: 1420,
    }
}

fn try_plan(conf: &PodConf) -> Result<AttachPlan, PlanError> {
    let addresses: [IpAddr; 2] = ["10.244.1.2", "fd00:0:0:1::2"].map(|a| a.parse().unwrap());
    plan_add(&attachment("c1", "eth0"), &addresses, &node(), conf, None)
}

fn plan() -> AttachPlan {
    try_plan(&PodConf::default()).unwrap()
}

fn golden(version: CniVersion) -> Value {
    let dns = Dns {
        nameservers: vec!["10.0.0.53".into()],
        ..Dns::default()
    };
    let conf = PodConf {
        dns,
        ..PodConf::default()
    };
    plan()
        .extend(CniResult::default(), "/run/netns/c1", &conf)
        .to_json(version)
}

#[test]
fn results_of_1_1_0_and_1_0_0() {
    let plan = plan();
    let mac = |mac: [u8; 6]| mac.map(|byte| format!("{byte:02x}")).join(":");
    let (host_mac, pod_mac) = (mac(plan.host.mac), mac(plan.pod.mac));
    let expected = json!({
        "cniVersion": "1.1.0",
        "interfaces": [
            {"name": plan.host.name, "mac": host_mac, "mtu": 1420},
            {"name": "eth0", "mac": pod_mac, "mtu": 1420, "sandbox": "/run/netns/c1"},
        ],
        "ips": [
            {"interface": 1, "address": "10.244.1.2/32", "gateway": "169.254.1.1"},
            {"interface": 1, "address": "fd00:0:0:1::2/128", "gateway": "fe80::1"},
        ],
        "routes": [
            {"dst": "0.0.0.0/0", "gw": "169.254.1.1"},
            {"dst": "::/0", "gw": "fe80::1"},
        ],
        "dns": {"nameservers": ["10.0.0.53"]},
    });
    assert_eq!(golden(CniVersion::V1_1_0), expected);
    let mut older = expected;
    older["cniVersion"] = json!("1.0.0");
    for interface in older["interfaces"].as_array_mut().unwrap() {
        interface.as_object_mut().unwrap().remove("mtu");
    }
    assert_eq!(golden(CniVersion::V1_0_0), older);
}

#[test]
fn results_before_1_0_0_tell_each_address_family() {
    for version in [CniVersion::V0_3_1, CniVersion::V0_4_0] {
        let mut expected = golden(CniVersion::V1_0_0);
        expected["cniVersion"] = json!(version.as_str());
        expected["ips"][0]["version"] = json!("4");
        expected["ips"][1]["version"] = json!("6");
        assert_eq!(golden(version), expected);
    }
}

#[test]
fn a_previous_result_is_kept_and_extended() {
    let previous = json!({
        "cniVersion": "0.4.0",
        "interfaces": [{"name": "lo", "mac": "00:00:00:00:00:00", "sandbox": "/x", "pciID": "1"}],
        "ips": [{"version": "4", "interface": 0, "address": "127.0.0.1/8", "ownKey": 5}],
        "routes": [{"dst": "192.0.2.0/24", "mtu": 1400}],
        "dns": {"domain": "old.example"},
        "ownPart": {"a": 1},
    });
    let before = CniResult::from_prev(Some(&previous)).unwrap();
    let after = plan().extend(before, "/run/netns/c1", &PodConf::default());
    let after = after.to_json(CniVersion::V0_4_0);
    for key in ["interfaces", "ips", "routes"] {
        assert_eq!(after[key][0], previous[key][0], "{key}");
    }
    assert_eq!(after["dns"], previous["dns"]);
    assert_eq!(after["ownPart"], previous["ownPart"]);
    assert_eq!(after["interfaces"][2]["name"], "eth0");
    assert_eq!(
        (&after["ips"][1]["interface"], &after["ips"][2]["interface"]),
        (&json!(2), &json!(2))
    );
    // Rendered for a later version, the family is left out.
    let again = CniResult::from_prev(Some(&previous))
        .unwrap()
        .to_json(CniVersion::V1_0_0);
    assert_eq!(
        again["ips"][0],
        json!({"interface": 0, "address": "127.0.0.1/8", "ownKey": 5})
    );
}

#[test]
fn an_empty_previous_result_is_none_and_a_wrong_one_an_error() {
    assert_eq!(
        CniResult::from_prev(Some(&json!({}))).unwrap(),
        CniResult::default()
    );
    // As some plugins write what they have nothing of; the reference library reads it so, too.
    let nulls = json!({"interfaces": null, "ips": [{"address": "127.0.0.1/8", "gateway": null}],
                       "routes": null, "dns": {"nameservers": null}, "own": null});
    let read = CniResult::from_prev(Some(&nulls)).unwrap();
    assert_eq!((read.interfaces.len(), read.ips.len()), (0, 1));
    assert_eq!(
        CniResult::from_prev(Some(&json!({"dns": null}))).unwrap(),
        CniResult::default()
    );
    let wrong = json!({"ips": [{"address": "not-an-address"}]});
    assert!(CniResult::from_prev(Some(&wrong)).is_err());
}

#[test]
fn version_echoes_what_was_asked_and_lists_what_is_spoken() {
    let expected = json!({
        "cniVersion": "0.4.0",
        "supportedVersions": ["0.3.1", "0.4.0", "1.0.0", "1.1.0"],
    });
    assert_eq!(version_result(Some("0.4.0")), expected);
    assert_eq!(version_result(None)["cniVersion"], "1.1.0");
}

#[test]
fn host_names_fit_and_differ_by_container_and_interface() {
    let names: BTreeSet<String> = [
        ("c1", "eth0"),
        ("c1", "eth1"),
        ("c2", "eth0"),
        ("c1e", "th0"),
    ]
    .map(|(container, ifname)| host_name(&attachment(container, ifname)))
    .into();
    assert_eq!(names.len(), 4);
    for name in names {
        assert!(name.len() == 15 && name.starts_with("wrn"), "{name}");
    }
}

#[test]
fn a_networks_hardware_address_is_of_its_directory_and_name() {
    let mac = |directory: &str, name| network_mac(Path::new(directory), name);
    let ours = mac("/var/lib/warren", "warren");
    assert_eq!(ours, mac("/var/lib//warren/", "warren"));
    for (directory, name) in [
        ("/var/lib/warren", "warren2"),
        ("/var/lib/warren2", "warren"),
        ("/var/lib/warren/warren", ""),
        ("/var/lib", "warren/warren"),
    ] {
        assert_ne!(ours, mac(directory, name), "{directory} {name}");
    }
}

#[test]
fn hardware_addresses_are_local_unicast_and_differ() {
    for i in 0..200 {
        let conf = PodConf {
            network_mac: network_mac(Path::new("/var/lib/warren"), &format!("n{i}")),
            ..PodConf::default()
        };
        let addresses = ["10.244.1.2".parse().unwrap()];
        let plan = plan_add(
            &attachment(&format!("c{i}"), "eth0"),
            &addresses,
            &node(),
            &conf,
            None,
        );
        let plan = plan.unwrap();
        for mac in [plan.host.mac, plan.pod.mac] {
            assert_eq!(mac[0] & 0x03, 0x02, "{mac:02x?}");
        }
        assert_ne!(plan.host.mac, plan.pod.mac);
    }
}

#[test]
fn an_address_outside_the_podcidr_still_gets_a_source_of_its_family() {
    let addresses = ["192.0.2.9".parse().unwrap()];
    let conf = PodConf {
        mtu_bytes: Some(1300),
        ..PodConf::default()
    };
    let plan = plan_add(&attachment("c1", "eth0"), &addresses, &node(), &conf, None).unwrap();
    assert_eq!(
        plan.host.routes[0].source,
        Some("10.244.1.1".parse().unwrap())
    );
    assert_eq!(plan.mtu_bytes, 1300);
    let mut v6_only = node();
    v6_only.tunnel_addresses.retain(IpAddr::is_ipv6);
    let error = plan_add(&attachment("c1", "eth0"), &addresses, &v6_only, &conf, None).unwrap_err();
    assert_eq!(
        error,
        PlanError::NoTunnelAddress {
            address: addresses[0]
        }
    );
}

fn route(dst: &str) -> ExtraRoute {
    ExtraRoute {
        dst: dst.parse().unwrap(),
        gw: None,
        mtu_bytes: None,
        advmss_bytes: None,
        priority: None,
        table: None,
    }
}

#[test]
fn routes_of_the_configuration_go_by_the_pods_gateway_and_are_told_in_full_from_1_1_0_on() {
    let conf = PodConf {
        routes: vec![
            ExtraRoute {
                mtu_bytes: Some(1300),
                advmss_bytes: Some(1200),
                priority: Some(7),
                table: Some(100),
                ..route("192.0.2.0/24")
            },
            // Says more of the default route, which is there only once.
            ExtraRoute {
                gw: Some("fe80::1".parse().unwrap()),
                mtu_bytes: Some(1290),
                ..route("::/0")
            },
        ],
        ..PodConf::default()
    };
    let plan = try_plan(&conf).unwrap();
    let result = plan.extend(CniResult::default(), "/run/netns/c1", &conf);
    let expected = json!([
        {"dst": "0.0.0.0/0", "gw": "169.254.1.1"},
        {"dst": "::/0", "gw": "fe80::1", "mtu": 1290},
        {"dst": "192.0.2.0/24", "gw": "169.254.1.1", "mtu": 1300, "advmss": 1200, "priority": 7,
         "table": 100},
    ]);
    assert_eq!(result.to_json(CniVersion::V1_1_0)["routes"], expected);
    let older = json!([
        {"dst": "0.0.0.0/0", "gw": "169.254.1.1"},
        {"dst": "::/0", "gw": "fe80::1"},
        {"dst": "192.0.2.0/24", "gw": "169.254.1.1"},
    ]);
    assert_eq!(result.to_json(CniVersion::V1_0_0)["routes"], older);
}

#[test]
fn a_route_that_the_pod_cannot_have_is_refused() {
    let conf = |route| PodConf {
        routes: vec![route],
        ..PodConf::default()
    };
    let by_other = ExtraRoute {
        gw: Some("10.244.1.1".parse().unwrap()),
        ..route("192.0.2.0/24")
    };
    let error = try_plan(&conf(by_other)).unwrap_err().to_string();
    assert!(
        error.contains("gw = 10.244.1.1") && error.contains("169.254.1.1"),
        "{error}"
    );
    let only_v4 = ["10.244.1.2".parse().unwrap()];
    let v6 = conf(route("2001:db8::/32"));
    let error = plan_add(&attachment("c1", "eth0"), &only_v4, &node(), &v6, None).unwrap_err();
    assert!(error.to_string().contains("2001:db8::/32"), "{error}");
}

#[test]
fn the_gateway_of_a_range_is_its_pods_gateway() {
    let range = |subnet: &str, gateway: Option<&str>| RangeConf {
        subnet: subnet.parse().unwrap(),
        first: None,
        last: None,
        gateway: gateway.map(|gw| gw.parse().unwrap()),
        exclude: Vec::new(),
    };
    let conf = PodConf {
        ranges: vec![
            range("10.244.1.0/24", Some("10.244.1.254")),
            range("fd00:0:0:1::/64", None),
        ],
        ..PodConf::default()
    };
    let plan = try_plan(&conf).unwrap();
    let gateways: [IpAddr; 2] = ["10.244.1.254", "fe80::1"].map(|a| a.parse().unwrap());
    assert_eq!(plan.gateways, gateways);
    let neighbours: Vec<IpAddr> = plan.pod.neighbours.iter().map(|(a, _)| *a).collect();
    assert_eq!(neighbours, gateways);
    let result = plan.extend(CniResult::default(), "/run/netns/c1", &conf);
    assert_eq!(result.ips[0].gateway, Some(gateways[0]));
    assert_eq!(result.routes[0].gw, Some(gateways[0]));
}

#[test]
fn pods_without_masquerade_are_marked_by_their_links_group() {
    let group = |masquerade| {
        let conf = PodConf {
            masquerade,
            ..PodConf::default()
        };
        try_plan(&conf).unwrap().host.group
    };
    assert_eq!([None, Some(true), Some(false)].map(group), [0, 0, 152]);
}

#[test]
fn a_hardware_address_that_is_asked_for_is_the_pods_and_its_neighbours() {
    let addresses = ["10.244.1.2".parse().unwrap()];
    let mac = [0xc2, 1, 2, 3, 4, 5];
    let attachment = attachment("c1", "eth0");
    let conf = PodConf::default();
    let plan = plan_add(&attachment, &addresses, &node(), &conf, Some(mac)).unwrap();
    assert_eq!(plan.pod.mac, mac);
    assert_eq!(plan.host.neighbours, [(addresses[0], mac)]);
}
