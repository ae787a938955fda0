//! Does each node have a network for pods, a session with each other one, and one opinion of it?

use warren_text::finding::Check;

use super::{Case, few};
use crate::status::{NodeReport, PairState, Seen, State};

pub(super) fn network(case: &Case<'_>, check: &mut Check) -> String {
    for node in &case.report.nodes {
        let name = &node.node;
        match &node.network_unavailable {
            Some(condition) if condition.status == "False" => {}
            Some(condition) => check.error(
                format!(
                    "node {name} has no network for pods: {} ({})",
                    condition.message, condition.reason
                ),
                "no pod is scheduled to it",
                format!(
                    "kubectl warren status; on that node: warren doctor ({})",
                    condition.reason
                ),
            ),
            None => check.warn(
                format!("node {name} has no condition NetworkUnavailable"),
                "its agent has never written it: it does not run there, or may not write",
                format!("kubectl describe node {name}"),
            ),
        }
        if node.state == State::Unknown {
            check.error(
                format!(
                    "the agent of node {name} cannot be asked: {}",
                    node.causes.join("; ")
                ),
                "how that node is, is not known",
                format!("kubectl -n {} get pods -o wide", case.facts.facts.namespace),
            );
        }
    }
    format!("pods have a network on {} nodes", case.report.nodes.len())
}

pub(super) fn handshakes(case: &Case<'_>, check: &mut Check) -> String {
    for node in &case.report.nodes {
        let name = &node.node;
        let (degraded, first) = of(node, PairState::Degraded);
        if !degraded.is_empty() {
            check.error(
                format!(
                    "traffic of node {name} suffers with {}: {first}",
                    few(&degraded)
                ),
                "pods of these nodes may not reach each other",
                format!(
                    "on {name} and on the other: warren doctor; is UDP let through between them?"
                ),
            );
        }
        let (one_sided, first) = of(node, PairState::OneSided);
        if !one_sided.is_empty() {
            check.error(
                format!(
                    "node {name} has a session that {} does not have: {first}",
                    few(&one_sided)
                ),
                "what is sent on it is lost until the next handshake",
                "again in 3 minutes: kubectl warren status; if it stays, on both: warren doctor",
            );
        }
        let (unknown, _) = of(node, PairState::Unknown);
        if !unknown.is_empty() {
            check.error(
                format!(
                    "the tunnel of node {name} does not have as peers: {}",
                    few(&unknown)
                ),
                "their pods are not reached from there",
                format!("on {name}: warren status"),
            );
        }
        let (never, _) = of(node, PairState::Never);
        if !never.is_empty() {
            check.warn(
                format!("node {name} has had no handshake with {}", few(&never)),
                "nothing was sent between them since the tunnel's start, or nothing arrives",
                format!("a ping shows it: on {name}: warren doctor"),
            );
        }
    }
    let pairs = case
        .report
        .nodes
        .iter()
        .map(|node| node.peers.len())
        .sum::<usize>()
        / 2;
    format!("each of {pairs} pairs that could be looked at has had one")
}

/// The peers in a state, and the first cause.
fn of(node: &NodeReport, state: PairState) -> (Vec<String>, &str) {
    let in_it = |seen: &&Seen| seen.pair == state;
    let peers: Vec<&Seen> = node.peers.iter().filter(in_it).collect();
    let first = peers.first().and_then(|seen| seen.cause.as_deref());
    let names = peers.iter().map(|seen| seen.node.clone());
    (names.collect(), first.unwrap_or_default())
}

pub(super) fn agreement(case: &Case<'_>, check: &mut Check) -> String {
    for refusal in &case.report.refused {
        let finding = format!(
            "node {} is refused by {}: {}",
            refusal.node,
            few(&refusal.refused_by),
            refusal.message
        );
        let means = "its pods are not reached from there";
        let action = format!(
            "kubectl describe node {} ({})",
            refusal.node, refusal.reason
        );
        if refusal.waiting {
            check.warn(finding, means, action);
        } else {
            check.error(finding, means, action);
        }
    }
    for differs in &case.report.disagreements {
        check.warn(
            format!("node {}, by {}: {}", differs.node, few(&differs.seen_by), differs.message),
            "for a moment after a change this is normal; what stays is trouble with that agent's registry",
            "again in a minute: kubectl warren status; then, there: warren status",
        );
    }
    "Nodes and agents say the same".to_owned()
}
