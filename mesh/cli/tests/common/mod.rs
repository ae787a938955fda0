//! Devices, statuses and socket servers for the tests.
// Each test program uses a part of it.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use warren_cli::text::Style;
use warren_cli::{Cli, Environment, Outcome};
use warren_core::status::{
    AgentStatus, DataPlaneKind, Health, NodeState, PeerState, PeerStatus, RejectStatus,
};
use warren_core::uapi::{Device, Peer, answer_errno};
use warren_keyring::{PresharedKey, PrivateKey, PublicKey};

/// The tests' time.
pub const NOW: u64 = 1_800_000_000;

pub const PLAIN: Environment = Environment {
    now: NOW,
    style: Style::PLAIN,
    hide_keys: true,
};

pub fn public_key(fill: u8) -> PublicKey {
    PublicKey::from_bytes([fill; 32]).unwrap()
}

/// A peer without anything but its key.
pub fn bare_peer(fill: u8) -> Peer {
    Peer::new(public_key(fill))
}

/// A device with every kind of peer, and numbers at the units' limits.
pub fn full_device() -> Device {
    let mut silent = bare_peer(0x11);
    silent.endpoint = Some("192.0.2.1:51871".parse().unwrap());
    silent.allowed_ips = vec!["10.244.1.0/24".parse().unwrap()];

    let mut old = bare_peer(0x22);
    old.last_handshake = Some(Duration::from_secs(NOW - 3665));
    old.endpoint = Some("[2001:db8::2]:51871".parse().unwrap());
    old.rx_bytes = 1023;
    old.tx_bytes = 1024;
    old.allowed_ips = ["10.244.2.0/24", "fd00:2::/64", "2001:db8::2/128"]
        .map(|prefix| prefix.parse().unwrap())
        .to_vec();

    let mut new = bare_peer(0x33);
    new.preshared_key = Some(PresharedKey::from_bytes([0x44; 32]));
    new.last_handshake = Some(Duration::new(NOW - 65, 999_999_999));
    new.rx_bytes = 5 << 30;
    new.persistent_keepalive = 25;

    Device {
        private_key: Some(PrivateKey::from_bytes([0x55; 32]).unwrap()),
        listen_port: 51871,
        fwmark: 0xca6c,
        peers: vec![silent, old, new],
    }
}

/// A status of two peers; all well.
pub fn good_status() -> AgentStatus {
    AgentStatus {
        version: "0.1.0".to_owned(),
        node: "node1".to_owned(),
        state: NodeState::Ok,
        degraded: Vec::new(),
        tunnel_version: Some("0.1.0".to_owned()),
        public_key: Some(public_key(0x11)),
        key_age_seconds: Some(3 * 86_400 + 4 * 3600),
        data_plane: DataPlaneKind::Userspace,
        interface: "warren0".to_owned(),
        endpoints: vec![
            "192.0.2.1:51871".parse().unwrap(),
            "[2001:db8::1]:51871".parse().unwrap(),
        ],
        pod_cidrs: vec![
            "10.244.1.0/24".parse().unwrap(),
            "fd00:1::/64".parse().unwrap(),
        ],
        cluster_cidrs: vec!["10.244.0.0/16".parse().unwrap()],
        protected: true,
        tunnel: Health {
            ok: true,
            detail: "2 peers".to_owned(),
        },
        registry: Health {
            ok: true,
            detail: String::new(),
        },
        synced: true,
        problems: Vec::new(),
        peers: vec![
            PeerStatus {
                node: "node3".to_owned(),
                public_key: public_key(0x33),
                state: PeerState::Connecting,
                endpoint: None,
                published_endpoint: "[2001:db8::3]:51871".parse().unwrap(),
                pod_cidrs: vec!["10.244.3.0/24".parse().unwrap()],
                addresses: vec!["2001:db8::3".parse().unwrap()],
                mtu_bytes: 1420,
                latest_handshake: None,
                handshake_age_seconds: None,
                rx_bytes: 0,
                tx_bytes: 148,
                notice: None,
                untrusted_key: None,
                degraded: None,
            },
            PeerStatus {
                node: "node2".to_owned(),
                public_key: public_key(0x22),
                state: PeerState::Up,
                endpoint: Some("192.0.2.2:51871".parse().unwrap()),
                published_endpoint: "192.0.2.2:51871".parse().unwrap(),
                pod_cidrs: vec![
                    "10.244.2.0/24".parse().unwrap(),
                    "fd00:2::/64".parse().unwrap(),
                ],
                addresses: vec!["192.0.2.2".parse().unwrap()],
                mtu_bytes: 1440,
                latest_handshake: Some(NOW - 65),
                handshake_age_seconds: Some(65),
                rx_bytes: 1536,
                tx_bytes: 104_857_600,
                notice: None,
                untrusted_key: None,
                degraded: None,
            },
        ],
        rejected: Vec::new(),
        filter_drops: [("antispoof".to_owned(), 0)].into(),
    }
}

pub fn reject(node: &str, reason: &str, message: &str, waiting: bool) -> RejectStatus {
    RejectStatus {
        node: node.to_owned(),
        reason: reason.to_owned(),
        message: message.to_owned(),
        waiting,
    }
}

/// The whole answer of a device to `get=1`.
pub fn uapi_answer(device: &Device) -> String {
    format!("{}{}", device.to_text().as_str(), answer_errno(0))
}

/// How a server ends a connection.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// Answers at once and closes, as the agent does.
    Tell,
    /// Answers each request and waits for the next, as UAPI servers do.
    Answer,
    /// Says nothing until the client goes.
    Hang,
}

/// A server on a socket, until it is dropped.
pub struct Server {
    path: PathBuf,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    pub fn start(path: &Path, manner: Manner, answer: impl Into<Vec<u8>>) -> Self {
        let listener = UnixListener::bind(path).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, answer) = (Arc::clone(&stop), answer.into());
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                // A client that goes early is normal.
                let _ = serve(stream, manner, &answer);
            }
        });
        Self {
            path: path.to_owned(),
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Wakes the server; if it is gone already, there is nothing to wake.
        let _ = UnixStream::connect(&self.path);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        let _ = std::fs::remove_file(&self.path);
    }
}

fn serve(mut stream: UnixStream, manner: Manner, answer: &[u8]) -> std::io::Result<()> {
    if manner == Manner::Tell {
        return stream.write_all(answer);
    }
    let mut request = Vec::new();
    let mut buffer = [0; 256];
    loop {
        let count = stream.read(&mut buffer)?;
        if count == 0 {
            return Ok(());
        }
        request.extend_from_slice(&buffer[..count]);
        if manner == Manner::Answer && request.ends_with(b"\n\n") {
            assert_eq!(request, b"get=1\n\n");
            stream.write_all(answer)?;
            request.clear();
        }
    }
}

/// A directory that holds `wireguard/` and `warren/`.
pub struct Sockets {
    directory: tempfile::TempDir,
}

impl Sockets {
    pub fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("wireguard")).unwrap();
        std::fs::create_dir(directory.path().join("warren")).unwrap();
        Self { directory }
    }

    pub fn path(&self, file: &str) -> PathBuf {
        self.directory.path().join(file)
    }

    pub fn device(&self, name: &str, device: &Device) -> Server {
        let path = self.path(&format!("wireguard/{name}.sock"));
        Server::start(&path, Manner::Answer, uapi_answer(device))
    }

    pub fn agent(&self, answer: impl Into<Vec<u8>>) -> Server {
        Server::start(&self.path("warren/agent.sock"), Manner::Tell, answer)
    }

    pub fn tunnel(&self, answer: &str) -> Server {
        Server::start(&self.path("warren/tunnel.sock"), Manner::Tell, answer)
    }

    /// Runs `warren` on these directories.
    pub fn warren(&self, arguments: &[&str]) -> Outcome {
        let (uapi, run) = (self.path("wireguard"), self.path("warren"));
        let directories = [
            "--uapi-dir",
            uapi.to_str().unwrap(),
            "--run-dir",
            run.to_str().unwrap(),
        ];
        let line = ["warren"].iter().chain(arguments).chain(&directories);
        let cli = <Cli as clap::Parser>::try_parse_from(line).unwrap();
        warren_cli::run(&cli, &PLAIN)
    }
}
