//! What every registry must do, whatever is behind it: run by each implementation's tests.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::{Instant, timeout};
use warren_agent::registry::{NodeRegistry, OwnRecord, RegistryReport};
use warren_core::consts::annotation;
use warren_core::status::DataPlaneKind;
use warren_core::{MeshRanges, NodeName, NodeRecord, NodeUid, NodeView, RegistryEvent};
use warren_keyring::PrivateKey;

/// Longer than the slowest way a change is found.
const PATIENCE: Duration = Duration::from_secs(60);

/// What is behind a registry, as its operators and the other nodes see it.
pub(crate) trait Backend {
    /// The registry under test.
    type Registry: NodeRegistry;

    /// Opens the registry as the agent of `own` would; `last` is the saved view of an earlier run.
    async fn open(&self, own: &str, last: &[NodeView]) -> Self::Registry;
    /// Does what others do for a node before its agent publishes it.
    fn admit(&self, own: &OwnRecord);
    /// Writes a node, whole, and returns it as it is stored: a backend may give it another uid, one
    /// for each life.
    fn put(&self, view: &NodeView) -> NodeView;
    /// Removes a node.
    fn remove(&self, name: &str);
    /// A node as it is stored, all annotations with it.
    fn get(&self, name: &str) -> Option<NodeView>;
    /// Something that changes with each write of a node.
    fn stamp(&self, name: &str) -> String;
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
        self.until_within(PATIENCE, what, done).await;
    }

    /// As [`until`](Self::until), with a limit of its own.
    pub(crate) async fn until_within(
        &mut self,
        limit: Duration,
        what: &str,
        done: impl Fn(&Self) -> bool,
    ) {
        let deadline = Instant::now() + limit;
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
        data_plane: DataPlaneKind::Kernel,
        pod_cidrs: BTreeSet::from(["10.244.1.0/24".parse().unwrap()]),
        addresses: vec!["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()],
    }
}

/// All of the suite; every test gets a backend of its own.
pub(crate) async fn run<B: Backend>(make: impl Fn() -> B) {
    the_whole_view_comes_first(make()).await;
    nodes_that_join_move_and_leave_are_told_as_they_do(make()).await;
    a_change_of_an_annotation_alone_is_told(make()).await;
    a_change_of_key_is_told(make()).await;
    a_node_made_anew_is_told_as_deleted_first(make()).await;
    garbage_is_told_and_refused_with_its_cause(make()).await;
    two_hundred_quick_changes_end_in_the_right_view(make()).await;
    the_last_view_holds_while_the_registry_is_away(make()).await;
    what_changed_while_the_registry_was_away_is_told_when_it_is_back(make()).await;
    a_registry_that_is_away_at_start_says_so_and_syncs_later(make()).await;
    publishing_says_all_and_writes_only_what_differs(make()).await;
    publishing_keeps_what_others_set(make()).await;
    what_is_published_is_told_back(make()).await;
}

async fn synced<B: Backend>(backend: &B) -> Follower<B::Registry> {
    let mut follower = Follower::new(backend.open("node-1", &[]).await);
    follower.until("synced", |f| f.synced).await;
    follower
}

async fn the_whole_view_comes_first<B: Backend>(backend: B) {
    backend.put(&view("node-1", "a"));
    let second = backend.put(&view("node-2", "b"));
    let follower = synced(&backend).await;
    assert_eq!(follower.names(), ["node-1", "node-2"]);
    assert_eq!(follower.views["node-2"], second);
    assert_eq!(follower.troubles, Vec::<String>::new());
}

async fn nodes_that_join_move_and_leave_are_told_as_they_do<B: Backend>(backend: B) {
    let mut follower = synced(&backend).await;
    backend.put(&view("node-2", "b"));
    follower
        .until("node-2 is there", |f| f.names() == ["node-2"])
        .await;
    let mut moved = view("node-2", "b");
    moved.addresses = vec!["192.0.2.77".into()];
    let moved = backend.put(&moved);
    follower
        .until("node-2 moved", |f| f.views["node-2"] == moved)
        .await;
    backend.remove("node-2");
    follower
        .until("node-2 is gone", |f| f.views.is_empty())
        .await;
}

async fn a_change_of_an_annotation_alone_is_told<B: Backend>(backend: B) {
    let mut changed = backend.put(&view("node-2", "b"));
    let mut follower = synced(&backend).await;
    changed
        .annotations
        .insert(annotation::FORCE_ENDPOINT.into(), "198.51.100.1:1".into());
    assert_eq!(backend.put(&changed), changed);
    follower
        .until("the annotation", |f| f.views["node-2"] == changed)
        .await;
}

async fn a_change_of_key_is_told<B: Backend>(backend: B) {
    let mut follower = synced(&backend).await;
    let mut node = view("node-2", "b");
    for _ in 0..2 {
        let key = PrivateKey::generate().unwrap().public_key().to_base64();
        node.annotations.insert(annotation::PUBLIC_KEY.into(), key);
        node = backend.put(&node);
        follower
            .until("the key", |f| f.views.get("node-2") == Some(&node))
            .await;
    }
    let deleted = |e: &RegistryEvent| matches!(e, RegistryEvent::Deleted { .. });
    assert!(!follower.events.iter().any(deleted));
}

async fn a_node_made_anew_is_told_as_deleted_first<B: Backend>(backend: B) {
    let first = backend.put(&view("node-2", "first-life"));
    let mut follower = synced(&backend).await;
    backend.remove("node-2");
    let second = backend.put(&view("node-2", "second-life"));
    assert_ne!(first.uid, second.uid);
    follower
        .until("it lives again", |f| {
            f.views.get("node-2").map(|v| &v.uid) == Some(&second.uid)
        })
        .await;
    let deleted = RegistryEvent::Deleted {
        name: "node-2".into(),
        uid: first.uid,
    };
    assert!(follower.events.contains(&deleted), "{:?}", follower.events);
}

async fn garbage_is_told_and_refused_with_its_cause<B: Backend>(backend: B) {
    let key = PrivateKey::generate().unwrap().public_key().to_base64();
    let node = |name: &str, endpoint: &str| {
        let mut node = view(name, name);
        node.annotations = BTreeMap::from([
            (annotation::PUBLIC_KEY.into(), key.clone()),
            (annotation::ENDPOINT.into(), endpoint.into()),
        ]);
        node
    };
    backend.put(&node("node-2", "192.0.2.9:51871"));
    backend.put(&node("node-3", "example.com:51871; rm -rf /"));
    backend.put(&node("node-4", &"1".repeat(1025)));
    let follower = synced(&backend).await;
    let ranges = MeshRanges {
        cluster_cidrs: BTreeSet::from(["10.244.0.0/16".parse().unwrap()]),
        reserved_cidrs: BTreeSet::new(),
        default_port: 51871,
    };
    let judge = |name: &str| {
        let judged = NodeRecord::parse(&follower.views[name], &ranges);
        judged.err().map(|reject| reject.reason())
    };
    assert_eq!(judge("node-2"), None);
    assert_eq!(judge("node-3"), Some("InvalidEndpoint"));
    assert_eq!(judge("node-4"), Some("AnnotationTooLong"));
}

async fn two_hundred_quick_changes_end_in_the_right_view<B: Backend>(backend: B) {
    let mut follower = synced(&backend).await;
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
            changed
                .annotations
                .insert(annotation::MTU.into(), (1000 + i).to_string());
            expected.insert(name, backend.put(&changed));
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
    let mut follower = synced(&backend).await;
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

async fn what_changed_while_the_registry_was_away_is_told_when_it_is_back<B: Backend>(backend: B) {
    let first = backend.put(&view("node-2", "b"));
    backend.put(&view("node-3", "c"));
    let mut follower = synced(&backend).await;
    backend.take_away();
    follower.until("trouble", |f| !f.troubles.is_empty()).await;
    // Others reach it still.
    backend.remove("node-2");
    let second = backend.put(&view("node-2", "d"));
    backend.remove("node-3");
    let fourth = backend.put(&view("node-4", "e"));
    follower.settle(Duration::from_secs(1)).await;
    assert_eq!(follower.names(), ["node-2", "node-3"]);
    assert_eq!(follower.views["node-2"], first);
    backend.bring_back();
    let expected = BTreeMap::from([("node-2".into(), second), ("node-4".into(), fourth)]);
    follower
        .until("all of it", |f| {
            f.views == expected && f.troubles.is_empty()
        })
        .await;
}

async fn a_registry_that_is_away_at_start_says_so_and_syncs_later<B: Backend>(backend: B) {
    backend.put(&view("node-2", "b"));
    backend.take_away();
    let mut follower = Follower::new(backend.open("node-1", &[]).await);
    follower.until("trouble", |f| !f.troubles.is_empty()).await;
    assert!(!follower.synced);
    backend.bring_back();
    follower
        .until("synced", |f| f.synced && f.troubles.is_empty())
        .await;
    assert_eq!(follower.names(), ["node-2"]);
}

/// Publishes as the agent does, again and again, until this is stored.
async fn publish<B: Backend>(
    backend: &B,
    follower: &mut Follower<B::Registry>,
    own: &OwnRecord,
) -> NodeView {
    let key = own.public_key.to_base64();
    let stored = |node: &NodeView| {
        node.annotations.get(annotation::PUBLIC_KEY) == Some(&key)
            && node.annotations.get(annotation::ENDPOINT) == Some(&own.endpoints.to_string())
            && node.annotations.get(annotation::MTU) == Some(&own.underlay_mtu_bytes.to_string())
    };
    let deadline = Instant::now() + PATIENCE;
    loop {
        follower.registry.publish(own).await.unwrap();
        if let Some(node) = backend.get(own.name.as_str()).filter(stored) {
            return node;
        }
        assert!(Instant::now() < deadline, "not published in time");
        follower.settle(Duration::from_millis(100)).await;
    }
}

/// Publishes what is stored already, and wants nothing to be written.
async fn publish_nothing<B: Backend>(
    backend: &B,
    follower: &mut Follower<B::Registry>,
    own: &OwnRecord,
) {
    let before = backend.stamp(own.name.as_str());
    for _ in 0..5 {
        assert!(!follower.registry.publish(own).await.unwrap());
        follower.settle(Duration::from_millis(100)).await;
    }
    assert_eq!(backend.stamp(own.name.as_str()), before);
}

async fn publishing_says_all_and_writes_only_what_differs<B: Backend>(backend: B) {
    let mut own = own_record("node-1");
    backend.admit(&own);
    let mut follower = synced(&backend).await;
    let stored = publish(&backend, &mut follower, &own).await;
    assert_eq!(stored.pod_cidrs, ["10.244.1.0/24"]);
    assert_eq!(stored.addresses, ["192.0.2.1", "2001:db8::1"]);
    publish_nothing(&backend, &mut follower, &own).await;
    assert_eq!(stored.annotations[annotation::DATA_PLANE], "kernel");
    own.underlay_mtu_bytes = 9000;
    publish(&backend, &mut follower, &own).await;
    publish_nothing(&backend, &mut follower, &own).await;
    // What most nodes have is not said.
    own.data_plane = DataPlaneKind::Userspace;
    let stored = publish(&backend, &mut follower, &own).await;
    assert!(!stored.annotations.contains_key(annotation::DATA_PLANE));
    publish_nothing(&backend, &mut follower, &own).await;
    // An agent that was started anew writes nothing either.
    let mut anew = synced(&backend).await;
    publish_nothing(&backend, &mut anew, &own).await;
}

async fn publishing_keeps_what_others_set<B: Backend>(backend: B) {
    let mut own = own_record("node-1");
    backend.admit(&own);
    let mut follower = synced(&backend).await;
    let mut edited = publish(&backend, &mut follower, &own).await;
    edited
        .annotations
        .insert(annotation::FORCE_ENDPOINT.into(), "198.51.100.1:1".into());
    edited
        .annotations
        .insert("example.com/owner".into(), "somebody".into());
    backend.put(&edited);
    // Nothing of the agent's own has changed.
    publish_nothing(&backend, &mut follower, &own).await;
    own.endpoints = "192.0.2.2:51871".parse().unwrap();
    let stored = publish(&backend, &mut follower, &own).await;
    assert_eq!(
        stored.annotations[annotation::FORCE_ENDPOINT],
        "198.51.100.1:1"
    );
    assert_eq!(stored.annotations["example.com/owner"], "somebody");
}

async fn what_is_published_is_told_back<B: Backend>(backend: B) {
    let own = own_record("node-1");
    backend.admit(&own);
    let mut follower = synced(&backend).await;
    publish(&backend, &mut follower, &own).await;
    let key = own.public_key.to_base64();
    follower
        .until("its own node", |f| {
            let node = f.views.get("node-1");
            node.and_then(|v| v.annotations.get(annotation::PUBLIC_KEY)) == Some(&key)
        })
        .await;
}
