//! All findings, of the cluster and of its nodes, and how they are shown.

use std::fmt::Write as _;

use serde::Serialize;
use warren_text::finding::{Finding, Severity, lines};
use warren_text::text::clean;

use super::check;
use crate::facts::{Answer, DoctorFacts};

/// What was found; `-o json` prints it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Diagnosis {
    /// How many errors there are.
    pub errors: usize,
    /// How many warnings there are.
    pub warnings: usize,
    /// First those of the cluster, then those of each node, by its name.
    pub findings: Vec<ClusterFinding>,
}

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ClusterFinding {
    /// The node that `warren doctor` found it on; `null` for the cluster's checks.
    pub node: Option<String>,
    /// What was found.
    #[serde(flatten)]
    pub finding: Finding,
}

impl Diagnosis {
    /// Makes the cluster's checks, and adds what was found on the nodes.
    pub fn of(facts: &DoctorFacts) -> Self {
        let of_cluster = check(facts).into_iter().map(|finding| ClusterFinding {
            node: None,
            finding,
        });
        let of_nodes = facts.doctors.iter().flat_map(|(node, answer)| {
            let findings = on_node(answer, &facts.facts.namespace);
            let node = Some(node.clone());
            findings.into_iter().map(move |finding| ClusterFinding {
                node: node.clone(),
                finding,
            })
        });
        let findings: Vec<ClusterFinding> = of_cluster.chain(of_nodes).collect();
        let count = |severity| {
            let of_it = findings.iter().filter(|f| f.finding.severity == severity);
            of_it.count()
        };
        Self {
            errors: count(Severity::Error),
            warnings: count(Severity::Warning),
            findings,
        }
    }
}

/// What a node's doctor found, or that it could not be asked.
fn on_node(answer: &Answer<Vec<Finding>>, namespace: &str) -> Vec<Finding> {
    match answer {
        Ok(findings) => findings.clone(),
        Err(cause) => vec![Finding {
            check: "doctor".into(),
            severity: Severity::Error,
            finding: clean(&format!("warren doctor could not be run: {cause}")).into_owned(),
            meaning: "the node itself was not checked".to_owned(),
            action: format!(
                "kubectl -n {namespace} get pods -o wide; or on the node: warren doctor"
            ),
        }],
    }
}

/// The page for people. What is well on a node is left out unless it is asked for.
pub fn page(diagnosis: &Diagnosis, wide: bool) -> String {
    let of = |node: Option<&str>| {
        let all = diagnosis.findings.iter();
        let of_it = all.filter(|f| f.node.as_deref() == node);
        of_it.map(|f| &f.finding).collect::<Vec<_>>()
    };
    let mut out = String::from("the cluster\n");
    out.push_str(&lines(of(None)));
    let mut nodes: Vec<&str> = diagnosis
        .findings
        .iter()
        .filter_map(|f| f.node.as_deref())
        .collect();
    nodes.dedup();
    for node in nodes {
        let findings = of(Some(node));
        let troubles = findings.iter().filter(|f| f.severity != Severity::Ok);
        // Writing to a string cannot fail.
        let _ = writeln!(out, "\nnode {}", clean(node));
        match (wide, troubles.clone().count()) {
            (true, _) => out.push_str(&lines(findings)),
            (false, 0) => {
                let _ = writeln!(out, "{:<8} all {} findings", "ok", findings.len());
            }
            (false, _) => out.push_str(&lines(troubles.copied())),
        }
    }
    let _ = match (diagnosis.errors, diagnosis.warnings) {
        (0, 0) => writeln!(out, "\nnothing is wrong with this cluster"),
        (errors, warnings) => writeln!(out, "\nerrors: {errors}, warnings: {warnings}"),
    };
    out
}
