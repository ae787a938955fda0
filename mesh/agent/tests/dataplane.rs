//! The UAPI client against a server that keeps peers as WireGuard does.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ipnet::IpNet;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use warren_agent::dataplane::{DataPlane, DataPlaneError, UapiDataPlane};
use warren_core::Change;
use warren_core::state::{DesiredPeer, ObservedPeer, PeerDelta};
use warren_core::uapi::{AllowedIpUpdate, Device, Peer, Request, SetRequest, answer_errno};
use warren_keyring::{PrivateKey, PublicKey};

/// A device behind a socket, and every request that changed it.
#[derive(Default)]
struct Server {
    device: Device,
    requests: Vec<SetRequest>,
    errno: i32,
}

impl Server {
    fn set(&mut self, request: SetRequest) {
        for update in &request.peers {
            let at = self
                .device
                .peers
                .iter()
                .position(|p| p.public_key == update.public_key);
            if update.remove {
                at.map(|at| self.device.peers.remove(at));
                continue;
            }
            let Some(at) = at.or_else(|| {
                (!update.update_only).then(|| {
                    self.device.peers.push(Peer::new(update.public_key));
                    self.device.peers.len() - 1
                })
            }) else {
                continue;
            };
            for allowed_ip in &update.allowed_ips {
                match allowed_ip {
                    AllowedIpUpdate::Add(net) => {
                        for peer in &mut self.device.peers {
                            peer.allowed_ips.retain(|other| other != net);
                        }
                        self.device.peers[at].allowed_ips.push(*net);
                    }
                    AllowedIpUpdate::Remove(net) => {
                        self.device.peers[at]
                            .allowed_ips
                            .retain(|other| other != net);
                    }
                }
            }
            let peer = &mut self.device.peers[at];
            peer.endpoint = update.endpoint.or(peer.endpoint);
            peer.persistent_keepalive = update
                .persistent_keepalive
                .unwrap_or(peer.persistent_keepalive);
            peer.path_probes = update.path_probes.unwrap_or(peer.path_probes);
        }
        self.requests.push(request);
    }
}

struct Fixture {
    dir: tempfile::TempDir,
    server: Arc<Mutex<Server>>,
}

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let server = Arc::new(Mutex::new(Server::default()));
        let listener = UnixListener::bind(dir.path().join("warren0.sock")).unwrap();
        let shared = server.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                serve(stream, &shared).await;
            }
        });
        Self { dir, server }
    }

    fn client(&self) -> UapiDataPlane {
        UapiDataPlane::new(self.dir.path().join("warren0.sock"))
    }
}

async fn serve(mut stream: UnixStream, server: &Mutex<Server>) {
    let mut text = Vec::new();
    while !text.ends_with(b"\n\n") {
        if stream.read_buf(&mut text).await.unwrap() == 0 {
            return;
        }
    }
    let answer = {
        let mut server = server.lock().unwrap();
        let request = Request::parse(std::str::from_utf8(&text).unwrap()).unwrap();
        let state = match request {
            Request::Get => server.device.to_text().to_string(),
            Request::Set(_) if server.errno != 0 => String::new(),
            Request::Set(request) => {
                server.set(request);
                String::new()
            }
        };
        format!("{state}{}", answer_errno(server.errno))
    };
    // In pieces: an answer has no length but its empty line.
    for piece in answer.as_bytes().chunks(700) {
        stream.write_all(piece).await.unwrap();
    }
}

fn key() -> PublicKey {
    PrivateKey::generate().unwrap().public_key()
}

fn nets<const N: usize>(texts: [&str; N]) -> BTreeSet<IpNet> {
    texts.map(|text| text.parse().unwrap()).into()
}

fn add(public_key: PublicKey, allowed_ips: BTreeSet<IpNet>) -> Change {
    let endpoint = "192.0.2.2:51871".parse().unwrap();
    Change::AddPeer {
        public_key,
        new: DesiredPeer {
            endpoint,
            allowed_ips,
            persistent_keepalive: 25,
            path_probes: true,
        },
    }
}

fn observed() -> ObservedPeer {
    ObservedPeer {
        endpoint: None,
        applied_endpoint: None,
        allowed_ips: BTreeSet::new(),
        persistent_keepalive: 0,
        path_probes: true,
    }
}

#[tokio::test]
async fn only_the_public_half_of_the_key_is_told() {
    let fixture = Fixture::new();
    let private = PrivateKey::generate().unwrap();
    let public = private.public_key();
    let shown = private.to_hex();
    {
        let mut server = fixture.server.lock().unwrap();
        server.device.private_key = Some(private);
        server.device.listen_port = 51871;
    }
    let state = fixture.client().observe().await.unwrap();
    assert_eq!((state.public_key, state.listen_port), (Some(public), 51871));
    assert!(!format!("{state:?}").contains(shown.as_str()));
}

#[tokio::test]
async fn a_batch_is_one_request_and_a_prefix_moves_inside_it() {
    let fixture = Fixture::new();
    let (old, new, kept) = (key(), key(), key());
    let mut client = fixture.client();
    let first = [
        add(old, nets(["10.244.2.0/24"])),
        add(kept, nets(["10.244.3.0/24"])),
    ];
    client.apply(&first).await.unwrap();
    let delta = PeerDelta {
        endpoint: Some("192.0.2.9:1".parse().unwrap()),
        persistent_keepalive: Some(0),
        path_probes: Some(false),
        add_allowed_ips: nets(["10.244.4.0/24"]),
        remove_allowed_ips: nets(["10.244.3.0/24"]),
    };
    let changes = [
        add(new, nets(["10.244.2.0/24"])),
        Change::UpdatePeer {
            public_key: kept,
            old: observed(),
            delta,
        },
        Change::RemovePeer {
            public_key: old,
            old: observed(),
        },
        Change::AddAddress("10.244.1.1/32".parse().unwrap()),
    ];
    client.apply(&changes).await.unwrap();
    let peers: BTreeMap<PublicKey, Peer> = client
        .observe()
        .await
        .unwrap()
        .peers
        .into_iter()
        .map(|p| (p.public_key, p))
        .collect();
    assert_eq!(
        peers.keys().copied().collect::<BTreeSet<_>>(),
        BTreeSet::from([new, kept])
    );
    assert_eq!(peers[&new].allowed_ips, ["10.244.2.0/24".parse().unwrap()]);
    assert_eq!(peers[&kept].allowed_ips, ["10.244.4.0/24".parse().unwrap()]);
    assert_eq!(peers[&kept].endpoint, Some("192.0.2.9:1".parse().unwrap()));
    assert_eq!(peers[&kept].persistent_keepalive, 0);
    assert!(peers[&new].path_probes && !peers[&kept].path_probes);

    let server = fixture.server.lock().unwrap();
    assert_eq!(server.requests.len(), 2, "one request a batch");
    for request in &server.requests {
        assert!(!request.replace_peers && request.private_key.is_none());
        assert!(request.peers.iter().all(|peer| !peer.replace_allowed_ips));
    }
    let second = &server.requests[1].peers;
    assert_eq!(
        second.iter().map(|p| p.update_only).collect::<Vec<_>>(),
        [false, true, true]
    );
}

#[tokio::test]
async fn nothing_is_sent_when_no_peer_changes() {
    let fixture = Fixture::new();
    let change = Change::AddAddress("10.244.1.1/32".parse().unwrap());
    fixture.client().apply(&[change]).await.unwrap();
    assert!(fixture.server.lock().unwrap().requests.is_empty());
}

#[tokio::test]
async fn an_update_of_a_peer_that_is_gone_makes_no_half_peer() {
    let fixture = Fixture::new();
    let delta = PeerDelta {
        persistent_keepalive: Some(5),
        ..PeerDelta::default()
    };
    let change = Change::UpdatePeer {
        public_key: key(),
        old: observed(),
        delta,
    };
    fixture.client().apply(&[change]).await.unwrap();
    assert!(fixture.client().observe().await.unwrap().peers.is_empty());
}

#[tokio::test]
async fn a_thousand_peers_are_written_and_read() {
    let fixture = Fixture::new();
    let changes: Vec<Change> = (0..1000u32)
        .map(|i| {
            add(
                key(),
                nets([format!("10.{}.{}.0/24", i / 256, i % 256).as_str()]),
            )
        })
        .collect();
    fixture.client().apply(&changes).await.unwrap();
    assert_eq!(fixture.client().observe().await.unwrap().peers.len(), 1000);
}

#[tokio::test]
async fn a_refusal_is_an_error() {
    let fixture = Fixture::new();
    fixture.server.lock().unwrap().errno = -22;
    let error = fixture
        .client()
        .apply(&[add(key(), BTreeSet::new())])
        .await
        .unwrap_err();
    assert!(matches!(error, DataPlaneError::Answer { .. }), "{error}");
    assert!(error.to_string().contains("errno=-22"), "{error}");
}

#[tokio::test]
async fn an_absent_a_silent_and_a_babbling_server_are_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.sock");
    let mut client = UapiDataPlane::new(path.clone()).with_timeout(Duration::from_millis(100));
    let error = client.observe().await.unwrap_err();
    assert!(matches!(error, DataPlaneError::Connect { .. }), "{error}");
    assert!(
        error.to_string().contains("is warren-tunnel running?"),
        "{error}"
    );

    let silent = UnixListener::bind(&path).unwrap();
    let error = client.observe().await.unwrap_err();
    assert!(matches!(error, DataPlaneError::Timeout { .. }), "{error}");
    drop(silent);

    std::fs::remove_file(&path).unwrap();
    let babbling = UnixListener::bind(&path).unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = babbling.accept().await {
            let _ = stream.write_all(b"\xff\xfe nonsense\n\n").await;
        }
    });
    let error = client.observe().await.unwrap_err();
    assert!(matches!(error, DataPlaneError::Answer { .. }), "{error}");
}
