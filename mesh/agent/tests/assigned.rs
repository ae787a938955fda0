//! What a node is given by its Node object, and what of it holds when the object is spoilt.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::net::IpAddr;

use warren_agent::config::{Config, Surroundings, load};
use warren_agent::host::Underlay;
use warren_agent::local::{Assigned, Identity};
use warren_core::{NodeUid, NodeView};

fn config(flags: &[&str]) -> Config {
    let args = [
        "warren-agent",
        "--cluster-cidrs=10.244.0.0/16,fd00:244::/48",
    ];
    let args = args.iter().chain(flags).map(OsString::from);
    let surroundings = Surroundings {
        hostname: "node-1".into(),
        ..Surroundings::default()
    };
    load(args, &BTreeMap::new(), &surroundings).unwrap().config
}

fn node() -> NodeView {
    NodeView {
        name: "node-1".into(),
        uid: NodeUid("of-the-node".into()),
        pod_cidrs: vec!["10.244.1.0/24".into(), "fd00:244:0:1::/64".into()],
        addresses: vec!["192.0.2.1".into(), "2001:db8::1".into()],
        annotations: BTreeMap::new(),
    }
}

/// Found where the default route leads, which is not where the other nodes are.
fn underlay() -> Underlay {
    Underlay {
        addresses: vec!["203.0.113.7".parse().unwrap()],
        mtu_bytes: 1500,
        path_mtu: BTreeMap::new(),
        troubles: BTreeMap::new(),
        down: BTreeSet::new(),
    }
}

fn identity(config: &Config, views: &[NodeView]) -> Identity {
    let mut assigned = Assigned::default();
    for view in views {
        assigned.handle_view(config, view);
    }
    Identity::new(config, &NodeUid("made-here".into()), &assigned, &underlay())
}

fn ranges(identity: &Identity) -> Vec<String> {
    identity.pod_cidrs.iter().map(ToString::to_string).collect()
}

#[test]
fn a_kubernetes_node_is_what_its_object_says() {
    let identity = identity(&config(&["--registry=kubernetes"]), &[node()]);
    assert_eq!(identity.uid.0, "of-the-node");
    assert_eq!(ranges(&identity), ["10.244.1.0/24", "fd00:244:0:1::/64"]);
    let addresses: Vec<IpAddr> = ["192.0.2.1", "2001:db8::1"]
        .map(|a| a.parse().unwrap())
        .into();
    assert_eq!(identity.addresses, addresses);
    assert_eq!(
        identity.endpoints.to_string(),
        "192.0.2.1:51871,[2001:db8::1]:51871"
    );
}

#[test]
fn without_its_object_it_has_no_ranges_and_the_addresses_that_are_found() {
    let identity = identity(&config(&["--registry=kubernetes"]), &[]);
    assert_eq!(identity.uid.0, "made-here");
    assert!(identity.pod_cidrs.is_empty());
    assert_eq!(identity.endpoints.to_string(), "203.0.113.7:51871");
}

#[test]
fn a_spoilt_object_takes_nothing_away_that_was_good() {
    let config = config(&["--registry=kubernetes"]);
    let good = identity(&config, &[node()]);
    for pod_cidrs in [
        vec![],
        vec!["10.244.1.7/24".into()],
        vec!["11.0.0.0/24".into()],
    ] {
        let spoilt = NodeView {
            pod_cidrs,
            addresses: vec!["127.0.0.1".into()],
            ..node()
        };
        assert_eq!(identity(&config, &[node(), spoilt]), good);
    }
    let renumbered = NodeView {
        pod_cidrs: vec!["10.244.9.0/24".into()],
        ..node()
    };
    let now = identity(&config, &[node(), renumbered]);
    assert_eq!(ranges(&now), ["10.244.9.0/24"]);
}

#[test]
fn configured_addresses_win_and_files_assign_nothing() {
    let flags = ["--registry=kubernetes", "--node-addresses=198.51.100.1"];
    let configured = identity(&config(&flags), &[node()]);
    assert_eq!(configured.endpoints.to_string(), "198.51.100.1:51871");
    let files = identity(&config(&["--pod-cidrs=10.244.5.0/24"]), &[node()]);
    assert_eq!(
        (files.uid.0.as_str(), ranges(&files)),
        ("made-here", vec!["10.244.5.0/24".into()])
    );
}
