//! `warren pods`: what is stored beside what is there.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use clap::Parser;
use common::PLAIN;
use serde_json::{Value, json};
use warren_cli::pods::report;
use warren_cli::{Cli, Outcome, run};
use warren_core::files::IpamFile;

fn reservation(id: &str, interface: &str, address: &str) -> Value {
    json!({
        "containerId": id, "ifname": "eth0", "hostInterface": interface,
        "pod": format!("default/{id}"), "since": common::NOW - 65, "addresses": [address],
    })
}

fn document(boot: &str, reservations: &[Value]) -> IpamFile {
    let document = json!({
        "network": "warren", "bootId": boot, "reservations": reservations, "of": "a later version",
    });
    serde_json::from_value(document).unwrap()
}

fn interfaces(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn pods(state: &Path, arguments: &[&str]) -> Outcome {
    let state = state.to_str().unwrap();
    let line = [&["warren", "pods", "--state-dir", state], arguments].concat();
    run(&Cli::parse_from(line), &PLAIN)
}

/// A state directory with one reservation that nothing owns.
fn state() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("ipam")).unwrap();
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let one = reservation("0123456789abcdef", "wrn00000000dead", "10.244.1.2");
    let text = serde_json::to_vec(&document(boot.trim(), &[one])).unwrap();
    fs::write(dir.path().join("ipam/warren.json"), text).unwrap();
    fs::write(dir.path().join("ipam/.warren.json.spare"), "{").unwrap();
    dir
}

#[test]
fn reservations_without_an_interface_are_told_apart_and_interfaces_without_a_reservation_too() {
    let documents = vec![document(
        "boot",
        &[
            reservation("b", "wrn02", "10.244.1.3"),
            reservation("a", "wrn01", "10.244.1.2"),
        ],
    )];
    let report = report(documents, "boot", &interfaces(&["wrn02", "wrn03"]));
    let pods: Vec<_> = report
        .pods
        .iter()
        .map(|entry| (&*entry.reservation.container_id, entry.attached))
        .collect();
    assert_eq!(pods, [("b", true), ("a", false)]);
    assert_eq!(report.unreserved_interfaces, ["wrn03"]);
}

#[test]
fn of_an_earlier_boot_only_what_lives_is_told() {
    let two = [
        reservation("a", "wrn01", "10.244.1.2"),
        reservation("b", "wrn02", "10.244.1.3"),
    ];
    let report = report(vec![document("old", &two)], "new", &interfaces(&["wrn02"]));
    assert_eq!(report.pods.len(), 1);
    assert_eq!(report.pods[0].reservation.container_id, "b");
}

#[test]
fn the_page_names_pod_container_interface_addresses_and_age() {
    let dir = state();
    let outcome = pods(dir.path(), &[]);
    assert_eq!((outcome.code, &*outcome.stderr), (0, ""));
    let text = &outcome.stdout;
    assert!(text.contains("reservations that nothing owns"), "{text}");
    for word in [
        "default/0123456789abcdef",
        "0123456789abc ",
        "eth0",
        "wrn00000000dead",
        "10.244.1.2",
        "1m 5s",
    ] {
        assert!(text.contains(word), "{word}: {text}");
    }
}

#[test]
fn json_holds_all_of_it() {
    let dir = state();
    let outcome = pods(dir.path(), &["--json"]);
    let json: Value = serde_json::from_str(&outcome.stdout).unwrap();
    let pod = &json["pods"][0];
    assert_eq!(pod["containerId"], "0123456789abcdef");
    assert_eq!(pod["pod"], "default/0123456789abcdef");
    assert_eq!(pod["addresses"], json!(["10.244.1.2"]));
    assert_eq!(
        (&pod["attached"], &pod["network"]),
        (&json!(false), &json!("warren"))
    );
    assert_eq!(pod["since"], common::NOW - 65);
}

#[test]
fn damaged_stores_are_named_and_an_empty_node_is_no_trouble() {
    let dir = state();
    fs::write(dir.path().join("ipam/other.json"), "{").unwrap();
    fs::write(dir.path().join("ipam/other.json.damaged-1-1"), "{").unwrap();
    let outcome = pods(dir.path(), &[]);
    assert_eq!(outcome.code, 1);
    assert!(
        outcome.stderr.contains("other.json: "),
        "{}",
        outcome.stderr
    );
    assert!(
        outcome.stderr.contains("damaged-1-1: "),
        "{}",
        outcome.stderr
    );
    assert!(outcome.stdout.contains("10.244.1.2"));
    let empty = tempfile::tempdir().unwrap();
    let outcome = pods(empty.path(), &[]);
    assert_eq!((outcome.code, &*outcome.stderr), (0, ""));
    assert!(
        outcome.stdout.contains("no pods have addresses"),
        "{}",
        outcome.stdout
    );
}
