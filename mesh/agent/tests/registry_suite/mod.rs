//! What every registry must do, whatever is behind it: run by each implementation's tests.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::{Instant, timeout};
use warren_agent::registry::{NodeRegistry, OwnRecord, RegistryReport};
use warren_core::consts::annotation;
use warren_core::{NodeName, NodeUid, NodeView, RegistryEvent};
use warren_keyring::PrivateKey;

/// Longer than the slowest way a change is found.
const PATIENCE: Duration = Duration::from_secs(15);

/// What is behind a registry, as its operators and the other nodes see it.
pub(crate) trait Backend {
    /// The registry under test.
    type Registry: NodeRegistry;

    /// Opens the registry as the agent of `own` would; `last` is the saved view of an earlier run.
    fn open(&self, own: &str, last: &[NodeView]) -> Self::Registry;
    /// Writes a node, whole.
    fn put(&self, view: &NodeView);
    /// Removes a node.
    fn remove(&self, name: &str);
    /// A node as it is stored.
    fn get(&self, name: &str) -> Option<NodeView>;
    /// Makes the registry unreachable.
    fn take_away(&self);
    /// Makes it reachable again, as it was.
    fn bring_back(&self);
}

/// A registry, and the view that its events tell.
pub(crate) struct Follower<R> {
    pub(crate) registry: R,
    pub(crate) views: BTreeMap<String, NodeView>,
    pub(crate) troubles: Vec<String>,
    pub(crate) synced: bool,
    pub(crate) events: Vec<RegistryEvent>,
}

impl<R: NodeRegistry> Follower<R> {
    pub(crate) fn new(registry: R) -> Self {
        let (views, troubles, events) = Default::default();
        Self {
            registry,
            views,
            troubles,
            synced: false,
            events,
        }
    }

    /// Follows until `done`, or panics with what was seen.
    pub(crate) async fn until(&mut self, what: &str, done: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !done(self) {
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok(report) = timeout(left, self.registry.next()).await else {
                panic!(
                    "not in time: {what}; views {:?}, {:?}",
                    self.views, self.troubles
                );
            };
            self.take(report);
        }
    }

    /// Follows for a while.
    pub(crate) async fn settle(&mut self, time: Duration) {
        let deadline = Instant::now() + time;
        while let Ok(report) = timeout(
            deadline.saturating_duration_since(Instant::now()),
            self.registry.next(),
        )
        .await
        {
            self.take(report);
        }
    }

    fn take(&mut self, report: RegistryReport) {
        let event = match report {
            RegistryReport::Troubles(troubles) => {
                self.troubles = troubles;
                return;
            }
            RegistryReport::Event(event) => event,
        };
        self.events.push(event.clone());
        match event {
            RegistryEvent::Synced(views) => {
                self.synced = true;
                self.views = views
                    .into_iter()
                    .map(|view| (view.name.clone(), view))
                    .collect();
            }
            RegistryEvent::Applied(view) => {
                assert!(self.synced, "the first event is the whole view");
                self.views.insert(view.name.clone(), view);
            }
            RegistryEvent::Deleted { name, uid } => {
                assert!(self.synced, "the first event is the whole view");
                let known = self.views.remove(&name);
                assert_eq!(
                    known.map(|view| view.uid),
                    Some(uid),
                    "{name} was not known so"
                );
            }
        }
    }

    pub(crate) fn names(&self) -> Vec<&str> {
        self.views.keys().map(String::as_str).collect()
    }
}

pub(crate) fn view(name: &str, uid: &str) -> NodeView {
    NodeView {
        name: name.into(),
        uid: NodeUid(uid.into()),
        pod_cidrs: vec!["10.244.9.0/24".into()],
        addresses: vec!["192.0.2.9".into()],
        annotations: BTreeMap::new(),
    }
}

pub(crate) fn own_record(name: &str) -> OwnRecord {
    OwnRecord {
        name: NodeName::new(name).unwrap(),
        uid: NodeUid("own-uid".into()),
        public_key: PrivateKey::generate().unwrap().public_key(),
        endpoints: "192.0.2.1:51871,[2001:db8::1]:51871".parse().unwrap(),
        underlay_mtu_bytes: 1500,
        pod_cidrs: BTreeSet::from(["10.244.1.0/24".parse().unwrap()]),
        addresses: vec!["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()],
    }
}

/// All of the suite; every test gets a backend of its own.
pub(crate) async fn run<B: Backend>(make: impl Fn() -> B) {
    the_whole_view_comes_first(make()).await;
    changes_are_told_as_they_happen(make()).await;
    a_change_of_an_annotation_alone_is_told(make()).await;
    a_node_made_anew_is_told_as_deleted_first(make()).await;
    two_hundred_quick_changes_end_in_the_right_view(make()).await;
    the_last_view_holds_while_the_registry_is_away(make()).await;
    a_registry_that_is_away_at_start_says_so_and_syncs_later(make()).await;
    publishing_says_all_and_writes_only_what_differs(make()).await;
    publishing_keeps_what_others_set(make()).await;
    what_is_published_is_told_back(make()).await;
}

async fn the_whole_view_comes_first<B: Backend>(backend: B) {
    backend.put(&view("node-1", "a"));
    backend.put(&view("node-2", "b"));
    let mut follower = Follower::new(backend.open("node-1", &[]));
    follower.until("synced", |f| f.synced).await;
    assert_eq!(follower.names(), ["node-1", "node-2"]);
    assert_eq!(follower.views["node-2"], view("node-2", "b"));
    assert_eq!(follower.troubles, Vec::<String>::new());
}

async fn changes_are_told_as_they_happen<B: Backend>(backend: B) {
    let mut follower = Follower::new(backend.open("node-1", &[]));
    follower.until("synced", |f| f.synced).await;
    backend.put(&view("node-2", "b"));
    follower
        .until("node-2 is there", |f| f.names() == ["node-2"])
        .await;
    let mut moved = view("node-2", "b");
    moved.addresses = vec!["192.0.2.77".into()];
    backend.put(&moved);
    follower
        .until("node-2 moved", |f| f.views["node-2"] == moved)
        .await;
    backend.remove("node-2");
    follower
        .until("node-2 is gone", |f| f.views.is_empty())
        .await;
}

async fn a_change_of_an_annotation_alone_is_told<B: Backend>(backend: B) {
    let mut changed = view("node-2", "b");
    backend.put(&changed);
    let mut follower = Follower::new(backend.open("node-1", &[]));
    follower.until("synced", |f| f.synced).await;
    changed
        .annotations
        .insert(annotation::FORCE_ENDPOINT.into(), "198.51.100.1:1".into());
    backend.put(&changed);
    follower
        .until("the annotation", |f| f.views["node-2"] == changed)
        .await;
}

async fn a_node_made_anew_is_told_as_deleted_first<B: Backend>(backend: B) {
    backend.put(&view("node-2", "first-life"));
    let mut follower = Follower::new(backend.open("node-1", &[]));
    follower.until("synced", |f| f.synced).await;
    backend.remove("node-2");
    backend.put(&view("node-2", "second-life"));
    let second = NodeUid("second-life".into());
    follower
        .until("it lives again", |f| {
            f.views.get("node-2").map(|v| &v.uid) == Some(&second)
        })
        .await;
    let first = NodeUid("first-life".into());
    let deleted = RegistryEvent::Deleted {
        name: "node-2".into(),
        uid: first,
    };
    assert!(follower.events.contains(&deleted), "{:?}", follower.events);
}

async fn two_hundred_quick_changes_end_in_the_right_view<B: Backend>(backend: B) {
    let mut follower = Follower::new(backend.open("node-1", &[]));
    follower.until("synced", |f| f.synced).await;
    let mut expected = BTreeMap::new();
    for i in 0..200 {
        let name = format!("node-{}", i % 17);
        if i % 5 == 3 && expected.remove(&name).is_some() {
            backend.remove(&name);
        } else {
            let uid = expected
                .get(&name)
                .map_or(format!("uid-{i}"), |v: &NodeView| v.uid.0.clone());
            let mut changed = view(&name, &uid);
            changed.annotations.insert("serial".into(), i.to_string());
            backend.put(&changed);
            expected.insert(name, changed);
        }
        if i % 20 == 0 {
            follower.settle(Duration::from_millis(3)).await;
        }
    }
    follower
        .until("the last view", |f| f.views == expected)
        .await;
    follower.settle(Duration::from_millis(300)).await;
    assert_eq!(follower.views, expected);
}

async fn the_last_view_holds_while_the_registry_is_away<B: Backend>(backend: B) {
    backend.put(&view("node-2", "b"));
    let mut follower = Follower::new(backend.open("node-1", &[]));
    follower.until("synced", |f| f.synced).await;
    backend.take_away();
    follower.until("trouble", |f| !f.troubles.is_empty()).await;
    assert_eq!(follower.names(), ["node-2"]);
    backend.bring_back();
    follower
        .until("no trouble", |f| f.troubles.is_empty())
        .await;
    assert_eq!(follower.names(), ["node-2"]);
    backend.put(&view("node-3", "c"));
    follower
        .until("it is followed again", |f| {
            f.names() == ["node-2", "node-3"]
        })
        .await;
}

async fn a_registry_that_is_away_at_start_says_so_and_syncs_later<B: Backend>(backend: B) {
    backend.put(&view("node-2", "b"));
    backend.take_away();
    let mut follower = Follower::new(backend.open("node-1", &[]));
    follower.until("trouble", |f| !f.troubles.is_empty()).await;
    assert!(!follower.synced);
    backend.bring_back();
    follower
        .until("synced", |f| f.synced && f.troubles.is_empty())
        .await;
    assert_eq!(follower.names(), ["node-2"]);
}

async fn publishing_says_all_and_writes_only_what_differs<B: Backend>(backend: B) {
    let mut registry = backend.open("node-1", &[]);
    let mut own = own_record("node-1");
    assert!(registry.publish(&own).await.unwrap());
    let stored = backend.get("node-1").unwrap();
    assert_eq!(
        stored.annotations[annotation::PUBLIC_KEY],
        own.public_key.to_base64()
    );
    assert_eq!(
        stored.annotations[annotation::ENDPOINT],
        own.endpoints.to_string()
    );
    assert_eq!(stored.annotations[annotation::MTU], "1500");
    assert_eq!(stored.pod_cidrs, ["10.244.1.0/24"]);
    assert_eq!(stored.addresses, ["192.0.2.1", "2001:db8::1"]);
    assert!(!registry.publish(&own).await.unwrap());
    own.underlay_mtu_bytes = 9000;
    assert!(registry.publish(&own).await.unwrap());
    assert_eq!(
        backend.get("node-1").unwrap().annotations[annotation::MTU],
        "9000"
    );
}

async fn publishing_keeps_what_others_set<B: Backend>(backend: B) {
    let mut registry = backend.open("node-1", &[]);
    let mut own = own_record("node-1");
    registry.publish(&own).await.unwrap();
    let mut edited = backend.get("node-1").unwrap();
    edited
        .annotations
        .insert(annotation::FORCE_ENDPOINT.into(), "198.51.100.1:1".into());
    edited
        .annotations
        .insert("example.com/owner".into(), "somebody".into());
    backend.put(&edited);
    assert!(
        !registry.publish(&own).await.unwrap(),
        "nothing of the agent's own has changed"
    );
    own.endpoints = "192.0.2.2:51871".parse().unwrap();
    assert!(registry.publish(&own).await.unwrap());
    let stored = backend.get("node-1").unwrap();
    assert_eq!(
        stored.annotations[annotation::FORCE_ENDPOINT],
        "198.51.100.1:1"
    );
    assert_eq!(stored.annotations["example.com/owner"], "somebody");
    assert_eq!(stored.annotations[annotation::ENDPOINT], "192.0.2.2:51871");
}

async fn what_is_published_is_told_back<B: Backend>(backend: B) {
    let mut follower = Follower::new(backend.open("node-1", &[]));
    follower.until("synced", |f| f.synced).await;
    follower
        .registry
        .publish(&own_record("node-1"))
        .await
        .unwrap();
    follower
        .until("its own node", |f| f.names() == ["node-1"])
        .await;
}
