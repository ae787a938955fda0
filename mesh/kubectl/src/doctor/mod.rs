//! `kubectl warren doctor`: checks of the cluster, and `warren doctor` on each node.
//!
//! What could not be looked at, for want of a right for one, is a warning that says so.

mod addresses;
mod mesh;
mod page;
mod programs;
mod trust;

pub use page::{ClusterFinding, Diagnosis, page};

use warren_text::finding::{Check, Finding};
use warren_text::outcome::Outcome;

use crate::args::{DoctorArgs, Output};
use crate::client::Connection;
use crate::facts::DoctorFacts;
use crate::status::Report;
use crate::{document, gather, nothing_read};

/// Runs `kubectl warren doctor`. Exit codes: 0 no error found, 1 at least one, 2 nothing could be
/// read.
pub async fn run(args: &DoctorArgs) -> Outcome {
    let facts = async {
        let connection = Connection::new(&args.target, args.request_timeout).await?;
        gather::doctor(&connection, &args.target.namespace, !args.no_probe).await
    };
    let diagnosis = match facts.await {
        Ok(facts) => Diagnosis::of(&facts),
        Err(cause) => return nothing_read(&cause),
    };
    let code = u8::from(diagnosis.errors > 0);
    match args.output() {
        Some(Output::Json) => document(&diagnosis, code),
        output => Outcome {
            stdout: page(&diagnosis, output == Some(Output::Wide)),
            code,
            ..Outcome::default()
        },
    }
}

/// What the checks look at.
struct Case<'a> {
    facts: &'a DoctorFacts,
    report: Report,
}

/// A check: what it looks at, where its findings go; it returns what is said where there are none.
type Look = fn(&Case<'_>, &mut Check) -> String;

/// All checks of the cluster, in the order in which a person would look. docs/kubectl.md lists them.
const CHECKS: [(&str, Look); 14] = [
    ("kubernetes", programs::kubernetes),
    ("daemonsets", programs::daemon_sets),
    ("pods", programs::pods),
    ("update", programs::update),
    ("versions", programs::versions),
    ("rights", trust::rights),
    ("policies", trust::policies),
    ("network", mesh::network),
    ("ranges", addresses::ranges),
    ("keys", addresses::keys),
    ("endpoints", addresses::endpoints),
    ("handshakes", mesh::handshakes),
    ("agreement", mesh::agreement),
    ("other-cni", programs::other_networks),
];

/// The names of all checks of the cluster.
pub fn check_names() -> impl Iterator<Item = &'static str> {
    CHECKS.iter().map(|(name, _)| *name)
}

/// Makes all checks of the cluster.
fn check(facts: &DoctorFacts) -> Vec<Finding> {
    let case = Case {
        report: Report::of(&facts.facts),
        facts,
    };
    let checks = CHECKS.iter().flat_map(|(name, look)| {
        let mut check = Check::new(name);
        let well = look(&case, &mut check);
        check.done(well)
    });
    checks.collect()
}

/// The first few of many, and how many there are besides.
fn few(all: &[String]) -> String {
    const SHOWN: usize = 5;
    let shown = all.iter().take(SHOWN).cloned().collect::<Vec<_>>();
    match all.len().saturating_sub(SHOWN) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}
