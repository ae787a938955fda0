//! The harness itself, with a network that is not ours: the reference `ptp` plugin on one node.
//!
//! ```text
//!   node1: control plane, containerd, kubelet, kube-proxy; pods by ptp        outside
//!   192.0.2.1 ------------------------------ lan ---------------------- 192.0.2.254
//! ```

use std::fs;

use anyhow::{Result, ensure};
use warren_cluster::Cluster;
use warren_cluster::cluster::PATIENCE;
use warren_cluster::places::skip_reason;
use warren_cluster::scenarios::matrix::{self, Network};
use warren_cluster::scenarios::topology::{NAMESPACE, Topology};

#[test]
fn a_cluster_of_one_node_with_the_reference_plugin_carries_all_sorts_of_traffic() -> Result<()> {
    if let Some(reason) = skip_reason() {
        assert!(std::env::var_os("CI").is_none(), "skipped in CI: {reason}");
        eprintln!("skipped: {reason}");
        return Ok(());
    }
    let mut cluster = Cluster::start("ptp", 1)?;
    cluster.register_all()?;
    cluster.wait_nodes_ready(&["node1"], false)?;
    let node = cluster.node("node1");
    node.install_plugins(&["ptp", "host-local"])?;
    let mut cidrs = Vec::new();
    cluster.wait("podCIDRs", PATIENCE, || {
        let object = cluster.get(&["node", "node1"])?;
        let found = object["spec"]["podCIDRs"].as_array().cloned();
        cidrs = found
            .into_iter()
            .flatten()
            .filter_map(|c| c.as_str().map(str::to_owned))
            .collect();
        Ok(cidrs.len() == 2)
    })?;
    let conflist = node.path("/etc/cni/net.d/10-ptp.conflist");
    fs::write(&conflist, warren_cluster::settings::ptp(&cidrs).to_string())?;
    cluster.wait_nodes_ready(&["node1"], true)?;
    cluster.deploy_dns()?;
    let outside = cluster.start_outside_probe()?;
    let topology = Topology::deploy(&cluster, &["node1"])?;
    cluster.wait_dns()?;
    let network = Network {
        is_warren: false,
        outside: cluster.outside_addresses(),
    };
    let count = matrix::run(&cluster, &topology, &network)?;
    eprintln!("{count} ways");
    drop(outside);

    let hello = cluster.kubectl(&[
        "exec", "-n", NAMESPACE, "pod-1", "-c", "shell", "--", "echo", "hello",
    ])?;
    ensure!(hello.trim() == "hello", "{hello:?}");
    let log = cluster.kubectl(&["logs", "-n", NAMESPACE, "pod-1", "-c", "shell"])?;
    ensure!(log.contains("started"), "{log:?}");
    Ok(())
}
