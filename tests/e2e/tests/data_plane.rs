//! What is the same whoever encrypts, `warren-tunnel` or the kernel, and what is told of it.
#![allow(clippy::unwrap_used)] // in a test, a failed unwrap is the report

use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use warren_e2e::{Mesh, Node, Probe, transfer, wait_back};
use warren_lab::{poll_until, require};

/// Long enough for a slow, shared machine.
const LIMIT: Duration = Duration::from_secs(60);
const PROBE_INTERVAL: Duration = Duration::from_millis(5);
/// How often a prefix comes and goes.
const TURNS: usize = 12;
const TRANSFER_BYTES: u64 = 1 << 20;

fn shell(node: &Node, script: &str) -> Result<String> {
    Ok(node.host.sh(script)?.stdout)
}

/// Topology: node1 and node2 on one subnet.
#[test]
fn show_prints_what_the_stock_wg_prints() -> Result<()> {
    require!();
    let mesh = Mesh::start("show", 2)?;
    for (node, other) in [(1, "node2"), (2, "node1")].map(|(n, other)| (mesh.node(n), other)) {
        // Handshakes and counters go on between two commands.
        let mut seen = Vec::new();
        let equal = poll_until(LIMIT, "both to print the same", || {
            let outputs = ["", "all dump", "all endpoints", "interfaces"].map(|what| {
                let stock = shell(node, &format!("wg show {what}")).unwrap_or_default();
                let args: Vec<&str> = ["show"].into_iter().chain(what.split(' ')).collect();
                let args: Vec<&str> = args.into_iter().filter(|a| !a.is_empty()).collect();
                let ours = node
                    .warren(&args)
                    .map_or_else(|e| e.to_string(), |out| out.1);
                (stock, ours.replace(&format!("  ({other})"), ""))
            });
            seen = outputs.to_vec();
            outputs
                .into_iter()
                .all(|(stock, ours)| alike(node, &stock, &ours))
        });
        ensure!(equal.is_ok(), "{}: {seen:#?}", node.name());
    }
    Ok(())
}

/// Whether both say the same. The kernel's private key stays in the kernel, and `wg show all endpoints`
/// names the interface on its first line alone.
fn alike(node: &Node, stock: &str, ours: &str) -> bool {
    let fields = |text: &str| -> Vec<String> {
        let lines = text.lines().map(|line| line.replace("warren0\t", ""));
        lines
            .flat_map(|l| l.split('\t').map(str::to_owned).collect::<Vec<_>>())
            .collect()
    };
    let (stock, ours) = (fields(stock), fields(ours));
    let same = |(a, b): (&String, &String)| a == b || (node.in_kernel && b == "(hidden)");
    !ours.is_empty() && stock.len() == ours.len() && stock.iter().zip(&ours).all(same)
}

/// What the kernel's devices have dropped.
fn errors(mesh: &Mesh) -> Result<Vec<String>> {
    let counters = "cd /sys/class/net/warren0/statistics; cat [rt]x_errors [rt]x_dropped";
    let nodes = mesh.nodes.iter().filter(|node| node.in_kernel);
    nodes.map(|node| shell(node, counters)).collect()
}

/// Topology: node1 and node2 on one subnet, a pod on each, traffic between them all along. An address of
/// node2 comes and goes in its record: a prefix of the peer's, whose others carry that traffic.
#[test]
fn a_prefix_comes_and_goes_and_the_peers_others_lose_nothing() -> Result<()> {
    require!();
    let mut mesh = Mesh::start("prefix", 2)?;
    let (a, b) = (mesh.node(1).attach("a")?, mesh.node(2).attach("b")?);
    wait_back(&a.pod, &b.addresses(), LIMIT)?;
    // Nobody but the test writes its record from now on.
    mesh.node_mut(2).agent.take().unwrap().kill();
    let path = mesh.registry().join("node2.json");
    let mut record: serde_json::Value = serde_json::from_slice(&std::fs::read(&path)?)?;
    let addresses = record["addresses"]
        .as_array()
        .context("no addresses")?
        .clone();
    let capture = mesh.capture(&[])?;
    let probes = [
        Probe::start(&a.pod, &b.pod, &b.v6, PROBE_INTERVAL)?,
        Probe::start(&b.pod, &a.pod, &a.v4, PROBE_INTERVAL)?,
    ];
    let mut flood = Command::new("ping");
    let flood = a
        .pod
        .spawn(flood.args(["-q", "-n", "-i", "0.002", &b.v4]))?;
    let before = errors(&mesh)?;
    let allowed = || shell(mesh.node(1), "wg show warren0 allowed-ips");
    for turn in 0..TURNS {
        let extra = ["192.0.2.77", "2001:db8:a::77"];
        let comes = turn % 2 == 0;
        let more = extra.iter().filter(|_| comes).map(|address| json!(address));
        record["addresses"] = addresses.iter().cloned().chain(more).collect();
        let hidden = mesh.registry().join(".node2");
        std::fs::write(&hidden, record.to_string())?;
        std::fs::rename(&hidden, &path)?;
        poll_until(LIMIT, "the prefixes at node1", || {
            let now = allowed().unwrap_or_default();
            extra
                .iter()
                .all(|address| now.contains(&format!("{address}/")) == comes)
        })?;
    }
    for probe in probes {
        let seen = probe.stop()?;
        assert!(seen.sent > 100 && seen.lost() == 0, "{seen:?}");
    }
    flood.kill();
    // The kernel counts what it has no peer for, and what comes from another peer than its source's.
    assert_eq!(errors(&mesh)?, before);
    // No peer is left of how the prefixes went.
    let peers = allowed()?;
    assert_eq!(peers.lines().count(), 1, "{peers}");
    for prefix in ["10.244.2.0/24", "fd00:244:0:2::/64", "192.0.2.2/32"] {
        assert!(peers.contains(prefix), "{peers}");
    }
    let report = capture.stop();
    report.assert_clean();
    assert!(report.wireguard_total().frames > 100);
    Ok(())
}

/// Topology: node1 and node2 on one subnet, node3 behind the router, a pod on each; large packets between
/// all. The kernel's WireGuard counts what it cannot read, such as a question about the path.
#[test]
fn only_tunnels_are_asked_about_the_path() -> Result<()> {
    require!();
    let mesh = Mesh::start("asked", 3)?;
    let pods = mesh.nodes.iter().map(|node| node.attach("a"));
    let pods = pods.collect::<Result<Vec<_>>>()?;
    for (i, from) in pods.iter().enumerate() {
        for to in pods.iter().skip(i + 1) {
            transfer(&from.pod, &to.pod, &to.v6, TRANSFER_BYTES)?;
            transfer(&to.pod, &from.pod, &from.v4, TRANSFER_BYTES)?;
        }
    }
    let key = |node: &Node| -> Result<String> {
        let key = node.status()?["public_key"]
            .as_str()
            .context("no key")?
            .to_owned();
        let hex = format!("printf %s {key} | base64 -d | od -An -tx1 -v | tr -d ' \\n'");
        shell(node, &hex)
    };
    for node in &mesh.nodes {
        if node.in_kernel {
            let errors = shell(node, "cat /sys/class/net/warren0/statistics/rx_errors")?;
            assert_eq!(errors.trim(), "0", "{} was asked", node.name());
            continue;
        }
        let get =
            "printf 'get=1\\n\\n' | socat -t 5 - UNIX-CONNECT:/var/run/wireguard/warren0.sock";
        let device = shell(node, get)?;
        for other in mesh
            .nodes
            .iter()
            .filter(|other| other.number != node.number)
        {
            let key = key(other)?;
            let peers = device.split("public_key=");
            let peer = { peers }.find(|peer| peer.starts_with(&key));
            let asked = peer.context("no such peer")?.contains("path_probes=true");
            assert_eq!(
                asked,
                !other.in_kernel,
                "{} of {}",
                node.name(),
                other.name()
            );
        }
    }
    Ok(())
}

/// Topology: node1 and node2 on one subnet, both told to choose. Node1 has a `warren-tunnel`, node2 has none,
/// and takes the kernel's where this kernel has it.
#[test]
fn auto_takes_the_kernels_where_it_has_one_and_no_tunnel_runs() -> Result<()> {
    require!();
    let mut mesh = Mesh::underlay("auto")?;
    let probe = mesh.lab.host("probe")?;
    let has_one = probe.sh("ip link add wg0 type wireguard").is_ok();
    for number in [1, 2] {
        let node = mesh.add_node(number)?;
        node.in_kernel = false;
        node.env.push(("WARREN_DATA_PLANE".into(), "auto".into()));
        if number == 1 {
            node.start_tunnel()?;
            let socket = "test -S /var/run/wireguard/warren0.sock";
            poll_until(LIMIT, "the tunnel", || node.host.sh(socket).is_ok())?;
        }
        node.start_agent()?;
    }
    for (number, kernel) in [(1, false), (2, has_one)] {
        let wanted = if kernel { "kernel" } else { "userspace" };
        let mut told = json!(null);
        let found = poll_until(LIMIT, "the data plane to be told", || {
            told = mesh.node(number).status().unwrap_or_default();
            told["data_plane"] == wanted && told["protected"] == true
        });
        ensure!(found.is_ok(), "node{number}, not {wanted}: {told}");
    }
    if has_one {
        mesh.wait_connected(LIMIT)?;
        let (a, b) = (mesh.node(1).attach("a")?, mesh.node(2).attach("b")?);
        wait_back(&a.pod, &b.addresses(), LIMIT)?;
        wait_back(&b.pod, &a.addresses(), LIMIT)?;
    }
    Ok(())
}
