//! What can happen to an API server and its data, and what the registry makes of it.
//!
//! ```text
//!  host control-plane: etcd, kube-apiserver <-- proxy on the loopback <-- registry
//!                                           <-- the test, as an admin
//! ```

use std::time::Duration;

use crate::cluster::{Cluster, Empty};
use crate::registry_suite::{Backend, Follower, view};
use anyhow::Result;
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kube::api::{ListParams, WatchParams};
use warren_agent::registry::KubernetesRegistry;
use warren_apiserver::Identity;
use warren_core::NodeView;
use warren_core::consts::annotation;

fn cluster(name: &str, identities: Vec<Identity>) -> Result<Option<Cluster>> {
    crate::start(name, identities, |_| Ok(Vec::new()))
}

async fn synced(cluster: &Cluster) -> Follower<KubernetesRegistry> {
    let mut follower = Follower::new(cluster.registry("node-1").await);
    follower.until("synced", |f| f.synced).await;
    follower
}

fn with_mtu(node: &NodeView, mtu_bytes: u32) -> NodeView {
    let mut changed = node.clone();
    let mtu = mtu_bytes.to_string();
    changed.annotations.insert(annotation::MTU.into(), mtu);
    changed
}

/// The version of the cluster's data now.
fn version(cluster: &Cluster) -> String {
    cluster.admin(async |client| {
        let nodes: Api<Node> = Api::all(client);
        let list = nodes.list(&ListParams::default().limit(1)).await?;
        Ok(list.metadata.resource_version.unwrap_or_default())
    })
}

#[test]
fn a_watch_whose_version_is_gone_is_made_up_for_by_a_list() -> Result<()> {
    let Some(cluster) = cluster("registry-gone", Vec::new())? else {
        return Ok(());
    };
    cluster.block_on(async || {
        let backend = Empty::new(&cluster);
        backend.put(&view("node-2", "b"));
        backend.put(&view("node-3", "c"));
        let mut follower = synced(&cluster).await;
        let old = version(&cluster);
        cluster.set_open(false);
        follower.until("trouble", |f| !f.troubles.is_empty()).await;
        backend.remove("node-2");
        let third = backend.put(&with_mtu(&view("node-3", "c"), 1400));
        let fourth = backend.put(&view("node-4", "d"));
        let now = version(&cluster);
        cluster.with_plane(|plane| {
            plane.compact(&now)?;
            plane.stop_apiserver();
            plane.resume()
        });
        let code = cluster.admin(async |client| {
            let nodes: Api<Node> = Api::all(client);
            let watch = nodes.watch(&WatchParams::default(), &old).await?;
            let mut watch = Box::pin(watch);
            Ok(match futures::StreamExt::next(&mut watch).await {
                Some(Ok(kube::core::WatchEvent::Error(status))) => status.code,
                Some(Err(kube::Error::Api(status))) => status.code,
                _ => 0,
            })
        });
        assert_eq!(
            code, 410,
            "the old version is gone, or the test shows nothing"
        );
        cluster.set_open(true);
        let expected = [("node-3".into(), third), ("node-4".into(), fourth)].into();
        follower
            .until("the view of the list", |f| {
                f.views == expected && f.troubles.is_empty()
            })
            .await;
    });
    Ok(())
}

#[test]
fn an_api_server_that_is_killed_and_started_anew_costs_no_event() -> Result<()> {
    let Some(cluster) = cluster("registry-killed", Vec::new())? else {
        return Ok(());
    };
    cluster.block_on(async || {
        let backend = Empty::new(&cluster);
        let second = backend.put(&view("node-2", "b"));
        let mut follower = synced(&cluster).await;
        cluster.with_plane(|plane| {
            plane.stop_apiserver();
            Ok(())
        });
        follower.until("trouble", |f| !f.troubles.is_empty()).await;
        assert!(
            follower.troubles[0].contains("the last view holds"),
            "{:?}",
            follower.troubles
        );
        follower.settle(Duration::from_secs(2)).await;
        assert_eq!(follower.views["node-2"], second);
        cluster.with_plane(|plane| plane.resume());
        let changed = backend.put(&with_mtu(&second, 1400));
        follower
            .until("the change", |f| {
                f.views["node-2"] == changed && f.troubles.is_empty()
            })
            .await;
    });
    Ok(())
}

#[test]
fn data_restored_from_an_older_snapshot_is_listed_anew_and_followed() -> Result<()> {
    let Some(cluster) = cluster("registry-restored", Vec::new())? else {
        return Ok(());
    };
    cluster.block_on(async || {
        let backend = Empty::new(&cluster);
        let second = backend.put(&view("node-2", "b"));
        cluster.with_plane(|plane| plane.snapshot());
        let mut follower = synced(&cluster).await;
        // Hundreds of versions that the snapshot knows nothing of.
        backend.put(&view("node-3", "c"));
        let mut last = second.clone();
        for mtu_bytes in 1000..1400 {
            last = backend.put(&with_mtu(&second, mtu_bytes));
        }
        follower
            .until("the last change", |f| {
                f.views["node-2"] == last && f.views.contains_key("node-3")
            })
            .await;
        cluster.with_plane(|plane| plane.restore());
        let expected = [("node-2".into(), second.clone())].into();
        follower
            .until("the snapshot's view", |f| f.views == expected)
            .await;
        // The watch is not deaf to what follows.
        let changed = backend.put(&with_mtu(&second, 1300));
        follower
            .until("a change after it", |f| f.views["node-2"] == changed)
            .await;
    });
    Ok(())
}

#[test]
fn who_may_not_list_nodes_is_told_so_and_recovers_once_he_may() -> Result<()> {
    let stranger = Identity::new("stranger", &["strangers"]);
    let Some(cluster) = cluster("registry-rights", vec![stranger.clone()])? else {
        return Ok(());
    };
    cluster.block_on(async || {
        let backend = Empty::new(&cluster);
        backend.put(&view("node-2", "b"));
        let registry = cluster.registry_of(&stranger, "node-1", "e").await;
        let mut follower = Follower::new(registry);
        let forbidden = |trouble: &String| {
            trouble.contains("cannot list resource \"nodes\"") && trouble.contains("stranger")
        };
        follower
            .until("trouble", |f| f.troubles.iter().any(forbidden))
            .await;
        assert!(!follower.synced);
        cluster.admin(async |client| {
            let binding = serde_json::json!({
                "metadata": {"name": "stranger"},
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole",
                            "name": "cluster-admin"},
                "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User",
                              "name": "stranger"}],
            });
            let bindings: Api<k8s_openapi::api::rbac::v1::ClusterRoleBinding> = Api::all(client);
            let binding = serde_json::from_value(binding)?;
            bindings.create(&Default::default(), &binding).await?;
            Ok(())
        });
        follower
            .until("synced", |f| f.synced && f.troubles.is_empty())
            .await;
    });
    Ok(())
}
