//! What the policies cost the API server at the worst.
//!
//! CEL takes time that grows with the square of what it looks through: 52,000 annotations took 12 to 20 s.

use std::time::Duration;

use anyhow::{Context as _, Result};
use kube::Client;
use serde_json::{Value, json};
use tokio::time::timeout;
use warren_apiserver::{AGENT, Form, Outcome, block_on, write};
use warren_core::consts::annotation;

use crate::cluster::{
    AGENT_USER, Cluster, NODES, accepted, all_of_nodes, condition, denied, get, grant,
    set_annotation, set_condition,
};

/// As many annotations of the least size as a Node can have, less a few that are added.
const MOST: usize = 50_000;
/// Ample for what takes a second or two, of which the policies have little.
const LIMIT: Duration = Duration::from_secs(30);

#[test]
fn nobody_keeps_the_api_server_busy_with_large_nodes() -> Result<()> {
    let Some(cluster) = Cluster::start("trust-cost", Vec::new())? else {
        return Ok(());
    };
    block_on(cluster.plane.host(), async || {
        let admin = cluster.set_up().await?;
        grant(&admin, "too-much", AGENT_USER, all_of_nodes()).await?;
        let agent = cluster.on_node(AGENT, "node1").await?;
        let kubelet = cluster
            .plane
            .client_by_certificate("system:node:node1", &["system:nodes"])
            .await?;

        let refusal = |what: &str, end: &str| {
            let denial = format!("node \"node1\": warren-agent may not change {what} in {end}");
            Err(denied("node1", "warren-agent", &denial))
        };
        let only_annotations = "nodes; only the annotations warren.network/{data-plane,endpoint,mtu,next-public-key,public-key}";
        let only_condition = "nodes/status; only the condition NetworkUnavailable";
        let too_many = refusal(
            "any annotation of a Node with more than 1000",
            only_annotations,
        );

        // A stolen token that tries to make its Node large.
        assert_eq!(told(change(&agent, &admin, "", many).await?), too_many);
        let answer = change(&agent, &admin, "/status", |node| {
            let more = json!({"type": "NetworkUnavailable", "status": "True"});
            if let Some(conditions) = node["status"]["conditions"].as_array_mut() {
                conditions.resize(20_000, more);
            }
        });
        assert_eq!(
            told(answer.await?),
            refusal("status.conditions", only_condition)
        );

        // A Node that its kubelet has made large: everybody goes on, but for the agent's record.
        accepted(change(&kubelet, &admin, "", many).await?)?;
        let heartbeat = |node: &mut Value| {
            let mut ready = condition("Ready", "True");
            ready["lastHeartbeatTime"] = json!("2026-03-01T00:00:00Z");
            set_condition(node, ready);
        };
        accepted(change(&kubelet, &admin, "/status", heartbeat).await?)?;
        accepted(
            change(&kubelet, &admin, "", |node| {
                set_annotation(node, "a/b", "1")
            })
            .await?,
        )?;
        let ours = |node: &mut Value| set_annotation(node, annotation::MTU, "1400");
        let answer = change(&kubelet, &admin, "", ours).await?;
        assert!(
            answer.as_ref().is_err_and(|message| message
                .contains("user \"system:node:node1\" may not set, change or remove the annotation warren.network/mtu;")),
            "{answer:?}"
        );
        assert_eq!(told(change(&agent, &admin, "", ours).await?), too_many);
        let available = |node: &mut Value| {
            set_condition(node, condition("NetworkUnavailable", "False"));
        };
        accepted(change(&agent, &admin, "/status", available).await?)?;
        Ok(())
    })
}

fn many(node: &mut Value) {
    for n in 0..MOST {
        set_annotation(node, &format!("{n:x}"), "");
    }
}

/// Writes a change of node1 within the limit.
async fn change(
    client: &Client,
    admin: &Client,
    end: &str,
    make: impl Fn(&mut Value),
) -> Result<Outcome> {
    let old = get(admin, "node1").await?;
    let mut new = old.clone();
    make(&mut new);
    let path = format!("{NODES}/node1{end}");
    timeout(
        LIMIT,
        write(client, &path, Form::Merge, (&old, &new), false),
    )
    .await
    .context("the API server was kept busy")?
}

/// Without the object, which is long.
fn told(answer: Outcome) -> Result<(), String> {
    answer.map(drop)
}
