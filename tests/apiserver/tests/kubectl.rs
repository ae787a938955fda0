//! `kubectl warren`, called by kubectl, on a cluster whose nodes have no kubelet: no agent can be asked.
//!
//! ```text
//!  host control-plane: etcd, kube-apiserver, kube-controller-manager; kubectl, kubectl-warren
//!  Nodes: node1  at the host's own address: what should be its kubelet's port is closed
//!         node2  at an address that nobody answers at
//!         node3  without a pod of the agent
//! ```

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use warren_apiserver::{
    AGENT, ControlPlane, Options, apply_shipped, block_on, program, set_policies_in_force,
    skip_reason,
};
use warren_lab::{Lab, Output, bin};

const LIMIT: Duration = Duration::from_secs(120);

#[test]
fn agents_that_cannot_be_asked_are_rows_with_their_causes_and_policies_are_tried() -> Result<()> {
    if let Some(reason) = skip_reason() {
        assert!(std::env::var_os("CI").is_none(), "skipped in CI: {reason}");
        eprintln!("skipped: {reason}");
        return Ok(());
    }
    let lab = Lab::new("kubectl-warren")?;
    let plane = ControlPlane::start(&lab.host("control-plane")?, Options::default())?;
    apply_shipped(&plane)?;
    block_on(plane.host(), async || {
        set_policies_in_force(&plane, AGENT, true).await?;
        let admin = plane.admin().await?;
        make_node(&admin, "node1", "192.0.2.250").await?;
        make_node(&admin, "node2", "198.51.100.2").await?;
        make_node(&admin, "node3", "198.51.100.3").await?;
        make_agent(&admin, "node1").await?;
        make_agent(&admin, "node2").await
    })?;

    // By kubectl, as people call it.
    let output = warren(&plane, &["status", "--request-timeout", "10s"])?;
    ensure!(output.status.code() == Some(1), "{output:?}");
    for line in [
        "state     UNKNOWN",
        "nodes     3, of which 0 are ok",
        "  node2: no answer within 10s (--request-timeout)",
        "  node3: no pod of warren-agent is on this node (namespace warren-system)",
    ] {
        ensure!(
            output.stdout.lines().any(|l| l == line),
            "{line} in\n{}",
            output.stdout
        );
    }
    let refused = output.stdout.lines().find(|l| l.starts_with("  node1: "));
    let refused = refused.context("a cause of node1")?;
    ensure!(refused.contains("connection refused"), "{refused}");

    let output = warren(
        &plane,
        &["status", "-o", "json", "--request-timeout", "10s"],
    )?;
    let document: Value = serde_json::from_str(&output.stdout)?;
    let given = kubectl(
        &plane,
        &["get", "node", "node1", "-o", "jsonpath={.spec.podCIDRs}"],
    )?;
    let given: Value = serde_json::from_str(&given.stdout)?;
    ensure!(
        document["nodes"][0]["pod_cidrs"] == given && given[0].is_string(),
        "{given} in {document}"
    );

    let policies = findings(&plane, "policies")?;
    ensure!(
        policies
            == [(
                "ok".to_owned(),
                "both deny what they must, in dry runs".to_owned()
            )],
        "{policies:?}"
    );
    let rights = findings(&plane, "rights")?;
    ensure!(rights[0].0 == "ok", "{rights:?}");
    let sets = findings(&plane, "daemonsets")?;
    // Besides, a controller that is slow has not seen their present form.
    let errors = sets.iter().filter(|(severity, _)| severity == "error");
    ensure!(errors.count() == 2, "{sets:?}");

    // The checks can fail.
    block_on(plane.host(), async || {
        set_policies_in_force(&plane, AGENT, false).await
    })?;
    let policies = findings(&plane, "policies")?;
    ensure!(
        policies.len() == 2
            && policies.iter().all(|(severity, text)| {
                severity == "error" && text.ends_with("is not in force: a dry run was not denied")
            }),
        "{policies:?}"
    );

    // As somebody without any right.
    let output = warren(&plane, &["status", "--as", "nobody"])?;
    ensure!(
        output.status.code() == Some(2) && output.stdout.is_empty(),
        "{output:?}"
    );
    ensure!(output.stderr.starts_with("warren: list "), "{output:?}");
    ensure!(
        output
            .stderr
            .contains("User \"nobody\" cannot list resource"),
        "{output:?}"
    );
    Ok(())
}

#[test]
fn a_cluster_that_cannot_be_found_is_told_and_what_to_give() -> Result<()> {
    let output = Command::new(bin("kubectl-warren")?)
        .args(["status", "--kubeconfig", "/nonexistent/config"])
        .output()?;
    ensure!(output.status.code() == Some(2), "{output:?}");
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        said.starts_with("warren: kubeconfig /nonexistent/config: "),
        "{said}"
    );
    Ok(())
}

/// Runs `kubectl warren` as the admin.
fn warren(plane: &ControlPlane, arguments: &[&str]) -> Result<Output> {
    kubectl(plane, &[&["warren"], arguments].concat())
}

fn kubectl(plane: &ControlPlane, arguments: &[&str]) -> Result<Output> {
    let plugin = bin("kubectl-warren")?;
    let folder = plugin.parent().context("the folder of kubectl-warren")?;
    let mut command = Command::new(program("kubectl"));
    command
        .args(arguments)
        .env("KUBECONFIG", plane.directory().join("admin.kubeconfig"))
        .env("PATH", folder);
    Ok(plane.host().output(&mut command, LIMIT)?)
}

/// What a check of the doctor finds: severities and findings.
fn findings(plane: &ControlPlane, check: &str) -> Result<Vec<(String, String)>> {
    let output = warren(plane, &["doctor", "--json", "--request-timeout", "10s"])?;
    ensure!(output.status.code() == Some(1), "{output:?}");
    let document: Value = serde_json::from_str(&output.stdout)?;
    let all = document["findings"].as_array().context("findings")?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let of_it = all.iter().filter(|f| f["check"] == check);
    Ok(of_it
        .map(|f| (text(&f["severity"]), text(&f["finding"])))
        .collect())
}

/// Makes a Node as a kubelet at an address would, and waits for its podCIDRs.
async fn make_node(admin: &Client, name: &str, address: &str) -> Result<()> {
    let nodes: Api<Node> = Api::all(admin.clone());
    let node = serde_json::from_value(json!({"metadata": {"name": name}}))?;
    nodes.create(&PostParams::default(), &node).await?;
    let status = json!({"status": {
        "addresses": [{"type": "InternalIP", "address": address}],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": 10250}},
    }});
    let params = PatchParams::default();
    nodes
        .patch_status(name, &params, &Patch::Merge(status))
        .await?;
    for _ in 0..600 {
        let spec = nodes.get(name).await?.spec.unwrap_or_default();
        if spec.pod_cidrs.is_some() {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    anyhow::bail!("no podCIDRs in time")
}

/// Makes the pod of an agent, which runs by what the API server is told.
async fn make_agent(admin: &Client, node: &str) -> Result<()> {
    let pods: Api<Pod> = Api::namespaced(admin.clone(), AGENT.0);
    let name = format!("agent-{node}");
    let pod = serde_json::from_value(json!({
        "metadata": {
            "name": name,
            "labels": {
                "app.kubernetes.io/name": "warren",
                "app.kubernetes.io/component": "agent",
            },
        },
        "spec": {
            "serviceAccountName": AGENT.1,
            "nodeName": node,
            "containers": [{"name": "agent", "image": "agent"}],
        },
    }))?;
    pods.create(&PostParams::default(), &pod).await?;
    let status = json!({"status": {
        "phase": "Running",
        "conditions": [{"type": "Ready", "status": "True"}],
        "containerStatuses": [{
            "name": "agent", "image": "agent", "imageID": "", "ready": true, "restartCount": 0,
            "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}},
        }],
    }});
    let params = PatchParams::default();
    pods.patch_status(&name, &params, &Patch::Merge(status))
        .await?;
    Ok(())
}
