//! The daemon itself, between network namespaces, driven by the stock `wg`.
//!
//! ```text
//!   node1                            node2
//!   warren0 10.1.0.1, fd01::1        warren0 10.2.0.1, fd02::1
//!   eth0 192.0.2.1, 2001:db8::1 ---- eth0 192.0.2.2, 2001:db8::2
//! ```

#![allow(clippy::unwrap_used)] // helpers of tests

use std::process::Command;
use std::time::Duration;

use warren_lab::{Host, Lab, LabError, Link, Proc, Signal, poll_until, require};

const TUNNEL: &str = env!("CARGO_BIN_EXE_warren-tunnel");
/// Long enough for a slow, shared machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// After its start a tunnel is back within this time; that two seconds are enough is shown with the
/// whole mesh, in tests/e2e/tests/lifecycle.rs.
const BACK: Duration = Duration::from_secs(10);

type Result<T = ()> = std::result::Result<T, LabError>;

struct Node {
    host: Host,
    tunnel: Proc,
    number: u8,
}

impl Node {
    fn start(lab: &Lab, number: u8) -> Result<Self> {
        let host = lab.host(&format!("node{number}"))?;
        let tunnel = start(&host)?;
        Ok(Self {
            host,
            tunnel,
            number,
        })
    }

    fn public_key(&self) -> Result<String> {
        Ok(self
            .host
            .run(&["wg", "show", "warren0", "public-key"])?
            .stdout
            .trim()
            .to_owned())
    }

    /// What the agent would do: addresses and routes.
    fn configure(&self, other: &Node) -> Result {
        let (own, other) = (self.number, other.number);
        self.host.sh(&format!(
            "ip address add 10.{own}.0.1/32 dev warren0
             ip address add fd0{own}::1/128 dev warren0 nodad
             ip route add 10.{other}.0.0/24 dev warren0 src 10.{own}.0.1
             ip route add fd0{other}::/64 dev warren0 src fd0{own}::1"
        ))?;
        Ok(())
    }

    fn add_peer(&self, other: &Node, endpoint: &str) -> Result {
        let n = other.number;
        let prefixes = format!("10.{n}.0.0/24,fd0{n}::/64");
        let key = other.public_key()?;
        self.host.run(&[
            "wg",
            "set",
            "warren0",
            "peer",
            &key,
            "endpoint",
            endpoint,
            "allowed-ips",
            &prefixes,
        ])?;
        Ok(())
    }

    /// Whether an answer comes soon.
    fn pings(&self, address: &str) -> bool {
        self.pings_within(address, "1")
    }

    /// Whether an answer comes at all: a busy machine takes its time, and what is lost is lost.
    fn reaches(&self, address: &str) -> bool {
        self.pings_within(address, "20")
    }

    fn pings_within(&self, address: &str, seconds: &str) -> bool {
        let ping = ["ping", "-c1", "-W", seconds, address];
        self.host
            .try_run(&ping)
            .is_ok_and(|output| output.success())
    }

    fn status(&self, key: &str) -> u64 {
        let socat = ["socat", "-", "UNIX-CONNECT:/run/warren/tunnel.sock"];
        let text = self.host.run(&socat).unwrap().stdout;
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        line.and_then(|value| value.parse().ok())
            .unwrap_or_else(|| panic!("{key} in {text}"))
    }
}

fn start(host: &Host) -> Result<Proc> {
    let state = host.dir().join("state");
    let tunnel = host.spawn(
        Command::new(TUNNEL)
            .env("WARREN_LOG", "debug")
            .arg("--state-dir")
            .arg(state),
    )?;
    tunnel.wait_log("the tunnel is up", PATIENCE)?;
    Ok(tunnel)
}

/// Two nodes with tunnels that know each other by the outer family.
fn mesh(lab: &Lab, outer_v6: bool) -> Result<(Node, Node, Link)> {
    let (node1, node2) = (Node::start(lab, 1)?, Node::start(lab, 2)?);
    let end = |node: &Node| {
        let n = node.number;
        node.host
            .end("eth0")
            .addr(&format!("192.0.2.{n}/24"))
            .addr(&format!("2001:db8::{n}/64"))
    };
    let link = lab.connect(end(&node1), end(&node2))?;
    let endpoint = |n: u8| {
        if outer_v6 {
            format!("[2001:db8::{n}]:51871")
        } else {
            format!("192.0.2.{n}:51871")
        }
    };
    node1.configure(&node2)?;
    node2.configure(&node1)?;
    node1.add_peer(&node2, &endpoint(2))?;
    node2.add_peer(&node1, &endpoint(1))?;
    Ok((node1, node2, link))
}

#[test]
fn both_inner_families_pass_over_both_outer_families() -> Result {
    require!();
    for outer_v6 in [false, true] {
        let lab = Lab::new(if outer_v6 { "outer6" } else { "outer4" })?;
        let (node1, node2, _link) = mesh(&lab, outer_v6)?;
        node1
            .host
            .run(&["ping", "-c3", "-i0.1", "-W10", "10.2.0.1"])?;
        node1
            .host
            .run(&["ping", "-c3", "-i0.1", "-W10", "fd02::1"])?;
        node2
            .host
            .run(&["ping", "-c3", "-i0.1", "-W10", "-s1392", "10.1.0.1"])?;
        // Larger than any MTU on the way.
        node2
            .host
            .run(&["ping", "-c3", "-i0.1", "-W10", "-s4000", "fd01::1"])?;
        let endpoints = node1
            .host
            .run(&["wg", "show", "warren0", "endpoints"])?
            .stdout;
        assert_eq!(
            endpoints.contains("[2001:db8::2]:51871"),
            outer_v6,
            "{endpoints}"
        );
        assert_eq!(node2.status("drop_wrong_source"), 0);
    }
    Ok(())
}

#[test]
fn the_stock_wg_reads_and_configures_it() -> Result {
    require!();
    let lab = Lab::new("wg")?;
    let (node1, node2, _link) = mesh(&lab, false)?;
    poll_until(PATIENCE, "a ping", || node1.pings("10.2.0.1"))?;
    let key = node2.public_key()?;
    let shown = node1.host.run(&["wg", "show", "warren0"])?.stdout;
    for part in [
        &*key,
        "listening port: 51871",
        "latest handshake:",
        "transfer:",
    ] {
        assert!(shown.contains(part), "{part} in {shown}");
    }
    let dump = node1.host.run(&["wg", "show", "all", "dump"])?.stdout;
    assert!(dump.contains(&format!(
        "{key}\t(none)\t192.0.2.2:51871\t10.2.0.0/24,fd02::/64\t"
    )));

    let handshakes = node1.status("handshakes");
    // syncconf with what showconf says changes nothing; without the peer, it goes; and back.
    node1
        .host
        .sh("wg showconf warren0 > /run/conf && wg syncconf warren0 /run/conf")?;
    assert!(node1.reaches("10.2.0.1"));
    assert_eq!(node1.status("handshakes"), handshakes, "the session stays");
    node1
        .host
        .sh("sed '/\\[Peer\\]/,$d' /run/conf > /run/alone && wg syncconf warren0 /run/alone")?;
    assert_eq!(node1.status("peers"), 0);
    assert!(!node1.pings("10.2.0.1"));
    node1.host.sh("wg setconf warren0 /run/conf")?;
    poll_until(PATIENCE, "a ping", || node1.pings("10.2.0.1"))?;

    // Another port; one that is taken is refused and leaves everything as it was.
    node1
        .host
        .sh("wg set warren0 listen-port 51999 fwmark 0x77")?;
    assert!(node1.reaches("fd02::1"), "node2 follows to the new port");
    let taken = node1
        .host
        .in_netns(|| std::net::UdpSocket::bind("0.0.0.0:52000"))?;
    let refused = node1
        .host
        .try_run(&["wg", "set", "warren0", "listen-port", "52000"])?;
    assert!(
        !refused.success() && refused.stderr.contains("in use"),
        "{}",
        refused.stderr
    );
    drop(taken);
    let shown = node1.host.run(&["wg", "show", "warren0"])?.stdout;
    assert!(
        shown.contains("listening port: 51999") && shown.contains("fwmark: 0x77"),
        "{shown}"
    );
    assert!(node1.reaches("10.2.0.1"));

    // A preshared key on both ends, by the files that `wg` takes.
    let psk = node1.host.run(&["wg", "genpsk"])?.stdout;
    for (node, other) in [(&node1, &node2), (&node2, &node1)] {
        let (psk, other) = (psk.trim(), other.public_key()?);
        node.host.sh(&format!(
            "echo {psk} > /run/psk && wg set warren0 peer {other} preshared-key /run/psk"
        ))?;
    }
    poll_until(PATIENCE, "a ping", || node1.pings("10.2.0.1"))?;
    Ok(())
}

#[test]
fn after_a_kill_everything_is_back_at_once_and_by_nobodys_help() -> Result {
    require!();
    let lab = Lab::new("kill")?;
    let (mut node1, node2, _link) = mesh(&lab, false)?;
    poll_until(PATIENCE, "a ping", || node1.pings("10.2.0.1"))?;
    node1
        .host
        .run(&["ip", "link", "set", "warren0", "mtu", "1380"])?;
    let saved = node1.host.dir().join("state/tunnel.state");
    poll_until(PATIENCE, "the saved peer", || {
        std::fs::read_to_string(&saved).is_ok_and(|text| text.contains("allowed_ip=fd02::/64"))
    })?;
    let key = node1.public_key()?;
    let before = node1
        .host
        .sh("ip -o address show warren0; ip route; ip -6 route")?
        .stdout;
    node1.tunnel.kill();
    let dead = node1
        .host
        .sh("ip -o address show warren0; ip route; ip -6 route")?
        .stdout;
    let lines = |text: &str| -> Vec<String> {
        text.lines()
            .map(|line| line.replace(" linkdown", "").trim_end().to_owned())
            .collect()
    };
    assert_eq!(lines(&dead), lines(&before), "addresses and routes stay");

    node1.tunnel = start(&node1.host)?;
    // Only the other side sends: it could not know that the session is gone, and would find out after
    // fifteen seconds.
    let back = poll_until(BACK, "node2 reaches node1", || node2.pings("10.1.0.1"))?;
    println!("node2 reaches node1 {back:?} after its start");
    assert!(node1.reaches("fd02::1"));
    assert_eq!(node1.public_key()?, key);
    assert_eq!(
        node1.status("mtu_bytes"),
        1380,
        "what was set on the interface stays"
    );
    Ok(())
}

#[test]
fn a_second_tunnel_and_a_foreign_interface_are_refused_clearly() -> Result {
    require!();
    let lab = Lab::new("refused")?;
    let node = Node::start(&lab, 1)?;
    let second = node
        .host
        .try_run(&[TUNNEL, "--ephemeral", "--listen-port", "0"])?;
    assert!(!second.success());
    assert!(
        second.stderr.contains("already running"),
        "{}",
        second.stderr
    );
    let other_run_dir = [
        TUNNEL,
        "--ephemeral",
        "--listen-port",
        "0",
        "--run-dir",
        "/run/other",
    ];
    let third = node.host.try_run(&other_run_dir)?;
    assert!(third.stderr.contains("already running"), "{}", third.stderr);

    node.host.run(&[
        "ip", "link", "add", "foreign0", "type", "veth", "peer", "name", "foreign1",
    ])?;
    let foreign = [
        TUNNEL,
        "foreign0",
        "--ephemeral",
        "--listen-port",
        "0",
        "--run-dir",
        "/run/other",
    ];
    let foreign = node.host.try_run(&foreign)?;
    assert!(
        foreign.stderr.contains("ip link delete foreign0"),
        "{}",
        foreign.stderr
    );
    node.host.run(&["ip", "link", "show", "foreign0"])?;
    assert!(node.tunnel.is_running());
    Ok(())
}

#[test]
fn a_clean_end_removes_the_sockets_and_keeps_the_interface() -> Result {
    require!();
    let lab = Lab::new("end")?;
    let (node1, _node2, _link) = mesh(&lab, false)?;
    node1.tunnel.signal(Signal::SIGTERM);
    let ended = node1.tunnel.wait_timeout(PATIENCE)?;
    assert!(ended.success(), "{}", node1.tunnel.describe());
    node1
        .host
        .sh("! test -e /run/wireguard/warren0.sock && ! test -e /run/warren/tunnel.sock")?;
    node1.host.run(&["ip", "link", "show", "warren0"])?;
    let saved = std::fs::read_to_string(node1.host.dir().join("state/tunnel.state")).unwrap();
    assert!(
        saved.contains("endpoint=192.0.2.2:51871\n"),
        "saved at the end at the latest"
    );
    Ok(())
}

#[test]
fn a_deleted_interface_is_made_anew() -> Result {
    require!();
    let lab = Lab::new("deleted")?;
    let (node1, node2, _link) = mesh(&lab, false)?;
    poll_until(PATIENCE, "a ping", || node1.pings("10.2.0.1"))?;
    node1.host.run(&["ip", "link", "delete", "warren0"])?;
    poll_until(PATIENCE, "the interface", || {
        node1
            .host
            .try_run(&["ip", "link", "show", "warren0"])
            .unwrap()
            .success()
    })?;
    node1.configure(&node2)?;
    poll_until(PATIENCE, "a ping", || node1.pings("10.2.0.1"))?;
    Ok(())
}

#[test]
fn send_errors_are_counted_and_end_nothing() -> Result {
    require!();
    let lab = Lab::new("errors")?;
    let (node1, _node2, _link) = mesh(&lab, false)?;
    poll_until(PATIENCE, "a ping", || node1.pings("10.2.0.1"))?;
    node1.host.sh(
        "nft 'add table inet t; add chain inet t o { type filter hook output priority 0; };
              add rule inet t o udp dport 51871 reject'",
    )?;
    poll_until(PATIENCE, "a refusal", || {
        !node1.pings("10.2.0.1") && node1.status("udp_send_refused") > 0
    })?;
    node1.host.run(&["nft", "delete", "table", "inet", "t"])?;
    poll_until(PATIENCE, "a ping", || node1.pings("10.2.0.1"))?;
    node1.host.run(&["ip", "link", "set", "eth0", "down"])?;
    poll_until(PATIENCE, "an unreachable way", || {
        !node1.pings("10.2.0.1") && node1.status("udp_send_unreachable") > 0
    })?;
    node1.host.run(&["ip", "link", "set", "eth0", "up"])?;
    poll_until(PATIENCE, "a ping", || node1.pings("10.2.0.1"))?;
    Ok(())
}
