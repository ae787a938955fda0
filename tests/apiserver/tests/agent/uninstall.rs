//! What takes Warren off a cluster, once its objects are deleted.

use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};
use warren_apiserver::{agent_pod, apply, send, token};
use warren_core::consts::annotation;
use warren_lab::bin;

use crate::machine::{LIMIT, Machine};

const NAMESPACE: &str = "warren-system";
const ACCOUNT: (&str, &str) = (NAMESPACE, "warren-uninstall");

/// What a Node is, but for who wrote it and when.
fn of_node(machine: &Machine) -> Result<Value> {
    let mut node = get(machine, "/api/v1/nodes/node1")?;
    for key in ["managedFields", "resourceVersion"] {
        node["metadata"].as_object_mut().unwrap().remove(key);
    }
    Ok(node)
}

fn get(machine: &Machine, path: &str) -> Result<Value> {
    request(machine, "GET", path, None)
}

fn request(machine: &Machine, method: &str, path: &str, body: Option<Value>) -> Result<Value> {
    machine.admin(async |client| {
        let answer = send(&client, method, path, body.as_ref()).await?;
        answer.map_err(anyhow::Error::msg)
    })
}

/// Runs `warren-agent uninstall-cluster` as its pod would: its exit code, and all that it prints.
fn uninstall_cluster(machine: &Machine, seconds: &str) -> Result<(i32, String)> {
    let token = machine.admin(async |client| token(&client, ACCOUNT, None).await)?;
    let kubeconfig = machine.plane.write_kubeconfig("uninstall", &token)?;
    let mut command = Command::new(bin("warren-agent")?);
    command
        .args(["uninstall-cluster", "--namespace", NAMESPACE])
        .args([
            "--daemon-set",
            "warren-uninstall",
            "--timeout",
            seconds,
            "--kubeconfig",
        ])
        .arg(kubeconfig);
    let out = machine
        .host
        .output(&mut command, LIMIT + Duration::from_secs(60))?;
    let code = out.status.code().unwrap_or(-1);
    Ok((code, format!("{}{}", out.stdout, out.stderr)))
}

/// The API server here has no controller of DaemonSets and no kubelet: the test says what they would.
pub(crate) fn takes_back_what_agents_wrote(machine: &mut Machine) -> Result<()> {
    machine.add_node("node1", "192.0.2.1", json!({"example.com/owner": "ops"}))?;
    // Written by an operator, and not an agent's to take back.
    let forced =
        json!({"metadata": {"annotations": {annotation::FORCE_ENDPOINT: "192.0.2.1:51871"}}});
    request(machine, "PATCH", "/api/v1/nodes/node1", Some(forced))?;
    // Its ranges come from a controller.
    machine.until("podCIDRs", |m| {
        Ok(m.node("node1")?
            .spec
            .unwrap_or_default()
            .pod_cidrs
            .is_some())
    })?;
    let before = of_node(machine)?;
    machine.start_tunnel()?;
    machine.start_agent()?;
    machine.until("its record and its condition", |m| {
        let annotations = m.node("node1")?.metadata.annotations.unwrap_or_default();
        Ok(annotations.contains_key(annotation::PUBLIC_KEY)
            && annotations.contains_key(annotation::MTU)
            && m.condition()?.1 == "WarrenIsUp")
    })?;
    machine.stop_agent();

    let manifests = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../deploy/manifests/uninstall.yaml");
    apply(&machine.plane, &std::fs::read_to_string(manifests)?)?;
    let sets = format!("/apis/apps/v1/namespaces/{NAMESPACE}/daemonsets/warren-uninstall");
    let status = json!({"status": {"observedGeneration": 1, "desiredNumberScheduled": 1, "currentNumberScheduled": 1,
        "numberMisscheduled": 0, "numberReady": 0}});
    request(machine, "PATCH", &format!("{sets}/status"), Some(status))?;
    let labels = get(machine, &sets)?["spec"]["selector"]["matchLabels"].clone();
    machine.admin(async |client| {
        agent_pod(&client, (NAMESPACE, "default"), "on-node1", Some("node1")).await
    })?;
    let pod = format!("/api/v1/namespaces/{NAMESPACE}/pods/on-node1");
    request(
        machine,
        "PATCH",
        &pod,
        Some(json!({"metadata": {"labels": labels}})),
    )?;

    // The policies still hold: it is no agent.
    let (code, text) = uninstall_cluster(machine, "1")?;
    assert_eq!(code, 1, "{text}");
    assert!(
        text.contains("not off node node1: its pod is not done yet"),
        "{text}"
    );
    assert!(
        text.contains("may not set, change or remove the annotation warren.network/"),
        "{text}"
    );
    assert_ne!(of_node(machine)?, before);

    let admission = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings";
    for policy in ["warren-agent", "warren-annotations"] {
        request(machine, "DELETE", &format!("{admission}/{policy}"), None)?;
    }
    let ready = json!({"status": {"conditions": [{"type": "Ready", "status": "True"}]}});
    request(machine, "PATCH", &format!("{pod}/status"), Some(ready))?;
    let (code, text) = uninstall_cluster(machine, "60")?;
    assert_eq!(code, 0, "{text}");
    assert!(text.starts_with("off 1 nodes\n"), "{text}");
    assert!(
        text.ends_with("took back what agents wrote to 1 Nodes\n"),
        "{text}"
    );
    assert_eq!(of_node(machine)?, before);

    let managers = get(machine, "/api/v1/nodes/node1")?["metadata"]["managedFields"].to_string();
    assert!(!managers.contains("warren-agent"), "{managers}");

    // Once more: nothing is left to take back, and nothing is made.
    let (code, text) = uninstall_cluster(machine, "60")?;
    assert_eq!(code, 0, "{text}");
    assert_eq!(of_node(machine)?, before);
    Ok(())
}
