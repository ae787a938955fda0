//! The kernel's WireGuard as the data plane, on a kernel that keeps peers as Linux does.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod fake;

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::PermissionsExt as _;

use fake::{EINVAL, FakeKernel};
use ipnet::IpNet;
use proptest::prelude::*;
use warren_agent::dataplane::{DataPlane, DataPlaneError, KernelDataPlane, KernelOptions};
use warren_core::state::{DesiredPeer, DesiredState, ObservedPeer, ObservedState, PeerDelta};
use warren_core::status::DataPlaneKind;
use warren_core::{Change, Removals, diff};
use warren_keyring::{PrivateKey, PublicKey, file};

struct Fixture {
    dir: tempfile::TempDir,
    plane: KernelDataPlane<FakeKernel>,
}

impl Fixture {
    fn new(kernel: FakeKernel) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let options = KernelOptions {
            interface: "warren0".into(),
            listen_port: 51871,
            key_file: dir.path().join("state/private.key"),
        };
        let plane = KernelDataPlane::new(kernel, options);
        Self { dir, plane }
    }

    fn key_file(&self) -> std::path::PathBuf {
        self.dir.path().join("state/private.key")
    }

    fn kernel(&mut self) -> &mut FakeKernel {
        self.plane.kernel_mut()
    }

    /// The allowed IPs of each peer as they are read back.
    async fn peers(&mut self) -> BTreeMap<PublicKey, BTreeSet<IpNet>> {
        let device = self.plane.observe().await.unwrap();
        let peers = device.peers.into_iter();
        let peers: Vec<_> = peers
            .map(|p| (p.public_key, p.allowed_ips.into_iter().collect()))
            .collect();
        let count = peers.len();
        let peers: BTreeMap<_, _> = peers.into_iter().collect();
        assert_eq!(peers.len(), count, "each peer once");
        peers
    }

    /// Brings the device to these peers, as a reconcile does.
    async fn bring_to(&mut self, desired: &BTreeMap<PublicKey, DesiredPeer>) {
        let device = self.plane.observe().await.unwrap();
        let observed = device.peers.iter().map(|peer| {
            let observed = ObservedPeer {
                endpoint: peer.endpoint,
                applied_endpoint: peer.endpoint,
                allowed_ips: peer.allowed_ips.iter().copied().collect(),
                persistent_keepalive: peer.persistent_keepalive,
                path_probes: peer.path_probes,
            };
            (peer.public_key, observed)
        });
        let observed = ObservedState {
            peers: Some(observed.collect()),
            ..ObservedState::default()
        };
        let desired = DesiredState {
            peers: desired.clone(),
            ..DesiredState::default()
        };
        let changes = diff(&observed, &desired, Removals::Allowed);
        self.plane.apply(&changes).await.unwrap();
    }
}

fn modern() -> FakeKernel {
    FakeKernel {
        knows_removal: true,
        ..FakeKernel::default()
    }
}

fn key() -> PublicKey {
    PrivateKey::generate().unwrap().public_key()
}

fn nets<const N: usize>(texts: [&str; N]) -> BTreeSet<IpNet> {
    texts.map(|text| text.parse().unwrap()).into()
}

fn peer(allowed_ips: BTreeSet<IpNet>) -> DesiredPeer {
    DesiredPeer {
        endpoint: "192.0.2.2:51871".parse().unwrap(),
        allowed_ips,
        persistent_keepalive: 0,
        path_probes: false,
    }
}

fn removal(public_key: PublicKey, gone: BTreeSet<IpNet>) -> Change {
    let old = ObservedPeer {
        endpoint: None,
        applied_endpoint: None,
        allowed_ips: BTreeSet::new(),
        persistent_keepalive: 0,
        path_probes: false,
    };
    let delta = PeerDelta {
        remove_allowed_ips: gone,
        ..PeerDelta::default()
    };
    Change::UpdatePeer {
        public_key,
        old,
        delta,
    }
}

#[tokio::test]
async fn a_device_is_made_with_the_key_of_the_file_and_then_left_alone() {
    let mut fixture = Fixture::new(modern());
    let state = fixture.plane.observe().await.unwrap();
    let own = file::load(&fixture.key_file()).unwrap().public_key();
    assert_eq!((state.public_key, state.listen_port), (Some(own), 51871));
    assert_eq!(fixture.kernel().public_key(), Some(own));
    assert_eq!(fixture.plane.kind(), DataPlaneKind::Kernel);
    let mode = |path: &std::path::Path| path.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&fixture.key_file()), 0o600);
    assert_eq!(mode(fixture.key_file().parent().unwrap()), 0o700);
    let messages = fixture.kernel().messages;
    assert_eq!(fixture.plane.observe().await.unwrap(), state);
    assert_eq!(fixture.kernel().messages, messages);
}

#[tokio::test]
async fn a_device_that_others_removed_or_gave_another_key_or_port_is_put_right() {
    let mut fixture = Fixture::new(modern());
    let first = fixture.plane.observe().await.unwrap();
    fixture.kernel().private_key = Some(*PrivateKey::generate().unwrap().as_bytes());
    assert_eq!(fixture.plane.observe().await.unwrap(), first);
    fixture.kernel().port = 1;
    assert_eq!(fixture.plane.observe().await.unwrap(), first);
    fixture.kernel().link = None;
    fixture.kernel().private_key = None;
    assert_eq!(fixture.plane.observe().await.unwrap(), first);
    assert_eq!(fixture.kernel().public_key(), first.public_key);
}

#[tokio::test]
async fn an_interface_that_a_tunnel_serves_is_not_touched_and_one_that_it_left_is_replaced() {
    let served = FakeKernel {
        link: Some("tun".into()),
        holder: Some("pid 7".into()),
        ..modern()
    };
    let mut fixture = Fixture::new(served);
    let error = fixture.plane.observe().await.unwrap_err();
    assert!(matches!(error, DataPlaneError::Claimed { .. }), "{error}");
    assert!(error.to_string().contains("stop warren-tunnel"), "{error}");
    assert_eq!(fixture.kernel().link.as_deref(), Some("tun"));
    fixture.kernel().holder = None;
    assert!(fixture.plane.observe().await.unwrap().public_key.is_some());
    assert_eq!(fixture.kernel().link.as_deref(), Some("wireguard"));
}

#[tokio::test]
async fn a_link_of_another_kind_is_left_to_its_owner() {
    let bridge = FakeKernel {
        link: Some("bridge".into()),
        ..modern()
    };
    let mut fixture = Fixture::new(bridge);
    let error = fixture.plane.observe().await.unwrap_err();
    assert!(matches!(error, DataPlaneError::OtherLink { .. }), "{error}");
    assert_eq!(fixture.kernel().link.as_deref(), Some("bridge"));
}

#[tokio::test]
async fn a_new_peer_is_called_at_once_and_is_silent_then() {
    let mut fixture = Fixture::new(modern());
    let (silent, noisy) = (key(), key());
    let mut desired = BTreeMap::from([(silent, peer(nets(["10.244.2.0/24"])))]);
    let keepalive = DesiredPeer {
        persistent_keepalive: 25,
        ..peer(nets(["10.244.3.0/24"]))
    };
    desired.insert(noisy, keepalive);
    fixture.bring_to(&desired).await;
    let peers = |fixture: &mut Fixture| {
        let of = |k: &PublicKey| fixture.plane.kernel().peers[k.as_bytes()].clone();
        let told = |p: fake::FakePeer| (p.kicks, p.keepalive);
        (told(of(&silent)), told(of(&noisy)))
    };
    assert_eq!(peers(&mut fixture), ((1, 0), (1, 25)));
    // At rest nobody is called; at a new endpoint they are.
    fixture.bring_to(&desired).await;
    assert_eq!(peers(&mut fixture), ((1, 0), (1, 25)));
    let messages = fixture.kernel().messages;
    fixture.bring_to(&desired).await;
    assert_eq!(fixture.kernel().messages, messages);
}

#[tokio::test]
async fn a_single_prefix_goes_on_old_and_new_kernels_and_no_other_does_for_a_moment() {
    for knows_removal in [true, false] {
        let kernel = FakeKernel {
            knows_removal,
            ..FakeKernel::default()
        };
        let mut fixture = Fixture::new(kernel);
        let (a, b) = (key(), key());
        let wide = nets(["10.244.2.0/24", "10.244.9.0/24", "fd00:244:0:2::/64"]);
        let desired = BTreeMap::from([(a, peer(wide)), (b, peer(nets(["10.244.3.0/24"])))]);
        fixture.bring_to(&desired).await;
        fixture.kernel().watch();
        let gone = removal(a, nets(["10.244.9.0/24"]));
        fixture.plane.apply(&[gone]).await.unwrap();
        let left = BTreeMap::from([
            (a, nets(["10.244.2.0/24", "fd00:244:0:2::/64"])),
            (b, nets(["10.244.3.0/24"])),
        ]);
        assert_eq!(
            fixture.peers().await,
            left,
            "removal known: {knows_removal}"
        );
        for moment in &fixture.kernel().moments {
            for (owner, nets) in &left {
                let held = nets.iter().all(|n| moment.get(n) == Some(owner.as_bytes()));
                assert!(held, "{moment:?}");
            }
        }
        // What the kernel does not know is tried once.
        let before = fixture.kernel().messages;
        let gone = removal(a, nets(["fd00:244:0:2::/64"]));
        fixture.plane.apply(&[gone]).await.unwrap();
        assert_eq!(fixture.kernel().messages, before + 1);
        assert_eq!(fixture.peers().await[&a], nets(["10.244.2.0/24"]));
    }
}

#[tokio::test]
async fn another_refusal_is_an_error_and_teaches_nothing() {
    let mut fixture = Fixture::new(modern());
    let a = key();
    let both = nets(["10.244.2.0/24", "10.244.9.0/24"]);
    fixture.bring_to(&BTreeMap::from([(a, peer(both))])).await;
    fixture.kernel().broken = Some(EINVAL);
    let gone = removal(a, nets(["10.244.9.0/24"]));
    let error = fixture.plane.apply(std::slice::from_ref(&gone)).await;
    let error = error.unwrap_err();
    assert!(matches!(error, DataPlaneError::Kernel(_)), "{error}");
    fixture.kernel().broken = None;
    fixture.kernel().watch();
    fixture.plane.apply(&[gone]).await.unwrap();
    // By the flag: in one step, without a peer that is thrown away.
    assert_eq!(fixture.kernel().moments.len(), 1);
}

#[tokio::test]
async fn thousands_of_peers_and_prefixes_are_split_over_messages_and_put_together_again() {
    let mut fixture = Fixture::new(modern());
    let mut desired = BTreeMap::new();
    for i in 0..2000u32 {
        let net = format!("10.{}.{}.0/24", i / 256, i % 256);
        desired.insert(key(), peer(nets([net.as_str()])));
    }
    let many = (0..1000u32).map(|i| format!("fd00:{i:x}::/64").parse().unwrap());
    desired.insert(key(), peer(many.collect()));
    fixture.plane.observe().await.unwrap();
    let before = fixture.kernel().messages;
    fixture.bring_to(&desired).await;
    assert!(fixture.kernel().messages > before + 3);
    let wanted = desired.iter().map(|(k, p)| (*k, p.allowed_ips.clone()));
    assert_eq!(fixture.peers().await, wanted.collect());
}

#[test]
fn secrets_are_not_shown() {
    use warren_core::uapi::SetRequest;
    use warren_netlink::wireguard::{Removal, set_messages};
    let request = SetRequest {
        private_key: Some(Some(PrivateKey::from_bytes([0x48; 32]).unwrap())),
        ..SetRequest::default()
    };
    let messages = set_messages("warren0", &request, Removal::Flagged);
    assert_eq!(format!("{messages:?}"), "[SetMessage(redacted)]");
}

/// Who of four peers has which of six prefixes, two of them inside others.
fn state() -> impl Strategy<Value = Vec<Option<usize>>> {
    prop::collection::vec(prop::option::weighted(0.8, 0..4usize), 6)
}

fn prefixes() -> [IpNet; 6] {
    [
        "10.244.1.0/24",
        "10.244.1.0/25",
        "10.244.2.0/24",
        "192.0.2.7/32",
        "fd00:244::/48",
        "fd00:244::/64",
    ]
    .map(|text| text.parse().unwrap())
}

fn desired(keys: &[PublicKey], owners: &[Option<usize>]) -> BTreeMap<PublicKey, DesiredPeer> {
    let mut out: BTreeMap<PublicKey, DesiredPeer> = BTreeMap::new();
    for (net, owner) in prefixes().into_iter().zip(owners) {
        if let Some(owner) = owner {
            let entry = out.entry(keys[*owner]);
            let entry = entry.or_insert_with(|| peer(BTreeSet::new()));
            entry.allowed_ips.insert(net);
        }
    }
    out
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_changed_the_device_is_as_a_fresh_one_and_what_stays_is_never_away(
        states in prop::collection::vec(state(), 1..8),
        knows_removal in any::<bool>(),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let kernel = || FakeKernel { knows_removal, ..FakeKernel::default() };
            let keys: Vec<PublicKey> = (0..4).map(|_| key()).collect();
            let mut fixture = Fixture::new(kernel());
            let mut before: Vec<Option<usize>> = vec![None; 6];
            for owners in &states {
                let wanted = desired(&keys, owners);
                fixture.kernel().watch();
                fixture.bring_to(&wanted).await;
                for (i, net) in prefixes().iter().enumerate() {
                    let (Some(old), Some(new)) = (before[i], owners[i]) else { continue };
                    let either = [old, new].map(|owner| *keys[owner].as_bytes());
                    for moment in &fixture.kernel().moments {
                        let owner = moment.get(net);
                        assert!(owner.is_some_and(|o| either.contains(o)), "{net}: {owner:?}");
                    }
                }
                let told = wanted.iter().map(|(k, p)| (*k, p.allowed_ips.clone()));
                assert_eq!(fixture.peers().await, told.collect());
                before.clone_from(owners);
            }
            let mut fresh = Fixture::new(kernel());
            fresh.bring_to(&desired(&keys, states.last().unwrap())).await;
            assert_eq!(fixture.peers().await, fresh.peers().await);
        });
    }
}
