//! One agent and one tunnel for a node.
#![allow(clippy::unwrap_used)] // in a test, a failed unwrap is the report

use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use warren_e2e::Mesh;
use warren_lab::{Proc, bin, poll_until, require};

const LIMIT: Duration = Duration::from_secs(60);

fn refused(second: &Proc, parts: &[&str]) -> Result<()> {
    let status = second.wait_timeout(LIMIT)?;
    let log = second.log();
    assert!(!status.success(), "{log}");
    for part in parts {
        assert!(log.contains(part), "no `{part}` in {log}");
    }
    Ok(())
}

/// Topology: node1 alone. The second ones have every path, and the agent even the interface, of
/// their own.
#[test]
fn a_second_daemon_with_other_paths_is_refused_and_the_first_is_named() -> Result<()> {
    require!();
    let mut mesh = Mesh::start("single", 1)?;
    let node = mesh.node(1);
    let elsewhere = node.host.dir().join("elsewhere");
    let pid_in = |file: &str| -> Result<String> {
        let text = node.host.sh(&format!("cat /run/warren/{file}"))?.stdout;
        Ok(format!("pid {},", text.trim()))
    };
    let (tunnel_pid, agent_pid) = (pid_in("warren0.lock")?, pid_in("agent.lock")?);
    let mut tunnel = Command::new(bin("warren-tunnel")?);
    let mut agent = Command::new(bin("warren-agent")?);
    for command in [&mut tunnel, &mut agent] {
        for name in ["state", "run", "uapi"] {
            command
                .arg(format!("--{name}-dir"))
                .arg(elsewhere.join(name));
        }
    }
    tunnel.args(["--listen-port", "0"]);
    agent
        .args(["--node-name", "node1", "--interface", "warren7"])
        .args(["--http-listen", "off", "--cni-conf-dir", ""])
        .args([
            "--cluster-cidrs",
            "10.244.0.0/16",
            "--pod-cidrs",
            "10.244.1.0/24",
        ])
        .arg("--registry-dir")
        .arg(mesh.registry());
    let words = ["already running", "/run/warren/warren0.lock", &tunnel_pid];
    refused(&node.host.spawn(&mut tunnel)?, &words)?;
    let words = [
        "another warren-agent runs",
        "/run/warren/agent.lock",
        &agent_pid,
    ];
    refused(&node.host.spawn(&mut agent)?, &words)?;
    // And with the very same paths.
    let (first_tunnel, first_agent) = {
        let node = mesh.node_mut(1);
        let first = (node.tunnel.take().unwrap(), node.agent.take().unwrap());
        node.start()?;
        first
    };
    let node = mesh.node_mut(1);
    refused(
        &node.tunnel.take().unwrap(),
        &["already running", "/run/warren/warren0.lock", &tunnel_pid],
    )?;
    refused(
        &node.agent.take().unwrap(),
        &[
            "another warren-agent runs",
            "/run/warren/agent.lock",
            &agent_pid,
        ],
    )?;
    assert!(first_tunnel.is_running() && first_agent.is_running());
    assert_eq!(node.status()?["protected"], true);
    // What a dead one leaves is in nobody's way: killed, and started in the next moment.
    first_agent.kill();
    first_tunnel.kill();
    let node = mesh.node_mut(1);
    node.start()?;
    poll_until(LIMIT, "the second life", || {
        mesh.node(1)
            .status()
            .is_ok_and(|status| status["tunnel"]["ok"] == true)
    })?;
    Ok(())
}
