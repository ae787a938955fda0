//! Updates of the two DaemonSets under traffic.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::streams::Streams;
use super::{World, traffic};
use crate::cluster::PATIENCE;
use crate::warren::{self, Daemon};

/// The longest that a node's traffic may be interrupted when its tunnel's pod is replaced: the pod's own end
/// and start on a busy machine are nearly all of it.
const TUNNEL_GAP_LIMIT_SECONDS: f64 = 60.0;
/// How long traffic goes on after a change.
const AFTER: Duration = Duration::from_secs(3);

/// A rolling update replaces all agents; then each one's pod is deleted.
pub(super) fn agents(world: &mut World) -> Result<()> {
    let cluster = &world.cluster;
    let streams = Streams::start(traffic::topology(world)?)?;
    let before = warren::pods(cluster, Daemon::Agent)?;
    warren::upgrade(cluster, &["agent.podAnnotations.update=first"])?;
    warren::wait_rollout(cluster, Daemon::Agent)?;
    let after = warren::pods(cluster, Daemon::Agent)?;
    for (node, pod) in &before {
        let uid = |pod: &serde_json::Value| pod["metadata"]["uid"].clone();
        ensure!(
            after.get(node).map(uid) != Some(uid(pod)),
            "the agent of {node} is the old one"
        );
    }
    for node in World::NODES {
        let pod = warren::pod_name(cluster, Daemon::Agent, node)?;
        cluster.kubectl(&["delete", "pod", "-n", warren::NAMESPACE, &pod])?;
    }
    warren::wait_rollout(cluster, Daemon::Agent)?;
    std::thread::sleep(AFTER);
    streams.stop()?.require_no_loss(|_| true)
}

/// A changed template replaces no tunnel; a deleted pod does, and only its own node's traffic waits.
pub(super) fn tunnel(world: &mut World) -> Result<()> {
    let cluster = &world.cluster;
    let replaced = "node2";
    let before = warren::pod_name(cluster, Daemon::Tunnel, replaced)?;
    warren::upgrade(
        cluster,
        &[
            "agent.podAnnotations.update=first",
            "tunnel.podAnnotations.update=first",
        ],
    )?;
    warren::wait_rollout(cluster, Daemon::Agent)?;
    let streams = Streams::start(traffic::topology(world)?)?;
    ensure!(
        warren::pod_name(cluster, Daemon::Tunnel, replaced)? == before,
        "a change of the template has replaced a tunnel"
    );
    cluster.kubectl(&["delete", "pod", "-n", warren::NAMESPACE, &before])?;
    cluster.wait("another tunnel", PATIENCE, || {
        Ok(warren::pod_name(cluster, Daemon::Tunnel, replaced)? != before)
    })?;
    warren::wait_rollout(cluster, Daemon::Tunnel)?;
    warren::wait_mesh(cluster, &World::NODES)?;
    std::thread::sleep(AFTER);
    let accounts = streams.stop()?;
    accounts.require_no_loss(|name| !name.contains(replaced))?;
    let (gap, lost) = accounts.worst();
    println!(
        "traffic with {replaced} paused for {gap:.1} s at most; {lost} datagrams of all its streams were lost"
    );
    ensure!(gap < TUNNEL_GAP_LIMIT_SECONDS, "a gap of {gap:.1} s");
    ensure!(
        lost > 0,
        "no datagram was lost: the tunnel cannot have been replaced under traffic"
    );
    traffic::run(world)
}
