//! The manifests themselves.

use std::time::Duration;

use anyhow::{Result, bail};
use kube::Client;
use serde_json::Value;
use warren_apiserver::{apply, block_on, rendered, send};
use warren_core::consts::annotation;

use crate::cluster::{Change, Cluster, accepted, all_of_nodes, grant, set_annotation};

const POLICIES: &str = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies";
const ACCOUNT: (&str, &str) = ("mesh", "warren-agent");

#[test]
fn the_manifests_serve_another_namespace_and_are_typed_without_a_warning() -> Result<()> {
    let Some(cluster) = Cluster::start("trust-manifests", Vec::new())? else {
        return Ok(());
    };
    block_on(cluster.plane.host(), async || {
        // `sed s/warren-system/mesh/g`, as deploy/manifests/README.md has it.
        let manifests = rendered(&cluster.plane)?.replace("warren-system", ACCOUNT.0);
        apply(&cluster.plane, &manifests)?;
        let admin = cluster.set_up_for(ACCOUNT).await?;
        for policy in ["warren-agent", "warren-annotations"] {
            let warnings = type_warnings(&admin, policy).await?;
            assert_eq!(warnings, Value::Null, "{policy}");
        }

        let agent = cluster.on_node(ACCOUNT, "node1").await?;
        grant(
            &admin,
            "too-much",
            "system:serviceaccount:mesh:warren-agent",
            all_of_nodes(),
        )
        .await?;
        let record = |node, denial: &str| {
            Change::of(node, denial, |node| {
                set_annotation(node, annotation::MTU, "1400");
            })
        };
        let clients = (&agent, &admin);
        record("node1", "").would_be_accepted(clients).await?;
        let denial = "node \"node2\": the token of warren-agent is bound to node \"node1\", and may change no \
                      other Node";
        record("node2", denial)
            .is_denied(clients, "warren-agent")
            .await?;
        let path = "/api/v1/namespaces/mesh/serviceaccounts/warren-agent";
        let account = accepted(send(&admin, "GET", path, None).await?)?;
        let version = &account["metadata"]["labels"]["app.kubernetes.io/version"];
        assert_eq!(version, env!("CARGO_PKG_VERSION"), "the manifests' version");
        Ok(())
    })
}

/// Waits for the controller that checks the types of a policy's expressions; what it warns of, or null.
async fn type_warnings(admin: &Client, policy: &str) -> Result<Value> {
    for _ in 0..600 {
        let policy = accepted(send(admin, "GET", &format!("{POLICIES}/{policy}"), None).await?)?;
        if policy["status"]["observedGeneration"] == policy["metadata"]["generation"] {
            return Ok(policy["status"]["typeChecking"]["expressionWarnings"].clone());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    bail!("the types of policy {policy} are not checked in time")
}
