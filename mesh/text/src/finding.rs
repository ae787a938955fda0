//! What a check finds, and how it is shown.

use std::borrow::Cow;
use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use crate::text::clean;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// As it should be.
    Ok,
    /// Works, or works for now, but somebody should look.
    Warning,
    /// Does not work.
    Error,
}

/// One thing that a check found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// The check's name.
    pub check: Cow<'static, str>,
    /// How bad it is.
    pub severity: Severity,
    /// What was found.
    pub finding: String,
    /// What it means for the node; empty when all is well.
    pub meaning: String,
    /// What to do, as a command where there is one; empty when there is nothing to do.
    pub action: String,
}

/// Collects the findings of one check.
#[derive(Debug)]
pub struct Check {
    name: &'static str,
    findings: Vec<Finding>,
}

impl Check {
    /// A check that has found nothing yet.
    pub fn new(name: &'static str) -> Self {
        Self {
            name,
            findings: Vec::new(),
        }
    }

    /// Notes something that does not work.
    pub fn error(&mut self, finding: impl Into<String>, meaning: &str, action: impl Into<String>) {
        self.push(Severity::Error, finding.into(), meaning, action.into());
    }

    /// Notes something that somebody should look at.
    pub fn warn(&mut self, finding: impl Into<String>, meaning: &str, action: impl Into<String>) {
        self.push(Severity::Warning, finding.into(), meaning, action.into());
    }

    /// The findings; `well` stands for all where there are none.
    pub fn done(mut self, well: impl Into<String>) -> Vec<Finding> {
        if self.findings.is_empty() {
            self.push(Severity::Ok, well.into(), "", String::new());
        }
        self.findings
    }

    fn push(&mut self, severity: Severity, finding: String, meaning: &str, action: String) {
        self.findings.push(Finding {
            check: Cow::Borrowed(self.name),
            severity,
            finding: clean(&finding).into_owned(),
            meaning: meaning.to_owned(),
            action: clean(&action).into_owned(),
        });
    }
}

/// How many findings there are of a severity.
pub fn count(findings: &[Finding], severity: Severity) -> usize {
    let of_it = findings.iter().filter(|f| f.severity == severity);
    of_it.count()
}

/// The page for people about a `subject`, such as "this node".
pub fn page(findings: &[Finding], subject: &str) -> String {
    let mut out = lines(findings);
    let (errors, warnings) = (
        count(findings, Severity::Error),
        count(findings, Severity::Warning),
    );
    // Writing to a string cannot fail.
    let _ = match (errors, warnings) {
        (0, 0) => writeln!(out, "\nnothing is wrong with {subject}"),
        _ => writeln!(out, "\nerrors: {errors}, warnings: {warnings}"),
    };
    out
}

/// The findings for people, up to three lines each.
pub fn lines<'a>(findings: impl IntoIterator<Item = &'a Finding>) -> String {
    let mut out = String::new();
    for finding in findings {
        let word = match finding.severity {
            Severity::Ok => "ok",
            Severity::Warning => "WARNING",
            Severity::Error => "ERROR",
        };
        // Writing to a string cannot fail.
        let _ = writeln!(out, "{word:<8} {:<11} {}", finding.check, finding.finding);
        for (label, text) in [("means", &finding.meaning), ("do", &finding.action)] {
            if !text.is_empty() {
                let _ = writeln!(out, "         {label:<11} {text}");
            }
        }
    }
    out
}

/// The document for programs.
pub fn json(findings: &[Finding]) -> String {
    let document = serde_json::json!({
        "errors": count(findings, Severity::Error),
        "warnings": count(findings, Severity::Warning),
        "findings": findings,
    });
    format!("{document:#}\n")
}
