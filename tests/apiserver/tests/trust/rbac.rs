//! What RBAC alone gives an agent.

use anyhow::Result;
use kube::Client;
use serde_json::{Value, json};
use warren_apiserver::send;

use crate::cluster::{AGENT_USER, NODES, accepted};

/// Expects that an agent may read Nodes and write Events where those of Nodes are, and what is forbidden.
pub(crate) async fn gives_what_is_needed_and_no_more(agent: &Client) -> Result<()> {
    let events = |namespace: &str| format!("/apis/events.k8s.io/v1/namespaces/{namespace}/events");
    let core_event = json!({
        "metadata": {"name": "node1.core", "namespace": "default"},
        "involvedObject": {"kind": "Node", "name": "node1"}, "reason": "Test",
    });
    let core_events = "/api/v1/namespaces/default/events";
    for (method, path, body) in [
        ("GET", NODES, None),
        ("GET", "/api/v1/nodes/node2", None),
        ("POST", &events("default"), Some(event("default"))),
        ("POST", core_events, Some(core_event)),
    ] {
        accepted(send(agent, method, path, body.as_ref()).await?)?;
    }

    let node = || Some(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node1"}}));
    let admission = "admissionregistration.k8s.io";
    let bindings = "validatingadmissionpolicybindings";
    for (method, path, body, what) in [
        (
            "POST",
            &*events("kube-system"),
            Some(event("kube-system")),
            "create resource \"events\" in API group \"events.k8s.io\" in the namespace \"kube-system\"",
        ),
        (
            "GET",
            "/api/v1/namespaces/warren-system/secrets",
            None,
            "list resource \"secrets\" in API group \"\" in the namespace \"warren-system\"",
        ),
        (
            "PUT",
            "/api/v1/nodes/node1",
            node(),
            "update resource \"nodes\" in API group \"\" at the cluster scope",
        ),
        (
            "PUT",
            "/api/v1/nodes/node1/status",
            node(),
            "update resource \"nodes/status\" in API group \"\" at the cluster scope",
        ),
        (
            "DELETE",
            "/api/v1/nodes/node1",
            None,
            "delete resource \"nodes\" in API group \"\" at the cluster scope",
        ),
        (
            "DELETE",
            &format!("/apis/{admission}/v1/{bindings}/warren-agent"),
            None,
            &format!(
                "delete resource \"{bindings}\" in API group \"{admission}\" at the cluster scope"
            ),
        ),
    ] {
        let answer = send(agent, method, path, body.as_ref()).await?;
        let message = answer.err().unwrap_or_else(|| "accepted".into());
        let expected = format!("User \"{AGENT_USER}\" cannot {what}");
        assert!(message.ends_with(&expected), "{message}, not {expected}");
    }
    Ok(())
}

fn event(namespace: &str) -> Value {
    json!({
        "metadata": {"name": format!("node1.{namespace}"), "namespace": namespace},
        "regarding": {"kind": "Node", "name": "node1"},
        "reportingController": "warren.network/agent", "reportingInstance": "node1",
        "action": "Refuse", "reason": "Test", "type": "Warning",
        "eventTime": "2026-01-01T00:00:00.000000Z",
    })
}
