//! An API server that is away for hours, and a way to it on which events are lost and repeated.
//!
//! What hours do that seconds do not, and what each becomes here, at the real API server:
//!
//! ```text
//!   in hours                                   here
//!   the retries come as seldom as they will    over a minute of refused connections: kube's backoff has
//!                                              reached its longest wait (30 s) by then
//!   the resourceVersion is compacted away      etcd is compacted, and kube-apiserver started anew
//!   the token ends, a new one is on the disk   the Secret that the token is bound to is deleted, and
//!                                              another token is written to the file
//!   many events are missed                     hundreds of changes; a node left, one was made anew
//! ```
//!
//! Not shown: a server's certificate that was renewed under another authority.

use std::time::Duration;

use anyhow::{Context as _, Result};
use k8s_openapi::api::core::v1::{Node, Secret, ServiceAccount};
use k8s_openapi::api::rbac::v1::ClusterRoleBinding;
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::{Api, Client};
use serde_json::json;
use warren_apiserver::{Binding, Lossy, token};
use warren_core::consts::annotation;
use warren_core::{NodeView, RegistryEvent};

use crate::cluster::Empty;
use crate::registry_suite::{Backend, Follower, view};

/// Longer than a token of a file is believed to be the one there (60 s), and than the backoff takes to
/// reach its longest wait.
const AWAY: Duration = Duration::from_secs(75);
/// The longest wait of kube's backoff is 30 s, to which it adds up to as much again by chance.
const BACK: Duration = Duration::from_secs(120);
const ACCOUNT: (&str, &str) = ("default", "default");

fn with_mtu(node: &NodeView, mtu_bytes: u32) -> NodeView {
    let mut changed = node.clone();
    let mtu = mtu_bytes.to_string();
    changed.annotations.insert(annotation::MTU.into(), mtu);
    changed
}

/// A token that ends with a Secret of this name.
async fn token_of(client: &Client, secret: &str) -> Result<String> {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), ACCOUNT.0);
    let object = serde_json::from_value(json!({"metadata": {"name": secret}}))?;
    let made: Secret = secrets.create(&PostParams::default(), &object).await?;
    let bound = Binding {
        api_version: Some("v1".into()),
        kind: Some("Secret".into()),
        name: Some(secret.into()),
        uid: made.metadata.uid,
    };
    token(client, ACCOUNT, Some(bound)).await
}

/// Lets the account do everything, once it is there, and gives its first token.
async fn first_token(client: Client) -> Result<String> {
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), ACCOUNT.0);
    for _ in 0..300 {
        if accounts.get_opt(ACCOUNT.1).await?.is_some() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let binding = json!({
        "metadata": {"name": "account"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole",
                    "name": "cluster-admin"},
        "subjects": [{"kind": "ServiceAccount", "namespace": ACCOUNT.0, "name": ACCOUNT.1}],
    });
    let bindings: Api<ClusterRoleBinding> = Api::all(client.clone());
    let binding = serde_json::from_value(binding)?;
    bindings.create(&PostParams::default(), &binding).await?;
    token_of(&client, "first").await
}

#[test]
fn an_api_server_that_was_away_for_hours_is_followed_again_and_takes_no_node_away_meanwhile()
-> Result<()> {
    let Some(cluster) = crate::start("registry-away", Vec::new(), |_| Ok(Vec::new()))? else {
        return Ok(());
    };
    cluster.block_on(async || {
        let backend = Empty::new(&cluster);
        let file = cluster.files().join("token");
        let first = cluster.admin(async |client| first_token(client).await);
        std::fs::write(&file, &first).unwrap();
        let kubeconfig = cluster.kubeconfig_of_token_file(&file).unwrap();
        let stays = backend.put(&view("node-2", "b"));
        let leaves = backend.put(&view("node-3", "c"));
        let old_life = backend.put(&view("node-4", "d"));
        let registry = cluster.registry_by(kubeconfig, "node-1", "e.json").await;
        let mut follower = Follower::new(registry);
        follower
            .until("synced", |f| f.synced && f.views.len() == 3)
            .await;
        let before = follower.views.clone();

        cluster.set_open(false);
        follower.until("trouble", |f| !f.troubles.is_empty()).await;
        let told = follower.events.len();
        backend.remove(&leaves.name);
        backend.remove(&old_life.name);
        let new_life = backend.put(&view("node-4", "d"));
        assert_ne!(new_life.uid, old_life.uid);
        let mut last = stays.clone();
        for mtu_bytes in 1000..1300 {
            last = backend.put(&with_mtu(&stays, mtu_bytes));
        }
        let second = cluster.admin(async |client| {
            let second = token_of(&client, "second").await?;
            let secrets: Api<Secret> = Api::namespaced(client, ACCOUNT.0);
            secrets.delete("first", &DeleteParams::default()).await?;
            Ok(second)
        });
        std::fs::write(&file, &second).unwrap();
        let now = cluster.admin(async |client| {
            let nodes: Api<Node> = Api::all(client);
            let list = nodes.list(&ListParams::default().limit(1)).await?;
            list.metadata.resource_version.context("a version")
        });
        cluster.with_plane(|plane| {
            plane.compact(&now)?;
            plane.stop_apiserver();
            plane.resume()
        });
        follower.settle(AWAY).await;
        assert_eq!(
            follower.views, before,
            "nothing is taken away for want of the API"
        );
        assert_eq!(follower.events.len(), told, "and nothing is told");
        assert!(!follower.troubles.is_empty());
        assert!(
            cluster.refuses(&first),
            "the first token is still good: the test shows nothing"
        );

        cluster.set_open(true);
        let expected = [("node-2".into(), last), ("node-4".into(), new_life)].into();
        follower
            .until_within(BACK, "the view as it is now", |f| {
                f.views == expected && f.troubles.is_empty()
            })
            .await;
        let changed = backend.put(&with_mtu(&stays, 1400));
        follower
            .until("a change after it", |f| f.views["node-2"] == changed)
            .await;
    });
    Ok(())
}

#[test]
fn events_that_are_lost_with_their_connection_or_told_twice_change_nothing_in_the_end() -> Result<()>
{
    let Some(cluster) = crate::start("registry-lossy", Vec::new(), |_| Ok(Vec::new()))? else {
        return Ok(());
    };
    cluster.block_on(async || {
        let backend = Empty::new(&cluster);
        let client = cluster.admin_client().await;
        let lossy = Lossy::start(client).await.unwrap();
        let kubeconfig = cluster.files().join("lossy.kubeconfig");
        std::fs::write(&kubeconfig, lossy.kubeconfig()).unwrap();
        let registry = cluster.registry_by(kubeconfig, "node-1", "e.json").await;
        let mut follower = Follower::new(registry);
        follower.until("synced", |f| f.synced).await;
        let mut expected = std::collections::BTreeMap::new();
        let spoilt = lossy.spoilt();
        let count = |n: &std::sync::atomic::AtomicU64| n.load(std::sync::atomic::Ordering::Relaxed);
        let counted = || (count(&spoilt.cut), count(&spoilt.repeated));
        // What happens while a watch is made anew is told by a list, in which nothing is spoilt.
        let is_spoilt = || counted().0 >= 3 && counted().1 >= 30;
        let mut round = 0;
        while round < 8 || (round < 100 && !is_spoilt()) {
            round += 1;
            for n in 2..7u32 {
                let name = format!("node-{n}");
                if (round + n) % 4 == 3 && expected.remove(&name).is_some() {
                    backend.remove(&name);
                }
                let node = with_mtu(&view(&name, "k"), 1200 + round * 10 + n);
                expected.insert(name, backend.put(&node));
            }
            follower
                .until("the view after a round", |f| f.views == expected)
                .await;
        }
        let (cut, repeated) = counted();
        assert!(is_spoilt(), "{cut} cut, {repeated} repeated");
        // What was told twice was passed on once.
        let mut applied = follower.events.iter().filter_map(|event| match event {
            RegistryEvent::Applied(view) => Some(view),
            _ => None,
        });
        let mut last = std::collections::BTreeMap::new();
        assert!(applied.all(|view| last.insert(view.name.clone(), view) != Some(view)));
    });
    Ok(())
}
