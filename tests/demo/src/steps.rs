//! What the demo shows, step by step.

use std::net::SocketAddr;
use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use warren_e2e::{MARKER, Mesh, MeshPod, transfer};
use warren_lab::{Family, Report, bin, poll_for, poll_until};

use crate::clean::Machine;
use crate::matrix;

const TRANSFER_BYTES: u64 = 100 * 1000 * 1000;
const LIMIT: Duration = Duration::from_secs(60);

fn step(number: u8, what: &str) {
    println!("\n[{number}/7] {what}");
}

/// Runs the demo; with `keep` it leaves the mesh up at the end.
pub(crate) fn run(keep: bool) -> Result<()> {
    let before = Machine::look()?;
    step(
        1,
        "three nodes on two subnets: node1 (IPv4 only), node2, and node3 behind a router",
    );
    let mut mesh = Mesh::underlay("demo")?;
    for number in 1..=3 {
        let node = mesh.add_node(number)?;
        println!("  {}: {}", node.name(), node.addresses.join(", "));
    }

    step(
        2,
        "warren-tunnel and warren-agent on each, one shared directory as the registry",
    );
    for node in &mut mesh.nodes {
        node.start()?;
    }
    let took = mesh.wait_connected(LIMIT)?;
    println!(
        "  every node has a session with every other after {:.2} s",
        took.as_secs_f64()
    );
    for (a, b, ipv6) in [(1, 2, false), (1, 3, false), (2, 3, true)] {
        assert_outer_family(&mesh, a, b, ipv6)?;
    }

    step(
        3,
        "two pods a node, attached by warren-cni as a container runtime would",
    );
    let mut pods = Vec::new();
    for node in &mesh.nodes {
        for name in ["a", "b"] {
            let pod = node.attach(name)?;
            println!("  {}: {}, {}", pod.name, pod.v4, pod.v6);
            pods.push(pod);
        }
    }
    show_localhost(&pods[0])?;

    step(4, "every pod to every pod");
    matrix::show(&pods, false)?;
    matrix::show(&pods, true)?;

    step(
        5,
        "100 MB over TCP between nodes, every underlay link captured",
    );
    show_transfers(&mesh, &pods)?;
    show_positive_control(&mut mesh, &pods)?;

    step(6, "what people see: node1, and a fourth node that joins");
    show_status(&mesh)?;
    show_join(&mut mesh, &pods[0])?;

    step(
        7,
        if keep {
            "left up, as asked"
        } else {
            "a clean end"
        },
    );
    if keep {
        return leave_up(mesh, &pods);
    }
    let directory = mesh.lab.dir().to_owned();
    drop(pods);
    drop(mesh);
    before.check_nothing_left(&directory)?;
    println!("  nothing left behind: no interface, mount, process or file");
    Ok(())
}

fn assert_outer_family(mesh: &Mesh, a: u8, b: u8, ipv6: bool) -> Result<()> {
    let (a, b) = (mesh.node(a), mesh.node(b));
    for (from, to) in [(a, b), (b, a)] {
        let peer = from.peer_status(to)?;
        let endpoint: SocketAddr = peer["endpoint"].as_str().context("no endpoint")?.parse()?;
        ensure!(
            endpoint.is_ipv6() == ipv6,
            "{} sends to {} at {endpoint}",
            from.name(),
            to.name()
        );
    }
    println!(
        "  {} - {}: outer packets are {}",
        a.name(),
        b.name(),
        if ipv6 { "IPv6" } else { "IPv4" }
    );
    Ok(())
}

/// Two processes of one pod talk over localhost.
fn show_localhost(pod: &MeshPod) -> Result<()> {
    for localhost in ["127.0.0.1", "::1"] {
        let done = transfer(&pod.pod, &pod.pod, localhost, 1000)?;
        ensure!(
            done.seen_by_server.is_loopback(),
            "localhost is {}",
            done.seen_by_server
        );
    }
    println!(
        "  two processes in {} talk over 127.0.0.1 and ::1",
        pod.name
    );
    Ok(())
}

fn show_transfers(mesh: &Mesh, pods: &[MeshPod]) -> Result<()> {
    let capture = mesh.capture(&[])?;
    // node1 to node3 by IPv4 outside, node2 to node3 by IPv6 outside.
    for (from, to, address) in [
        (&pods[0], &pods[4], &pods[4].v4),
        (&pods[2], &pods[5], &pods[5].v6),
    ] {
        let done = transfer(&from.pod, &to.pod, address, TRANSFER_BYTES)?;
        let own = if address.contains(':') {
            &from.v6
        } else {
            &from.v4
        };
        ensure!(
            done.seen_by_server.to_string() == *own,
            "the server saw {}",
            done.seen_by_server
        );
        println!(
            "  {} to {}: {} MB at {:.0} Mbit/s, digests equal ({}…), the server saw {}",
            from.name,
            to.name,
            done.bytes / 1_000_000,
            done.mbit_per_s,
            &done.digest[..16],
            done.seen_by_server,
        );
    }
    let report = capture.stop();
    report.check()?;
    print_report(&report);
    // Not frames, of which a fast machine makes few large ones.
    let both = [Family::V4, Family::V6].map(|f| report.wireguard_of(f).bytes);
    ensure!(
        both.iter().all(|bytes| *bytes > TRANSFER_BYTES),
        "too few bytes of WireGuard: {both:?}"
    );
    Ok(())
}

fn print_report(report: &Report) {
    for link in report.per_link() {
        println!(
            "    {:<24} WireGuard packets {:>7}   with a pod's address or the marker {:>3}   lost by the capture {}",
            link.link,
            link.wireguard_total().frames,
            link.clear_text.frames,
            link.kernel_drops
        );
    }
}

/// Takes the protection of node1 away on purpose, to show that the capture would have seen a leak.
fn show_positive_control(mesh: &mut Mesh, pods: &[MeshPod]) -> Result<()> {
    println!(
        "  positive control: on node1 the agent is killed, the filter deleted, and node3's pods routed by the router"
    );
    let agent = mesh.node_mut(1).agent.take();
    agent.context("node1 has no agent")?.kill();
    let node = mesh.node(1);
    let detour = "10.244.3.0/24 via 192.0.2.254 table 51871 metric 1";
    node.host.sh(&format!(
        "nft delete table inet warren; ip route add {detour}"
    ))?;
    let capture = mesh.capture(&[])?;
    let mut send = Command::new(bin("lab-tool")?);
    let to = format!("{}:9", pods[4].v4);
    send.args([
        "udp-ping",
        &to,
        "--count",
        "10",
        "--interval-ms",
        "5",
        "--wait-ms",
        "50",
    ]);
    pods[0].pod.output(send.args(["--marker", MARKER]), LIMIT)?;
    let report = capture.stop();
    print_report(&report);
    let seen = report.clear_text().frames;
    ensure!(
        seen >= 10,
        "the capture saw only {seen} of 10 leaked packets"
    );
    mesh.node_mut(1).start_agent()?;
    let node = mesh.node(1);
    let took = poll_until(LIMIT, "the agent to repair node1", || {
        let table = node.host.sh("ip route show table 51871");
        node.host.sh("nft list table inet warren").is_ok()
            && table.is_ok_and(|table| !table.stdout.contains("192.0.2.254"))
    })?;
    println!(
        "  the agent starts again, and filter and route are repaired after {:.2} s",
        took.as_secs_f64()
    );
    Ok(())
}

fn show_status(mesh: &Mesh) -> Result<()> {
    for args in [["status"], ["show"]] {
        println!("\n  node1# warren {}", args[0]);
        let (code, text) = mesh.node(1).warren(&args)?;
        ensure!(code == 0, "warren {} ended with {code}: {text}", args[0]);
        for line in text.lines() {
            println!("  {line}");
        }
    }
    Ok(())
}

/// A fourth node joins while a ping to its future pod runs; nothing is done on the others.
fn show_join(mesh: &mut Mesh, from: &MeshPod) -> Result<()> {
    let target = "10.244.4.2";
    let ping = from
        .pod
        .spawn_argv(&["ping", "-n", "-D", "-i", "0.05", target])?;
    mesh.add_node(4)?;
    let start = Instant::now();
    let started = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64();
    mesh.node_mut(4).start()?;
    let conflist = mesh.node(4).conflist_path();
    poll_until(LIMIT, "node4's CNI configuration", || conflist.exists())?;
    let ready = start.elapsed();
    let pod = mesh.node(4).attach("a")?;
    ensure!(pod.v4 == target, "the first pod of node4 is {}", pod.v4);
    // "[1690000000.123456] 64 bytes from ..."
    let reply = |log: String| {
        let line = log.lines().find(|l| l.contains("bytes from"))?.to_owned();
        line.strip_prefix('[')?
            .split(']')
            .next()?
            .parse::<f64>()
            .ok()
    };
    let at = poll_for(LIMIT, "a reply from node4's pod", || reply(ping.log()))?;
    println!(
        "\n  node4 joins: protected and ready for pods after {:.2} s,",
        ready.as_secs_f64()
    );
    println!(
        "  its pod answers {} after {:.2} s; nothing was done on the others",
        from.name,
        at - started
    );
    ping.kill();
    Ok(())
}

fn leave_up(mesh: Mesh, pods: &[MeshPod]) -> Result<()> {
    let warren = bin("warren")?;
    println!("  enter a pod:       {}", pods[0].pod.enter_command());
    println!("                     then: ping {}", pods[4].v4);
    for what in ["show", "status"] {
        println!(
            "  {what:<7} of a node:  {} {} {what}",
            mesh.node(1).host.enter_command(),
            warren.display()
        );
    }
    for node in mesh.nodes {
        // Dropping a process would end it.
        std::mem::forget((node.tunnel, node.agent));
    }
    let detached = mesh.lab.detach()?;
    println!("  logs and state:    {}", detached.dir.display());
    println!("  take it all down:  {}", detached.take_down);
    Ok(())
}
