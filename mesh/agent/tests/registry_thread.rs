//! A registry that hangs holds up nothing but itself.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[allow(dead_code, reason = "the suite itself is for registries that store")]
mod registry_suite;

use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use registry_suite::{own_record, view};
use tokio::time::timeout;
use warren_agent::registry::{
    NodeRegistry, OwnRecord, RegistryError, RegistryReport, RegistryThread,
};
use warren_core::{NodeName, RegistryEvent};

const LIMIT: Duration = Duration::from_secs(60);

/// Tells its whole view, and then blocks its thread as a system call on a dead file system does,
/// until it is let go.
struct Stuck {
    told: bool,
    /// Told when it blocks.
    blocks: Sender<()>,
    let_go: Receiver<()>,
    published: Sender<OwnRecord>,
}

impl NodeRegistry for Stuck {
    async fn next(&mut self) -> RegistryReport {
        if !std::mem::replace(&mut self.told, true) {
            let views = vec![view("node-2", "b")];
            return RegistryReport::Event(RegistryEvent::Synced(views));
        }
        // Nobody listens any more once a test is past its beginning.
        let _ = self.blocks.send(());
        if self.let_go.recv().is_err() {
            std::future::pending::<()>().await;
        }
        RegistryReport::Troubles(vec!["of its own".into()])
    }

    async fn publish(&mut self, own: &OwnRecord) -> Result<bool, RegistryError> {
        self.published.send(own.clone()).unwrap();
        if own.underlay_mtu_bytes == 1 {
            return Err(RegistryError::NameTaken {
                name: NodeName::new("node-1").unwrap(),
                uid: "other".into(),
            });
        }
        Ok(true)
    }
}

async fn troubles(registry: &mut RegistryThread) -> Vec<String> {
    let report = timeout(LIMIT, registry.next()).await;
    let Ok(RegistryReport::Troubles(troubles)) = report else {
        panic!("no troubles: {report:?}");
    };
    troubles
}

/// A registry that has told its view and hangs now, what lets it go, and what it publishes.
async fn hanging() -> (RegistryThread, Sender<()>, Receiver<OwnRecord>) {
    let ((go, let_go), (blocks, blocked)) = (channel(), channel());
    let (published, records) = channel();
    let make = move || Stuck {
        told: false,
        blocks,
        let_go,
        published,
    };
    let mut registry = RegistryThread::start("registry directory /x".into(), make).unwrap();
    let first = timeout(LIMIT, registry.next()).await.unwrap();
    let synced = RegistryEvent::Synced(vec![view("node-2", "b")]);
    assert_eq!(first, RegistryReport::Event(synced));
    blocked.recv_timeout(LIMIT).unwrap();
    (registry, go, records)
}

#[tokio::test]
async fn a_registry_that_hangs_is_told_of_and_holds_nobody_up() {
    let (mut registry, go, records) = hanging().await;

    // The first record may cost a moment, the others nothing: each such moment would be a quarter of a
    // second.
    let mut own = own_record("node-1");
    assert!(!registry.publish(&own).await.unwrap());
    let started = Instant::now();
    own.underlay_mtu_bytes = 1400;
    for _ in 0..100 {
        assert!(!registry.publish(&own).await.unwrap());
    }
    assert!(started.elapsed() < Duration::from_secs(10), "{started:?}");

    let told = troubles(&mut registry).await;
    let silent = "registry directory /x does not answer since 2";
    assert!(
        told.len() == 1 && told[0].starts_with(silent) && told[0].contains("the last view holds"),
        "{told:?}"
    );
    assert!(records.try_recv().is_err());

    drop(go);
    let told = troubles(&mut registry).await;
    assert_eq!(told, ["of its own"; 0]);
    // What was given first was written, and what is true now is given next.
    let first = records.recv_timeout(LIMIT).unwrap();
    assert_eq!(first.underlay_mtu_bytes, 1500);
    let deadline = Instant::now() + LIMIT;
    while !registry.publish(&own).await.unwrap() {
        assert!(Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(records.recv_timeout(LIMIT).unwrap(), own);
}

#[tokio::test]
async fn a_failure_that_comes_late_is_told() {
    let (mut registry, go, _records) = hanging().await;
    let mut own = own_record("node-1");
    own.underlay_mtu_bytes = 1;
    assert!(!registry.publish(&own).await.unwrap());
    go.send(()).unwrap();
    assert_eq!(troubles(&mut registry).await, ["of its own"]);
    drop(go);
    let deadline = Instant::now() + LIMIT;
    let error = loop {
        match registry.publish(&own).await {
            Err(error) => break error.to_string(),
            Ok(_) => assert!(Instant::now() < deadline),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    assert!(error.contains("another machine"), "{error}");
}
