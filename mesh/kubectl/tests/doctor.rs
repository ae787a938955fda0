//! `kubectl warren doctor`: each check finds what it is for, and nothing on a cluster that is well.
#![allow(clippy::unwrap_used)]

mod common;

use common::{annotate, finding, key, name, no_answer, reject, said, said_of, well};
use warren_core::consts::annotation;
use warren_core::status::PeerState;
use warren_kubectl::doctor::{Diagnosis, check_names, page};
use warren_kubectl::facts::{Component, DoctorFacts, TrialEnd};
use warren_text::finding::Severity;

/// What is found once something was changed: severity, check and finding, without what is well.
fn found(change: impl FnOnce(&mut DoctorFacts)) -> Vec<(Severity, String, String)> {
    let mut facts = well(3);
    change(&mut facts);
    let all = Diagnosis::of(&facts).findings;
    let bad = all
        .into_iter()
        .filter(|f| f.finding.severity != Severity::Ok);
    bad.map(|f| {
        assert!(
            !f.finding.meaning.is_empty() && !f.finding.action.is_empty(),
            "{f:?}"
        );
        let text = match f.node {
            Some(node) => format!("{node}: {}", f.finding.finding),
            None => f.finding.finding,
        };
        (f.finding.severity, f.finding.check.into_owned(), text)
    })
    .collect()
}

#[track_caller]
fn error(check: &str, text: &str, change: impl FnOnce(&mut DoctorFacts)) {
    one(Severity::Error, check, text, change);
}

#[track_caller]
fn warning(check: &str, text: &str, change: impl FnOnce(&mut DoctorFacts)) {
    one(Severity::Warning, check, text, change);
}

/// A check finds something, and no other check finds anything but `agreement`, which sees much too.
#[track_caller]
fn one(severity: Severity, check: &str, text: &str, change: impl FnOnce(&mut DoctorFacts)) {
    let mut found = found(change);
    found.retain(|(_, name, _)| name == check || name != "agreement");
    assert_eq!(found, [(severity, check.to_owned(), text.to_owned())]);
}

#[test]
fn nothing_is_found_on_a_cluster_that_is_well() {
    assert_eq!(
        page(&Diagnosis::of(&well(3)), false),
        "\
the cluster
ok       kubernetes  1.36
ok       daemonsets  both are there, and all their pods are ready
ok       pods        each of 3 nodes has both
ok       update      all pods are of their DaemonSet's present template
ok       versions    warren-agent 0.1.0, warren-tunnel 0.1.0
ok       rights      service account warren-system/warren-agent may do what it must
ok       policies    both deny what they must, in dry runs
ok       network     pods have a network on 3 nodes
ok       ranges      3 podCIDRs, none overlaps another
ok       keys        3 keys, each of one node
ok       endpoints   3 endpoints, each of one node
ok       handshakes  each of 3 pairs that could be looked at has had one
ok       agreement   Nodes and agents say the same
ok       other-cni   no DaemonSet of another pod network is known here

node node1
ok       all 1 findings

node node2
ok       all 1 findings

node node3
ok       all 1 findings

nothing is wrong with this cluster
"
    );
}

#[test]
fn what_a_nodes_doctor_finds_is_shown_under_its_name_and_counted() {
    let mut facts = well(2);
    let bad = vec![finding("ok", "fine"), finding("error", "no room")];
    facts.doctors.insert(name(1), Ok(bad));
    facts
        .doctors
        .insert(name(2), Err("no answer within 60s".to_owned()));
    let diagnosis = Diagnosis::of(&facts);
    assert_eq!((diagnosis.errors, diagnosis.warnings), (2, 0));
    let short = page(&diagnosis, false);
    assert!(
        short.contains("\nnode node1\nERROR    disk        no room\n\nnode node2\n"),
        "{short}"
    );
    assert!(
        short.contains(
            "\nERROR    doctor      warren doctor could not be run: no answer within 60s\n"
        )
    );
    assert!(short.ends_with("\nerrors: 2, warnings: 0\n"));
    assert!(page(&diagnosis, true).contains("\nok       disk        fine\n"));
    let document = serde_json::to_value(&diagnosis).unwrap();
    assert_eq!(document["findings"][0]["node"], serde_json::Value::Null);
    assert_eq!(document["findings"][14]["node"], "node1");
    assert_eq!(document["findings"][15]["severity"], "error");
}

#[test]
fn an_old_or_unknown_kubernetes_is_told() {
    error("kubernetes", "Kubernetes 1.29 is older than 1.30", |f| {
        f.server = Ok((1, 29))
    });
    warning(
        "kubernetes",
        "the API server does not tell its version: refused",
        |f| {
            f.server = Err("refused".to_owned());
        },
    );
}

#[test]
fn daemon_sets_that_are_missing_unready_or_of_the_wrong_strategy_are_told() {
    fn sets(f: &mut DoctorFacts) -> &mut Vec<warren_kubectl::facts::DaemonSetFacts> {
        f.daemon_sets.as_mut().unwrap()
    }
    let missing = "there is no DaemonSet warren-agent in namespace warren-system";
    error("daemonsets", missing, |f| drop(sets(f).remove(0)));
    let elsewhere = found(|f| sets(f)[0].namespace = "other".to_owned());
    assert_eq!(elsewhere[0].2, missing);
    error("daemonsets", "DaemonSet warren-agent is for no node", |f| {
        (sets(f)[0].desired, sets(f)[0].ready) = (0, 0);
    });
    error(
        "daemonsets",
        "of DaemonSet warren-tunnel 2 of 3 pods are ready",
        |f| {
            sets(f)[1].ready = 2;
        },
    );
    warning(
        "daemonsets",
        "DaemonSet warren-tunnel has the update strategy RollingUpdate",
        |f| sets(f)[1].strategy = "RollingUpdate".to_owned(),
    );
    warning(
        "daemonsets",
        "the controller has not seen the present form of DaemonSet warren-agent",
        |f| sets(f)[0].observed = false,
    );
    warning("daemonsets", "list daemonsets: forbidden", |f| {
        f.daemon_sets = Err("list daemonsets: forbidden".to_owned());
    });
    warning(
        "other-cni",
        "DaemonSet kube-flannel-ds in namespace kube-system is another pod network",
        |f| {
            let mut other = common::daemon_set("kube-flannel-ds", 3);
            other.namespace = "kube-system".to_owned();
            sets(f).push(other);
        },
    );
}

#[test]
fn nodes_without_a_pod_that_is_ready_are_told() {
    error("pods", "node node2 has no pod of warren-tunnel", |f| {
        f.facts.pods.retain(|p| p.name != "warren-tunnel-2");
    });
    error(
        "pods",
        "pod warren-agent-1 on node node1 is not ready: Running, container agent: Error",
        |f| {
            f.facts.pods[0].ready = false;
            f.facts.pods[0].state = "Running, container agent: Error".to_owned();
        },
    );
    // One that is on its way out beside its successor is none to judge the node by.
    let replaced = found(|f| {
        let mut old = common::pod(1, Component::Agent);
        (old.ending, old.ready, old.name) = (true, false, "old".to_owned());
        f.facts.pods.insert(0, old);
    });
    assert_eq!(replaced, []);
}

#[test]
fn pods_of_an_older_template_are_named() {
    warning(
        "update",
        "of DaemonSet warren-tunnel 1 pods (warren-tunnel-3) are of an older template",
        |f| f.facts.pods[5].template_generation = Some("3".to_owned()),
    );
    warning(
        "update",
        "of DaemonSet warren-agent 2 pods are of an older template",
        |f| f.daemon_sets.as_mut().unwrap()[0].updated = 1,
    );
}

#[test]
fn mixed_versions_are_told() {
    warning(
        "versions",
        "warren-tunnel is of different versions: 0.0.9 on 1, 0.1.0 on 2 nodes",
        |f| said(&mut f.facts, 1).tunnel_version = Some("0.0.9".to_owned()),
    );
}

#[test]
fn missing_rights_and_policies_that_let_through_are_errors_and_what_cannot_be_asked_is_a_warning() {
    error(
        "rights",
        "service account warren-system/warren-agent may not patch nodes/status, create events in default",
        |f| {
            f.rights[4].1 = Ok(false);
            f.rights[5].1 = Ok(false);
        },
    );
    warning(
        "rights",
        "what the agents may do could not be asked: forbidden",
        |f| {
            f.rights[0].1 = Err("forbidden".to_owned());
        },
    );
    for (index, policy) in ["warren-agent", "warren-annotations"]
        .into_iter()
        .enumerate()
    {
        error(
            "policies",
            &format!("the admission policy {policy} is not in force: a dry run was not denied"),
            |f| f.trials[index].1 = Ok(TrialEnd::Allowed),
        );
        warning(
            "policies",
            &format!("the admission policy {policy} could not be tried: cannot impersonate"),
            |f| f.trials[index].1 = Err("cannot impersonate".to_owned()),
        );
    }
    warning("policies", "there is no Node to try the policies on", |f| {
        f.trials.clear()
    });
}

#[test]
fn nodes_without_a_network_or_an_answer_are_told() {
    fn condition(f: &mut DoctorFacts) -> &mut warren_core::kubernetes::NodeCondition {
        let status = f.facts.nodes[0].status.as_mut().unwrap();
        &mut status.conditions.as_mut().unwrap()[0]
    }
    error(
        "network",
        "node node1 has no network for pods: the tunnel does not answer (WarrenTunnelDown)",
        |f| {
            let condition = condition(f);
            condition.status = "True".to_owned();
            condition.reason = "WarrenTunnelDown".to_owned();
            condition.message = "the tunnel does not answer".to_owned();
        },
    );
    warning(
        "network",
        "node node1 has no condition NetworkUnavailable",
        |f| {
            f.facts.nodes[0].status = None;
        },
    );
    error(
        "network",
        "the agent of node node1 cannot be asked: no answer",
        |f| {
            f.facts.agents.insert(name(1), Err("no answer".to_owned()));
        },
    );
}

#[test]
fn ranges_that_are_missing_outside_wrong_or_overlapping_are_told() {
    fn cidrs(f: &mut DoctorFacts, index: usize, text: &[&str]) {
        let spec = f.facts.nodes[index].spec.as_mut().unwrap();
        spec.pod_cidrs = Some(text.iter().map(|&t| t.to_owned()).collect());
    }
    error("ranges", "node node1 has no podCIDRs", |f| cidrs(f, 0, &[]));
    error(
        "ranges",
        "podCIDR 10.99.0.0/24 of node node1 is outside the agents' cluster-cidrs",
        |f| cidrs(f, 0, &["10.99.0.0/24"]),
    );
    error(
        "ranges",
        "node node1: podCIDR 10.244.1.7/24 has host bits set",
        |f| {
            cidrs(f, 0, &["10.244.1.7/24"]);
        },
    );
    error(
        "ranges",
        "podCIDR 10.244.3.0/24 of node node3 overlaps 10.244.2.0/23 of node node2",
        |f| cidrs(f, 1, &["10.244.2.0/23"]),
    );
    error(
        "ranges",
        "podCIDR 10.244.1.0/24 of node node3 overlaps 10.244.1.0/24 of node node1",
        |f| cidrs(f, 2, &["10.244.1.0/24"]),
    );
}

#[test]
fn keys_that_are_missing_wrong_or_of_two_nodes_are_told() {
    error("keys", "node node1 publishes no key", |f| {
        annotate(&mut f.facts.nodes[0], annotation::PUBLIC_KEY, None);
    });
    let wrong = found(|f| annotate(&mut f.facts.nodes[0], annotation::PUBLIC_KEY, Some("x")));
    assert!(
        wrong[0]
            .2
            .starts_with("node node1: annotation warren.network/public-key: ")
    );
    error(
        "keys",
        &format!("nodes node1, node3 publish one key, {}", key(1)),
        |f| {
            let text = key(1).to_base64();
            annotate(&mut f.facts.nodes[2], annotation::PUBLIC_KEY, Some(&text));
        },
    );
}

#[test]
fn endpoints_that_are_wrong_or_of_two_nodes_are_told_and_forced_ones_named() {
    let force = |f: &mut DoctorFacts, value: &str| {
        annotate(
            &mut f.facts.nodes[0],
            annotation::FORCE_ENDPOINT,
            Some(value),
        );
    };
    error(
        "endpoints",
        "nodes node1, node2 have one endpoint, 192.0.2.2:51871",
        |f| force(f, "192.0.2.2:51871"),
    );
    let wrong = found(|f| force(f, "gateway:51871"));
    assert!(
        wrong[0]
            .2
            .starts_with("node node1: annotation warren.network/force-endpoint: ")
    );
    let mut facts = well(3);
    force(&mut facts, "192.0.2.1:51871");
    let text = page(&Diagnosis::of(&facts), false);
    let told = "set by an operator (warren.network/force-endpoint): node1\n";
    assert!(text.contains(told), "{text}");
}

#[test]
fn pairs_that_suffer_are_errors_and_those_that_never_spoke_warnings() {
    error(
        "handshakes",
        "traffic of node node1 suffers with node2, node3: nothing received from it for 17 s (no-answer)",
        |f| {
            for other in [2, 3] {
                said_of(&mut f.facts, 1, other).degraded = Some(no_answer());
            }
        },
    );
    error(
        "handshakes",
        "node node1 has a session that node2 does not have: node2 does not have node1 as a peer",
        |f| said(&mut f.facts, 2).peers.retain(|p| p.node != "node1"),
    );
    error(
        "handshakes",
        "the tunnel of node node1 does not have as peers: node2",
        |f| {
            said_of(&mut f.facts, 1, 2).state = PeerState::Unknown;
            said_of(&mut f.facts, 2, 1).state = PeerState::Idle;
        },
    );
    let never = found(|f| {
        for (one, other) in [(1, 2), (2, 1)] {
            let peer = said_of(&mut f.facts, one, other);
            (peer.state, peer.handshake_age_seconds) = (PeerState::Connecting, None);
        }
    });
    assert_eq!(never.len(), 2);
    assert_eq!(never[0].2, "node node1 has had no handshake with node2");
    assert!(
        never
            .iter()
            .all(|(severity, ..)| *severity == Severity::Warning)
    );
}

#[test]
fn refusals_and_disagreements_are_told_with_who_sees_them() {
    error(
        "agreement",
        "node node7 is refused by node1, node2: its key is that of node1",
        |f| {
            for by in [1, 2] {
                said(&mut f.facts, by).rejected.push(reject("node7", false));
            }
        },
    );
    warning(
        "agreement",
        "node node7 is refused by node1: its key is that of node1",
        |f| {
            said(&mut f.facts, 1).rejected.push(reject("node7", true));
        },
    );
    warning(
        "agreement",
        "node node1, by node1: its Node has 10.244.1.0/24, and its agent uses none",
        |f| said(&mut f.facts, 1).pod_cidrs.clear(),
    );
}

#[test]
fn every_check_is_described() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/kubectl.md");
    let text = std::fs::read_to_string(path).unwrap();
    for name in check_names() {
        assert!(text.contains(&format!("| `{name}` | ")), "{name}");
    }
}
