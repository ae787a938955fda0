//! The underlay, captured all the time.

use anyhow::{Result, ensure};
use warren_lab::{Allow, ClearTextRules, Tap};

use super::World;
use super::matrix::ports_in_clear;
use super::topology::Member;
use crate::cluster::PATIENCE;
use crate::probe::{Check, Kind, MARKER, PORT};
use crate::settings::CLUSTER_CIDRS;
use crate::warren::{self, Daemon};

/// The least number of WireGuard packets that the scenarios together cause on each link.
const LEAST_PACKETS: u64 = 500;

impl World {
    /// Captures on these taps too.
    ///
    /// # Errors
    /// Those of the lab.
    pub fn capture(&mut self, taps: &[Tap]) -> Result<()> {
        self.captures
            .push(self.cluster.lab.capture(taps, rules()?)?);
        Ok(())
    }
}

fn rules() -> Result<ClearTextRules> {
    // The API server, kubelets, and what the test itself sends in clear, as any node does.
    // 53, 80, 443: a question or a SYN to a Service whose rules kube-proxy is just changing takes the way to
    // the outside, a pod's or, to the webhook, the API server's. It has no pod's address any more, and no
    // marker yet.
    let ports = [53, 80, 443, 6443, 10250]
        .into_iter()
        .chain(ports_in_clear());
    let both = |port| [Allow::Tcp(port), Allow::Udp(port)];
    let pod_ranges: Result<_, _> = CLUSTER_CIDRS.iter().map(|cidr| cidr.parse()).collect();
    Ok(ClearTextRules {
        pod_ranges: pod_ranges?,
        marker: MARKER.into(),
        wireguard_ports: vec![warren::PORT],
        allow: Allow::usual()
            .into_iter()
            .chain(ports.flat_map(both))
            .collect(),
    })
}

/// Ends the captures and looks at what they have seen.
pub(super) fn is_clean(world: &mut World) -> Result<()> {
    for capture in world.captures.drain(..) {
        let report = capture.stop();
        println!("{report}");
        report.check()?;
        for link in report.per_link() {
            let seen = link.wireguard_total().frames;
            ensure!(
                seen >= LEAST_PACKETS,
                "{}: {seen} WireGuard packets cannot be all of the traffic",
                link.link
            );
        }
    }
    Ok(())
}

/// With the agent and the filter gone and a way in clear, the same check fails.
pub(super) fn check_can_fail(world: &mut World) -> Result<()> {
    let topology = super::traffic::topology(world)?.clone();
    let (from, to) = (&topology.members[0], &topology.members[1]);
    let capture = {
        let tap = world.cluster.node(&from.node).link.tap();
        world.cluster.lab.capture(&[tap], rules()?)?
    };
    // Nobody starts the agent again, and nothing is repaired.
    world.cluster.node_mut(&from.node).stop_kubelet();
    let sent = leak(world, from, to);
    world.cluster.node_mut(&from.node).start_kubelet()?;
    sent?;
    let report = capture.stop();
    ensure!(
        report.check().is_err(),
        "the check is content with a pod's packets in clear:\n{report}"
    );
    ensure!(
        report.clear_text().frames > 0,
        "clear text was not recognised as such:\n{report}"
    );
    world.cluster.wait_nodes_ready(&World::NODES, true)?;
    warren::wait_rollout(&world.cluster, Daemon::Agent)
}

fn leak(world: &World, from: &Member, to: &Member) -> Result<()> {
    let node = world.cluster.node(&from.node);
    let target = to.pod_addresses[0];
    warren::crash(node, Daemon::Agent)?;
    world.cluster.wait("the agent's end", PATIENCE, || {
        Ok(warren::pids(node, Daemon::Agent)?.is_empty())
    })?;
    node.host.sh(&format!(
        "nft delete table inet warren
         ip rule add to {target} lookup 99 priority 10
         ip route add {target} via {} table 99",
        to.node_addresses[0]
    ))?;
    let check = Check {
        id: String::new(),
        kind: Kind::Udp,
        to: format!("{target}:{PORT}"),
        times: 1,
        secret: true,
    };
    // Whether it is answered is not the question: the other node refuses it.
    let asked = from.in_pod.check(&[check]);
    node.host
        .sh("ip rule del priority 10; ip route flush table 99")?;
    asked.map(drop)
}
