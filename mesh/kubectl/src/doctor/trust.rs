//! May the agents do what they must, and is it denied what they must not?

use warren_text::finding::Check;

use super::{Case, few};
use crate::facts::TrialEnd;

const APPLY: &str = "kubectl apply -k deploy/manifests, or upgrade the chart's release";

pub(super) fn rights(case: &Case<'_>, check: &mut Check) -> String {
    let namespace = &case.facts.facts.namespace;
    let mut missing = Vec::new();
    let mut unknown = None;
    for (right, answer) in &case.facts.rights {
        match answer {
            Ok(true) => {}
            Ok(false) => missing.push(right.to_string()),
            Err(cause) => unknown = Some(cause),
        }
    }
    if !missing.is_empty() {
        check.error(
            format!(
                "service account {namespace}/warren-agent may not {}",
                few(&missing)
            ),
            "agents do not learn of nodes, cannot publish their own, or say nothing in Events",
            APPLY,
        );
    }
    if let Some(cause) = unknown {
        check.warn(
            format!("what the agents may do could not be asked: {cause}"),
            "whether RBAC lets them work is not known",
            "kubectl auth can-i create subjectaccessreviews",
        );
    }
    format!("service account {namespace}/warren-agent may do what it must")
}

pub(super) fn policies(case: &Case<'_>, check: &mut Check) -> String {
    if case.facts.trials.is_empty() {
        check.warn(
            "there is no Node to try the policies on",
            "whether they are in force is not known",
            "kubectl get nodes",
        );
    }
    for (trial, answer) in &case.facts.trials {
        let policy = trial.policy();
        match answer {
            Ok(TrialEnd::Denied) => {}
            Ok(TrialEnd::Allowed) => check.error(
                format!("the admission policy {policy} is not in force: a dry run was not denied"),
                "a stolen token of an agent or a kubelet can take over other nodes' traffic",
                APPLY,
            ),
            Err(cause) => check.warn(
                format!("the admission policy {policy} could not be tried: {cause}"),
                "whether it is in force is not known",
                format!(
                    "as somebody who may impersonate: kubectl warren doctor; or: kubectl get \
                     validatingadmissionpolicybindings {policy}"
                ),
            ),
        }
    }
    "both deny what they must, in dry runs".to_owned()
}
