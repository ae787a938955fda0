//! Is all of Warren deployed, does it run, and is it of one version?

use warren_text::finding::Check;

use super::{Case, few};
use crate::facts::{Component, DaemonSetFacts, WarrenPod};
use crate::status::NodeReport;

/// The first version that has ValidatingAdmissionPolicies switched on.
const OLDEST: (u32, u32) = (1, 30);
const COMPONENTS: [Component; 2] = [Component::Agent, Component::Tunnel];

/// DaemonSets of other pod networks, by the beginnings of their names.
const OTHERS: [&str; 11] = [
    "antrea-agent",
    "aws-node",
    "azure-cni",
    "calico-node",
    "canal",
    "cilium",
    "kilo",
    "kindnet",
    "kube-flannel",
    "kube-router",
    "weave-net",
];

pub(super) fn kubernetes(case: &Case<'_>, check: &mut Check) -> String {
    match &case.facts.server {
        Ok(version @ (major, minor)) if *version < OLDEST => check.error(
            format!("Kubernetes {major}.{minor} is older than 1.30"),
            "it has no ValidatingAdmissionPolicy: a stolen agent's token may change every Node",
            "upgrade the control plane to 1.30 or newer",
        ),
        Ok((major, minor)) => return format!("{major}.{minor}"),
        Err(cause) => check.warn(
            format!("the API server does not tell its version: {cause}"),
            "whether it is 1.30 or newer is not known",
            "kubectl version",
        ),
    }
    String::new()
}

pub(super) fn daemon_sets(case: &Case<'_>, check: &mut Check) -> String {
    let Some(sets) = listed(case, check) else {
        return String::new();
    };
    let namespace = &case.facts.facts.namespace;
    for component in COMPONENTS {
        let name = component.daemon_set();
        let Some(set) = ours(sets, namespace, component) else {
            let elsewhere = sets.iter().find(|set| set.name == name);
            let action = match elsewhere {
                Some(set) => format!("give --namespace {}", set.namespace),
                None => "install Warren: deploy/chart or deploy/manifests".to_owned(),
            };
            check.error(
                format!("there is no DaemonSet {name} in namespace {namespace}"),
                "nothing of it runs on new nodes",
                action,
            );
            continue;
        };
        let describe = format!("kubectl -n {namespace} describe daemonset {name}");
        if !set.observed {
            check.warn(
                format!("the controller has not seen the present form of DaemonSet {name}"),
                "what it says of its pods is old",
                "is kube-controller-manager running?",
            );
        }
        if set.desired == 0 {
            check.error(
                format!("DaemonSet {name} is for no node"),
                "no node has a pod network by Warren",
                format!("{describe}; see its nodeSelector and tolerations"),
            );
        }
        if component == Component::Tunnel && set.strategy != "OnDelete" {
            check.warn(
                format!("DaemonSet {name} has the update strategy {}", set.strategy),
                "an update restarts all tunnels by itself, and each restart interrupts its node's traffic",
                format!(
                    "kubectl -n {namespace} patch daemonset {name} --type=json -p \
                     '[{{\"op\":\"replace\",\"path\":\"/spec/updateStrategy\",\"value\":{{\"type\":\"OnDelete\"}}}}]'"
                ),
            );
        }
        if set.ready < set.desired {
            check.error(
                format!(
                    "of DaemonSet {name} {} of {} pods are ready",
                    set.ready, set.desired
                ),
                "on the other nodes new pods may not start, or other nodes' pods are not reached",
                describe,
            );
        }
    }
    "both are there, and all their pods are ready".to_owned()
}

pub(super) fn pods(case: &Case<'_>, check: &mut Check) -> String {
    let facts = &case.facts.facts;
    for node in &facts.nodes {
        let node = node.metadata.name.as_str();
        for component in COMPONENTS {
            let name = component.daemon_set();
            match facts.pod(component, node) {
                None => check.error(
                    format!("node {node} has no pod of {name}"),
                    match component {
                        Component::Agent => "its pods get no network, and it learns of no other node",
                        Component::Tunnel => "pods of other nodes are not reached from there",
                    },
                    format!(
                        "kubectl -n {} describe daemonset {name}; kubectl describe node {node} (taints)",
                        facts.namespace
                    ),
                ),
                Some(pod) if !pod.ready => not_ready(check, &facts.namespace, node, pod),
                Some(_) => {}
            }
        }
    }
    format!("each of {} nodes has both", facts.nodes.len())
}

fn not_ready(check: &mut Check, namespace: &str, node: &str, pod: &WarrenPod) {
    let logs = match pod.running {
        true => format!("kubectl -n {namespace} logs {}", pod.name),
        false => format!("kubectl -n {namespace} describe pod {}", pod.name),
    };
    check.error(
        format!(
            "pod {} on node {node} is not ready: {}",
            pod.name, pod.state
        ),
        "no new pod is let in on that node, or other nodes' pods are not reached from there",
        logs,
    );
}

/// Whether pods are of an older template than their DaemonSet has now.
pub(super) fn update(case: &Case<'_>, check: &mut Check) -> String {
    let Ok(sets) = &case.facts.daemon_sets else {
        return "not looked at".to_owned();
    };
    let facts = &case.facts.facts;
    for component in COMPONENTS {
        let Some(set) = ours(sets, &facts.namespace, component) else {
            continue;
        };
        let old = |pod: &&WarrenPod| {
            pod.component == component
                && !pod.ending
                && set.template_generation.is_some()
                && pod.template_generation != set.template_generation
        };
        let old: Vec<String> = facts
            .pods
            .iter()
            .filter(old)
            .map(|p| p.name.clone())
            .collect();
        let (name, namespace) = (component.daemon_set(), &facts.namespace);
        let behind = (set.desired - set.updated).max(0);
        if old.is_empty() && behind == 0 {
            continue;
        }
        let which = match old.as_slice() {
            [] => format!("{behind} pods"),
            old => format!("{} pods ({})", old.len(), few(old)),
        };
        let finding = format!("of DaemonSet {name} {which} are of an older template");
        let first = old.first().map_or("POD", String::as_str);
        match component {
            Component::Tunnel => check.warn(
                finding,
                "those nodes run the tunnel as it was before the last upgrade or change of values",
                format!(
                    "node by node, for its traffic stops meanwhile: kubectl -n {namespace} delete pod {first}"
                ),
            ),
            Component::Agent => check.warn(
                finding,
                "an update is under way, or stands still",
                format!("kubectl -n {namespace} rollout status daemonset {name}"),
            ),
        }
    }
    "all pods are of their DaemonSet's present template".to_owned()
}

/// What tells a version of a node.
type VersionOf = fn(&NodeReport) -> Option<&String>;

pub(super) fn versions(case: &Case<'_>, check: &mut Check) -> String {
    let of: [(&str, VersionOf); 2] = [
        ("warren-agent", |node| node.agent_version.as_ref()),
        ("warren-tunnel", |node| node.tunnel_version.as_ref()),
    ];
    let mut all = Vec::new();
    for (name, version) in of {
        let found = case.report.versions(version);
        let list: Vec<String> = found
            .iter()
            .map(|(version, count)| format!("{version} on {count}"))
            .collect();
        if found.len() > 1 {
            check.warn(
                format!("{name} is of different versions: {} nodes", list.join(", ")),
                "during an upgrade this is normal; for long it is tested by nobody",
                "finish the upgrade: kubectl warren doctor says which pods are of an older template",
            );
        }
        all.extend(found.into_keys().map(|version| format!("{name} {version}")));
    }
    match all.as_slice() {
        [] => {
            check.warn(
                "no agent has told a version",
                "nothing is known of it",
                "kubectl warren status",
            );
            String::new()
        }
        all => all.join(", "),
    }
}

pub(super) fn other_networks(case: &Case<'_>, check: &mut Check) -> String {
    let Ok(sets) = &case.facts.daemon_sets else {
        return "not looked at".to_owned();
    };
    let others = sets
        .iter()
        .filter(|set| OTHERS.iter().any(|name| set.name.starts_with(name)));
    for set in others {
        check.warn(
            format!("DaemonSet {} in namespace {} is another pod network", set.name, set.namespace),
            "the container runtime takes the first CNI configuration by name: pods may get that network, in clear",
            format!(
                "once its pods have moved: kubectl -n {} delete daemonset {}, and remove its file from \
                 /etc/cni/net.d on each node",
                set.namespace, set.name
            ),
        );
    }
    "no DaemonSet of another pod network is known here".to_owned()
}

fn listed<'a>(case: &'a Case<'_>, check: &mut Check) -> Option<&'a [DaemonSetFacts]> {
    match &case.facts.daemon_sets {
        Ok(sets) => Some(sets),
        Err(cause) => {
            check.warn(
                cause.clone(),
                "whether the DaemonSets are whole and up to date is not known",
                "kubectl auth can-i list daemonsets --all-namespaces",
            );
            None
        }
    }
}

fn ours<'a>(
    sets: &'a [DaemonSetFacts],
    namespace: &str,
    component: Component,
) -> Option<&'a DaemonSetFacts> {
    let name = component.daemon_set();
    sets.iter()
        .find(|set| set.namespace == namespace && set.name == name)
}
