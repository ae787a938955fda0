//! What people install Warren with, rendered by the programs that they install it by.
//!
//! Nothing here needs a cluster or root. Tests of what an API server makes of it are in `tests/apiserver`.

#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::Value;
use warren_apiserver::program;

/// What must be given of the values.
pub const REQUIRED: [&str; 2] = ["--set", "clusterCIDRs={10.244.0.0/16,fd00:10:244::/48}"];

/// Whether a program that a test needs is missing. It says so; in CI that is a failure.
pub fn skipped(name: &str) -> bool {
    let path = program(name);
    if path.is_file() {
        return false;
    }
    let reason = format!(
        "{} is missing: run tests/helm/prepare and tests/kubernetes/prepare",
        path.display()
    );
    assert!(std::env::var_os("CI").is_none(), "skipped in CI: {reason}");
    eprintln!("skipped: {reason}");
    true
}

/// A path in `deploy`.
pub fn deploy(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../deploy")
        .join(path)
}

/// A path in `docs`.
pub fn docs(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../docs")
        .join(path)
}

/// Runs a program that `prepare` fetched, whatever it says.
///
/// # Errors
/// When it cannot be run.
pub fn run(name: &str, arguments: &[&str]) -> Result<Output> {
    let path = program(name);
    let mut command = Command::new(&path);
    command.args(arguments);
    command.output().with_context(|| format!("run {command:?}"))
}

/// Runs a program that must succeed; what it printed.
///
/// # Errors
/// With what it says, when it does not succeed.
pub fn printed(name: &str, arguments: &[&str]) -> Result<String> {
    let output = run(name, arguments)?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{name} {arguments:?}: {said}");
    String::from_utf8(output.stdout).context("read what it printed")
}

/// The objects that the chart renders with these further arguments of `helm template`, in the namespace
/// `warren-system`, those of hooks among them.
///
/// # Errors
/// What helm says.
pub fn rendered(arguments: &[&str]) -> Result<Vec<Value>> {
    let chart = deploy("chart").display().to_string();
    let mut all = vec!["template", "warren", &chart, "--namespace", "warren-system"];
    all.extend(arguments);
    objects(&printed("helm", &all)?)
}

/// The documents of a YAML text, but for empty ones.
///
/// # Errors
/// The parser's.
pub fn objects(yaml: &str) -> Result<Vec<Value>> {
    let documents: Vec<Value> =
        serde_saphyr::from_multiple(yaml).map_err(|error| anyhow!("parse YAML: {error}"))?;
    Ok(documents
        .into_iter()
        .filter(|document| !document.is_null())
        .collect())
}

/// The object of a kind and name.
///
/// # Errors
/// When it is not there.
pub fn object<'a>(objects: &'a [Value], kind: &str, name: &str) -> Result<&'a Value> {
    objects
        .iter()
        .find(|object| object["kind"] == kind && object["metadata"]["name"] == name)
        .with_context(|| format!("there is no {kind} {name}"))
}
