//! What a node costs in a mesh of a thousand: figures for people, who run it in release on a machine
//! that does nothing else: `make bench-reconcile`.
#![allow(clippy::unwrap_used)] // in a test, a failed unwrap is the report

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::json;
use warren_e2e::{Mesh, Node};
use warren_keyring::PrivateKey;
use warren_lab::{poll_until, require};

/// The peers, unless WARREN_PEERS says another number of at most 7,000.
const PEERS: usize = 1000;
/// How many nodes join, one by one.
const JOINS: usize = 10;
const LIMIT: Duration = Duration::from_secs(120);
/// Handshakes with peers that do not answer are given up after 90 s.
const CALM: Duration = Duration::from_secs(95);
const REST: Duration = Duration::from_secs(30);

/// The counters of a scrape.
#[derive(Clone, Copy, Debug)]
struct Scrape {
    reconciles: f64,
    seconds: f64,
    last: f64,
    follows: f64,
    following: f64,
}

impl Scrape {
    fn take(node: &Node) -> Result<Self> {
        let scrape = || -> Result<String> {
            let mut agent = TcpStream::connect("127.0.0.1:9151")?;
            agent.write_all(b"GET /metrics HTTP/1.0\r\n\r\n")?;
            let mut text = String::new();
            agent.read_to_string(&mut text)?;
            Ok(text)
        };
        let text = node.host.in_netns(scrape)??;
        let value = |name: &str| -> Result<f64> {
            let lines = text.lines().filter_map(|line| line.split_once(' '));
            let found = lines.filter(|(key, _)| *key == name).map(|(_, v)| v).next();
            Ok(found.with_context(|| name.to_owned())?.parse()?)
        };
        Ok(Self {
            reconciles: value("warren_reconciles_total")?,
            seconds: value("warren_reconcile_seconds_total")?,
            last: value("warren_reconcile_last_duration_seconds")?,
            follows: value("warren_follows_total")?,
            following: value("warren_follow_seconds_total")?,
        })
    }

    /// What happened since: how many reconciles, and milliseconds of one.
    fn since(self, before: Self) -> (f64, f64) {
        let count = self.reconciles - before.reconciles;
        (count, (self.seconds - before.seconds) * 1000.0 / count)
    }

    /// How often news were followed since, and milliseconds of each.
    fn followed_since(self, before: Self) -> (f64, f64) {
        let count = self.follows - before.follows;
        (count, (self.following - before.following) * 1000.0 / count)
    }
}

/// Writes the record of a node that is nowhere.
fn join(mesh: &Mesh, n: usize) -> Result<()> {
    let address = format!("172.16.{}.{}", n / 250, n % 250 + 1);
    let record = json!({
        "name": format!("far-{n}"), "uid": format!("life-{n}"),
        "podCIDRs": [range(n), format!("fd00:244:0:{:x}::/64", 0x1000 + n)],
        "addresses": [address],
        "annotations": {
            "warren.network/public-key": PrivateKey::generate()?.public_key().to_base64(),
            "warren.network/endpoint": format!("{address}:51871"),
            "warren.network/mtu": "1500",
        },
    });
    let file = mesh.registry().join(format!("far-{n}.json"));
    Ok(std::fs::write(file, record.to_string())?)
}

fn range(n: usize) -> String {
    format!("10.244.{}.{}/29", 8 + n / 32, n % 32 * 8)
}

fn has_route(node: &Node, n: usize) -> bool {
    let show = format!("ip route show {} proto 151 table main", range(n));
    let shown = node.host.sh(&show);
    shown.is_ok_and(|out| out.stdout.contains("warren0"))
}

/// Topology: node2, and a thousand nodes of which there is only a record.
#[test]
#[ignore = "a benchmark: make bench-reconcile"]
fn one_reconcile_among_a_thousand_peers() -> Result<()> {
    require!();
    let peers = match std::env::var("WARREN_PEERS") {
        Ok(number) => number.parse().context("WARREN_PEERS")?,
        Err(_) => PEERS,
    };
    let mut mesh = Mesh::underlay("scale")?;
    mesh.router.sh("ip route add blackhole 172.16.0.0/12")?;
    for n in 0..peers {
        join(&mesh, n)?;
    }
    mesh.add_node(2)?.start()?;
    let node = mesh.node(2);
    let start = Instant::now();
    poll_until(LIMIT, "all routes", || {
        [0, peers / 2, peers - 1]
            .iter()
            .all(|n| has_route(node, *n))
    })?;
    println!(
        "{peers} peers are routed {:.1?} after the start",
        start.elapsed()
    );
    let first = Scrape::take(node)?;
    println!(
        "  the longest so far took about {:.0} ms",
        first.last * 1000.0
    );
    std::thread::sleep(CALM);
    let before = Scrape::take(node)?;
    std::thread::sleep(REST);
    let rest = Scrape::take(node)?;
    let (count, each) = rest.since(before);
    println!("at rest: {count:.0} reconciles in {REST:?}, {each:.1} ms each");
    let mut took = Vec::new();
    let before = Scrape::take(node)?;
    for n in peers..peers + JOINS {
        let start = Instant::now();
        join(&mesh, n)?;
        poll_until(LIMIT, "the newcomer's route", || has_route(node, n))?;
        took.push(start.elapsed());
        std::thread::sleep(Duration::from_secs(2));
    }
    // The next reconcile shows what was followed.
    std::thread::sleep(Duration::from_secs(6));
    let after = Scrape::take(node)?;
    let (count, each) = after.since(before);
    took.sort();
    println!(
        "{JOINS} joins, one by one: routed after {:.0?} to {:.0?}, median {:.0?}; {count:.0} reconciles, \
         {each:.1} ms each",
        took[0],
        took[JOINS - 1],
        took[JOINS / 2]
    );
    let (count, each) = after.followed_since(before);
    println!("  {count:.0} times the news were followed, {each:.2} ms each");
    Ok(())
}
