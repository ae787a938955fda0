//! Floods from a stranger beside an established session.
//!
//! ```text
//!   node2 192.0.2.2 -------- 192.0.2.1 node1 198.51.100.1 -------- 198.51.100.66 attacker
//!        10.2.0.1 === session === 10.1.0.1          (MTU 65535: large datagrams in one piece)
//! ```
//!
//! The same flood goes to the tunnel's port and to a closed port of the same host by turns, so that
//! what the machine itself pays for it is in both figures.

#![allow(clippy::unwrap_used)] // tests

use std::net::UdpSocket;
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use warren_hostile::is_long;
use warren_hostile::node::{Node, PATIENCE};
use warren_hostile::sealer::Sealer;
use warren_keyring::{PrivateKey, PublicKey};
use warren_lab::{Host, Lab, Link, Proc, require};

/// One flood at a time: the figures of two would be each other's.
static ALONE: Mutex<()> = Mutex::new(());

const CLOSED_PORT: u16 = 9;

struct Scene {
    victim: Node,
    other: Node,
    attacker: Host,
    recorder: PrivateKey,
    key: PublicKey,
    _links: [Link; 2],
    lab: Lab,
}

impl Scene {
    fn new(name: &str) -> Result<Self> {
        let lab = Lab::new(name)?;
        let (victim, other) = (Node::start(&lab, 1)?, Node::start(&lab, 2)?);
        let attacker = lab.host("attacker")?;
        let cable = lab.connect(
            victim.host.end("eth0").addr("192.0.2.1/24"),
            other.host.end("eth0").addr("192.0.2.2/24"),
        )?;
        let wild = lab.connect(
            victim.host.end("eth1").addr("198.51.100.1/24"),
            attacker.end("eth0").addr("198.51.100.66/24"),
        )?;
        wild.set_mtu(65_535)?;
        let key = victim.public_key()?;
        let recorder = PrivateKey::generate()?;
        victim.add_peer(
            &other.public_key()?,
            Some("192.0.2.2:51871"),
            &["10.2.0.0/16"],
        )?;
        victim.add_peer(&recorder.public_key(), None, &["10.9.0.0/16"])?;
        other.add_peer(&key, Some("192.0.2.1:51871"), &["10.1.0.0/16"])?;
        other.wait_ping("10.1.0.1", PATIENCE)?;
        // Everything that leaves towards the attacker, counted in the kernel, where none is missed.
        victim.host.sh(
            "nft add table inet count
             nft add chain inet count out '{ type filter hook output priority 0; }'
             nft add counter inet count cookies
             nft add counter inet count others
             nft add rule inet count out oifname eth1 udp sport 51871 udp length 72 counter name cookies accept
             nft add rule inet count out oifname eth1 meta l4proto udp counter name others",
        )?;
        let _links = [cable, wild];
        Ok(Self {
            victim,
            other,
            attacker,
            recorder,
            key,
            _links,
            lab,
        })
    }

    /// Records a live session's messages of all kinds, as hex.
    fn record(&self) -> Result<std::path::PathBuf> {
        let socket = self
            .other
            .host
            .in_netns(|| UdpSocket::bind("0.0.0.0:0"))??;
        let to = "192.0.2.1:51871".parse()?;
        let mut sealer = Sealer::connect(socket, to, &self.recorder, &self.key)?;
        for len in [20u16, 84, 500, 1420] {
            let mut packet = vec![0; usize::from(len)];
            packet[0] = 0x45;
            packet[2..4].copy_from_slice(&len.to_be_bytes());
            packet[12..16].copy_from_slice(&[10, 9, 0, 1]);
            packet[16..20].copy_from_slice(&[10, 1, 0, 1]);
            sealer.send(&packet)?;
        }
        self.victim
            .host
            .try_run(&["ping", "-c1", "-W1", "10.9.0.1"])?;
        sealer.receive()?;
        let mut recorded = sealer.recorded;
        // A cookie comes only under load: one of the right form for the live session's index.
        let mut cookie = recorded.first().context("nothing was recorded")?[..64].to_vec();
        cookie[..4].copy_from_slice(&3u32.to_le_bytes());
        recorded.push(cookie);
        let kinds: std::collections::BTreeSet<u8> = recorded.iter().map(|m| m[0]).collect();
        ensure!(kinds.len() == 4, "messages of types {kinds:?} only");
        let hex = |m: &Vec<u8>| m.iter().map(|b| format!("{b:02x}")).collect::<String>();
        let path = self.lab.dir().join("recorded");
        std::fs::write(
            &path,
            recorded.iter().map(hex).collect::<Vec<_>>().join("\n"),
        )?;
        Ok(path)
    }

    fn flood(&self, port: u16, attack: &Attack) -> Result<Proc> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hostile-flood"));
        command
            .arg(format!("198.51.100.1:{port}"))
            .args(["--key", &self.key.to_string()])
            .args(["--count", &attack.count.to_string()])
            .args(["--rate", &attack.rate.to_string()])
            .args(["--seed", &attack.seed.to_string()]);
        match &attack.recorded {
            Some(path) => command.arg("--recorded").arg(path),
            None => command.arg("--forge"),
        };
        Ok(self.attacker.spawn(&mut command)?)
    }

    /// Mbit/s of TCP into the attacked node.
    fn goodput(&self, seconds: u64) -> Result<f64> {
        // A server of its own each time: one whose client was cut off stays busy.
        let server = ["iperf3", "-s", "-1", "--forceflush", "-B", "10.1.0.1"];
        let server = self.victim.host.spawn_argv(&server)?;
        server.wait_log("listening", PATIENCE)?;
        let mut command = Command::new("iperf3");
        command.args(["-c", "10.1.0.1", "-J", "-t", &seconds.to_string()]);
        let limit = Duration::from_secs(60 + seconds);
        let out = self.other.host.output(&mut command, limit)?;
        let report: Value = serde_json::from_str(&out.stdout)?;
        // One that was starved of its connection has had no goodput.
        let bits = report["end"]["sum_received"]["bits_per_second"].as_f64();
        Ok(bits.unwrap_or(0.0) / 1e6)
    }

    fn left_for_attacker(&self) -> Result<(u64, u64)> {
        let counter = |name: &str| -> Result<u64> {
            let listed = self
                .victim
                .host
                .run(&["nft", "list", "counter", "inet", "count", name])?;
            let mut words = listed.stdout.split_whitespace();
            words.find(|word| *word == "packets");
            Ok(words.next().context("no counter")?.parse()?)
        };
        Ok((counter("cookies")?, counter("others")?))
    }
}

struct Attack {
    recorded: Option<std::path::PathBuf>,
    count: u64,
    rate: u64,
    seed: u64,
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Runs the attack against the open and the closed port by turns and judges what came of it.
fn attack(scene: &Scene, name: &str, rounds: u64, mut attack: Attack) -> Result<()> {
    let before = scene.victim.status()?;
    let left_before = scene.left_for_attacker()?;
    let mut goodput = [Vec::new(), Vec::new()];
    let (mut sent, mut answerable) = (0, 0);
    let seconds = (attack.count / attack.rate).saturating_sub(1).max(1);
    for round in 0..rounds {
        for arm in [round % 2, 1 - round % 2] {
            let port = [51871, CLOSED_PORT][arm as usize];
            attack.seed = round + 1;
            let flood = scene.flood(port, &attack)?;
            goodput[arm as usize].push(scene.goodput(seconds)?);
            flood.wait_timeout(Duration::from_secs(120 + 3 * attack.count / attack.rate))?;
            let report: Value =
                serde_json::from_str(flood.log().trim()).with_context(|| flood.describe())?;
            if arm == 0 {
                println!("{name}: flood of the tunnel's port {report}");
                sent += report["sent"].as_u64().unwrap_or(0);
                answerable += report["answerable"].as_u64().unwrap_or(0);
            }
        }
    }
    let ratios: Vec<f64> = goodput[0]
        .iter()
        .zip(&goodput[1])
        .map(|(o, c)| o / c)
        .collect();
    let ratio = median(ratios.clone());
    let left = scene.left_for_attacker()?;
    let (cookies, others) = (left.0 - left_before.0, left.1 - left_before.1);
    let after = scene.victim.status()?;
    let grown: Vec<String> = after
        .iter()
        .filter(|(key, value)| key.starts_with("drop_") && before.get(*key) != Some(value))
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    println!(
        "{name}: {sent} datagrams, {answerable} with a valid MAC1, answers: {cookies} cookies and \
         {others} others; goodput Mbit/s beside it {:.0?}, beside a closed port {:.0?}, ratios \
         {ratios:.2?}, median {ratio:.3}; {}",
        goodput[0],
        goodput[1],
        grown.join(" ")
    );
    scene.victim.ensure_running()?;
    ensure!(sent >= attack.count * rounds, "only {sent} were sent");
    ensure!(others == 0, "{others} answers that are no cookie");
    ensure!(
        cookies <= answerable,
        "{cookies} cookies for {answerable} valid MAC1s"
    );
    ensure!(
        before["roamed"] == after["roamed"],
        "a peer has roamed to the attacker"
    );
    scene.other.wait_ping("10.1.0.1", Duration::from_secs(2))?;
    let bound = if is_long() { 0.9 } else { 0.5 };
    ensure!(
        ratio >= bound,
        "the goodput's median ratio {ratio:.3} is below {bound}"
    );
    Ok(())
}

#[test]
fn random_and_mutated_datagrams_get_no_answer_and_leave_a_session_its_goodput() -> Result<()> {
    require!();
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let scene = Scene::new("flood")?;
    let recorded = Some(scene.record()?);
    let (rounds, count, rate) = if is_long() {
        (5, 2_000_000, 50_000)
    } else {
        (3, 100_000, 25_000)
    };
    attack(
        &scene,
        "random and mutated",
        rounds,
        Attack {
            recorded,
            count,
            rate,
            seed: 0,
        },
    )
}

#[test]
fn forged_initiations_get_cookies_at_most_and_an_honest_new_peer_gets_in() -> Result<()> {
    require!();
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let scene = Scene::new("forged")?;
    // An honest peer that nobody has spoken with comes in the middle of a flood.
    let newcomer = Node::start(&scene.lab, 3)?;
    scene.lab.connect(
        newcomer.host.end("eth0").addr("203.0.113.3/24"),
        scene.victim.host.end("eth2").addr("203.0.113.1/24"),
    )?;
    scene
        .victim
        .add_peer(&newcomer.public_key()?, None, &["10.3.0.0/16"])?;
    let long = Attack {
        recorded: None,
        count: 1_500_000,
        rate: 100_000,
        seed: 9,
    };
    let flood = scene.flood(51871, &long)?;
    std::thread::sleep(Duration::from_millis(1500));
    newcomer.add_peer(&scene.key, Some("203.0.113.1:51871"), &["10.1.0.0/16"])?;
    let took = newcomer.wait_ping("10.1.0.1", Duration::from_secs(10))?;
    println!(
        "an honest new peer got in after {took:.1?}, flood running: {}",
        flood.is_running()
    );
    ensure!(
        flood.is_running(),
        "the flood was over before: {}",
        flood.log()
    );
    scene.victim.ensure_running()?;
    flood.kill();
    scene.other.wait_ping("10.1.0.1", PATIENCE)?;

    let (rounds, count) = if is_long() {
        (5, 2_000_000)
    } else {
        (3, 300_000)
    };
    let forged = Attack {
        recorded: None,
        count,
        rate: 100_000,
        seed: 0,
    };
    attack(&scene, "forged initiations", rounds, forged)
}
