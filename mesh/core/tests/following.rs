//! Following a plan is planning anew with less work: the naive oracle is [`Planner::poll_plan`].
#![allow(clippy::unwrap_used)] // in a test, a failed unwrap is the report

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use common::{key, local, settings, view};
use proptest::prelude::*;
use warren_core::consts::annotation;
use warren_core::files::{SavedView, ViewChange};
use warren_core::state::ObservedLink;
use warren_core::{
    Change, NodeUid, NodeView, ObservedState, Pinning, Plan, PlanPart, Planner, RegistryEvent,
    Removals, diff,
};

/// One planner that follows where it can, and one that always plans anew.
struct Pair {
    following: Planner,
    plan: Plan,
    anew: Planner,
    /// A node that had done to it what came of following.
    node: ObservedState,
    /// What is on its disk.
    disk: SavedView,
    followed: usize,
}

impl Pair {
    fn new(nodes: &[NodeView], pinning: Pinning) -> Self {
        let settings = || warren_core::Settings {
            pinning,
            ..settings()
        };
        let mut both = [
            Planner::new(settings(), local(), SavedView::default()),
            Planner::new(settings(), local(), SavedView::default()),
        ];
        for planner in &mut both {
            planner.handle_event(RegistryEvent::Synced(nodes.to_vec()));
        }
        let [mut following, mut anew] = both;
        anew.poll_plan();
        let plan = following.poll_plan();
        let mut out = Self {
            disk: following.saved_view(),
            following,
            plan,
            anew,
            node: ObservedState::default(),
            followed: 0,
        };
        out.node.link = Some(ObservedLink {
            mtu_bytes: 1280,
            up: false,
        });
        out.node.peers = Some(BTreeMap::new());
        out.converge();
        out
    }

    fn tell(&mut self, event: &RegistryEvent) {
        self.following.handle_event(event.clone());
        self.anew.handle_event(event.clone());
    }

    fn converge(&mut self) {
        for change in diff(&self.node, &self.plan.desired, Removals::Allowed) {
            self.node.apply(&change);
        }
    }

    /// What the tunnel was last given, as an agent remembers it.
    fn given(&self) -> BTreeMap<warren_keyring::PublicKey, std::net::SocketAddr> {
        let peers = self.node.peers.iter().flatten();
        peers
            .filter_map(|(key, peer)| Some((*key, peer.applied_endpoint?)))
            .collect()
    }

    /// Follows if that can be, and checks that it is what planning anew yields.
    fn poll(&mut self) -> Option<PlanPart> {
        let ways = self.following.new_ways(&self.plan);
        for way in ways {
            for planner in [&mut self.following, &mut self.anew] {
                planner.handle_way(way, path_mtu(way));
            }
        }
        let part = self.following.follow(&mut self.plan);
        let oracle = self.anew.poll_plan();
        match &part {
            None => {
                self.plan = self.following.poll_plan();
                self.converge();
                self.disk = self.following.saved_view();
            }
            Some(part) => {
                self.followed += 1;
                let changes = part.changes(&self.given());
                for change in &changes {
                    self.node.apply(change);
                }
                let left = diff(&self.node, &oracle.desired, Removals::Allowed);
                assert!(left.is_empty(), "{changes:?} leave {left:?}");
                self.disk.apply(ViewChange {
                    nodes: part.nodes.clone(),
                    ..ViewChange::default()
                });
            }
        }
        assert_eq!(self.plan, oracle);
        let mut disk = self.disk.clone();
        disk.views.sort_by(|a, b| a.name.cmp(&b.name));
        disk.incumbents.sort_by(|a, b| a.name.cmp(&b.name));
        assert_eq!(disk, self.anew.saved_view());
        assert_eq!(self.following.saved_view(), self.anew.saved_view());
        assert_eq!(self.following.revision(), self.anew.revision());
        part
    }
}

/// Some ways are narrow, and to some addresses there is none.
fn path_mtu(to: IpAddr) -> Option<u32> {
    let IpAddr::V4(v4) = to else {
        return Some(1500);
    };
    match v4.octets()[3] % 3 {
        0 => None,
        1 => Some(1400),
        _ => Some(1500),
    }
}

fn gone(view: &NodeView) -> RegistryEvent {
    RegistryEvent::Deleted {
        name: view.name.clone(),
        uid: view.uid.clone(),
    }
}

fn annotated(mut view: NodeView, key: &str, value: &str) -> NodeView {
    view.annotations.insert(key.into(), value.into());
    view
}

#[test]
fn a_node_that_joins_changes_and_leaves_is_followed() {
    let mut pair = Pair::new(&[view(5), view(8)], Pinning::Warn);
    let joined = annotated(view(2), annotation::MTU, "1500");
    // As Kubernetes makes a node: without ranges, then without a key.
    let bare = NodeView {
        pod_cidrs: Vec::new(),
        annotations: BTreeMap::new(),
        ..joined.clone()
    };
    let keyless = NodeView {
        annotations: BTreeMap::new(),
        ..joined.clone()
    };
    for stage in [bare, keyless] {
        pair.tell(&RegistryEvent::Applied(stage));
        let part = pair.poll().unwrap();
        assert_eq!(part.changes(&BTreeMap::new()), []);
    }
    pair.tell(&RegistryEvent::Applied(joined.clone()));
    let changes = pair.poll().unwrap().changes(&BTreeMap::new());
    assert!(matches!(changes[0], Change::SetPeerAddresses { .. }));
    let moved = annotated(joined, annotation::ENDPOINT, "192.0.2.23:7");
    pair.tell(&RegistryEvent::Applied(moved.clone()));
    let given = pair.given();
    let changes = pair.poll().unwrap().changes(&given);
    assert!(
        matches!(changes[..], [Change::UpdatePeer { .. }]),
        "{changes:?}"
    );
    let in_kernel = annotated(moved.clone(), annotation::DATA_PLANE, "kernel");
    pair.tell(&RegistryEvent::Applied(in_kernel));
    let given = pair.given();
    let changes = pair.poll().unwrap().changes(&given);
    let silenced = |change: &Change| matches!(change, Change::UpdatePeer { delta, .. } if delta.path_probes == Some(false));
    assert!(changes.len() == 1 && silenced(&changes[0]), "{changes:?}");
    pair.tell(&gone(&moved));
    let given = pair.given();
    let changes = pair.poll().unwrap().changes(&given);
    assert!(matches!(
        changes.last(),
        Some(Change::SetPeerAddresses { .. })
    ));
    assert!(!pair.following.is_dirty() && pair.following.has_followed());
}

#[test]
fn what_reaches_further_than_the_node_itself_is_planned_anew() {
    let thief = NodeView {
        pod_cidrs: vec!["10.244.5.128/26".into()],
        ..view(2)
    };
    let bad = annotated(view(2), annotation::ENDPOINT, "nowhere");
    let own = annotated(view(1), annotation::FORCE_ENDPOINT, "192.0.2.1:1");
    let twin = annotated(view(2), annotation::PUBLIC_KEY, &key(1).to_string());
    let rekeyed = annotated(view(5), annotation::PUBLIC_KEY, &key(9).to_string());
    // The tunnel's interface itself gets another MTU.
    let narrow = annotated(view(5), annotation::MTU, "1300");
    for news in [thief, bad, own, twin, rekeyed, narrow] {
        let mut pair = Pair::new(&[view(5)], Pinning::Warn);
        pair.tell(&RegistryEvent::Applied(news.clone()));
        assert!(pair.poll().is_none(), "{news:?}");
    }
    let mut pair = Pair::new(&[view(5), view(6)], Pinning::Warn);
    // One takes what the other gives up: a prefix moves without a gap, or not at all.
    let with_range = |node, range: &str| NodeView {
        pod_cidrs: vec![range.into()],
        ..view(node)
    };
    pair.tell(&RegistryEvent::Applied(with_range(5, "10.244.99.0/24")));
    pair.tell(&RegistryEvent::Applied(with_range(6, "10.244.5.0/24")));
    assert!(pair.poll().is_none());
}

#[test]
fn nothing_is_followed_before_the_first_full_view() {
    let mut planner = Planner::new(settings(), local(), SavedView::default());
    let mut plan = planner.poll_plan();
    planner.handle_event(RegistryEvent::Applied(view(2)));
    assert!(planner.follow(&mut plan).is_none() && planner.is_dirty());
}

#[derive(Clone, Debug)]
enum Step {
    Applied(NodeView),
    Deleted(u8, bool),
    Poll,
}

/// Mostly nodes as they ought to be, some with a field of another one.
fn any_step() -> impl Strategy<Value = Step> {
    let uid = |n: u8, old: bool| NodeUid(format!("uid-{n}-{old}"));
    let applied = (1u8..7, 0u8..12, 1u8..7, any::<bool>()).prop_map(move |(n, what, m, old)| {
        let mut v = view(n);
        v.uid = uid(n, old);
        let endpoint = format!("192.0.2.{m}:51871");
        match what {
            0 => v = annotated(v, annotation::PUBLIC_KEY, &key(m).to_string()),
            1 => v = annotated(v, annotation::NEXT_PUBLIC_KEY, &key(m).to_string()),
            2 => v.pod_cidrs[0] = format!("10.244.{m}.0/26"),
            3 => v.pod_cidrs = vec![format!("10.244.{}.0/24", m * 10)],
            4 => v = annotated(v, annotation::ENDPOINT, &endpoint),
            5 => v.addresses = vec![format!("192.0.2.{m}")],
            6 => v.annotations.clear(),
            7 => {
                v = annotated(
                    v,
                    annotation::MTU,
                    &format!("{}", 1300 + u32::from(m % 3) * 100),
                )
            }
            8 => v.pod_cidrs.clear(),
            9 => v.addresses = vec![format!("2001:db8::{m:x}")],
            10 => v = annotated(v, annotation::DATA_PLANE, "kernel"),
            _ => {}
        }
        Step::Applied(v)
    });
    prop_oneof![
        6 => applied,
        2 => (1u8..7, any::<bool>()).prop_map(|(n, old)| Step::Deleted(n, old)),
        4 => Just(Step::Poll),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn following_is_planning_anew(
        steps in prop::collection::vec(any_step(), 1..40),
        strict in any::<bool>(),
    ) {
        let pinning = if strict { Pinning::Strict } else { Pinning::Warn };
        let mut pair = Pair::new(&[view(2), view(3)], pinning);
        for step in steps.into_iter().chain([Step::Poll]) {
            match step {
                Step::Applied(view) => pair.tell(&RegistryEvent::Applied(view)),
                Step::Deleted(n, old) => pair.tell(&RegistryEvent::Deleted {
                    name: format!("node{n}"),
                    uid: NodeUid(format!("uid-{n}-{old}")),
                }),
                Step::Poll => drop(pair.poll()),
            }
        }
    }
}

/// A check that following is what the property looks at, and not planning anew every time.
#[test]
fn most_events_of_an_orderly_cluster_are_followed() {
    let mut pair = Pair::new(&[], Pinning::Warn);
    let mut present = BTreeSet::new();
    for turn in 0..200u32 {
        let n = u8::try_from(turn * 7 % 50).unwrap() + 2;
        if present.remove(&n) {
            pair.tell(&gone(&view(n)));
        } else {
            present.insert(n);
            pair.tell(&RegistryEvent::Applied(view(n)));
        }
        pair.poll();
    }
    // The first ones change the interface's MTU.
    assert!(pair.followed >= 190, "{} of 200", pair.followed);
}
