//! What must pass, one file each, on one cluster in this order.
//!
//! A scenario leaves the cluster as it found it: all nodes Ready, the mesh whole, no stream going. The
//! `needed` ones run whatever is asked for, for the others stand on them.

mod access;
mod expected;
mod install;
pub mod matrix;
mod nodes;
mod outage;
mod streams;
pub mod topology;
mod traffic;
mod underlay;
mod uninstall;
mod updates;

use anyhow::Result;
use warren_lab::{Capture, Proc};

use crate::cluster::Cluster;
use topology::Topology;

/// What the scenarios share.
pub struct World {
    /// The captures of all underlay links, from before the first pod on.
    pub captures: Vec<Capture>,
    /// The probes and Services, once they are there.
    pub topology: Option<Topology>,
    /// The probe outside of the cluster.
    pub outside: Option<Proc>,
    /// The cluster.
    pub cluster: Cluster,
}

impl World {
    /// The names of the nodes that are in the cluster from the start.
    pub const NODES: [&'static str; 3] = ["node1", "node2", "node3"];

    /// Starts a cluster of three machines, none of them registered, with all underlay links captured.
    ///
    /// # Errors
    /// What does not come up.
    pub fn start() -> Result<Self> {
        let cluster = Cluster::start("warren", 3)?;
        let mut world = Self {
            captures: Vec::new(),
            topology: None,
            outside: None,
            cluster,
        };
        let links: Vec<_> = world
            .cluster
            .nodes
            .iter()
            .map(|node| node.link.tap())
            .collect();
        world.capture(&links)?;
        Ok(world)
    }
}

/// Something that must be so.
pub struct Scenario {
    /// What it says of Warren's behaviour.
    pub name: &'static str,
    /// Whether the others stand on it.
    pub needed: bool,
    /// Finds out whether it is so.
    pub run: fn(&mut World) -> Result<()>,
}

const fn scenario(name: &'static str, run: fn(&mut World) -> Result<()>) -> Scenario {
    Scenario {
        name,
        needed: false,
        run,
    }
}

const fn needed(name: &'static str, run: fn(&mut World) -> Result<()>) -> Scenario {
    Scenario {
        name,
        needed: true,
        run,
    }
}

/// All of them, in their order.
pub const SCENARIOS: &[Scenario] = &[
    needed(
        "nodes_become_ready_once_the_daemon_sets_run_and_not_before",
        install::nodes_become_ready,
    ),
    scenario(
        "each_nodes_key_is_on_its_node_and_all_agents_agree_on_the_mesh",
        install::keys_and_status_agree,
    ),
    scenario(
        "kubectl_warren_status_says_what_nodes_and_agents_say",
        install::kubectl_warren_agrees,
    ),
    needed("probes_and_services_come_up", traffic::deploy),
    scenario(
        "all_sorts_of_traffic_pass_between_all_pairs_of_nodes_in_both_families",
        traffic::with_cluster_cidr,
    ),
    scenario(
        "all_sorts_of_traffic_pass_with_the_other_proxy_modes_and_without_a_cluster_cidr",
        traffic::without_cluster_cidr,
    ),
    scenario(
        "logs_exec_port_forward_and_the_api_servers_proxy_reach_pods_of_all_nodes",
        access::kubectl_reaches_pods,
    ),
    scenario(
        "kubelets_probe_their_pods_and_a_pod_that_is_not_ready_gets_no_traffic",
        access::probes_are_heard,
    ),
    scenario(
        "a_webhook_in_a_pod_of_another_node_than_the_api_servers_is_asked",
        access::webhook_is_asked,
    ),
    scenario(
        "no_packet_is_lost_while_agents_are_updated_and_their_pods_deleted",
        updates::agents,
    ),
    scenario(
        "a_tunnel_pod_that_is_replaced_interrupts_its_nodes_traffic_for_seconds_and_nothing_else",
        updates::tunnel,
    ),
    scenario(
        "nothing_is_lost_while_the_api_server_is_away_and_agents_crash",
        outage::api_server_away,
    ),
    scenario(
        "no_packet_is_lost_while_containerd_and_the_kubelet_of_a_node_restart",
        nodes::containerd_and_kubelet_restart,
    ),
    scenario("a_node_that_reboots_is_in_the_mesh_again", nodes::reboot),
    scenario(
        "a_fourth_node_joins_and_disturbs_nobody",
        nodes::fourth_joins,
    ),
    scenario(
        "a_node_that_is_drained_and_deleted_leaves_the_mesh_and_returns_under_its_name",
        nodes::leaves_and_returns,
    ),
    scenario(
        "nothing_of_the_pods_was_in_clear_on_the_underlay",
        underlay::is_clean,
    ),
    scenario(
        "the_clear_text_check_sees_what_leaks_once_protection_is_gone",
        underlay::check_can_fail,
    ),
    scenario(
        "helm_uninstall_leaves_no_trace_on_any_node",
        uninstall::leaves_no_trace,
    ),
];
