//! What the registry writes: this node's record, its condition, and Events; each once.
//!
//! The API server keeps an audit log, in which writes are counted.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::{Node, NodeCondition};
use serde_json::{Value, json};
use warren_agent::registry::{
    Announcement, KubernetesRegistry, NodeNote, NodeRegistry, NotReady, RegistryError,
};
use warren_apiserver::Identity;
use warren_core::NodeUid;
use warren_core::consts::annotation;
use warren_lab::Host;

use crate::cluster::{Cluster, Empty};
use crate::registry_suite::{Backend, Follower, own_record, view};

/// Whose writes are counted.
fn agent() -> Identity {
    Identity::new("agent", &["system:masters"])
}

/// A cluster whose API server keeps a line of each request.
fn cluster(name: &str) -> Result<Option<Cluster>> {
    crate::start(name, vec![agent()], |host| {
        let policy = json!({
            "apiVersion": "audit.k8s.io/v1",
            "kind": "Policy",
            "omitStages": ["RequestReceived"],
            "rules": [{"level": "Metadata"}],
        });
        let path = host.dir().join("audit-policy.json");
        fs::write(&path, policy.to_string()).context("write the audit policy")?;
        Ok(vec![
            format!("--audit-policy-file={}", path.display()),
            format!("--audit-log-path={}", audit_log(host).display()),
        ])
    })
}

fn audit_log(host: &Host) -> PathBuf {
    host.dir().join("audit.log")
}

/// The writes that the agent has asked for since the start: verb, resource, subresource.
fn writes(cluster: &Cluster) -> Vec<String> {
    let log = fs::read_to_string(audit_log(cluster.host())).unwrap();
    let lines = log.lines().map(|line| serde_json::from_str(line).unwrap());
    let asked = lines.filter(|line: &Value| line["user"]["username"] == "agent");
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    asked
        .map(|line| {
            let what = &line["objectRef"];
            let subresource = text(&what["subresource"]);
            let verb = text(&line["verb"]);
            format!("{verb} {} {subresource}", text(&what["resource"]))
        })
        .filter(|line| {
            !["get ", "list ", "watch "]
                .iter()
                .any(|v| line.starts_with(v))
        })
        .collect()
}

async fn synced(cluster: &Cluster, events: &str) -> Follower<KubernetesRegistry> {
    let registry = cluster.registry_of(&agent(), "node-1", events).await;
    let mut follower = Follower::new(registry);
    follower.until("synced", |f| f.synced).await;
    follower
}

/// Drives the registry until the cluster is as wanted.
async fn until(follower: &mut Follower<KubernetesRegistry>, what: &str, done: impl Fn() -> bool) {
    for _ in 0..600 {
        if done() {
            return;
        }
        follower.settle(Duration::from_millis(100)).await;
    }
    panic!("not in time: {what}");
}

fn condition(cluster: &Cluster) -> Option<NodeCondition> {
    let status = cluster.node("node-1")?.status?;
    let mut conditions = status.conditions?.into_iter();
    conditions.find(|c| c.type_ == "NetworkUnavailable")
}

fn managers(node: &Node) -> Vec<(String, String)> {
    let fields = node.metadata.managed_fields.iter().flatten();
    fields
        .map(|f| {
            let (manager, operation) = (f.manager.clone(), f.operation.clone());
            (manager.unwrap_or_default(), operation.unwrap_or_default())
        })
        .collect()
}

#[test]
fn a_record_is_one_write_a_change_and_rest_is_none() -> Result<()> {
    let Some(cluster) = cluster("registry-record")? else {
        return Ok(());
    };
    cluster.block_on(async || {
        let backend = Empty::new(&cluster);
        let mut own = own_record("node-1");
        backend.admit(&own);
        let mut follower = synced(&cluster, "e").await;
        let mut expected = Vec::new();
        for mtu_bytes in [1500, 1400, 9000] {
            own.underlay_mtu_bytes = mtu_bytes;
            expected.push("patch nodes ");
            let stored = || {
                backend
                    .get("node-1")
                    .unwrap()
                    .annotations
                    .get(annotation::MTU)
                    .cloned()
            };
            // As often as the agent reconciles, and oftener.
            for _ in 0..20 {
                follower.registry.publish(&own).await.unwrap();
                follower.registry.announce(Announcement::default());
                follower.settle(Duration::from_millis(50)).await;
            }
            until(&mut follower, "the record", || {
                stored() == Some(mtu_bytes.to_string())
            })
            .await;
        }
        // The audit log is written after the answer.
        until(&mut follower, "four writes", || writes(&cluster).len() >= 4).await;
        // The condition is another write, and the only one of its kind.
        let mut written = writes(&cluster);
        let conditions = written
            .extract_if(.., |line| line == "patch nodes status")
            .count();
        assert_eq!(
            (written, conditions),
            (expected.iter().map(|s| (*s).to_owned()).collect(), 1)
        );
        let node = cluster.node("node-1").unwrap();
        assert!(
            managers(&node).contains(&("warren-agent".into(), "Apply".into())),
            "{:?}",
            managers(&node)
        );
        // At rest, and over a restart.
        let before = writes(&cluster).len();
        for _ in 0..50 {
            follower.registry.publish(&own).await.unwrap();
            follower.registry.announce(Announcement::default());
            follower.settle(Duration::from_millis(100)).await;
        }
        let mut anew = synced(&cluster, "e").await;
        for _ in 0..20 {
            anew.registry.publish(&own).await.unwrap();
            anew.registry.announce(Announcement::default());
            anew.settle(Duration::from_millis(50)).await;
        }
        assert_eq!(writes(&cluster).len(), before);
    });
    Ok(())
}

#[test]
fn a_record_is_for_one_life_of_a_node_and_makes_none() -> Result<()> {
    let Some(cluster) = cluster("registry-lives")? else {
        return Ok(());
    };
    cluster.block_on(async || {
        let backend = Empty::new(&cluster);
        backend.put(&view("node-2", "b"));
        let own = own_record("node-1");
        let mut follower = synced(&cluster, "e").await;
        let missing = follower.registry.publish(&own).await;
        assert!(
            matches!(&missing, Err(RegistryError::NoNode { name }) if name.as_str() == "node-1"),
            "{missing:?}"
        );
        follower.settle(Duration::from_millis(500)).await;
        assert_eq!((cluster.node("node-1"), writes(&cluster)), (None, vec![]));
        let key = own.public_key.to_base64();
        let published = || {
            let node = backend.get("node-1").unwrap();
            node.annotations.get(annotation::PUBLIC_KEY) == Some(&key)
        };
        for _ in 0..2 {
            backend.admit(&own);
            follower
                .until("its Node", |f| f.views.contains_key("node-1"))
                .await;
            follower.registry.publish(&own).await.unwrap();
            until(&mut follower, "published", published).await;
            backend.remove("node-1");
            follower
                .until("it is gone", |f| !f.views.contains_key("node-1"))
                .await;
        }
        // Deleted and made again while the registry does not look.
        backend.admit(&own);
        follower
            .until("its Node", |f| f.views.contains_key("node-1"))
            .await;
        backend.remove("node-1");
        backend.admit(&own);
        let refused = follower.registry.publish(&own).await;
        assert!(!published(), "what was meant for the earlier life");
        assert!(!matches!(refused, Ok(true)), "{refused:?}");
        let deadline = std::time::Instant::now() + Duration::from_secs(60);
        while !published() && std::time::Instant::now() < deadline {
            let _ = follower.registry.publish(&own).await;
            follower.settle(Duration::from_millis(100)).await;
        }
        assert!(published());
    });
    Ok(())
}

#[test]
fn the_condition_says_whether_the_node_is_ready_and_changes_only_then() -> Result<()> {
    let Some(cluster) = cluster("registry-condition")? else {
        return Ok(());
    };
    cluster.block_on(async || {
        let backend = Empty::new(&cluster);
        backend.admit(&own_record("node-1"));
        let mut follower = synced(&cluster, "e").await;
        let down = |message: &str| Announcement {
            not_ready: Some(NotReady {
                reason: "WarrenTunnelDown",
                message: message.to_owned(),
            }),
            notes: Vec::new(),
        };
        let told = || {
            let c = condition(&cluster)?;
            Some((c.status, c.reason?, c.message?))
        };
        let is = |status: &str, reason: &str, message: &str| {
            told() == Some((status.into(), reason.into(), message.into()))
        };
        follower.registry.announce(down("no answer"));
        until(&mut follower, "it is down", || {
            is("True", "WarrenTunnelDown", "no answer")
        })
        .await;
        let since = condition(&cluster).unwrap().last_transition_time;
        follower.registry.announce(down("no key"));
        until(&mut follower, "another cause", || {
            is("True", "WarrenTunnelDown", "no key")
        })
        .await;
        assert_eq!(condition(&cluster).unwrap().last_transition_time, since);
        follower.registry.announce(Announcement::default());
        let up = "Warren protects this node's pods, and its tunnel answers";
        until(&mut follower, "it is up", || is("False", "WarrenIsUp", up)).await;
        let before = backend.stamp("node-1");
        for _ in 0..20 {
            follower.registry.announce(Announcement::default());
            follower.settle(Duration::from_millis(50)).await;
        }
        assert_eq!(backend.stamp("node-1"), before);
        until(&mut follower, "three writes", || {
            writes(&cluster).len() >= 3
        })
        .await;
        assert_eq!(writes(&cluster).len(), 3, "{:?}", writes(&cluster));
    });
    Ok(())
}

#[test]
fn a_thing_is_said_in_one_event_by_whoever_sees_it_and_not_again() -> Result<()> {
    let Some(cluster) = cluster("registry-events")? else {
        return Ok(());
    };
    cluster.block_on(async || {
        let backend = Empty::new(&cluster);
        let bad = backend.put(&view("node-9", "b"));
        let saying = |message: &str| Announcement {
            not_ready: None,
            notes: vec![NodeNote {
                node: "node-9".into(),
                uid: NodeUid(bad.uid.0.clone()),
                reason: "InvalidEndpoint",
                message: message.to_owned(),
            }],
        };
        let count = || cluster.events().len();
        let mut first = synced(&cluster, "first").await;
        let mut second = synced(&cluster, "second").await;
        for follower in [&mut first, &mut second] {
            follower.registry.announce(saying("no endpoint"));
            until(follower, "the Event", || count() == 1).await;
            for _ in 0..5 {
                follower.registry.announce(saying("no endpoint"));
                follower.settle(Duration::from_millis(100)).await;
            }
        }
        let events = cluster.events();
        assert_eq!(events.len(), 1, "{events:?}");
        let event = &events[0];
        assert_eq!(event.involved_object.kind.as_deref(), Some("Node"));
        assert_eq!(event.involved_object.name.as_deref(), Some("node-9"));
        assert_eq!(event.involved_object.uid.as_deref(), Some(&*bad.uid.0));
        assert_eq!(event.type_.as_deref(), Some("Warning"));
        assert_eq!(event.reason.as_deref(), Some("InvalidEndpoint"));
        assert_eq!(event.message.as_deref(), Some("no endpoint"));
        // The API server has forgotten it; an agent that is started anew has not.
        cluster.forget_events();
        let mut anew = synced(&cluster, "first").await;
        for _ in 0..10 {
            anew.registry.announce(saying("no endpoint"));
            anew.settle(Duration::from_millis(100)).await;
        }
        assert_eq!(count(), 0);
        // What is new is said.
        anew.registry.announce(saying("another endpoint"));
        until(&mut anew, "the new Event", || count() == 1).await;
        assert_eq!(first.troubles, Vec::<String>::new());
        assert_eq!(anew.troubles, Vec::<String>::new());
    });
    Ok(())
}
