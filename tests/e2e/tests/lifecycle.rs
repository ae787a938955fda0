//! What happens when nodes come and go and daemons die.
#![allow(clippy::unwrap_used)] // in a test, a failed unwrap is the report

use std::time::{Duration, Instant};

use anyhow::Result;
use warren_e2e::{
    Mesh, MeshPod, Node, Probe, ProbeResult, assert_captured, assert_check_can_fail, ping,
    wait_back,
};
use warren_lab::{Signal, poll_for, poll_until, require};

/// Long enough for a slow, shared machine; the times that users see are printed by the demo.
const LIMIT: Duration = Duration::from_secs(60);
const PROBE_INTERVAL: Duration = Duration::from_millis(20);
/// After the restart of a killed tunnel traffic is back within this time.
const BACK: Duration = Duration::from_secs(2);
/// How often each killing is done: a machine that stands still once shall not fail the test.
const ROUNDS: usize = 3;
/// How long a killed tunnel stays dead at least, and the gap that its probes must show at least: a
/// busy machine reads the last answer before it late.
const DEAD: Duration = Duration::from_millis(600);
const LEAST_GAP: Duration = Duration::from_millis(300);

/// How long agents are stopped: longer than any of their intervals, or WARREN_STOP_SECONDS.
fn stop_time() -> Duration {
    let seconds = std::env::var("WARREN_STOP_SECONDS").ok();
    Duration::from_secs(seconds.and_then(|text| text.parse().ok()).unwrap_or(12))
}

/// Traffic both ways, in one family each.
fn probes(a: &MeshPod, b: &MeshPod) -> Result<[Probe; 2]> {
    Ok([
        Probe::start(&a.pod, &b.pod, &b.v6, PROBE_INTERVAL)?,
        Probe::start(&b.pod, &a.pod, &a.v4, PROBE_INTERVAL)?,
    ])
}

fn stop(probes: [Probe; 2]) -> Result<[ProbeResult; 2]> {
    let [one, other] = probes.map(Probe::stop);
    Ok([one?, other?])
}

fn knows(node: &Node, name: &str) -> bool {
    let Ok(status) = node.status() else {
        return false;
    };
    status["peers"]
        .as_array()
        .is_some_and(|peers| peers.iter().any(|p| p["node"] == *name))
}

/// Topology: node1 and node2 on one subnet; node4 joins it.
#[test]
fn a_node_joins_and_leaves_without_a_word_to_the_others() -> Result<()> {
    require!();
    let mut mesh = Mesh::start("join", 2)?;
    let old = mesh.node(1).attach("old")?;
    mesh.add_node(4)?.start()?;
    mesh.wait_connected(LIMIT)?;
    let new = mesh.node(4).attach("new")?;
    wait_back(&old.pod, &new.addresses(), LIMIT)?;
    for address in new.addresses() {
        assert!(ping(&old.pod, address, 3)?.lossless());
    }
    // The node leaves: its daemons end and its record goes.
    let node = mesh.node_mut(4);
    node.agent.take().unwrap().kill();
    node.end_data_plane()?;
    std::fs::remove_file(mesh.registry().join("node4.json"))?;
    poll_until(LIMIT, "node1 to forget node4", || {
        !knows(mesh.node(1), "node4")
    })?;
    let capture = mesh.capture(&[])?;
    let seen = ping(&old.pod, &new.v4, 3)?;
    assert_eq!(seen.received, 0);
    capture.stop().assert_clean();
    // The status forgets a node before the kernel does.
    let mut left = String::new();
    let gone = poll_until(LIMIT, "its routes to be gone", || {
        let script = "ip route show; ip -6 route show; ip route show table 51871";
        let routes = mesh.node(1).host.sh(script);
        left = routes.map_or_else(|e| e.to_string(), |out| out.stdout);
        !left.contains("10.244.4.") && !left.contains("192.0.2.4")
    });
    assert!(gone.is_ok(), "{left}");
    Ok(())
}

/// Topology: node1 and node2 on one subnet, traffic between their pods all along. The agents are
/// stopped for 12 s, or WARREN_STOP_SECONDS (`make soak`: a minute).
#[test]
fn traffic_does_not_notice_an_agent_that_dies_stops_or_restarts() -> Result<()> {
    require!();
    let mut mesh = Mesh::start("agent", 2)?;
    let (a, b) = (mesh.node(1).attach("a")?, mesh.node(2).attach("b")?);
    let capture = mesh.capture(&[])?;
    let probes = probes(&a, &b)?;
    for number in [1, 2] {
        let node = mesh.node_mut(number);
        node.agent.take().unwrap().kill();
        std::thread::sleep(Duration::from_millis(500));
        node.start_agent()?;
        poll_until(LIMIT, "the agent to be back", || {
            mesh.node(number)
                .status()
                .is_ok_and(|s| s["synced"] == true)
        })?;
        let node = mesh.node_mut(number);
        let agent = node.agent.take().unwrap();
        agent.signal(Signal::SIGTERM);
        agent.wait_timeout(LIMIT)?;
        node.start_agent()?;
    }
    mesh.wait_connected(LIMIT)?;
    let signal = |signal| {
        let agents = mesh.nodes.iter().filter_map(|node| node.agent.as_ref());
        agents.for_each(|agent| agent.signal(signal));
    };
    signal(Signal::SIGSTOP);
    std::thread::sleep(stop_time());
    assert!(
        mesh.node(1).status().is_err(),
        "a stopped agent does not answer"
    );
    signal(Signal::SIGCONT);
    mesh.wait_connected(LIMIT)?;
    std::thread::sleep(Duration::from_secs(1));
    for seen in stop(probes)? {
        assert!(seen.sent > 500 && seen.lost() == 0, "{seen:?}");
    }
    assert_captured(capture, 500);
    assert_check_can_fail(&mesh)
}

/// What is killed before the tunnel is started again.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Killed {
    Tunnel,
    AgentThenTunnel,
    TunnelThenAgent,
}

/// Kills on node1 under traffic, starts the tunnel again and returns how long the traffic stood
/// beyond the time that the tunnel was not running.
fn outage(mesh: &mut Mesh, pods: [&MeshPod; 2], killed: Killed) -> Result<Duration> {
    let probes = probes(pods[0], pods[1])?;
    std::thread::sleep(Duration::from_millis(300));
    let node = mesh.node_mut(1);
    if killed == Killed::AgentThenTunnel {
        node.agent.take().unwrap().kill();
    }
    let dead = Instant::now();
    node.tunnel.take().unwrap().kill();
    if killed == Killed::TunnelThenAgent {
        node.agent.take().unwrap().kill();
        // The agent is back before the tunnel is.
        node.start_agent()?;
    }
    std::thread::sleep(DEAD);
    node.start_tunnel()?;
    let dead = dead.elapsed();
    // Without an agent for all of this time, where that one died first.
    std::thread::sleep(BACK + Duration::from_secs(1));
    let seen = stop(probes)?;
    for probe in &seen {
        assert!(
            probe.longest_gap >= LEAST_GAP,
            "a dead tunnel must not carry anything: {probe:?}"
        );
    }
    if mesh.node(1).agent.is_none() {
        mesh.node_mut(1).start_agent()?;
    }
    mesh.wait_connected(LIMIT)?;
    let gap = seen.map(|probe| probe.longest_gap).into_iter().max();
    Ok(gap.unwrap_or_default().saturating_sub(dead))
}

/// Topology: node1 and node2 on one subnet, traffic between their pods both ways. Each killing is
/// done three times, and the median counts.
#[test]
fn traffic_is_back_within_two_seconds_of_a_killed_tunnels_restart() -> Result<()> {
    require!();
    let mut mesh = Mesh::start("back", 2)?;
    let (a, b) = (mesh.node(1).attach("a")?, mesh.node(2).attach("b")?);
    let capture = mesh.capture(&[])?;
    for killed in [
        Killed::Tunnel,
        Killed::AgentThenTunnel,
        Killed::TunnelThenAgent,
    ] {
        let mut took = (0..ROUNDS)
            .map(|_| outage(&mut mesh, [&a, &b], killed))
            .collect::<Result<Vec<_>>>()?;
        took.sort();
        println!("{killed:?}: traffic was back after {took:?}");
        assert!(took[ROUNDS / 2] <= BACK, "{killed:?}: {took:?}");
    }
    assert_captured(capture, 1000);
    assert_check_can_fail(&mesh)
}

/// Topology: node1 and node2 on one subnet. Node2 loses power while node1's pod sends to a pod of
/// node2: its namespaces, processes and pods go, its disk stays.
#[test]
fn a_rebooted_node_is_protected_before_its_first_pod_and_has_its_key() -> Result<()> {
    require!();
    let mut mesh = Mesh::start("reboot", 2)?;
    let (a, b) = (mesh.node(1).attach("a")?, mesh.node(2).attach("b")?);
    poll_until(LIMIT, "traffic at the start", || {
        ping(&a.pod, &b.v6, 1).is_ok_and(|p| p.lossless())
    })?;
    let before = mesh.node(2).status()?["public_key"].clone();
    let conflist = mesh.node(2).read(&mesh.node(2).conflist_path())?;
    let capture = mesh.capture(&[])?;
    let probes = probes(&a, &b)?;
    std::thread::sleep(Duration::from_millis(500));
    let node = mesh.node_mut(2);
    (node.tunnel, node.agent) = (None, None);
    node.host.reboot()?;
    // As the files below /etc/sysctl.d of a node set it at boot.
    node.host
        .sh("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1")?;
    // The runtime may start pods at once, for the configuration of the last boot is there; the
    // plugin refuses them.
    assert_eq!(node.read(&node.conflist_path())?, conflist);
    let refused = |node: &Node, name: &str| {
        let refused = node.attach(name).unwrap_err().to_string();
        let refused = refused.replace(' ', "");
        assert!(refused.contains("\"code\":11"), "{refused}");
    };
    refused(node, "first");
    node.start_tunnel()?;
    std::thread::sleep(Duration::from_secs(1));
    refused(node, "second");
    node.start_agent()?;
    let mut answer = String::new();
    let pod = poll_for(LIMIT, "a pod to be accepted", || {
        let attached = mesh.node(2).attach("third");
        attached.map_err(|e| answer = e.to_string()).ok()
    });
    let pod = pod.inspect_err(|_| eprintln!("{answer}"))?;
    let protected = mesh.node(2).host.sh(
        "nft list table inet warren | grep -cE 'warren:(in|e)gress-(src|dst)-v[46]'
         ip route show proto 151 | grep -c 'unreachable 10.244.0.0/16'
         ip -6 route show proto 151 | grep -c 'unreachable fd00:244::/48'",
    )?;
    assert_eq!(
        protected.stdout.split_whitespace().collect::<Vec<_>>(),
        ["8", "1", "1"]
    );
    mesh.wait_connected(LIMIT)?;
    assert_eq!(mesh.node(2).status()?["public_key"], before);
    assert_eq!(
        mesh.node(1).peer_status(mesh.node(2))?["public_key"],
        before
    );
    for (from, to) in [(&a, &pod.v4), (&pod, &a.v4), (&a, &pod.v6), (&pod, &a.v6)] {
        poll_until(LIMIT, "traffic after the reboot", || {
            ping(&from.pod, to, 1).is_ok_and(|p| p.lossless())
        })?;
    }
    // One of each went with the node.
    drop(probes);
    assert_captured(capture, 50);
    assert_check_can_fail(&mesh)
}

/// Topology: node1 and node2 on one subnet. The tunnel of node1 dies; its agent may be dead too.
#[test]
fn traffic_is_back_after_daemons_are_killed_in_each_order() -> Result<()> {
    require!();
    let mut mesh = Mesh::start("order", 2)?;
    let (a, b) = (mesh.node(1).attach("a")?, mesh.node(2).attach("b")?);
    let capture = mesh.capture(&[])?;
    let back = |what: &str| -> Result<()> {
        // Either side may be the first to speak.
        for (from, to) in [(&a, &b.v4), (&b, &a.v6)] {
            poll_until(LIMIT, what, || {
                ping(&from.pod, to, 1).is_ok_and(|p| p.lossless())
            })?;
        }
        Ok(())
    };
    let dead = || -> Result<()> {
        assert_eq!(
            ping(&a.pod, &b.v4, 2)?.received,
            0,
            "a dead tunnel must not carry anything"
        );
        Ok(())
    };
    back("traffic at the start")?;

    let kill = |node: &mut Node, tunnel: bool| {
        let process = if tunnel {
            &mut node.tunnel
        } else {
            &mut node.agent
        };
        process.take().unwrap().kill();
    };
    // The tunnel alone, restarted while the agent lives.
    kill(mesh.node_mut(1), true);
    dead()?;
    mesh.node_mut(1).start_tunnel()?;
    back("traffic after the tunnel's restart")?;
    // Agent first, then the tunnel; the tunnel comes back without any agent.
    kill(mesh.node_mut(1), false);
    kill(mesh.node_mut(1), true);
    dead()?;
    mesh.node_mut(1).start_tunnel()?;
    back("traffic after the tunnel's restart without an agent")?;
    mesh.node_mut(1).start_agent()?;
    mesh.wait_connected(LIMIT)?;
    // Tunnel first, then the agent; the agent comes back first.
    kill(mesh.node_mut(1), true);
    kill(mesh.node_mut(1), false);
    dead()?;
    mesh.node_mut(1).start_agent()?;
    dead()?;
    mesh.node_mut(1).start_tunnel()?;
    back("traffic after both restarted, agent first")?;
    mesh.wait_connected(LIMIT)?;
    capture.stop().assert_clean();
    Ok(())
}

#[test]
fn a_second_tunnel_or_agent_for_one_node_refuses() -> Result<()> {
    require!();
    let mut mesh = Mesh::start("second", 1)?;
    let node = mesh.node_mut(1);
    let (tunnel, agent) = (node.tunnel.take().unwrap(), node.agent.take().unwrap());
    node.start_tunnel()?;
    node.start_agent()?;
    let refusals = [
        (node.tunnel.take().unwrap(), "already running"),
        (node.agent.take().unwrap(), "another warren-agent runs"),
    ];
    for (second, message) in refusals {
        let status = second.wait_timeout(LIMIT)?;
        assert!(!status.success());
        assert!(second.log().contains(message), "{}", second.log());
    }
    assert!(tunnel.is_running() && agent.is_running());
    assert_eq!(node.status()?["protected"], true);
    Ok(())
}
