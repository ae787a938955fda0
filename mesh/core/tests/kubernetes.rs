//! What is taken of a Kubernetes Node.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use serde_json::{Value, json};
use warren_core::NodeView;
use warren_core::kubernetes::NodeObject;

fn parse(object: Value) -> NodeObject {
    serde_json::from_value(object).unwrap()
}

/// As a kubelet, a controller and an agent leave it.
fn whole() -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": "node-1",
            "uid": "0a5b",
            "resourceVersion": "17",
            "labels": {"kubernetes.io/os": "linux"},
            "annotations": {
                "node.alpha.kubernetes.io/ttl": "0",
                "warren.network/public-key": "key",
                "warren.network/endpoint": "192.0.2.1:51871",
                "warren.network/force-endpoint": "198.51.100.1:1",
                "warren.network/mtu": "1500",
                "warren.network/of-a-later-version": "x",
            },
            "managedFields": [{"manager": "kubelet", "fieldsV1": {"f:status": {}}}],
        },
        "spec": {"podCIDR": "10.9.9.0/24", "podCIDRs": ["10.244.1.0/24", "fd00:244:0:1::/64"]},
        "status": {
            "addresses": [
                {"type": "ExternalIP", "address": "203.0.113.1"},
                {"type": "InternalIP", "address": "192.0.2.1"},
                {"type": "Hostname", "address": "node-1"},
                {"type": "InternalIP", "address": "2001:db8::1"},
            ],
            "conditions": [
                {"type": "Ready", "status": "True", "reason": "KubeletReady", "message": ""},
                {"type": "NetworkUnavailable", "status": "False", "reason": "WarrenIsUp",
                 "message": "up", "lastTransitionTime": "2026-11-29T12:00:00Z"},
            ],
            "images": [{"names": ["a"], "sizeBytes": 1}],
        },
    })
}

#[test]
fn pod_cidrs_internal_addresses_and_our_annotations_are_taken_and_nothing_else() {
    let view = parse(whole()).view();
    assert_eq!(view.name, "node-1");
    assert_eq!(view.uid.0, "0a5b");
    assert_eq!(view.pod_cidrs, ["10.244.1.0/24", "fd00:244:0:1::/64"]);
    assert_eq!(view.addresses, ["192.0.2.1", "2001:db8::1"]);
    let keys: Vec<&str> = view.annotations.keys().map(String::as_str).collect();
    assert_eq!(
        keys,
        [
            "warren.network/endpoint",
            "warren.network/force-endpoint",
            "warren.network/mtu",
            "warren.network/public-key",
        ]
    );
}

#[test]
fn the_singular_pod_cidr_does_not_count() {
    let node = parse(json!({"metadata": {"name": "n"}, "spec": {"podCIDR": "10.244.1.0/24"}}));
    assert_eq!(node.view().pod_cidrs, Vec::<String>::new());
}

#[test]
fn what_is_missing_or_null_is_empty() {
    let empty = NodeView::default();
    for object in [
        json!({}),
        json!({"metadata": {}, "spec": null, "status": null}),
        json!({"metadata": {"annotations": null}, "spec": {"podCIDRs": null},
               "status": {"addresses": null, "conditions": null}}),
    ] {
        let node = parse(object.clone());
        assert_eq!(node.view(), empty, "{object}");
        assert_eq!(node.network_condition(), None);
    }
}

#[test]
fn the_condition_of_the_network_is_found_among_others() {
    let node = parse(whole());
    let condition = node.network_condition().unwrap();
    assert_eq!(condition.reason, "WarrenIsUp");
    assert_eq!(
        condition.last_transition_time.as_deref(),
        Some("2026-11-29T12:00:00Z")
    );
}
