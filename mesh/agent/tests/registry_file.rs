//! The file registry: the suite that every registry passes, and what only files can do wrong.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod registry_suite;

use std::path::{Path, PathBuf};
use std::time::Duration;

use registry_suite::{Backend, Follower, own_record, view};
use warren_agent::registry::{FileRegistry, NodeRegistry, OwnRecord};
use warren_core::{NodeName, NodeView};

/// A directory that can be moved away.
struct Directory {
    root: tempfile::TempDir,
}

impl Directory {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("nodes")).unwrap();
        Self { root }
    }

    fn path(&self) -> PathBuf {
        self.root.path().join("nodes")
    }

    fn file(&self, name: &str) -> PathBuf {
        self.present().join(format!("{name}.json"))
    }

    fn registry(&self, own: &str, last: &[NodeView]) -> FileRegistry {
        FileRegistry::new(self.path(), NodeName::new(own).unwrap(), last)
    }

    /// Where the nodes are now.
    fn present(&self) -> PathBuf {
        let path = self.path();
        if path.exists() {
            path
        } else {
            self.root.path().join("away")
        }
    }

    /// Writes as an editor without manners does: in place.
    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.file(name), text).unwrap();
    }
}

impl Backend for Directory {
    type Registry = FileRegistry;

    async fn open(&self, own: &str, last: &[NodeView]) -> FileRegistry {
        self.registry(own, last)
    }

    fn admit(&self, _: &OwnRecord) {}

    fn put(&self, view: &NodeView) -> NodeView {
        self.write(&view.name, &serde_json::to_string(view).unwrap());
        view.clone()
    }

    fn remove(&self, name: &str) {
        std::fs::remove_file(self.file(name)).unwrap();
    }

    fn get(&self, name: &str) -> Option<NodeView> {
        let text = std::fs::read(self.file(name)).ok()?;
        Some(serde_json::from_slice(&text).unwrap())
    }

    fn stamp(&self, name: &str) -> String {
        use std::os::unix::fs::MetadataExt;
        let meta = std::fs::metadata(self.file(name)).unwrap();
        format!("{} {} {}", meta.ino(), meta.ctime(), meta.ctime_nsec())
    }

    fn take_away(&self) {
        std::fs::rename(self.path(), self.root.path().join("away")).unwrap();
    }

    fn bring_back(&self) {
        std::fs::rename(self.root.path().join("away"), self.path()).unwrap();
    }
}

async fn synced(directory: &Directory) -> Follower<FileRegistry> {
    let mut follower = Follower::new(directory.registry("node-1", &[]));
    follower.until("synced", |f| f.synced).await;
    follower
}

#[tokio::test]
async fn passes_the_suite() {
    registry_suite::run(Directory::new).await;
}

#[tokio::test]
async fn a_damaged_file_keeps_the_last_good_view_and_is_named() {
    let directory = Directory::new();
    let good = view("node-2", "b");
    directory.put(&good);
    let mut follower = synced(&directory).await;
    let whole = serde_json::to_string(&good).unwrap();
    for damaged in [
        &whole[..whole.len() / 2],
        "",
        "\0\0\0",
        "[]",
        "{\"name\": 7}",
    ] {
        directory.write("node-2", damaged);
        follower
            .until("trouble", |f| {
                f.troubles.iter().any(|t| t.contains("node-2.json"))
            })
            .await;
        assert_eq!(follower.views["node-2"], good, "{damaged:?}");
        directory.put(&good);
        follower
            .until("no trouble", |f| f.troubles.is_empty())
            .await;
    }
    assert!(
        !follower
            .events
            .iter()
            .any(|e| matches!(e, warren_core::RegistryEvent::Deleted { .. }))
    );
}

#[tokio::test]
async fn what_is_no_regular_file_is_named_and_holds_nobody_up() {
    let directory = Directory::new();
    directory.put(&view("node-2", "b"));
    let fifo = directory.file("node-3");
    let made = std::process::Command::new("mkfifo").arg(&fifo).status();
    assert!(made.unwrap().success());
    std::fs::create_dir(directory.file("node-4")).unwrap();
    std::os::unix::fs::symlink("/dev/zero", directory.file("node-5")).unwrap();
    let mut follower = synced(&directory).await;
    follower
        .until("troubles", |f| {
            ["node-3.json", "node-4.json", "node-5.json"]
                .iter()
                .all(|name| f.troubles.iter().any(|t| t.contains(name)))
        })
        .await;
    assert_eq!(follower.views.keys().collect::<Vec<_>>(), ["node-2"]);
}

#[tokio::test]
async fn a_file_under_another_nodes_name_is_refused() {
    let directory = Directory::new();
    directory.write(
        "node-2",
        &serde_json::to_string(&view("node-3", "c")).unwrap(),
    );
    let mut follower = synced(&directory).await;
    follower
        .until("trouble", |f| {
            f.troubles.iter().any(|t| t.contains("\"node-3\""))
        })
        .await;
    assert!(follower.views.is_empty());
}

#[tokio::test]
async fn a_file_of_more_than_64_kib_is_refused() {
    let directory = Directory::new();
    let mut large = view("node-2", "b");
    large
        .annotations
        .insert("filler".into(), "x".repeat(64 * 1024));
    directory.put(&large);
    let mut follower = synced(&directory).await;
    follower
        .until("trouble", |f| {
            f.troubles.iter().any(|t| t.contains("65536 bytes"))
        })
        .await;
    assert!(follower.views.is_empty());
}

#[tokio::test]
async fn hidden_and_temporary_files_are_no_nodes() {
    let directory = Directory::new();
    let text = serde_json::to_string(&view("node-2", "b")).unwrap();
    for name in [
        ".node-2.json",
        ".tmp-x",
        "node-2.json.tmp",
        "node-2.json~",
        "README",
        ".json",
    ] {
        std::fs::write(directory.path().join(name), &text).unwrap();
    }
    let mut follower = synced(&directory).await;
    follower.settle(Duration::from_millis(100)).await;
    assert!(
        follower.views.is_empty() && follower.troubles.is_empty(),
        "{:?}",
        follower.troubles
    );
}

#[tokio::test]
async fn an_empty_directory_in_place_of_the_mounted_one_takes_nobody_away() {
    let directory = Directory::new();
    directory.put(&view("node-2", "b"));
    let mut follower = synced(&directory).await;
    directory.take_away();
    std::fs::create_dir(directory.path()).unwrap();
    let mounted = |t: &String| t.contains("is its file system mounted?");
    follower
        .until("trouble", |f| f.troubles.iter().any(mounted))
        .await;
    // This node's own file in it changes nothing about that.
    follower
        .registry
        .publish(&own_record("node-1"))
        .await
        .unwrap();
    follower.settle(Duration::from_millis(200)).await;
    assert_eq!(follower.names(), ["node-2"]);
    directory.put(&view("node-3", "c"));
    follower
        .until("another node shows that it is in use", |f| {
            f.names() == ["node-1", "node-3"]
        })
        .await;
}

#[tokio::test]
async fn an_empty_directory_at_start_is_not_believed_over_the_saved_view() {
    let directory = Directory::new();
    let mut follower = Follower::new(directory.registry("node-1", &[view("node-2", "b")]));
    follower.until("trouble", |f| !f.troubles.is_empty()).await;
    assert!(!follower.synced);
}

#[tokio::test]
async fn the_saved_view_stands_in_for_a_damaged_file_at_start() {
    let directory = Directory::new();
    directory.write("node-2", "{");
    directory.put(&view("node-3", "c"));
    let last = [view("node-2", "b"), view("node-4", "d")];
    let mut follower = Follower::new(directory.registry("node-1", &last));
    follower
        .until("synced", |f| f.synced && !f.troubles.is_empty())
        .await;
    assert_eq!(follower.names(), ["node-2", "node-3"]);
}

#[tokio::test]
async fn publishing_over_a_damaged_file_keeps_what_was_last_read_of_it() {
    let directory = Directory::new();
    let mut stored = view("node-1", "own-uid");
    stored
        .annotations
        .insert("example.com/owner".into(), "somebody".into());
    directory.put(&stored);
    let mut follower = synced(&directory).await;
    directory.write("node-1", "{\"na");
    follower.until("trouble", |f| !f.troubles.is_empty()).await;
    assert!(
        follower
            .registry
            .publish(&own_record("node-1"))
            .await
            .unwrap()
    );
    assert_eq!(
        directory.get("node-1").unwrap().annotations["example.com/owner"],
        "somebody"
    );
}

#[tokio::test]
async fn publishing_leaves_no_other_file_and_keeps_fields_that_it_does_not_know() {
    let directory = Directory::new();
    directory.write("node-1", r#"{"name":"node-1","uid":"own-uid","rack":"r7"}"#);
    let mut registry = directory.registry("node-1", &[]);
    registry.publish(&own_record("node-1")).await.unwrap();
    let stored: serde_json::Value =
        serde_json::from_slice(&std::fs::read(directory.file("node-1")).unwrap()).unwrap();
    assert_eq!(stored["rack"], "r7");
    let names: Vec<_> = std::fs::read_dir(directory.path())
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert_eq!(names, ["node-1.json"]);
}

#[tokio::test]
async fn two_machines_of_one_name_do_not_fight_over_its_file() {
    let directory = Directory::new();
    let (mut first, mut second) = (
        directory.registry("node-1", &[]),
        directory.registry("node-1", &[]),
    );
    first.publish(&own_record("node-1")).await.unwrap();
    let mut other = own_record("node-1");
    other.uid = warren_core::NodeUid("other-machine".into());
    second.publish(&other).await.unwrap();
    let error = first
        .publish(&own_record("node-1"))
        .await
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("other-machine") && error.contains("node-name"),
        "{error}"
    );
    assert_eq!(directory.get("node-1").unwrap().uid, other.uid);
}

#[tokio::test]
async fn a_directory_that_cannot_be_written_is_an_error_that_names_it() {
    let mut registry = FileRegistry::new(
        Path::new("/nonexistent/nodes").into(),
        NodeName::new("n").unwrap(),
        &[],
    );
    let error = registry
        .publish(&own_record("n"))
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("/nonexistent/nodes"), "{error}");
}

#[tokio::test]
async fn a_record_that_cannot_be_written_is_tried_again_ever_less_often_and_at_once_when_it_changes()
 {
    let directory = Directory::new();
    let mut registry = directory.registry("node-1", &[]);
    directory.take_away();
    let mut own = own_record("node-1");
    let first = registry.publish(&own).await.unwrap_err().to_string();
    let again = registry.publish(&own).await.unwrap_err().to_string();
    assert_eq!(again, format!("{first}; the next try comes within 1 s"));
    directory.bring_back();
    // What is written now is not what failed, and need not wait.
    own.underlay_mtu_bytes = 1400;
    assert!(registry.publish(&own).await.unwrap());
}

#[tokio::test]
async fn a_directory_that_came_back_is_written_to_at_once() {
    let directory = Directory::new();
    directory.put(&view("node-2", "b"));
    let mut follower = synced(&directory).await;
    directory.take_away();
    follower.until("trouble", |f| !f.troubles.is_empty()).await;
    for _ in 0..5 {
        let own = own_record("node-1");
        follower.registry.publish(&own).await.unwrap_err();
    }
    directory.bring_back();
    follower
        .until("no trouble", |f| f.troubles.is_empty())
        .await;
    let own = own_record("node-1");
    assert!(follower.registry.publish(&own).await.unwrap());
}
