//! Tokens of the agent's service account that are bound to no node, or to one that is gone.

use anyhow::Result;
use kube::Client;
use serde_json::json;
use warren_apiserver::{
    AGENT, Form, Identity, agent_pod, block_on, secret_token, send, set_policies_in_force, token,
    write,
};
use warren_core::consts::annotation;

use crate::cluster::{
    AGENT_USER, Change, Cluster, NODES, accepted, all_of_nodes, condition, create, get, grant,
    node, set_annotation, set_condition,
};

const POLICY: &str = "warren-agent";

#[test]
fn a_token_without_its_node_is_denied_and_told_what_to_do() -> Result<()> {
    let Some(cluster) = Cluster::start("trust-tokens", Vec::new())? else {
        return Ok(());
    };
    block_on(cluster.plane.host(), async || {
        let plane = &cluster.plane;
        let admin = cluster.set_up().await?;
        grant(&admin, "too-much", AGENT_USER, all_of_nodes()).await?;

        let unbound = without_a_node(&cluster, &admin).await?;
        let denial = "node \"node1\": the token of warren-agent is bound to no node (it lacks the claim \
            authentication.kubernetes.io/node-name). Use the token that the kubelet mounts into the agent's Pod, \
            or one of `kubectl create token --bound-object-kind=Pod`; a Secret's token cannot be used";
        for client in &unbound {
            for change in own("node1", denial) {
                change.is_denied((client, &admin), POLICY).await?;
            }
        }

        let former = cluster.on_node(AGENT, "node2").await?;
        can_publish(&former, &admin, "node2").await?;
        let denial = made_again(&admin, "node2").await?;
        for change in own("node2", &denial) {
            change.is_denied((&former, &admin), POLICY).await?;
        }
        let pod = agent_pod(&admin, AGENT, "agent-anew", Some("node2")).await?;
        let anew = token(&admin, AGENT, Some(pod)).await?;
        can_publish(&plane.client(&anew).await?, &admin, "node2").await?;

        // Issued before its Node was there: it has the name, and no uid. And nobody has annotated the Node.
        let early = cluster.on_node(AGENT, "node5").await?;
        let bare = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node5"}});
        create(&admin, &bare).await?;
        can_publish(&early, &admin, "node5").await?;

        set_policies_in_force(plane, AGENT, false).await?;
        for client in &unbound {
            for change in own("node1", "") {
                change.would_be_accepted((client, &admin)).await?;
            }
        }
        for change in own("node2", "") {
            change.would_be_accepted((&former, &admin)).await?;
        }
        Ok(())
    })
}

/// Clients that speak for the agent's service account, and for no node.
async fn without_a_node(cluster: &Cluster, admin: &Client) -> Result<Vec<Client>> {
    let unscheduled = agent_pod(admin, AGENT, "unscheduled", None).await?;
    let (legacy, secret) = secret_token(admin, AGENT).await?;
    let tokens = [
        token(admin, AGENT, None).await?,
        legacy,
        token(admin, AGENT, Some(secret)).await?,
        token(admin, AGENT, Some(unscheduled)).await?,
    ];
    let mut clients = Vec::new();
    for token in tokens {
        clients.push(cluster.plane.client(&token).await?);
    }
    // Who may impersonate speaks for the account, and has no token of it.
    let groups = ["system:serviceaccounts", "system:authenticated"];
    let token = Identity::admin().token();
    let user = json!({"token": token, "as": AGENT_USER, "as-groups": groups});
    clients.push(cluster.plane.client_of(user).await?);
    Ok(clients)
}

/// What an agent with the right token does.
fn own(node: &'static str, denial: &str) -> [Change; 2] {
    [
        Change::of(node, denial, |node| {
            set_annotation(node, annotation::MTU, "1400");
        }),
        Change::of(node, denial, |node| {
            set_condition(node, condition("NetworkUnavailable", "False"));
        })
        .by_status(),
    ]
}

async fn can_publish(agent: &Client, admin: &Client, name: &'static str) -> Result<()> {
    for change in own(name, "") {
        change.would_be_accepted((agent, admin)).await?;
    }
    let old = get(admin, name).await?;
    let mut new = old.clone();
    set_annotation(&mut new, annotation::ENDPOINT, "192.0.2.1:51871");
    let path = format!("{NODES}/{name}");
    accepted(write(agent, &path, Form::Apply, (&old, &new), false).await?)?;
    Ok(())
}

/// Deletes a Node and makes one of the same name; returns what its former tokens are told.
async fn made_again(admin: &Client, name: &str) -> Result<String> {
    let former = get(admin, name).await?["metadata"]["uid"].take();
    accepted(send(admin, "DELETE", &format!("{NODES}/{name}"), None).await?)?;
    let present = create(admin, &node(name)).await?["metadata"]["uid"].take();
    assert_ne!(former, present);
    let (former, present) = (
        former.as_str().unwrap_or(""),
        present.as_str().unwrap_or(""),
    );
    Ok(format!(
        "node \"{name}\": the token of warren-agent is of a former Node of this name (uid {former}, now {present}). \
         Delete the agent's Pod, or wait until the kubelet has renewed its token"
    ))
}
