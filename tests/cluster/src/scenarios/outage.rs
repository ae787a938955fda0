//! The API server away.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::streams::Streams;
use super::{World, traffic};
use crate::warren::{self, Daemon};

/// How long it is away, unless `WARREN_OUTAGE_SECONDS` says otherwise.
const OUTAGE_SECONDS: u64 = 60;

/// Nothing answers at the API server's address; each agent crashes meanwhile, and is started by its kubelet.
pub(super) fn api_server_away(world: &mut World) -> Result<()> {
    let seconds = match std::env::var("WARREN_OUTAGE_SECONDS") {
        Ok(text) => text
            .parse()
            .with_context(|| format!("WARREN_OUTAGE_SECONDS={text}: seconds are wanted"))?,
        Err(_) => OUTAGE_SECONDS,
    };
    let streams = Streams::start(traffic::topology(world)?)?;
    let end = Instant::now() + Duration::from_secs(seconds);
    world.cluster.plane.stop_apiserver();
    let restarted = crash_agents(world, end);
    // Whatever has happened: what follows needs the API server.
    std::thread::sleep(end.saturating_duration_since(Instant::now()));
    world.cluster.plane.resume()?;
    restarted?;
    let cluster = &world.cluster;
    cluster.wait_nodes_ready(&World::NODES, true)?;
    warren::wait_rollout(cluster, Daemon::Agent)?;
    warren::wait_mesh(cluster, &World::NODES)?;
    streams.stop()?.require_no_loss(|_| true)
}

fn crash_agents(world: &World, end: Instant) -> Result<()> {
    for name in World::NODES {
        let node = world.cluster.node(name);
        let before = warren::pids(node, Daemon::Agent)?;
        warren::crash(node, Daemon::Agent)?;
        let left = end.saturating_duration_since(Instant::now());
        world
            .cluster
            .wait(&format!("another agent on {name}"), left, || {
                let now = warren::pids(node, Daemon::Agent)?;
                Ok(!now.is_empty() && now != before)
            })?;
    }
    ensure!(
        Instant::now() < end,
        "the agents came back only with the API server"
    );
    Ok(())
}
