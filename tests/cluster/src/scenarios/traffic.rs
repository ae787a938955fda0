//! All sorts of traffic, with kube-proxy in its modes.

use anyhow::{Context, Result};

use super::World;
use super::matrix::{self, Network};
use super::topology::Topology;
use crate::settings::{ProxyMode, ProxySettings};

pub(super) fn topology(world: &World) -> Result<&Topology> {
    world.topology.as_ref().context("no probes yet")
}

/// Makes the probes of the three nodes.
pub(super) fn deploy(world: &mut World) -> Result<()> {
    world.outside = Some(world.cluster.start_outside_probe()?);
    world.topology = Some(Topology::deploy(&world.cluster, &World::NODES)?);
    Ok(())
}

/// As the nodes came up: iptables, nftables, iptables, each kube-proxy knowing the cluster's ranges.
pub(super) fn with_cluster_cidr(world: &mut World) -> Result<()> {
    run(world)
}

/// The other mode on each node, none of them knowing which addresses are pods'.
pub(super) fn without_cluster_cidr(world: &mut World) -> Result<()> {
    set_proxies(world, [ProxyMode::Nftables, ProxyMode::Iptables], false)?;
    run(world)?;
    set_proxies(world, [ProxyMode::Iptables, ProxyMode::Nftables], true)
}

fn set_proxies(world: &mut World, modes: [ProxyMode; 2], knows_cluster_cidr: bool) -> Result<()> {
    for index in 0..World::NODES.len() {
        let mode = modes[index % 2];
        let settings = ProxySettings {
            mode,
            knows_cluster_cidr,
        };
        world.cluster.nodes[index].start_proxy(settings)?;
    }
    for name in World::NODES {
        world.cluster.wait_proxy(name)?;
    }
    Ok(())
}

/// The matrix over the nodes that are there from the start.
pub(super) fn run(world: &World) -> Result<()> {
    let network = Network {
        is_warren: true,
        outside: world.cluster.outside_addresses(),
    };
    let count = matrix::run(&world.cluster, topology(world)?, &network)?;
    println!("{count} ways");
    Ok(())
}
