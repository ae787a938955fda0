//! Floods from a stranger beside an established session.
//!
//! ```text
//!   node2 192.0.2.2 -------- 192.0.2.1 node1 198.51.100.1 -------- 198.51.100.66 attacker
//!        10.2.0.1 === session === 10.1.0.1          (MTU 65535: large datagrams in one piece)
//! ```
//!
//! A TCP flow runs through the session all the time. By turns the attacker floods the tunnel's port,
//! floods a closed port of the same host with the very same datagrams, and is quiet. The first as a
//! part of the second is what is judged: the attacker's own work and the kernel's way up to the port,
//! which on this one machine are taken from the same cores as all else, are in both. The first as a
//! part of the third, undisturbed, is printed beside it. Rounds in which the undisturbed flow fell
//! under 60% of its median are thrown away and counted. There are more rounds than wanted, until the
//! time is up, where too few come to the flood's rate or the median would fail. A machine that never
//! comes to the rate is judged at what it came to, which is printed.

#![allow(clippy::unwrap_used)] // tests

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use warren_hostile::node::{Node, PATIENCE};
use warren_hostile::sealer::Sealer;
use warren_hostile::{is_long, judges_goodput};
use warren_keyring::{PrivateKey, PublicKey};
use warren_lab::{Host, Lab, Link, Proc, require};

/// One flood at a time: the figures of two would be each other's.
static ALONE: Mutex<()> = Mutex::new(());

/// The forged initiations of a second.
const RATE: u64 = 100_000;
/// How soon an honest new peer gets in.
const NEWCOMER: Duration = Duration::from_secs(10);
/// Less than the retry of a handshake (5 s): a session that is still there needs none.
const NO_RETRY: Duration = Duration::from_millis(4500);
const TUNNEL_PORT: u16 = 51871;
const CLOSED_PORT: u16 = 9;
/// How long a flood runs before and after what is measured beside it.
const EDGE: Duration = Duration::from_millis(500);
/// A round counts when the undisturbed flow came to this part of its median,
const COLLAPSED: f64 = 0.6;
/// and the attackers to this part of their rate,
const REACHED: f64 = 0.6;
/// or, on a machine that does so in too few rounds, to this one.
const LEAST_REACHED: f64 = 0.1;
/// The fewest rounds that are judged.
const LEAST_ROUNDS: usize = 3;
/// How long there are rounds at most, while that many are had.
const TIME_LIMIT: Duration = Duration::from_secs(60);
/// The part of its goodput that a session keeps at least.
const GOODPUT: f64 = 0.9;

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
        if let Some(from) = &attack.from {
            command.args(["--from", from]);
        }
        match &attack.recorded {
            Some(path) => command.arg("--recorded").arg(path),
            None => command.arg("--forge"),
        };
        Ok(self.attacker.spawn(&mut command)?)
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

#[derive(Clone)]
struct Attack {
    recorded: Option<std::path::PathBuf>,
    count: u64,
    rate: u64,
    seed: u64,
    /// The source that is forged, see `hostile-flood`.
    from: Option<String>,
}

/// A TCP flow through the tunnel into the attacked node, as fast as it goes, until dropped.
struct TcpFlow {
    stream: TcpStream,
    received: Arc<AtomicU64>,
}

impl TcpFlow {
    fn start(scene: &Scene) -> Result<Self> {
        let listener = scene
            .victim
            .host
            .in_netns(|| TcpListener::bind("10.1.0.1:5001"))??;
        let stream = scene
            .other
            .host
            .in_netns(|| TcpStream::connect("10.1.0.1:5001"))??;
        let (mut sink, _) = listener.accept()?;
        let mut source = stream.try_clone()?;
        let received = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&received);
        // Both end with the connection, which is shut down on dropping.
        std::thread::spawn(move || {
            let bytes = vec![0x57; 128 << 10];
            while source.write_all(&bytes).is_ok() {}
        });
        std::thread::spawn(move || {
            let mut bytes = vec![0; 128 << 10];
            while let Ok(len @ 1..) = sink.read(&mut bytes) {
                counter.fetch_add(len as u64, Ordering::Relaxed);
            }
        });
        Ok(Self { stream, received })
    }

    /// Mbit/s that come out at the end in the time given.
    fn goodput(&self, time: Duration) -> f64 {
        let (start, before) = (Instant::now(), self.received.load(Ordering::Relaxed));
        std::thread::sleep(time);
        let bytes = self.received.load(Ordering::Relaxed) - before;
        bytes as f64 * 8e-6 / start.elapsed().as_secs_f64()
    }
}

impl Drop for TcpFlow {
    fn drop(&mut self) {
        // One that is broken already has ended its threads.
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

/// What one round has measured, in Mbit/s.
#[derive(Clone, Copy, Debug, Default)]
struct Round {
    open: f64,
    closed: f64,
    quiet: f64,
    /// The slower of the two floods, as a part of the rate asked for.
    reached: f64,
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// The rounds that count: those at the flood's rate, or where they are too few, at whatever rate.
fn valid(rounds: &[Round], wanted: usize) -> Vec<Round> {
    let Some(usual) = (!rounds.is_empty()).then(|| median(part(rounds, |round| round.quiet)))
    else {
        return Vec::new();
    };
    let at_least = |reached: f64| -> Vec<Round> {
        let good = |round: &&Round| round.reached >= reached && round.quiet >= COLLAPSED * usual;
        rounds.iter().filter(good).copied().collect()
    };
    let full = at_least(REACHED);
    match full.len() >= wanted {
        true => full,
        false => at_least(LEAST_REACHED),
    }
}

fn part(rounds: &[Round], part: fn(&Round) -> f64) -> Vec<f64> {
    rounds.iter().map(part).collect()
}

/// Whether there is no use in more rounds.
fn is_settled(rounds: &[Round], wanted: usize) -> bool {
    let full = valid(rounds, wanted);
    full.len() >= wanted
        && full.iter().all(|round| round.reached >= REACHED)
        && median(part(&full, |round| round.open / round.closed)) >= GOODPUT
}

/// Whether there are rounds enough. Where goodput is not judged none is made to better it.
fn is_enough(rounds: &[Round], wanted: usize, late: bool) -> bool {
    let settled = match judges_goodput() {
        true => late || is_settled(rounds, wanted),
        false => true,
    };
    settled && valid(rounds, LEAST_ROUNDS).len() >= LEAST_ROUNDS
}

/// Runs the attack in rounds until `wanted` of them count, and judges what came of it.
fn attack(scene: &Scene, name: &str, wanted: usize, attack: &Attack) -> Result<()> {
    let flow = TcpFlow::start(scene)?;
    let before = scene.victim.status()?;
    let left_before = scene.left_for_attacker()?;
    let time = Duration::from_secs_f64(attack.count as f64 / attack.rate as f64);
    let (mut sent, mut answerable) = (0, 0);
    let mut rounds: Vec<Round> = Vec::new();
    let limit = if is_long() {
        20 * wanted as u32 * time
    } else {
        TIME_LIMIT
    };
    let start = Instant::now();
    while !is_enough(&rounds, wanted, start.elapsed() >= limit) {
        ensure!(
            rounds.len() < 4 * wanted || start.elapsed() < 3 * limit,
            "{name}: the attackers never came to a tenth of their rate: {rounds:.1?}"
        );
        let number = rounds.len();
        let attack = Attack {
            seed: number as u64 + 1,
            ..attack.clone()
        };
        let mut round = Round {
            reached: 1.0,
            ..Round::default()
        };
        for turn in 0..3 {
            let arm = (number + turn) % 3;
            let port = [TUNNEL_PORT, CLOSED_PORT].get(arm);
            let flood = port.map(|port| scene.flood(*port, &attack)).transpose()?;
            std::thread::sleep(EDGE);
            let goodput = flow.goodput(time - 2 * EDGE);
            match arm {
                0 => round.open = goodput,
                1 => round.closed = goodput,
                _ => round.quiet = goodput,
            }
            let Some(flood) = flood else { continue };
            flood.wait_timeout(Duration::from_secs(120) + 3 * time)?;
            let report: Value =
                serde_json::from_str(flood.log().trim()).with_context(|| flood.describe())?;
            let took = report["seconds"].as_f64().context("no time")?;
            round.reached = round.reached.min(time.as_secs_f64() / took);
            if arm == 0 {
                sent += report["sent"].as_u64().unwrap_or(0);
                answerable += report["answerable"].as_u64().unwrap_or(0);
            }
        }
        println!("{name}: Mbit/s {round:.1?}");
        rounds.push(round);
    }
    let counted = valid(&rounds, LEAST_ROUNDS);
    let beside_closed = part(&counted, |round| round.open / round.closed);
    let beside_quiet = part(&counted, |round| round.open / round.quiet);
    let slowest = part(&counted, |round| round.reached)
        .into_iter()
        .fold(1.0, f64::min);
    let ratio = median(beside_closed.clone());
    let left = scene.left_for_attacker()?;
    let (cookies, others) = (left.0 - left_before.0, left.1 - left_before.1);
    let after = scene.victim.status()?;
    let grown: Vec<String> = after
        .iter()
        .filter(|(key, value)| {
            (key.starts_with("drop_") || key.ends_with("_overflows"))
                && before.get(*key) != Some(value)
        })
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    println!(
        "{name}: {sent} datagrams to the tunnel's port, {answerable} with a valid MAC1, answers: \
         {cookies} cookies and {others} others; goodput beside the flood of a closed port \
         {beside_closed:.2?}, median {ratio:.3}; beside none {beside_quiet:.2?}, median {:.3}; the \
         floods came to {:.0}% of their rate at least; {} rounds thrown away; {}",
        median(beside_quiet.clone()),
        100.0 * slowest,
        rounds.len() - counted.len(),
        grown.join(" ")
    );
    scene.victim.ensure_running()?;
    ensure!(
        sent >= attack.count * rounds.len() as u64,
        "only {sent} were sent"
    );
    ensure!(others == 0, "{others} answers that are no cookie");
    ensure!(
        cookies <= answerable,
        "{cookies} cookies for {answerable} valid MAC1s"
    );
    ensure!(
        before["roamed"] == after["roamed"],
        "a peer has roamed to the attacker"
    );
    drop(flow);
    scene.other.wait_ping("10.1.0.1", NO_RETRY)?;
    ensure!(
        ratio >= GOODPUT || !judges_goodput(),
        "the goodput's median ratio {ratio:.3} is below {GOODPUT}"
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
        (5, 50_000, 25_000)
    };
    attack(
        &scene,
        "random and mutated",
        rounds,
        &Attack {
            recorded,
            count,
            rate,
            seed: 0,
            from: None,
        },
    )
}

/// Node `number` at 203.0.113.`number`, on a cable of its own, comes up in the middle of a flood of
/// 100,000 initiations a second from where `from` says, while data goes through the other session.
fn newcomer(scene: &Scene, number: u8, from: Option<&str>, known: bool) -> Result<()> {
    let node = Node::start(&scene.lab, number)?;
    let (own, victim) = (
        format!("203.0.{number}.{number}"),
        format!("203.0.{number}.1"),
    );
    let _cable = scene.lab.connect(
        scene
            .victim
            .host
            .end(&format!("eth{number}"))
            .addr(&format!("{victim}/24")),
        node.host.end("eth0").addr(&format!("{own}/24")),
    )?;
    let name = match from {
        None => "the attacker's address".to_owned(),
        Some("random") => "addresses at random".to_owned(),
        Some(address) => format!("{address}, the newcomer's own address"),
    };
    let flow = TcpFlow::start(scene)?;
    let attack = Attack {
        recorded: None,
        count: 6_000_000,
        rate: RATE,
        seed: number.into(),
        from: from.map(str::to_owned),
    };
    let before = scene.victim.status()?;
    let flood = scene.flood(TUNNEL_PORT, &attack)?;
    std::thread::sleep(Duration::from_millis(1500));
    let endpoint = known.then(|| format!("{own}:51871"));
    let prefix = format!("10.{number}.0.0/16");
    scene
        .victim
        .add_peer(&node.public_key()?, endpoint.as_deref(), &[&prefix])?;
    let (received, start) = (flow.received.load(Ordering::Relaxed), Instant::now());
    node.add_peer(
        &scene.key,
        Some(&format!("{victim}:51871")),
        &["10.1.0.0/16"],
    )?;
    let took = node.wait_ping("10.1.0.1", NEWCOMER);
    let took = took.with_context(|| format!("{name}: {:?}", scene.victim.status()))?;
    let goodput = (flow.received.load(Ordering::Relaxed) - received) as f64 * 8e-6
        / start.elapsed().as_secs_f64();
    let after = scene.victim.status()?;
    let seen = after["udp_rx_datagrams"] + after["udp_handshake_overflows"]
        - before["udp_rx_datagrams"]
        - before["udp_handshake_overflows"];
    println!(
        "a flood from {name}: an honest new peer got in after {took:.1?} beside data of \
         {goodput:.0} Mbit/s; {} handshakes lost in the kernel, {seen} datagrams in all",
        after["udp_handshake_overflows"] - before["udp_handshake_overflows"],
    );
    ensure!(
        flood.is_running(),
        "the flood was over before: {}",
        flood.log()
    );
    ensure!(
        after["drop_under_load"] > before["drop_under_load"],
        "the flood made no load"
    );
    scene.victim.ensure_running()?;
    flood.kill();
    drop(flow);
    scene.other.wait_ping("10.1.0.1", PATIENCE)?;
    Ok(())
}

#[test]
fn an_honest_new_peer_gets_in_whatever_addresses_a_flood_is_forged_from() -> Result<()> {
    require!();
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let scene = Scene::new("newcomer")?;
    // Cookies for sources at random find their way out.
    scene.victim.host.sh(
        "sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.eth1.rp_filter=0
         ip route add default via 198.51.100.66",
    )?;
    // One that the attacked knows no address of, from which the flood does not come.
    newcomer(&scene, 3, None, false)?;
    // As in a mesh, whose nodes know each other's endpoints.
    newcomer(&scene, 4, Some("203.0.4.4:51871"), true)?;
    newcomer(&scene, 5, Some("random"), true)
}

#[test]
fn forged_initiations_get_cookies_at_most_and_leave_a_session_its_goodput() -> Result<()> {
    require!();
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let scene = Scene::new("forged")?;
    let (rounds, count) = if is_long() {
        (5, 2_000_000)
    } else {
        (5, 200_000)
    };
    let forged = Attack {
        recorded: None,
        count,
        rate: RATE,
        seed: 0,
        from: None,
    };
    attack(&scene, "forged initiations", rounds, &forged)
}
