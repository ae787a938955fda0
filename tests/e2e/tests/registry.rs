//! The file registry in trouble, with traffic running and every cable of the underlay watched: the
//! last good view holds, `warren status` says what is wrong, and it clears by itself. That the check
//! of the captures can fail is shown in connectivity.rs.
#![allow(clippy::unwrap_used)] // in a test, a failed unwrap is the report

use std::collections::BTreeMap;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::{Value, json};
use warren_e2e::{Mesh, MeshPod, Node, Probe, ping};
use warren_keyring::PrivateKey;
use warren_lab::{Capture, poll_until, require};

/// Long enough for a slow, shared machine.
const LIMIT: Duration = Duration::from_secs(60);
const PROBE_INTERVAL: Duration = Duration::from_millis(20);

/// Two connected nodes, a pod on each, a probe between them, and the underlay watched.
struct Scene {
    mesh: Mesh,
    probe: Probe,
    capture: Capture,
    _pods: [MeshPod; 2],
}

impl Scene {
    fn start(name: &str) -> Result<Self> {
        let mesh = Mesh::start(name, 2)?;
        let (a, b) = (mesh.node(1).attach("a")?, mesh.node(2).attach("b")?);
        poll_until(LIMIT, "traffic at the start", || {
            ping(&a.pod, &b.v4, 1).is_ok_and(|p| p.lossless())
        })?;
        let capture = mesh.capture(&[])?;
        let probe = Probe::start(&a.pod, &b.pod, &b.v4, PROBE_INTERVAL)?;
        Ok(Self {
            mesh,
            probe,
            capture,
            _pods: [a, b],
        })
    }

    fn file(&self, name: &str) -> PathBuf {
        self.mesh.registry().join(format!("{name}.json"))
    }

    /// Waits until `warren status` of node1 prints all of these words, and exits with 1.
    fn told(&self, words: &[&str]) -> Result<()> {
        let node = self.mesh.node(1);
        let mut seen = String::new();
        let found = poll_until(LIMIT, &format!("{words:?}"), || {
            let Ok((code, page)) = node.warren(&["status"]) else {
                return false;
            };
            let all = words.iter().all(|word| page.contains(word));
            seen = page;
            code == 1 && all
        });
        assert!(found.is_ok(), "not told of {words:?}:\n{seen}");
        Ok(())
    }

    /// Waits until `warren status` of node1 finds nothing wrong.
    fn well(&self) -> Result<()> {
        let node = self.mesh.node(1);
        let mut seen = String::new();
        let found = poll_until(LIMIT, "no trouble", || {
            let Ok((code, page)) = node.warren(&["status"]) else {
                return false;
            };
            seen = page;
            code == 0
        });
        assert!(found.is_ok(), "still in trouble:\n{seen}");
        Ok(())
    }

    fn knows_node2(&self) -> bool {
        let status = self.mesh.node(1).status().unwrap();
        status["peers"]
            .as_array()
            .is_some_and(|peers| peers.iter().any(|p| p["node"] == "node2"))
    }

    /// Nothing was lost meanwhile, and nothing was in clear.
    fn end(self) -> Result<()> {
        // On a fast machine all else was over before a loss could have shown.
        std::thread::sleep(Duration::from_secs(1));
        let seen = self.probe.stop()?;
        assert!(seen.sent > 50 && seen.lost() == 0, "{seen:?}");
        let report = self.capture.stop();
        report.assert_clean();
        assert!(report.wireguard_total().frames > 50);
        Ok(())
    }
}

/// Topology: node1 alone. Its registry comes later than its agent, as a late mount does.
#[test]
fn an_agent_protects_its_node_and_waits_for_the_registrys_directory() -> Result<()> {
    require!();
    let mut mesh = Mesh::underlay("late-registry")?;
    std::fs::remove_dir(mesh.registry())?;
    mesh.add_node(1)?.start()?;
    let node = mesh.node(1);
    poll_until(LIMIT, "protection without a registry", || {
        node.status().is_ok_and(|s| s["protected"] == true)
    })?;
    poll_until(LIMIT, "the trouble", || {
        let page = node
            .warren(&["status"])
            .map_or(String::new(), |(_, page)| page);
        page.contains("registry    FAILED: registry directory")
            && page.contains("No such file or directory (os error 2); make it, or mount it")
            && page.contains("publish this node: make a file in")
    })?;
    // A pod may start already: it is protected, and this node's own range is known.
    node.attach("early")?;
    std::fs::create_dir(mesh.registry())?;
    poll_until(LIMIT, "the registry to be taken up", || {
        mesh.registry().join("node1.json").exists()
            && node.warren(&["status"]).is_ok_and(|(code, _)| code == 0)
    })?;
    Ok(())
}

/// Topology: node1 and node2 on one subnet. Where the registry was for node1 comes a file system
/// that answers nothing: FUSE without anybody behind it.
#[test]
fn a_file_system_that_hangs_holds_up_neither_traffic_nor_repair() -> Result<()> {
    require!();
    let scene = Scene::start("hanging")?;
    let node = scene.mesh.node(1);
    let directory = scene.mesh.registry().display();
    let options = "fd=3,rootmode=40000,user_id=0,group_id=0";
    let hang = format!(
        "exec 3<>/dev/fuse && mount -i -n -t fuse -o {options} hang {directory} \
         && echo hung >&2 && exec sleep 600"
    );
    let hang = node
        .host
        .spawn(std::process::Command::new("sh").args(["-c", &hang]))?;
    hang.wait_log("hung", LIMIT)?;
    scene.told(&["does not answer since 2", "the last view holds"])?;
    assert!(scene.knows_node2());
    for (damage, sound) in [
        ("nft flush ruleset", "nft list table inet warren"),
        (
            "ip route del 10.244.2.0/24 proto 151 table main",
            "ip route show 10.244.2.0/24 proto 151 table main | grep warren0",
        ),
    ] {
        node.host.sh(damage)?;
        let started = Instant::now();
        poll_until(LIMIT, &format!("`{damage}` to be repaired"), || {
            node.host.sh(sound).is_ok()
        })?;
        println!("{:?} after `{damage}`", started.elapsed());
    }
    // With its server's end each call fails, and then the directory itself is back.
    hang.kill();
    node.host.sh(&format!("umount -l {directory}"))?;
    scene.well()?;
    scene.end()
}

/// Topology: node1 and node2 on one subnet.
#[test]
fn a_directory_that_vanishes_and_comes_back_costs_nothing() -> Result<()> {
    require!();
    let scene = Scene::start("vanished")?;
    let away = scene.mesh.lab.dir().join("away");
    // Node2's agent would publish anew, and so show that the directory is in use.
    let agent = scene.mesh.node(2).agent.as_ref().unwrap();
    agent.signal(warren_lab::Signal::SIGSTOP);
    std::fs::rename(scene.mesh.registry(), &away)?;
    scene.told(&[
        "registry    FAILED: registry directory",
        "the last view holds",
    ])?;
    assert!(scene.knows_node2());
    // An empty directory in its place, such as a mount point without its file system.
    std::fs::create_dir(scene.mesh.registry())?;
    scene.told(&[
        "is empty, though it had nodes: is its file system mounted? the last view holds",
    ])?;
    assert!(scene.knows_node2());
    std::fs::remove_dir_all(scene.mesh.registry())?;
    std::fs::rename(&away, scene.mesh.registry())?;
    agent.signal(warren_lab::Signal::SIGCONT);
    scene.well()?;
    assert!(scene.knows_node2());
    scene.end()
}

/// Topology: node1 and node2 on one subnet.
#[test]
fn whatever_lies_in_the_directory_is_named_and_harms_nobody() -> Result<()> {
    require!();
    let scene = Scene::start("garbage")?;
    let good = std::fs::read_to_string(scene.file("node2"))?;
    // Node2's own file, damaged: it is put right by node2's agent, so that one is stopped.
    let agent = scene.mesh.node(2).agent.as_ref().unwrap();
    agent.signal(warren_lab::Signal::SIGSTOP);
    let mut large: Value = serde_json::from_str(&good)?;
    large["annotations"]["filler"] = json!("x".repeat(1 << 20));
    let damages = [
        (good[..good.len() / 2].to_owned(), "no node in JSON"),
        (String::new(), "no node in JSON: EOF while parsing"),
        (
            "\0\u{1}garbage".to_owned(),
            "no node in JSON: expected value",
        ),
        (large.to_string(), "larger than 65536 bytes"),
        (
            good.replace("node2", "node7"),
            "its name is \"node7\", which is not the file's",
        ),
    ];
    for (content, message) in &damages {
        std::fs::write(scene.file("node2"), content)?;
        scene.told(&[
            &format!("registry file node2.json: {message}"),
            "; its last good view holds",
        ])?;
        assert!(scene.knows_node2());
    }
    std::fs::write(scene.file("node2"), &good)?;
    scene.well()?;
    agent.signal(warren_lab::Signal::SIGCONT);
    // Things that are no files of nodes; opening some of them would wait for ever.
    let made = std::process::Command::new("mkfifo")
        .arg(scene.file("fifo"))
        .status()?;
    assert!(made.success());
    std::fs::create_dir(scene.file("directory"))?;
    symlink("/dev/zero", scene.file("zero"))?;
    symlink("loop.json", scene.file("loop"))?;
    symlink("/nonexistent", scene.file("dangling"))?;
    let socket = UnixListener::bind(scene.mesh.registry().join("socket.json"))?;
    std::fs::write(scene.file("NOT_A_NAME"), r#"{"name":"NOT_A_NAME"}"#)?;
    std::fs::write(scene.mesh.registry().join("README"), "not a node")?;
    scene.told(&[
        "registry file fifo.json: read ",
        "registry file directory.json: read ",
        "registry file zero.json: read ",
        "no regular file; remove it",
        "registry file loop.json: open ",
        "Too many levels of symbolic links",
        "registry file socket.json: open ",
        "NOT_A_NAME: node name \"NOT_A_NAME\" is not a DNS subdomain",
        "problems ",
    ])?;
    assert!(scene.knows_node2());
    drop(socket);
    for name in ["fifo", "zero", "loop", "dangling", "socket", "NOT_A_NAME"] {
        std::fs::remove_file(scene.file(name))?;
    }
    std::fs::remove_dir(scene.file("directory"))?;
    scene.well()?;
    // Thousands of them: each is looked at, twenty are told apart.
    for number in 0..2000 {
        let content = match number % 2 {
            0 => "{".to_owned(),
            _ => json!({ "name": format!("many-{number}"), "uid": "x" }).to_string(),
        };
        std::fs::write(scene.file(&format!("many-{number}")), content)?;
    }
    scene.told(&[
        "registry file many-0.json",
        "and 990 more",
        "many-1999: no public key published yet",
    ])?;
    assert!(scene.knows_node2());
    for number in 0..2000 {
        std::fs::remove_file(scene.file(&format!("many-{number}")))?;
    }
    scene.well()?;
    scene.end()
}

/// Topology: node1 and node2 on one subnet. Node1 sees the registry on a file system of its own of
/// 64 KiB, which is filled, and then made read-only.
#[test]
fn a_node_that_cannot_publish_says_so_tries_again_and_works_on() -> Result<()> {
    require!();
    let mut scene = Scene::start("full")?;
    let dir = scene.mesh.registry().display().to_string();
    let node = scene.mesh.node(1);
    node.host.sh(&format!(
        "cp -a {dir} /run/copy; mount -t tmpfs -o size=64k tmpfs {dir}; cp -a /run/copy/. {dir}"
    ))?;
    scene.well()?;
    // What it publishes changes while nothing can be written.
    let node = scene.mesh.node_mut(1);
    node.host
        .sh(&format!("cat /dev/zero > {dir}/filler || true"))?;
    node.agent.take().unwrap().kill();
    node.host.sh("ip addr add 192.0.2.111/32 dev eth0")?;
    node.addresses.push("192.0.2.111".into());
    node.start_agent()?;
    scene.told(&[
        "publish this node: ",
        "No space left on device (os error 28)",
    ])?;
    scene.told(&["; the next try comes within 8 s"])?;
    assert!(scene.knows_node2());
    // Half a file was never seen by anyone, and nothing was left behind.
    let node = scene.mesh.node(1);
    let left = node
        .host
        .sh(&format!("ls -A {dir}; cat {dir}/node1.json"))?
        .stdout;
    assert!(
        !left.contains(".tmp") && !left.contains("192.0.2.111"),
        "{left}"
    );
    node.host.sh(&format!("rm {dir}/filler"))?;
    scene.well()?;
    let text = node.host.sh(&format!("cat {dir}/node1.json"))?.stdout;
    assert!(text.contains("192.0.2.111"), "{text}");
    // Read-only.
    let node = scene.mesh.node_mut(1);
    node.host.sh(&format!("mount -o remount,ro {dir}"))?;
    node.agent.take().unwrap().kill();
    node.addresses.pop();
    node.start_agent()?;
    scene.told(&["publish this node: ", "Read-only file system (os error 30)"])?;
    scene
        .mesh
        .node(1)
        .host
        .sh(&format!("mount -o remount,rw {dir}"))?;
    scene.well()?;
    scene.end()
}

/// What the node's tunnel and kernel have: peers, allowed IPs, routes, rules, addresses, sets.
fn network_of(node: &Node) -> Result<String> {
    let allowed = node.warren(&["show", "warren0", "allowed-ips"])?.1;
    let mut peers: Vec<String> = allowed
        .lines()
        .map(|line| {
            let mut words: Vec<&str> = line.split_whitespace().collect();
            words[1..].sort_unstable();
            words.join(" ")
        })
        .collect();
    let endpoints = node.warren(&["show", "warren0", "endpoints"])?.1;
    peers.extend(endpoints.lines().map(str::to_owned));
    peers.sort();
    let script = "ip -4 route show table all proto 151; ip -6 route show table all proto 151
                  ip -4 rule; ip -6 rule; ip -br addr show dev warren0; cat /sys/class/net/warren0/mtu
                  nft -s list table inet warren";
    // The kernel's link-local address of a new device is another one.
    let script = format!("({script}) | sed 's/fe80::[0-9a-f:]*\\/64//'");
    Ok(format!(
        "{}\n{}",
        peers.join("\n"),
        node.host.sh(&script)?.stdout
    ))
}

/// Takes everything of Warren away from a node but its key and its name, and starts it again.
fn start_from_nothing(node: &mut Node) -> Result<()> {
    node.agent.take().unwrap().kill();
    node.tunnel.take().unwrap().kill();
    let state = node.state_dir().display().to_string();
    node.host.sh(&format!(
        "ip link delete warren0; nft delete table inet warren
         for family in -4 -6; do
           ip $family route flush table main proto 151; ip $family route flush table 51871 || true
           while ip $family rule del pref 5187 2>/dev/null; do :; done
         done
         rm {state}/view.json {state}/node.json {state}/tunnel.state"
    ))?;
    node.start()
}

/// Records that come, change and go.
struct Churn {
    keys: Vec<[String; 2]>,
    random: u64,
}

/// What stays as it is for so long is as its agent wants it: longer than the time between two
/// reconciles.
const SETTLED: Duration = Duration::from_secs(7);
/// Nodes that come and go beside the real ones.
const STRANGERS: usize = 40;

impl Churn {
    fn new(seed: u64) -> Result<Self> {
        let key = || -> Result<String> { Ok(PrivateKey::generate()?.public_key().to_base64()) };
        let keys: Result<Vec<_>> = (0..STRANGERS).map(|_| Ok([key()?, key()?])).collect();
        Ok(Self {
            keys: keys?,
            random: seed,
        })
    }

    /// xorshift64 (Marsaglia, 2003).
    fn below(&mut self, limit: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % limit
    }

    /// Stranger `n`; ranges are swapped between neighbours, keys are changed, and a life ends.
    fn record(&self, n: usize, swapped: bool, key: usize, life: u64) -> Value {
        let range = if swapped { n ^ 1 } else { n } + 100;
        json!({
            "name": format!("stranger-{n}"), "uid": format!("life-{life}"),
            "podCIDRs": [format!("10.244.{range}.0/24"), format!("fd00:244:0:{range:x}::/64")],
            "addresses": [format!("192.0.2.{}", n + 100)],
            "annotations": {
                "warren.network/public-key": self.keys[n][key],
                "warren.network/endpoint": format!("192.0.2.{}:51871", n + 100),
                "warren.network/mtu": "1400",
            },
        })
    }

    /// Changes one file at random, politely or not.
    fn step(&mut self, scene: &Scene) -> Result<()> {
        let n = self.below(STRANGERS as u64) as usize;
        let path = scene.file(&format!("stranger-{n}"));
        let (swapped, key, life) = (self.below(4) == 0, self.below(2) as usize, self.below(3));
        let text = self.record(n, swapped, key, life).to_string();
        match self.below(8) {
            0 => drop(std::fs::remove_file(&path)),
            1 => std::fs::write(&path, &text[..text.len() / 2])?,
            2 => std::fs::write(&path, &text)?,
            _ => {
                let hidden = scene.mesh.registry().join(".tmp-churn");
                std::fs::write(&hidden, &text)?;
                std::fs::rename(&hidden, &path)?;
            }
        }
        Ok(())
    }

    /// Every stranger as it shall be in the end: most are there, some are gone.
    fn finish(&self, scene: &Scene) -> Result<()> {
        for n in 0..STRANGERS {
            let path = scene.file(&format!("stranger-{n}"));
            match n % 5 {
                0 => drop(std::fs::remove_file(&path)),
                _ => std::fs::write(&path, self.record(n, false, n % 2, 7).to_string())?,
            }
        }
        Ok(())
    }
}

/// Topology: node1 and node2 on one subnet, and forty nodes that exist in the registry alone.
/// Seconds by WARREN_CHURN_SECONDS (default 8), seed by WARREN_SEED.
#[test]
fn two_hundred_changes_a_second_end_as_a_fresh_start_would() -> Result<()> {
    require!();
    let number = |name: &str, default: u64| match std::env::var(name) {
        Ok(text) => text.parse().unwrap(),
        Err(_) => default,
    };
    let seconds = number("WARREN_CHURN_SECONDS", 8);
    let seed = number("WARREN_SEED", 0x5eed_cafe);
    println!("WARREN_CHURN_SECONDS={seconds} WARREN_SEED={seed}");
    let scene = Scene::start("churn")?;
    let mut churn = Churn::new(seed)?;
    let start = Instant::now();
    let total = seconds * 200;
    for change in 1..=total {
        churn.step(&scene)?;
        let due = start + Duration::from_millis(change * 5);
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
    }
    let rate = total as f64 / start.elapsed().as_secs_f64();
    println!("{total} changes, {rate:.0} a second");
    churn.finish(&scene)?;
    scene.well()?;
    let expected = STRANGERS - STRANGERS.div_ceil(5) + 1;
    let peers = |node: &Node| {
        let shown = node.warren(&["show", "warren0", "peers"]);
        shown.map_or(0, |(_, text)| text.lines().count())
    };
    for number in [1, 2] {
        poll_until(LIMIT, "all that remain to be peers", || {
            peers(scene.mesh.node(number)) == expected
        })?;
    }
    let mut settled = BTreeMap::new();
    for number in [1, 2] {
        let (mut last, mut since) = (String::new(), Instant::now());
        poll_until(LIMIT, "the node to settle", || {
            let now = network_of(scene.mesh.node(number)).unwrap_or_default();
            if std::mem::replace(&mut last, now.clone()) != now {
                since = Instant::now();
            }
            since.elapsed() > SETTLED
        })?;
        settled.insert(number, last);
    }
    let Scene {
        mut mesh,
        probe,
        capture,
        _pods,
    } = scene;
    let seen = probe.stop()?;
    println!("{seen:?}");
    assert!(seen.sent > seconds * 20 && seen.lost() == 0, "{seen:?}");
    capture.stop().assert_clean();
    for (number, running) in &settled {
        start_from_nothing(mesh.node_mut(*number))?;
        let mut fresh = String::new();
        let equal = poll_until(LIMIT, "a fresh start to build the same", || {
            fresh = network_of(mesh.node(*number)).unwrap_or_default();
            fresh == *running
        });
        assert!(
            equal.is_ok(),
            "node{number} after the changes:\n{running}\n--- from nothing:\n{fresh}"
        );
    }
    Ok(())
}
