//! `warren-agent uninstall-cluster`: waits until Warren is taken off the nodes, and takes back what
//! the agents wrote to the Node objects.
//!
//! ```text
//! DaemonSet of `warren uninstall` --> its Pods, the Nodes --> Progress
//!     all done, but for nodes that do not answer; or out of time
//! each Node: our annotations go, and the condition if the API server knows it as the agents'
//! ```
//!
//! It runs once the agents are gone, in a pod of its own: see deploy/chart/templates/uninstall.yaml. What operators
//! wrote to Nodes stays.

mod left;
mod progress;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use futures::StreamExt;
use futures::stream;
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{ListParams, Patch, PatchParams};
use kube::{Api, Client};
use tokio::time::{Instant, sleep};

pub use progress::Progress;

use crate::registry::{describe, kubernetes_client};

/// The name that this is called by.
pub const COMMAND: &str = "uninstall-cluster";
/// Who writes, to the API server.
const FIELD_MANAGER: &str = "warren-uninstall";
/// How often it is looked how far the nodes are.
const LOOK_EVERY: Duration = Duration::from_secs(3);
/// How long writing to the Nodes may take, once the nodes are done.
const WRITE_LIMIT: Duration = Duration::from_secs(20);
/// How many Nodes are written at once.
const AT_ONCE: usize = 8;

/// Wait until Warren is taken off the nodes, and take back what its agents wrote to the Nodes
///
/// Exit code: 0 when it is off all nodes that answer, which is said of the others; 1 when it is not, or when a Node
/// could not be written; 2 for wrong usage.
#[derive(Clone, Debug, Parser)]
#[command(name = "warren-agent uninstall-cluster")]
pub struct Options {
    /// Namespace of the DaemonSet
    #[arg(long)]
    pub namespace: String,
    /// The DaemonSet whose pods are ready when they have taken Warren off their node
    #[arg(long)]
    pub daemon_set: String,
    /// How long to wait for them, in seconds
    #[arg(long, value_name = "SECONDS")]
    pub timeout: u64,
    /// Kubeconfig, outside of a pod
    #[arg(long)]
    pub kubeconfig: Option<PathBuf>,
}

/// Waits and takes back; prints what happens. Returns whether all is done that could be.
///
/// # Errors
/// When there is no client to be had of the environment.
pub async fn run(options: &Options) -> anyhow::Result<bool> {
    let client = kubernetes_client(options.kubeconfig.as_deref()).await?;
    let limit = Instant::now() + Duration::from_secs(options.timeout);
    let mut last = Err(anyhow::anyhow!("nothing was heard of the nodes"));
    loop {
        match look(&client, options).await {
            Ok(progress) => {
                if last.as_ref().ok() != Some(&progress) {
                    println!("{progress}");
                }
                let complete = progress.is_complete();
                last = Ok(progress);
                if complete {
                    break;
                }
            }
            // Its rights may not have come into force yet.
            Err(error) => last = Err(error),
        }
        if Instant::now() > limit {
            println!("not done within {} s", options.timeout);
            break;
        }
        sleep(LOOK_EVERY).await;
    }
    let taken_back = take_back(&client).await;
    let done = match last {
        Ok(progress) => {
            for line in progress.left() {
                println!("{line}");
            }
            progress.is_complete()
        }
        Err(error) => {
            println!("{error:#}");
            false
        }
    };
    match taken_back {
        Ok(nodes) => println!("took back what agents wrote to {nodes} Nodes"),
        Err(error) => {
            println!("{error:#}");
            return Ok(false);
        }
    }
    Ok(done)
}

async fn look(client: &Client, options: &Options) -> anyhow::Result<Progress> {
    let sets: Api<DaemonSet> = Api::namespaced(client.clone(), &options.namespace);
    let set = sets.get(&options.daemon_set).await;
    let set = set.with_context(|| format!("read DaemonSet {}", options.daemon_set))?;
    let labels = set.spec.selector.match_labels.iter().flatten();
    let labels: Vec<String> = labels.map(|(k, v)| format!("{k}={v}")).collect();
    let pods: Api<Pod> = Api::namespaced(client.clone(), &options.namespace);
    let pods = pods
        .list(&ListParams::default().labels(&labels.join(",")))
        .await
        .context("list the DaemonSet's Pods")?;
    let nodes = nodes(client).await?;
    Ok(Progress::of(&set, &pods.items, &nodes))
}

/// All Nodes, as the API server has them in memory.
async fn nodes(client: &Client) -> anyhow::Result<Vec<Node>> {
    let nodes: Api<Node> = Api::all(client.clone());
    let parameters = ListParams::default().match_any();
    Ok(nodes
        .list(&parameters)
        .await
        .context("list the Nodes")?
        .items)
}

/// Takes back what the agents wrote; what fails is tried again for a while. Returns how many Nodes
/// there are.
async fn take_back(client: &Client) -> anyhow::Result<usize> {
    let limit = Instant::now() + WRITE_LIMIT;
    loop {
        let error = match try_to_take_back(client).await {
            Ok(nodes) => return Ok(nodes),
            Err(error) => error,
        };
        if Instant::now() > limit {
            return Err(error);
        }
        sleep(LOOK_EVERY).await;
    }
}

async fn try_to_take_back(client: &Client) -> anyhow::Result<usize> {
    let nodes = nodes(client).await?;
    let api: Api<Node> = Api::all(client.clone());
    let failures: BTreeMap<String, String> = stream::iter(&nodes)
        .map(|node| take_back_from(&api, node))
        .buffer_unordered(AT_ONCE)
        .filter_map(async |failure| failure)
        .collect()
        .await;
    match failures.into_iter().next() {
        None => Ok(nodes.len()),
        Some((node, cause)) => anyhow::bail!("take back what agents wrote to Node {node}: {cause}"),
    }
}

/// Writes what differs and no more; its name and why that failed, if it did.
async fn take_back_from(api: &Api<Node>, node: &Node) -> Option<(String, String)> {
    let name = node.metadata.name.clone().unwrap_or_default();
    let parameters = PatchParams {
        field_manager: Some(FIELD_MANAGER.to_owned()),
        ..PatchParams::default()
    };
    let mut written = Ok(());
    if let Some(patch) = left::without_annotations(node) {
        let answer = api.patch(&name, &parameters, &Patch::Merge(patch)).await;
        written = answer.map(drop);
    }
    if let (Ok(()), Some(patch)) = (&written, left::without_condition(node)) {
        let patch = Patch::Strategic(patch);
        written = api.patch_status(&name, &parameters, &patch).await.map(drop);
    }
    match written {
        Ok(()) => None,
        // Deleted, or made anew, which no agent has written to.
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => None,
        Err(error) => Some((name, describe(&error))),
    }
}
