//! The manifests for kustomize are the chart's.
#![allow(clippy::unwrap_used)] // in a test, a failed unwrap is the report

use std::collections::BTreeMap;
use std::process::Command;

use anyhow::Result;
use serde_json::Value;
use warren_deploy::{deploy, objects, printed, rendered, skipped};

#[test]
fn the_files_are_what_the_chart_makes() -> Result<()> {
    if skipped("helm") {
        return Ok(());
    }
    let output = Command::new(deploy("manifests/generate"))
        .arg("--check")
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    let differences = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{differences}");
    Ok(())
}

#[test]
fn kustomize_and_helm_come_to_the_same_objects() -> Result<()> {
    if skipped("helm") || skipped("kubectl") {
        return Ok(());
    }
    let manifests = deploy("manifests").display().to_string();
    let values = deploy("manifests/values.yaml").display().to_string();
    let by_kustomize = by_name(objects(&printed("kubectl", &["kustomize", &manifests])?)?);
    let by_helm = by_name(rendered(&["--values", &values])?);
    // The chart's user makes the namespace; the uninstall is a hook there, and a file of its own here.
    let namespace = "Namespace warren-system".to_owned();
    let expected: Vec<&String> = by_helm
        .keys()
        .filter(|name| !name.ends_with(" warren-uninstall"))
        .collect();
    let made: Vec<&String> = by_kustomize
        .keys()
        .filter(|name| **name != namespace)
        .collect();
    assert_eq!(made, expected);
    for name in expected {
        assert_eq!(by_kustomize[name], by_helm[name], "{name}");
    }
    let text = std::fs::read_to_string(deploy("manifests/uninstall.yaml"))?;
    for (name, object) in by_name(objects(&text)?) {
        let mut hook = by_helm[&name].clone();
        hook["metadata"]
            .as_object_mut()
            .unwrap()
            .remove("annotations");
        assert_eq!(object, hook, "{name}");
    }
    Ok(())
}

/// The objects by kind and name, without the labels that say who applied them.
fn by_name(objects: Vec<Value>) -> BTreeMap<String, Value> {
    let named = objects.into_iter().map(|mut object| {
        let name = format!(
            "{} {}",
            object["kind"].as_str().unwrap(),
            object["metadata"]["name"].as_str().unwrap()
        );
        let labels = object["metadata"]["labels"].as_object_mut().unwrap();
        labels.remove("helm.sh/chart");
        labels.remove("app.kubernetes.io/managed-by");
        (name, object)
    });
    named.collect()
}
