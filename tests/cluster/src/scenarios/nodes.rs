//! Nodes that come, go, return, and restart what they are made of.

use anyhow::{Result, ensure};

use super::streams::Streams;
use super::topology::{NAMESPACE, Topology};
use super::{World, matrix, traffic};
use crate::cluster::{Cluster, PATIENCE};
use crate::settings::{ProxyMode, ProxySettings};
use crate::warren::{self, Daemon};

const FOUR: [&str; 4] = ["node1", "node2", "node3", "node4"];

/// containerd and the kubelet of node 3 are killed and started again; pods go on.
pub(super) fn containerd_and_kubelet_restart(world: &mut World) -> Result<()> {
    let streams = Streams::start(traffic::topology(world)?)?;
    let node = world.cluster.node_mut("node3");
    node.restart_containerd()?;
    node.restart_kubelet()?;
    let cluster = &world.cluster;
    // A pod made after it has a network as the others have.
    let again = crate::probe::PodSpec {
        name: "again",
        node: "node3",
        labels: serde_json::json!({"again": "true"}),
        host_network: true,
        host_port: None,
    };
    let mut object = again.object(NAMESPACE);
    object["spec"]["hostNetwork"] = false.into();
    cluster.apply(&[object])?;
    cluster.wait_pod_ready(NAMESPACE, "again")?;
    cluster.kubectl(&["delete", "pod", "-n", NAMESPACE, "again"])?;
    streams.stop()?.require_no_loss(|_| true)
}

/// The whole of node 3 is cut off its power and boots.
pub(super) fn reboot(world: &mut World) -> Result<()> {
    let streams = Streams::start(&two_nodes(world)?)?;
    world.cluster.node_mut("node3").reboot()?;
    let cluster = &world.cluster;
    // Its Node was Ready until the API server heard otherwise: the pods tell.
    wait_pods_restarted(cluster, "node3")?;
    cluster.wait_nodes_ready(&World::NODES, true)?;
    warren::wait_rollout(cluster, Daemon::Tunnel)?;
    warren::wait_rollout(cluster, Daemon::Agent)?;
    warren::wait_mesh(cluster, &World::NODES)?;
    cluster.wait_dns()?;
    world.topology = Some(Topology::deploy(&world.cluster, &World::NODES)?);
    streams.stop()?.require_no_loss(|_| true)?;
    traffic::run(world)
}

fn wait_pods_restarted(cluster: &Cluster, node: &str) -> Result<()> {
    let number = node.trim_start_matches("node");
    cluster
        .wait("pods after the reboot", PATIENCE, || {
            let pod = cluster.get(&["pod", "-n", NAMESPACE, &format!("pod-{number}")])?;
            let statuses = pod["status"]["containerStatuses"].as_array().cloned();
            let mut counts = statuses
                .into_iter()
                .flatten()
                .map(|s| s["restartCount"].as_u64());
            Ok(counts.all(|count| count.is_some_and(|count| count > 0)))
        })
        .map(drop)
}

fn two_nodes(world: &World) -> Result<Topology> {
    let mut topology = traffic::topology(world)?.clone();
    topology.members.truncate(2);
    Ok(topology)
}

/// A machine is added to the cluster under traffic of the others.
pub(super) fn fourth_joins(world: &mut World) -> Result<()> {
    let streams = Streams::start(traffic::topology(world)?)?;
    let index = world.cluster.add_machine()?;
    let tap = world.cluster.nodes[index].link.tap();
    world.capture(&[tap])?;
    warren::import_images(&world.cluster.nodes[index])?;
    let proxy = ProxySettings {
        mode: ProxyMode::Nftables,
        knows_cluster_cidr: true,
    };
    world.cluster.register(index, proxy)?;
    whole_with_four(world)?;
    streams.stop()?.require_no_loss(|_| true)
}

fn whole_with_four(world: &mut World) -> Result<()> {
    let cluster = &world.cluster;
    cluster.wait_nodes_ready(&FOUR, true)?;
    warren::wait_rollout(cluster, Daemon::Agent)?;
    warren::wait_mesh(cluster, &FOUR)?;
    cluster.wait_proxy("node4")?;
    let topology = Topology::deploy(cluster, &FOUR)?;
    let network = matrix::Network {
        is_warren: true,
        outside: cluster.outside_addresses(),
    };
    let count = matrix::run(cluster, &topology, &network)?;
    println!("{count} ways");
    Ok(())
}

/// Node 4 is drained and deleted, and is no peer any more; then its kubelet registers it again.
pub(super) fn leaves_and_returns(world: &mut World) -> Result<()> {
    let streams = Streams::start(traffic::topology(world)?)?;
    let cluster = &mut world.cluster;
    ensure!(cluster.nodes.len() == 4, "there is no fourth node");
    cluster.kubectl(&[
        "drain",
        "node4",
        "--ignore-daemonsets",
        "--force",
        "--delete-emptydir-data",
        "--timeout=120s",
    ])?;
    cluster.node_mut("node4").stop_kubelet();
    cluster.kubectl(&["delete", "node", "node4"])?;
    warren::wait_mesh(cluster, &World::NODES)?;
    cluster.node_mut("node4").start_kubelet()?;
    whole_with_four(world)?;
    streams.stop()?.require_no_loss(|_| true)
}
