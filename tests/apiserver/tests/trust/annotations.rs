//! Who else may write our annotations, and who is not disturbed.

use anyhow::Result;
use kube::Client;
use serde_json::{Value, json};
use warren_apiserver::{AGENT, Form, Identity, block_on, send, set_policies_in_force, write};
use warren_core::consts::annotation;

use crate::cluster::{
    Change, Cluster, NODES, accepted, all_of_nodes, condition, create, denied, generated_name, get,
    grant, node, remove_annotation, set_annotation, set_condition, wait_may_change_nodes,
};

const POLICY: &str = "warren-annotations";
const CONTROLLER: (&str, &str) = ("kube-system", "node-controller");
/// A name that is ours, in a namespace that is not.
const NAMESAKE: (&str, &str) = ("default", "warren-agent");

#[test]
fn only_agents_and_operators_write_our_annotations_and_nobody_else_is_disturbed() -> Result<()> {
    let operator = Identity::new("olivia", &["warren:operators"]);
    let cluster_admin = Identity::new("ada", &["lab:admins"]);
    let identities = vec![operator.clone(), cluster_admin.clone()];
    let Some(cluster) = Cluster::start("trust-annotations", identities)? else {
        return Ok(());
    };
    block_on(cluster.plane.host(), async || {
        let plane = &cluster.plane;
        let admin = cluster.set_up().await?;
        let everything = json!([{"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}]);
        grant(
            &admin,
            "cluster-admin-of-ada",
            &cluster_admin.user,
            everything,
        )
        .await?;
        let ada = plane.client(&cluster_admin.token()).await?;
        let kubelet = plane.client_by_certificate("system:node:node1", &["system:nodes"]);
        let kubelet = kubelet.await?;
        let controller = service_account(&cluster, &admin, CONTROLLER).await?;
        let namesake = service_account(&cluster, &admin, NAMESAKE).await?;
        let namesakes_user = "system:serviceaccount:default:warren-agent";
        grant(&admin, "nodes-of-namesake", namesakes_user, all_of_nodes()).await?;
        let others = [
            ("system:node:node1", &kubelet),
            (
                "system:serviceaccount:kube-system:node-controller",
                &controller,
            ),
            (namesakes_user, &namesake),
            ("ada", &ada),
        ];

        wait_may_change_nodes(&admin, "system:serviceaccount:kube-system:node-controller").await?;
        a_kubelet_is_not_disturbed(&kubelet, &admin).await?;
        controllers_are_not_disturbed(&controller, &admin).await?;
        for (user, client) in others {
            for change in ours(user) {
                change.is_denied((client, &admin), POLICY).await?;
            }
        }
        creations_with_our_annotations_are_denied(&ada).await?;
        a_kubelet_registers(&cluster).await?;

        let olivia = plane.client(&operator.token()).await?;
        an_operator_steers_with_what_is_shipped(&olivia, &admin).await?;
        // As SECURITY.md says that a cluster's administrator gets in.
        let token = cluster_admin.token();
        let user = json!({"token": token, "as": "ada", "as-groups": ["warren:operators"]});
        let ada_as_operator = plane.client_of(user).await?;
        for client in [&ada_as_operator, &admin] {
            for change in ours("") {
                change.would_be_accepted((client, &admin)).await?;
            }
            would_create(client).await?;
        }

        set_policies_in_force(plane, AGENT, false).await?;
        for (_, client) in others {
            for change in ours("") {
                change.would_be_accepted((client, &admin)).await?;
            }
        }
        would_create(&ada).await?;
        Ok(())
    })
}

/// A client of a service account, made if it is not there, with a token that is bound to a Pod on node1.
async fn service_account(
    cluster: &Cluster,
    admin: &Client,
    account: (&str, &str),
) -> Result<Client> {
    let (namespace, name) = account;
    let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts");
    let object = json!({"metadata": {"name": name}});
    // Some are made by the controllers themselves.
    drop(send(admin, "POST", &path, Some(&object)).await?);
    cluster.on_node(account, "node1").await
}

/// Each way to touch our annotations on node1.
fn ours(user: &str) -> Vec<Change> {
    let of =
        |key: &str, make: fn(&mut Value)| Change::of("node1", denial("node1", user, key), make);
    vec![
        of("warren.network/public-key", |node| {
            set_annotation(node, annotation::PUBLIC_KEY, "stolen");
        }),
        of("warren.network/public-key", |node| {
            remove_annotation(node, annotation::PUBLIC_KEY);
        }),
        of("warren.network/endpoint", |node| {
            set_annotation(node, annotation::ENDPOINT, "192.0.2.66:51871");
        }),
        of("warren.network/force-endpoint", |node| {
            set_annotation(node, annotation::FORCE_ENDPOINT, "192.0.2.66:51871");
        }),
        of("warren.network/anything", |node| {
            set_annotation(node, "warren.network/anything", "");
        }),
        of("warren.network/force-endpoint", |node| {
            node["metadata"]["annotations"] = json!({"example.com/owner": "ops"});
        }),
        of("warren.network/force-endpoint", |node| {
            if let Some(metadata) = node["metadata"].as_object_mut() {
                metadata.remove("annotations");
            }
        }),
        of("warren.network/mtu", |node| {
            set_annotation(node, annotation::MTU, "1280");
            set_annotation(node, "example.com/owner", "me");
        }),
        of("warren.network/mtu", |node| {
            set_annotation(node, annotation::MTU, "1280");
            set_condition(node, condition("MemoryPressure", "True"));
        })
        .by_status(),
        of("warren.network/public-key", |node| {
            remove_annotation(node, annotation::PUBLIC_KEY);
        })
        .by_status(),
    ]
}

async fn a_kubelet_is_not_disturbed(kubelet: &Client, admin: &Client) -> Result<()> {
    let changes = [
        Change::of("node1", "heartbeat", |node| {
            let mut ready = condition("Ready", "True");
            ready["lastHeartbeatTime"] = json!("2026-03-01T00:00:00Z");
            set_condition(node, ready);
            node["status"]["capacity"]["pods"] = json!("110");
            node["status"]["allocatable"] = json!({"cpu": "2"});
        })
        .by_status(),
        Change::of("node1", "annotations of its own, by status", |node| {
            set_annotation(
                node,
                "volumes.kubernetes.io/controller-managed-attach-detach",
                "true",
            );
            node["metadata"]["labels"]["kubernetes.io/arch"] = json!("arm64");
        })
        .by_status(),
        Change::of("node1", "labels and annotations of its own", |node| {
            set_annotation(node, "example.com/kubelet", "1");
            node["metadata"]["labels"]["kubernetes.io/arch"] = json!("arm64");
        }),
        Change::of("node1", "another's annotation is removed", |node| {
            remove_annotation(node, "example.com/owner");
        }),
    ];
    for change in &changes {
        change.would_be_accepted((kubelet, admin)).await?;
    }
    Ok(())
}

async fn controllers_are_not_disturbed(controller: &Client, admin: &Client) -> Result<()> {
    let changes = [
        Change::of("node2", "a taint", |node| {
            node["spec"]["taints"] =
                json!([{"key": "node.kubernetes.io/unreachable", "effect": "NoExecute"}]);
        }),
        Change::of(
            "node2",
            "podCIDRs, providerID, labels, annotations",
            |node| {
                node["spec"]["podCIDR"] = json!("10.244.2.0/24");
                node["spec"]["podCIDRs"] = json!(["10.244.2.0/24"]);
                node["spec"]["providerID"] = json!("cloud://node2");
                node["metadata"]["labels"]["topology.kubernetes.io/zone"] = json!("a");
                set_annotation(node, "node.alpha.kubernetes.io/ttl", "0");
            },
        ),
        Change::of("node2", "addresses and conditions", |node| {
            node["status"]["addresses"][0]["address"] = json!("192.0.2.2");
            set_condition(node, condition("Ready", "Unknown"));
            set_condition(node, condition("NetworkUnavailable", "True"));
        })
        .by_status(),
    ];
    for change in &changes {
        change.would_be_accepted((controller, admin)).await?;
    }
    let plain = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node6"}});
    create(admin, &plain).await?;
    accepted(send(controller, "DELETE", &format!("{NODES}/node6"), None).await?)?;
    accepted(
        send(
            controller,
            "DELETE",
            &format!("{NODES}/node2?dryRun=All"),
            None,
        )
        .await?,
    )?;
    Ok(())
}

async fn creations_with_our_annotations_are_denied(ada: &Client) -> Result<()> {
    for body in creations() {
        let answer = send(ada, "POST", NODES, Some(&body)).await?;
        let name = match body["metadata"]["generateName"] {
            Value::Null => "node3",
            _ => generated_name(&answer),
        };
        let denial = denial(name, "ada", "warren.network/force-endpoint");
        assert_eq!(answer, Err(denied(name, POLICY, &denial)));
    }
    let new = node("node3");
    let answer = write(
        ada,
        "/api/v1/nodes/node3",
        Form::Apply,
        (&json!({}), &new),
        false,
    )
    .await?;
    let denial = denial("node3", "ada", "warren.network/force-endpoint");
    assert_eq!(answer, Err(denied("node3", POLICY, &denial)));
    Ok(())
}

async fn would_create(client: &Client) -> Result<()> {
    for body in creations() {
        accepted(send(client, "POST", &format!("{NODES}?dryRun=All"), Some(&body)).await?)?;
    }
    let new = node("node3");
    accepted(
        write(
            client,
            "/api/v1/nodes/node3",
            Form::Apply,
            (&json!({}), &new),
            true,
        )
        .await?,
    )?;
    Ok(())
}

/// Nodes with our annotations, the last without a name of its own.
fn creations() -> [Value; 2] {
    let mut generated = node("");
    generated["metadata"]["generateName"] = json!("node-");
    [node("node3"), generated]
}

async fn a_kubelet_registers(cluster: &Cluster) -> Result<()> {
    let kubelet = cluster
        .plane
        .client_by_certificate("system:node:node3", &["system:nodes"]);
    let kubelet = kubelet.await?;
    let mut new = node("node3");
    let answer = send(&kubelet, "POST", NODES, Some(&new)).await?;
    let denial = denial(
        "node3",
        "system:node:node3",
        "warren.network/force-endpoint",
    );
    assert_eq!(answer, Err(denied("node3", POLICY, &denial)));
    new["metadata"]["annotations"] = json!({"example.com/owner": "ops"});
    create(&kubelet, &new).await?;
    accepted(
        send(
            &cluster.plane.admin().await?,
            "DELETE",
            "/api/v1/nodes/node3",
            None,
        )
        .await?,
    )?;
    Ok(())
}

async fn an_operator_steers_with_what_is_shipped(olivia: &Client, admin: &Client) -> Result<()> {
    let path = format!("{NODES}/node1");
    for form in Form::PATCHES {
        let old = get(admin, "node1").await?;
        let mut new = old.clone();
        set_annotation(&mut new, annotation::FORCE_ENDPOINT, &format!("{form:?}"));
        accepted(write(olivia, &path, form, (&old, &new), false).await?)?;
        let annotations = &get(admin, "node1").await?["metadata"]["annotations"];
        assert_eq!(annotations, &new["metadata"]["annotations"], "{form:?}");
        if form != Form::Apply {
            let old = get(admin, "node1").await?;
            let mut new = old.clone();
            remove_annotation(&mut new, annotation::FORCE_ENDPOINT);
            accepted(write(olivia, &path, form, (&old, &new), false).await?)?;
        }
    }
    Ok(())
}

fn denial(node: &str, user: &str, key: &str) -> String {
    format!(
        "node \"{node}\": user \"{user}\" may not set, change or remove the annotation {key}; only \
         system:serviceaccount:warren-system:warren-agent and the groups warren:operators and system:masters may. \
         An administrator passes with `kubectl --as=USER --as-group=warren:operators`"
    )
}
