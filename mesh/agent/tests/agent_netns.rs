//! The real agent in a network namespace of its own.
//!
//! ```text
//!   [ namespace: warren-agent, warren0 (a TUN that nobody reads) ] eth0 --- eth1 (nobody there)
//!     192.0.2.1/24, 2001:db8::1/64, default routes by 192.0.2.254 and 2001:db8::254
//! ```

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod namespace;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use namespace::{in_namespace, sh};
use warren_core::NodeView;
use warren_core::consts::annotation;
use warren_core::status::AgentStatus;
use warren_core::uapi::{Device, Peer, Request, answer_errno};
use warren_keyring::{PrivateKey, PublicKey};

/// Long enough for a slow, shared machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// Tells what is done by an event from what is done at the tick of 5 s.
const BY_EVENT: Duration = Duration::from_secs(4);

struct Agent {
    dir: tempfile::TempDir,
    child: Option<Child>,
}

impl Agent {
    fn start() -> Self {
        sh("ip link add eth0 type veth peer name eth1");
        sh("echo 1 > /proc/sys/net/ipv6/conf/eth0/accept_ra");
        sh("ip link set eth0 up; ip link set eth1 up");
        sh("ip addr add 192.0.2.1/24 dev eth0; ip addr add 2001:db8::1/64 dev eth0 nodad");
        sh("ip route add default via 192.0.2.254; ip route add default via 2001:db8::254");
        let dir = tempfile::tempdir().unwrap();
        for name in ["nodes", "uapi"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        let mut agent = Self { dir, child: None };
        agent.child = Some(agent.command().spawn().unwrap());
        agent
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_warren-agent"));
        command
            .args([
                "--node-name=node-1",
                "--cluster-cidrs=10.244.0.0/16,fd00:10:244::/48",
            ])
            .arg("--pod-cidrs=10.244.1.0/24,fd00:10:244:1::/64")
            .stderr(Stdio::piped());
        for (key, name) in [
            ("registry-dir", "nodes"),
            ("state-dir", "state"),
            ("run-dir", "run"),
            ("uapi-dir", "uapi"),
            ("cni-conf-dir", "cni"),
        ] {
            command.arg(format!("--{key}={}", self.path(name).display()));
        }
        command
    }

    fn conflist(&self) -> PathBuf {
        self.path("cni/10-warren.conflist")
    }

    fn status(&self) -> Option<AgentStatus> {
        let mut text = String::new();
        let mut stream = UnixStream::connect(self.path("run/agent.sock")).ok()?;
        stream.read_to_string(&mut text).unwrap();
        Some(serde_json::from_str(&text).unwrap())
    }

    /// Waits until `done`, or panics with the agent's status.
    fn until(&self, what: &str, done: impl Fn() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !done() {
            assert!(
                Instant::now() < deadline,
                "not in time: {what}; {:#?}",
                self.status()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Ends the agent as a service manager does, and returns how it ended and what it logged.
    fn stop(&mut self) -> (ExitStatus, String) {
        let mut child = self.child.take().unwrap();
        let pid = nix::unistd::Pid::from_raw(child.id().try_into().unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::SIGTERM).unwrap();
        let mut log = String::new();
        child
            .stderr
            .take()
            .unwrap()
            .read_to_string(&mut log)
            .unwrap();
        (child.wait().unwrap(), log)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
            let mut log = String::new();
            let _ = child.stderr.take().unwrap().read_to_string(&mut log);
            eprintln!("{log}");
        }
    }
}

fn http(path: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect("127.0.0.1:9151").ok()?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    )
    .unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    Some((
        head.split(' ').nth(1).unwrap().parse().unwrap(),
        body.to_owned(),
    ))
}

fn filter_is_loaded() -> bool {
    sh("nft list tables")
        .lines()
        .any(|line| line == "table inet warren")
}

fn unreachable_routes() -> usize {
    let lines = sh("ip -4 route show proto 151 type unreachable table main; \
                    ip -6 route show proto 151 type unreachable table main");
    lines.lines().count()
}

/// A UAPI server on threads of its own, which keeps what it was told.
fn serve_uapi(path: &Path) -> (PublicKey, Arc<Mutex<Device>>) {
    let private = PrivateKey::generate().unwrap();
    let public = private.public_key();
    let device = Device {
        private_key: Some(private),
        listen_port: 51871,
        ..Device::default()
    };
    let device = Arc::new(Mutex::new(device));
    let (listener, shared) = (UnixListener::bind(path).unwrap(), device.clone());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, mut text, mut byte) = (stream.unwrap(), String::new(), [0]);
            while !text.ends_with("\n\n") && stream.read(&mut byte).unwrap_or(0) == 1 {
                text.push(byte[0].into());
            }
            let mut device = shared.lock().unwrap();
            let state = match Request::parse(&text) {
                Ok(Request::Get) => device.to_text().to_string(),
                Ok(Request::Set(set)) => {
                    device.peers = set
                        .peers
                        .iter()
                        .map(|peer| Peer::new(peer.public_key))
                        .collect();
                    for (peer, update) in device.peers.iter_mut().zip(&set.peers) {
                        peer.endpoint = update.endpoint;
                        peer.path_probes = update.path_probes.unwrap_or_default();
                        peer.allowed_ips = update
                            .allowed_ips
                            .iter()
                            .map(|allowed_ip| match allowed_ip {
                                warren_core::uapi::AllowedIpUpdate::Add(net) => *net,
                                other => panic!("{other:?}"),
                            })
                            .collect();
                    }
                    String::new()
                }
                Err(_) => continue,
            };
            let _ = stream.write_all(format!("{state}{}", answer_errno(0)).as_bytes());
        }
    });
    (public, device)
}

#[test]
fn protection_is_up_without_a_tunnel_and_stays_when_the_agent_ends() {
    in_namespace(async || {
        let mut agent = Agent::start();
        agent.until("protected", || agent.status().is_some_and(|s| s.protected));
        assert!(filter_is_loaded());
        assert_eq!(unreachable_routes(), 2);
        assert_eq!(sh("cat /proc/sys/net/ipv4/ip_forward"), "1\n");
        assert_eq!(sh("cat /proc/sys/net/ipv6/conf/all/forwarding"), "1\n");
        assert_eq!(sh("cat /proc/sys/net/ipv6/conf/eth0/accept_ra"), "2\n");
        assert!(!agent.conflist().exists());
        assert_eq!(http("/healthz").unwrap().0, 200);
        let (code, reasons) = http("/readyz").unwrap();
        assert!(
            code == 503 && reasons.contains("is warren-tunnel running?"),
            "{code} {reasons}"
        );
        agent.until("its registry to be read", || {
            agent.status().is_some_and(|status| status.registry.ok)
        });
        let status = agent.status().unwrap();
        let endpoints: Vec<String> = status.endpoints.iter().map(ToString::to_string).collect();
        assert_eq!(endpoints, ["192.0.2.1:51871", "[2001:db8::1]:51871"]);
        assert!(status.public_key.is_none() && !status.tunnel.ok);
        assert_eq!(std::fs::read_dir(agent.path("nodes")).unwrap().count(), 0);

        let (ended, log) = agent.stop();
        assert!(ended.success(), "{log}");
        assert!(filter_is_loaded() && unreachable_routes() == 2);
        assert!(!agent.path("run/agent.sock").exists());
        assert!(!log.contains("ERROR"), "{log}");
    });
}

#[test]
fn what_others_tear_down_is_repaired_within_five_seconds() {
    in_namespace(async || {
        let agent = Agent::start();
        agent.until("protected", || agent.status().is_some_and(|s| s.protected));
        sh("nft flush ruleset");
        agent.until("the filter is back", filter_is_loaded);
        sh("ip route del unreachable 10.244.0.0/16 metric 4294967280");
        agent.until("the route is back", || unreachable_routes() == 2);
        sh("nft insert rule inet warren egress accept");
        agent.until("the hole is closed", || {
            !sh("nft list chain inet warren egress").contains("\taccept\n")
        });
    });
}

#[test]
fn a_second_agent_of_the_same_run_directory_refuses() {
    in_namespace(async || {
        let agent = Agent::start();
        agent.until("protected", || agent.status().is_some_and(|s| s.protected));
        let second = agent.command().output().unwrap();
        let log = String::from_utf8_lossy(&second.stderr).into_owned();
        assert!(!second.status.success());
        assert!(
            log.contains("another warren-agent runs") && log.contains("run-dir"),
            "{log}"
        );
        assert!(agent.status().is_some(), "the first is not disturbed");
    });
}

#[test]
fn a_tunnel_and_a_peer_are_set_up_as_they_appear() {
    in_namespace(async || {
        let agent = Agent::start();
        agent.until("protected", || agent.status().is_some_and(|s| s.protected));
        sh("ip tuntap add warren0 mode tun");
        agent.until("the CNI configuration", || agent.conflist().exists());
        let addresses = sh("ip -o addr show dev warren0");
        assert!(addresses.contains("10.244.1.1/32"), "{addresses}");
        assert!(addresses.contains("fd00:10:244:1::1/128"), "{addresses}");
        assert_eq!(sh("cat /proc/sys/net/ipv4/conf/warren0/rp_filter"), "2\n");

        let (own_key, device) = serve_uapi(&agent.path("uapi/warren0.sock"));
        let own_file = agent.path("nodes/node-1.json");
        agent.until("published", || own_file.exists());
        let own: NodeView = serde_json::from_slice(&std::fs::read(&own_file).unwrap()).unwrap();
        assert_eq!(own.annotations[annotation::PUBLIC_KEY], own_key.to_base64());
        assert_eq!(own.annotations[annotation::MTU], "1500");
        assert_eq!(own.addresses, ["192.0.2.1", "2001:db8::1"]);
        agent.until("ready", || http("/readyz").unwrap().0 == 200);

        let key = PrivateKey::generate().unwrap().public_key();
        let view = serde_json::json!({
            "name": "node-2", "uid": "two",
            "podCIDRs": ["10.244.2.0/24", "fd00:10:244:2::/64"],
            "addresses": ["192.0.2.2", "2001:db8::2"],
            "annotations": { annotation::PUBLIC_KEY: key.to_base64(), annotation::MTU: "1400" },
        });
        let file = agent.path("nodes/node-2.json");
        let route = || sh("ip route show proto 151").contains("10.244.2.0/24");
        // A shared machine may stand still for seconds once, but not each time.
        let mut took = Vec::new();
        while took.len() < 3 && took.last().is_none_or(|last| *last >= BY_EVENT) {
            let _ = std::fs::remove_file(&file);
            agent.until("no route", || !route());
            std::fs::write(&file, view.to_string()).unwrap();
            let joined = Instant::now();
            agent.until("the peer", || device.lock().unwrap().peers.len() == 1);
            agent.until("its route", route);
            took.push(joined.elapsed());
        }
        assert!(took.last() < Some(&BY_EVENT), "{took:?}");
        // Nobody reads this TUN, which has no carrier then.
        for (show, lines) in [
            (
                "ip route show proto 151; ip -6 route show proto 151",
                &[
                    "10.244.2.0/24 dev warren0 scope link src 10.244.1.1 metric 1024 mtu 1340",
                    "fd00:10:244:2::/64 dev warren0 src fd00:10:244:1::1 metric 1024 mtu 1340",
                ][..],
            ),
            (
                "ip route show table 51871; ip -6 route show table 51871",
                &[
                    "192.0.2.2 dev warren0",
                    "unreachable 192.0.2.2 proto 151 metric 4294967280",
                    "2001:db8::2 dev warren0",
                    "unreachable 2001:db8::2 dev lo proto 151 metric 4294967280",
                ],
            ),
            (
                "ip rule; ip -6 rule",
                &[
                    "5187:\tfrom 10.244.1.0/24 lookup 51871",
                    "5187:\tfrom fd00:10:244:1::/64 lookup 51871",
                ],
            ),
        ] {
            for line in lines {
                agent.until(line, || sh(show).replace(" linkdown", "").contains(line));
            }
        }
        agent.until("no problem", || {
            agent.status().is_some_and(|s| s.problems.is_empty())
        });
        agent.until("the peer's metrics", || {
            let metrics = http("/metrics").unwrap().1;
            metrics.contains("friendly_name=\"node-2\"")
        });

        // Everything is there again after the interface was made anew by somebody.
        sh("ip link del warren0");
        sh("ip tuntap add warren0 mode tun");
        agent.until("the routes of the new interface", || {
            sh("ip route show proto 151").contains("10.244.2.0/24 dev warren0")
        });
        // Still: once all is as it should be, nothing is done over and over.
        let changes = |text: &str| {
            let line = text
                .lines()
                .find(|l| l.starts_with("warren_reconcile_changes_total"));
            line.unwrap().to_owned()
        };
        agent.until("six seconds without a change", || {
            let before = changes(&http("/metrics").unwrap().1);
            std::thread::sleep(Duration::from_secs(6));
            changes(&http("/metrics").unwrap().1) == before
        });

        std::fs::remove_file(agent.path("nodes/node-2.json")).unwrap();
        agent.until("the route is gone", || {
            !sh("ip route show proto 151").contains("10.244.2.0")
        });
    });
}
