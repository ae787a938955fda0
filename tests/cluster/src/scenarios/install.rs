//! The installation, and what is to be seen after it.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::World;
use crate::cluster::{Cluster, PATIENCE};
use crate::run;
use crate::warren::{self, Daemon};

const KEY: &str = "warren.network/public-key";

/// Without Warren no node is Ready; with it all are.
pub(super) fn nodes_become_ready(world: &mut World) -> Result<()> {
    for node in &world.cluster.nodes {
        warren::import_images(node)?;
    }
    world.cluster.register_all()?;
    let cluster = &world.cluster;
    cluster.wait_nodes_ready(&World::NODES, false)?;
    // The runtime says why, which takes the place of waiting for something that must not happen.
    for name in World::NODES {
        // The kubelet's first word is another one.
        cluster.wait(&format!("the runtime of {name}"), PATIENCE, || {
            let message = cluster.kubectl(&[
                "get",
                "node",
                name,
                "-o",
                r#"jsonpath={.status.conditions[?(@.type=="Ready")].message}"#,
            ])?;
            let said = message.contains("cni plugin not initialized");
            ensure!(said, "{message:?}");
            Ok(true)
        })?;
        let left = cluster.node(name).path("/etc/cni/net.d");
        ensure!(
            std::fs::read_dir(left)?.next().is_none(),
            "{name} has a CNI configuration"
        );
    }
    cluster.deploy_dns()?;
    warren::install(cluster)?;
    warren::wait_rollout(cluster, Daemon::Tunnel)?;
    warren::wait_rollout(cluster, Daemon::Agent)?;
    let waited = cluster.wait_nodes_ready(&World::NODES, true)?;
    println!(
        "nodes were Ready {:.1} s after the daemons",
        waited.as_secs_f64()
    );
    warren::wait_mesh(cluster, &World::NODES)?;
    cluster.wait_dns()
}

/// What is on the Nodes is what each agent and each tunnel say.
pub(super) fn keys_and_status_agree(world: &mut World) -> Result<()> {
    let cluster = &world.cluster;
    for name in World::NODES {
        let node = cluster.get(&["node", name])?;
        let key = node["metadata"]["annotations"][KEY].as_str();
        let key = key.with_context(|| format!("{name} has no key"))?;
        let shown = cluster
            .node(name)
            .host
            .run(&["wg", "show", "warren0", "public-key"])?
            .stdout;
        ensure!(
            shown.trim() == key,
            "{name}: {key} is on the Node, {shown} in the tunnel"
        );
        for other in World::NODES.iter().filter(|other| **other != name) {
            let status = warren::status(cluster, other)?;
            let peers = status["peers"].as_array().context("peers")?;
            let peer = peers.iter().find(|peer| peer["node"] == name);
            let peer = peer.with_context(|| format!("{other} does not know {name}"))?;
            ensure!(
                peer["public_key"] == key,
                "{other} has another key of {name}: {peer}"
            );
        }
    }
    Ok(())
}

/// The plugin of kubectl says of each node what its Node and its agent say, and finds nothing wrong.
pub(super) fn kubectl_warren_agrees(world: &mut World) -> Result<()> {
    let cluster = &world.cluster;
    // Each agent tells its last look, and they do not look at the same time.
    let what = "kubectl warren status to agree";
    cluster.wait(what, PATIENCE, || agrees(cluster).map(|()| true))?;
    Ok(())
}

fn agrees(cluster: &Cluster) -> Result<()> {
    let kubeconfig = cluster.plane.directory().join("admin.kubeconfig");
    let kubeconfig = kubeconfig.display().to_string();
    let arguments = ["status", "-o", "json", "--kubeconfig", &kubeconfig];
    let plugin = warren_lab::bin("kubectl-warren")?;
    let told = run::ask(cluster.plane.host(), plugin, &arguments, b"", PATIENCE)?;
    let told: Value = serde_json::from_str(&told)?;
    ensure!(told["state"] == "ok", "{told}");
    ensure!(
        told["disagreements"] == json!([]) && told["refused"] == json!([]),
        "{told}"
    );
    let nodes = told["nodes"].as_array().context("nodes")?;
    ensure!(nodes.len() == World::NODES.len(), "{told}");
    for (node, name) in nodes.iter().zip(World::NODES) {
        let object = cluster.get(&["node", name])?;
        let status = warren::status(cluster, name)?;
        let published = &object["metadata"]["annotations"][KEY];
        ensure!(
            node["node"] == name && node["state"] == status["state"],
            "{node}"
        );
        ensure!(
            node["published_key"] == *published,
            "{node}, {published} on the Node"
        );
        ensure!(
            node["public_key"] == status["public_key"],
            "{node}, {status}"
        );
        ensure!(node["pod_cidrs"] == object["spec"]["podCIDRs"], "{node}");
    }
    Ok(())
}
