//! The manifests that Warren ships, applied as people apply them.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use kube::Client;
use serde_json::json;
use warren_lab::Output;

use crate::control_plane::ControlPlane;
use crate::programs::program;
use crate::write::{Outcome, send};

/// The Node that is asked about, while the policies are waited for.
const PROBE: &str = "/api/v1/nodes/probe";

/// Applies `deploy/manifests`.
///
/// # Errors
/// What kubectl says.
pub fn apply_shipped(plane: &ControlPlane) -> Result<()> {
    kubectl(plane, &["apply", "-k", &shipped().display().to_string()])?;
    Ok(())
}

/// What `deploy/manifests` comes to, in YAML.
///
/// # Errors
/// What kubectl says.
pub fn rendered(plane: &ControlPlane) -> Result<String> {
    Ok(kubectl(plane, &["kustomize", &shipped().display().to_string()])?.stdout)
}

/// Applies manifests in YAML.
///
/// # Errors
/// What kubectl says.
pub fn apply(plane: &ControlPlane, manifests: &str) -> Result<()> {
    let path = plane.directory().join("manifests.yaml");
    fs::write(&path, manifests).with_context(|| format!("write {}", path.display()))?;
    kubectl(plane, &["apply", "-f", &path.display().to_string()])?;
    Ok(())
}

fn kubectl(plane: &ControlPlane, arguments: &[&str]) -> Result<Output> {
    let mut command = Command::new(program("kubectl"));
    command
        .arg("--kubeconfig")
        .arg(plane.directory().join("admin.kubeconfig"))
        .args(arguments);
    let output = plane.host().output(&mut command, Duration::from_secs(60))?;
    Ok(plane.host().check(&command, output)?)
}

fn shipped() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../deploy/manifests")
}

/// Waits until both policies deny, or until neither does, for an agent's service account (namespace and name):
/// the API server follows its own objects with a delay. With `false` the bindings are deleted first.
///
/// # Errors
/// Those of the API server; no change within a minute.
pub async fn set_policies_in_force(
    plane: &ControlPlane,
    (namespace, account): (&str, &str),
    in_force: bool,
) -> Result<()> {
    let admin = plane.admin().await?;
    if !in_force {
        for policy in ["warren-agent", "warren-annotations"] {
            let group = "/apis/admissionregistration.k8s.io/v1";
            let path = format!("{group}/validatingadmissionpolicybindings/{policy}");
            accepted(send(&admin, "DELETE", &path, None).await?)?;
        }
    }
    let probe = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "probe"}});
    accepted(send(&admin, "POST", "/api/v1/nodes", Some(&probe)).await?)?;
    let agent = format!("system:serviceaccount:{namespace}:{account}");
    let mut waiting = Vec::new();
    for (user, group) in [
        (agent.as_str(), "system:serviceaccounts"),
        ("system:node:probe", "system:nodes"),
    ] {
        waiting.push(impersonated(plane, user, group).await?);
    }
    for _ in 0..600 {
        let mut denied = Vec::new();
        for client in &waiting {
            denied.push(probe_is_denied(client).await?);
        }
        if denied.iter().all(|&denied| denied == in_force) {
            return accepted(send(&admin, "DELETE", PROBE, None).await?);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    bail!("the policies do not change their effect in time")
}

async fn impersonated(plane: &ControlPlane, user: &str, group: &str) -> Result<Client> {
    let token = crate::Identity::admin().token();
    plane
        .client_of(json!({"token": token, "as": user, "as-groups": [group]}))
        .await
}

async fn probe_is_denied(client: &Client) -> Result<bool> {
    let request = http::Request::patch(format!("{PROBE}?dryRun=All"))
        .header("content-type", "application/merge-patch+json")
        .body(br#"{"metadata": {"annotations": {"warren.network/mtu": "1400"}}}"#.to_vec())?;
    match client.request::<serde_json::Value>(request).await {
        Ok(_) => Ok(false),
        Err(kube::Error::Api(status)) => {
            let message = &status.message;
            ensure!(message.contains("ValidatingAdmissionPolicy"), "{message}");
            Ok(true)
        }
        Err(error) => Err(error.into()),
    }
}

fn accepted(outcome: Outcome) -> Result<()> {
    outcome.map(drop).map_err(anyhow::Error::msg)
}
