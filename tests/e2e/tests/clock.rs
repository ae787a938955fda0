//! What happens when a node's wall clock is set.
//!
//! The clock is that of all of one node's programs, as they ship; [`WallClock`] says how, and each
//! step checks that they go by it: the tunnel tells handshakes in it, and the agent their ages.
//! The protocol's side of it, with every clock driven, is in tests/clock.
#![allow(clippy::unwrap_used)] // in a test, a failed unwrap is the report

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Result;
use warren_e2e::{
    Mesh, MeshPod, Probe, WallClock, assert_captured, assert_check_can_fail, wait_back, wait_well,
};
use warren_lab::require;

/// Traffic is back within this time, whatever the clock says: a start, a retry of the handshake (5 s),
/// and slack for a shared machine.
const BACK: Duration = Duration::from_secs(30);
const LIMIT: Duration = Duration::from_secs(60);
const PROBE_INTERVAL: Duration = Duration::from_millis(20);
const HOUR: i64 = 3_600;
const TEN_YEARS: i64 = 315_576_000;
/// Nothing here takes as long, and each step of the clock is larger.
const SLACK_SECONDS: i64 = 180;

/// Node1's status goes by its clock, calls nobody stale, and its handshakes are of this era.
fn assert_status(mesh: &Mesh, offset: i64) -> Result<()> {
    // An agent that was just started has to hear of its registry first.
    wait_well(mesh.node(1), LIMIT)?;
    let status = mesh.node(1).status()?;
    let peer = mesh.node(1).peer_status(mesh.node(2))?;
    assert_eq!(peer["state"], "up", "{peer}");
    assert_eq!(status["state"], "ok", "{status}");
    let age = peer["handshake_age_seconds"].as_i64().unwrap();
    assert!((0..SLACK_SECONDS).contains(&age), "{peer}");
    let machine = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs() as i64;
    let expected = machine + offset;
    let handshake = peer["latest_handshake"].as_i64().unwrap();
    assert!(
        (expected - SLACK_SECONDS..=expected + 1).contains(&handshake),
        "{peer} with a clock at {expected}"
    );
    // What people see of the same.
    let (code, page) = mesh.node(1).warren(&["status"])?;
    assert_eq!(code, 0, "{page}");
    Ok(())
}

/// Sets node1's clock to each of the offsets under traffic: while the daemons run, then across a
/// restart of its tunnel and agent, and of the other node's tunnel, which must take node1's stamps.
fn set_clock(mesh: &mut Mesh, clock: &WallClock, offsets: &[i64]) -> Result<()> {
    let (a, b) = (mesh.node(1).attach("a")?, mesh.node(2).attach("b")?);
    let both = |pods: (&MeshPod, &MeshPod)| -> Result<Duration> {
        let start = Instant::now();
        wait_back(&pods.0.pod, &[&pods.1.v4, &pods.1.v6], BACK)?;
        wait_back(&pods.1.pod, &[&pods.0.v4, &pods.0.v6], BACK)?;
        Ok(start.elapsed())
    };
    both((&a, &b))?;
    let capture = mesh.capture(&[])?;
    for &offset in offsets {
        let probe = Probe::start(&a.pod, &b.pod, &b.v6, PROBE_INTERVAL)?;
        std::thread::sleep(Duration::from_millis(500));
        clock.set(offset)?;
        std::thread::sleep(Duration::from_secs(1));
        let seen = probe.stop()?;
        assert!(
            seen.sent > 50 && seen.lost() == 0,
            "setting the clock to {offset} s lost packets: {seen:?}"
        );
        assert_status(mesh, offset)?;

        let probe = Probe::start(&b.pod, &a.pod, &a.v4, PROBE_INTERVAL)?;
        let node = mesh.node_mut(1);
        node.tunnel.take().unwrap().kill();
        node.agent.take().unwrap().kill();
        node.start()?;
        let own = both((&a, &b))?;
        mesh.wait_connected(LIMIT)?;
        assert_status(mesh, offset)?;
        let node = mesh.node_mut(2);
        node.tunnel.take().unwrap().kill();
        node.start_tunnel()?;
        let other = both((&a, &b))?;
        mesh.wait_connected(LIMIT)?;
        assert_status(mesh, offset)?;
        assert!(probe.stop()?.received > 0);
        println!("at {offset} s traffic was back after {own:?}, and after {other:?}");
    }
    assert_captured(capture, 500);
    assert_check_can_fail(mesh)
}

/// Topology: node1 and node2 on one subnet; node1 goes by another wall clock.
fn mesh_with_clock(name: &str) -> Result<(Mesh, WallClock)> {
    let mut mesh = Mesh::underlay(name)?;
    let clock = WallClock::new(mesh.lab.dir())?;
    let node = mesh.add_node(1)?;
    node.env = clock.env();
    node.start()?;
    mesh.add_node(2)?.start()?;
    mesh.wait_connected(LIMIT)?;
    Ok((mesh, clock))
}

#[test]
fn a_clock_set_one_hour_forward_and_back_cuts_nobody_off() -> Result<()> {
    require!();
    let (mut mesh, clock) = mesh_with_clock("hour")?;
    set_clock(&mut mesh, &clock, &[HOUR, 0, -HOUR, 0])
}

#[test]
fn a_clock_set_ten_years_forward_and_back_cuts_nobody_off() -> Result<()> {
    require!();
    let (mut mesh, clock) = mesh_with_clock("decade")?;
    set_clock(&mut mesh, &clock, &[TEN_YEARS, 0, -TEN_YEARS, 0])
}
