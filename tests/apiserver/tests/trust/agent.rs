//! What an agent's own token is worth.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use kube::Client;
use serde_json::{Value, json};
use warren_apiserver::{AGENT, Form, block_on, send, set_policies_in_force, write};
use warren_core::consts::annotation;

use crate::cluster::{
    AGENT_USER, Change, Cluster, KEY, NODES, accepted, all_of_nodes, condition, denied,
    generated_name, get, grant, node, remove_annotation, remove_condition, set_annotation,
    set_condition,
};
use crate::rbac;

const POLICY: &str = "warren-agent";
/// What agents publish: every annotation of ours but the operators'.
const OWN: [&str; 5] = [
    annotation::PUBLIC_KEY,
    annotation::NEXT_PUBLIC_KEY,
    annotation::ENDPOINT,
    annotation::MTU,
    annotation::DATA_PLANE,
];

#[test]
fn an_agents_token_is_worth_its_own_record_and_condition_and_nothing_else() -> Result<()> {
    let Some(cluster) = Cluster::start("trust-agent", Vec::new())? else {
        return Ok(());
    };
    block_on(cluster.plane.host(), async || {
        let admin = cluster.set_up().await?;
        let agent = cluster.on_node(AGENT, "node1").await?;
        rbac::gives_what_is_needed_and_no_more(&agent).await?;
        for form in Form::PATCHES {
            the_own_record_is_written(&agent, &admin, form).await?;
            the_own_condition_is_written(&agent, &admin, form).await?;
        }
        what_is_applied_no_more_is_removed(&agent, &admin).await?;
        // From here on RBAC stands in nobody's way, as if somebody had bound the account to too much.
        grant(&admin, "too-much", AGENT_USER, all_of_nodes()).await?;
        the_own_record_is_written(&agent, &admin, Form::Update).await?;
        the_own_condition_is_written(&agent, &admin, Form::Update).await?;

        let changes = [others(), annotations(), metadata(), spec(), status()];
        let changes: Vec<Change> = changes.into_iter().flatten().collect();
        for change in &changes {
            change.is_denied((&agent, &admin), POLICY).await?;
        }
        for change in ignored() {
            change.has_no_effect((&agent, &admin)).await?;
        }
        for (method, path, body) in creations_and_deletions() {
            let answer = send(&agent, method, &path, body.as_ref()).await?;
            let (name, said) = match path.strip_prefix("/api/v1/nodes/") {
                Some(name) => (name, name),
                None if body == Some(generated()) => {
                    (generated_name(&answer), generated_name(&answer))
                }
                None if body.is_some() => ("node3", "node3"),
                None => ("Unknown", "*"),
            };
            let denied = denied(name, POLICY, &no_creation(said));
            assert_eq!(answer, Err(denied), "{method} {path}");
        }
        let new = node("node4");
        let path = format!("{NODES}/node4");
        let answer = write(&agent, &path, Form::Apply, (&json!({}), &new), false).await?;
        assert_eq!(answer, Err(denied("node4", POLICY, &no_creation("node4"))));

        set_policies_in_force(&cluster.plane, AGENT, false).await?;
        for change in &changes {
            change.would_be_accepted((&agent, &admin)).await?;
        }
        for (method, path, body) in creations_and_deletions() {
            accepted(send(&agent, method, &format!("{path}?dryRun=All"), body.as_ref()).await?)
                .with_context(|| format!("{method} {path}"))?;
        }
        accepted(write(&agent, &path, Form::Apply, (&json!({}), &new), true).await?)?;
        Ok(())
    })
}

async fn the_own_record_is_written(agent: &Client, admin: &Client, form: Form) -> Result<()> {
    let path = format!("{NODES}/node1");
    let old = get(admin, "node1").await?;
    let mut new = old.clone();
    for key in OWN {
        set_annotation(&mut new, key, &format!("{form:?}"));
    }
    accepted(write(agent, &path, form, (&old, &new), true).await?)?;
    assert_eq!(get(admin, "node1").await?, old, "{form:?}: a dry run");
    accepted(write(agent, &path, form, (&old, &new), false).await?)?;
    let old = get(admin, "node1").await?;
    assert_eq!(annotations_of(&old), annotations_of(&new), "{form:?}");
    if form != Form::Apply {
        let mut new = old.clone();
        remove_annotation(&mut new, annotation::NEXT_PUBLIC_KEY);
        accepted(write(agent, &path, form, (&old, &new), false).await?)?;
        let now = get(admin, "node1").await?;
        assert_eq!(annotations_of(&now), annotations_of(&new), "{form:?}");
    }
    Ok(())
}

async fn what_is_applied_no_more_is_removed(agent: &Client, admin: &Client) -> Result<()> {
    let path = format!("{NODES}/node1");
    let bare = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node1"}});
    let mut record = bare.clone();
    record["metadata"]["annotations"] = json!({annotation::MTU: "1400"});
    accepted(write(agent, &path, Form::Apply, (&bare, &record), false).await?)?;
    let now = get(admin, "node1").await?;
    assert_eq!(annotations_of(&now)[annotation::MTU], "1400");
    accepted(write(agent, &path, Form::Apply, (&bare, &bare), false).await?)?;
    let now = get(admin, "node1").await?;
    assert_eq!(annotations_of(&now)[annotation::MTU], Value::Null);
    Ok(())
}

async fn the_own_condition_is_written(agent: &Client, admin: &Client, form: Form) -> Result<()> {
    let path = format!("{NODES}/node1/status");
    for (status, heartbeat) in [("True", "01"), ("False", "01"), ("False", "02")] {
        let old = get(admin, "node1").await?;
        let mut new = old.clone();
        let mut ours = condition("NetworkUnavailable", status);
        ours["message"] = json!(format!("{form:?}"));
        ours["lastHeartbeatTime"] = json!(format!("2026-02-{heartbeat}T00:00:00Z"));
        ours["lastTransitionTime"] = ours["lastHeartbeatTime"].clone();
        set_condition(&mut new, ours);
        accepted(write(agent, &path, form, (&old, &new), false).await?)?;
        let now = get(admin, "node1").await?;
        assert_eq!(conditions(&now), conditions(&new), "{form:?}");
    }
    if form != Form::Apply && form != Form::Strategic {
        let old = get(admin, "node1").await?;
        let mut new = old.clone();
        remove_condition(&mut new, "NetworkUnavailable");
        accepted(write(agent, &path, form, (&old, &new), false).await?)?;
        let now = get(admin, "node1").await?;
        assert_eq!(conditions(&now), conditions(&new), "{form:?}");
    }
    Ok(())
}

fn annotations_of(node: &Value) -> &Value {
    &node["metadata"]["annotations"]
}

/// A Node's conditions by type; a strategic patch changes their order.
fn conditions(node: &Value) -> BTreeMap<&str, &Value> {
    let conditions = node["status"]["conditions"].as_array();
    let conditions = conditions.into_iter().flatten();
    conditions
        .map(|condition| (condition["type"].as_str().unwrap_or_default(), condition))
        .collect()
}

/// Other Nodes, whatever is changed of them.
fn others() -> Vec<Change> {
    let denial = "node \"node2\": the token of warren-agent is bound to node \"node1\", and may change no other \
                  Node";
    vec![
        Change::of("node2", denial, |node| {
            set_annotation(node, annotation::PUBLIC_KEY, "stolen");
        }),
        Change::of("node2", denial, |node| {
            remove_annotation(node, annotation::PUBLIC_KEY);
        }),
        Change::of("node2", denial, |node| {
            node["metadata"]["labels"]["pool"] = json!("b");
        }),
        Change::of("node2", denial, |node| {
            set_condition(node, condition("NetworkUnavailable", "True"));
        })
        .by_status(),
        Change::of("node2", denial, |node| {
            node["status"]["addresses"][0]["address"] = json!("192.0.2.66");
        })
        .by_status(),
    ]
}

/// Annotations of the own Node that are not the agent's to change.
fn annotations() -> Vec<Change> {
    vec![
        Change::of(
            "node1",
            in_nodes("annotation warren.network/force-endpoint"),
            |node| {
                set_annotation(node, annotation::FORCE_ENDPOINT, "192.0.2.66:51871");
            },
        ),
        Change::of(
            "node1",
            in_nodes("annotation warren.network/force-endpoint"),
            |node| {
                remove_annotation(node, annotation::FORCE_ENDPOINT);
            },
        ),
        Change::of(
            "node1",
            in_nodes("annotation warren.network/other"),
            |node| {
                set_annotation(node, "warren.network/other", "1");
            },
        ),
        Change::of("node1", in_nodes("annotation example.com/owner"), |node| {
            set_annotation(node, "example.com/owner", "me");
        }),
        Change::of("node1", in_nodes("annotation example.com/owner"), |node| {
            remove_annotation(node, "example.com/owner");
        }),
        Change::of("node1", in_nodes("annotation example.com/new"), |node| {
            set_annotation(node, "example.com/new", "1");
        }),
        // One that is allowed takes none along that is not.
        Change::of("node1", in_nodes("annotation example.com/owner"), |node| {
            set_annotation(node, annotation::PUBLIC_KEY, KEY);
            set_annotation(node, "example.com/owner", "me");
        }),
        Change::of(
            "node1",
            in_status("annotation warren.network/public-key"),
            |node| {
                set_annotation(node, annotation::PUBLIC_KEY, "by status");
            },
        )
        .by_status(),
        Change::of(
            "node1",
            in_status("annotation warren.network/force-endpoint"),
            |node| {
                set_annotation(node, annotation::FORCE_ENDPOINT, "192.0.2.66:51871");
            },
        )
        .by_status(),
    ]
}

fn metadata() -> Vec<Change> {
    vec![
        Change::of("node1", in_nodes("metadata.labels"), |node| {
            node["metadata"]["labels"]["pool"] = json!("b");
        }),
        Change::of("node1", in_nodes("metadata.labels"), |node| {
            node["metadata"]["labels"]["node-role.kubernetes.io/control-plane"] = json!("");
            set_annotation(node, annotation::PUBLIC_KEY, KEY);
        }),
        Change::of("node1", in_nodes("metadata.labels"), |node| {
            node["metadata"]["labels"] = json!({"pool": "a"});
        }),
        Change::of("node1", in_nodes("metadata.finalizers"), |node| {
            node["metadata"]["finalizers"] = json!(["example.com/stay"]);
        }),
        Change::of("node1", in_nodes("metadata.ownerReferences"), |node| {
            node["metadata"]["ownerReferences"] =
                json!([{"apiVersion": "v1", "kind": "Node", "name": "node2", "uid": "1"}]);
        }),
        Change::of("node1", in_status("metadata.labels"), |node| {
            node["metadata"]["labels"]["pool"] = json!("b");
        })
        .by_status(),
    ]
}

fn spec() -> Vec<Change> {
    vec![
        Change::of("node1", in_nodes("spec.taints"), |node| {
            node["spec"]["taints"] = json!([{"key": "example.com/mine", "effect": "NoExecute"}]);
        }),
        Change::of("node1", in_nodes("spec.unschedulable"), |node| {
            node["spec"]["unschedulable"] = json!(true);
        }),
        Change::of("node1", in_nodes("spec.providerID"), |node| {
            node["spec"]["providerID"] = json!("cloud://other");
        }),
        Change::of("node1", in_nodes("spec.podCIDR"), |node| {
            node["spec"]["podCIDR"] = json!("10.244.2.0/24");
            node["spec"]["podCIDRs"] = json!(["10.244.2.0/24"]);
        }),
    ]
}

fn status() -> Vec<Change> {
    vec![
        Change::of("node1", in_status("status.addresses"), |node| {
            node["status"]["addresses"][0]["address"] = json!("192.0.2.2");
        })
        .by_status(),
        Change::of("node1", in_status("status.capacity"), |node| {
            node["status"]["capacity"]["cpu"] = json!("64");
        })
        .by_status(),
        Change::of("node1", in_status("status.nodeInfo"), |node| {
            node["status"]["nodeInfo"]["kubeletVersion"] = json!("v1.0.0");
        })
        .by_status(),
        Change::of("node1", in_status("status.conditions"), |node| {
            set_condition(node, condition("Ready", "False"));
        })
        .by_status(),
        Change::of("node1", in_status("status.conditions"), |node| {
            set_condition(node, condition("NetworkUnavailable", "True"));
            set_condition(node, condition("MemoryPressure", "True"));
        })
        .by_status(),
    ]
}

/// What the API server itself leaves out of a write before any policy sees it.
fn ignored() -> [Change; 3] {
    [
        Change::of("node1", "status by way of nodes", |node| {
            set_condition(node, condition("NetworkUnavailable", "True"));
        }),
        Change::of("node1", "addresses by way of nodes", |node| {
            node["status"]["addresses"][0]["address"] = json!("192.0.2.2");
        }),
        Change::of("node1", "spec by way of nodes/status", |node| {
            node["spec"]["taints"] = json!([{"key": "example.com/mine", "effect": "NoExecute"}]);
        })
        .by_status(),
    ]
}

fn creations_and_deletions() -> [(&'static str, String, Option<Value>); 5] {
    [
        ("POST", NODES.into(), Some(node("node3"))),
        ("POST", NODES.into(), Some(generated())),
        ("DELETE", format!("{NODES}/node1"), None),
        ("DELETE", format!("{NODES}/node2"), None),
        ("DELETE", NODES.into(), None),
    ]
}

fn generated() -> Value {
    let mut node = node("");
    node["metadata"]["generateName"] = json!("node-");
    node
}

fn no_creation(node: &str) -> String {
    format!(
        "node \"{node}\": warren-agent may not create or delete Nodes, only change the annotations and the \
         condition of node \"node1\""
    )
}

fn in_nodes(what: &str) -> String {
    format!(
        "node \"node1\": warren-agent may not change {what} in nodes; only the annotations \
         warren.network/{{data-plane,endpoint,mtu,next-public-key,public-key}}"
    )
}

fn in_status(what: &str) -> String {
    format!(
        "node \"node1\": warren-agent may not change {what} in nodes/status; only the condition NetworkUnavailable"
    )
}
