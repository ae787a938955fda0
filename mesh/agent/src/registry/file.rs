//! The registry that is a directory: one file `<node>.json` for each node, a
//! [`NodeView`] in JSON. Where no cluster is, any way of sharing a directory
//! makes a mesh.
//!
//! The directory is watched by inotify and read wholly every 5 seconds besides, for changes made on
//! other machines of a network file system raise no event here. What cannot be read is a trouble
//! that is reported, and never takes a node away: its last good view holds.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ffi::OsStr;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::Instant;
use warren_core::{NodeName, NodeView, RegistryEvent};

use super::publish::publish;
use super::watch::{Watch, names};
use super::{NodeRegistry, OwnRecord, RegistryError, RegistryReport};
use crate::files;

/// The largest file that is read, in bytes.
pub(super) const MAX_FILE_LEN: u64 = 64 * 1024;
/// How often everything is read whatever inotify says.
const RESCAN: Duration = Duration::from_secs(5);
/// How long to wait after an event for others: writers seldom write once.
const SETTLE: Duration = Duration::from_millis(10);
/// How long to wait after writing failed for the first time; it doubles with each failure.
const FIRST_RETRY: Duration = Duration::from_millis(500);
/// The longest time between tries: a disk that has room again is used soon.
const LAST_RETRY: Duration = Duration::from_secs(8);
/// The most troubles that are told apart; the status has room for twice as many problems.
const MAX_TROUBLES: usize = 10;

/// A directory of node files.
#[derive(Debug)]
pub struct FileRegistry {
    dir: PathBuf,
    own_name: NodeName,
    files: BTreeMap<String, NodeFileState>,
    watch: Option<Watch>,
    identity: Option<Identity>,
    /// Whether this directory came without any file in place of one that had some.
    hollow: bool,
    changed: Option<Changed>,
    next_rescan: Instant,
    queue: VecDeque<RegistryReport>,
    troubles: Vec<String>,
    synced: bool,
    published: bool,
    /// Whether the directory could be listed last time.
    listed: bool,
    unwritten: Option<Unwritten>,
}

/// A record that could not be written.
#[derive(Debug)]
struct Unwritten {
    own: OwnRecord,
    cause: String,
    wait: Duration,
    not_before: Instant,
}

/// What is known of one file, or of a file that was there.
#[derive(Debug, Default)]
struct NodeFileState {
    stamp: Option<Stamp>,
    /// The last good view of the node.
    view: Option<NodeView>,
    /// Whether the planner was told of `view`.
    told: bool,
    trouble: Option<String>,
}

/// Tells one content of a file from the next without reading it.
#[derive(Debug, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    len: u64,
    changed: (i64, i64),
}

/// Tells a directory from another one in its place, such as an empty mount point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Identity {
    device: u64,
    inode: u64,
}

/// What inotify said, and when it first did.
#[derive(Debug)]
struct Changed {
    since: Instant,
    names: BTreeSet<String>,
}

impl FileRegistry {
    /// A registry in this directory, which need not be there yet. `last` is the last view of an
    /// earlier run: it holds for nodes whose file is there and cannot be read.
    pub fn new(dir: PathBuf, own_name: NodeName, last: &[NodeView]) -> Self {
        let seed = |view: &NodeView| {
            let state = NodeFileState {
                view: Some(view.clone()),
                ..NodeFileState::default()
            };
            (view.name.clone(), state)
        };
        Self {
            dir,
            own_name,
            files: last.iter().map(seed).collect(),
            watch: None,
            identity: None,
            hollow: false,
            changed: None,
            next_rescan: Instant::now(),
            queue: VecDeque::new(),
            troubles: Vec::new(),
            synced: false,
            published: false,
            listed: false,
            unwritten: None,
        }
    }

    fn own_path(&self) -> PathBuf {
        self.dir.join(format!("{}.json", self.own_name))
    }

    /// Reads what may have changed and queues what is to be told. `full` reads every file.
    fn scan(&mut self, full: bool) {
        let names = self
            .changed
            .take()
            .map(|changed| changed.names)
            .unwrap_or_default();
        let mut troubles = Vec::new();
        match self.list() {
            Ok(present) => {
                if !std::mem::replace(&mut self.listed, true) {
                    // A directory that came back is worth a try at once.
                    self.unwritten = None;
                }
                self.read_files(&present, |name| full || names.contains(name));
                if self.is_hollow(&present) {
                    troubles.push(format!(
                        "registry directory {} is empty, though it had nodes: is its file system \
                         mounted? the last view holds",
                        self.dir.display()
                    ));
                } else {
                    self.tell(&present);
                }
            }
            Err(e) => {
                // Whatever comes back here is another directory to inotify.
                self.watch = None;
                self.listed = false;
                troubles.push(format!(
                    "registry directory {}: {e}; make it, or mount it, on storage that all nodes \
                     share; the last view holds",
                    self.dir.display()
                ));
            }
        }
        troubles.extend(self.files.values().filter_map(|file| file.trouble.clone()));
        let more = troubles.len().saturating_sub(MAX_TROUBLES);
        if more > 0 {
            troubles.truncate(MAX_TROUBLES);
            troubles.push(format!("and {more} more"));
        }
        if troubles != self.troubles {
            self.troubles.clone_from(&troubles);
            self.queue.push_back(RegistryReport::Troubles(troubles));
        }
    }

    /// The names of the nodes that have a file. The watch is there first: a change after the
    /// listing raises an event.
    fn list(&mut self) -> io::Result<BTreeSet<String>> {
        let meta = std::fs::metadata(&self.dir)?;
        let identity = Identity {
            device: meta.dev(),
            inode: meta.ino(),
        };
        let replaced = self.identity != Some(identity);
        if replaced || self.watch.is_none() {
            self.watch = None;
            self.watch = Some(Watch::new(&self.dir)?);
        }
        let mut present = BTreeSet::new();
        for entry in std::fs::read_dir(&self.dir)? {
            if let Some(name) = node_of(&entry?.file_name()) {
                present.insert(name);
            }
        }
        if replaced {
            let knew = self
                .files
                .iter()
                .any(|(name, file)| name != self.own_name.as_str() && file.view.is_some());
            self.hollow = knew && present.is_empty();
            self.identity = Some(identity);
        }
        Ok(present)
    }

    /// INVARIANT: an empty directory in place of one with nodes, such as a mount point without its
    /// file system, takes no node away; the first node in it that is not this one shows that it is
    /// in use.
    fn is_hollow(&mut self, present: &BTreeSet<String>) -> bool {
        self.hollow &= present.iter().all(|name| name == self.own_name.as_str());
        self.hollow
    }

    fn read_files(&mut self, present: &BTreeSet<String>, must_read: impl Fn(&str) -> bool) {
        for name in present {
            let path = self.dir.join(format!("{name}.json"));
            let file = self.files.entry(name.clone()).or_default();
            let stamp = Stamp::of(&path);
            if !must_read(name) && stamp.is_some() && file.stamp == stamp {
                continue;
            }
            file.stamp = stamp;
            match read_view(&path, name) {
                Ok(Some(view)) => {
                    file.trouble = None;
                    if file.view.as_ref() != Some(&view) {
                        file.told = false;
                        let reborn = file.view.as_ref().filter(|old| old.uid != view.uid);
                        if let Some(old) = reborn.filter(|_| self.synced) {
                            let (name, uid) = (name.clone(), old.uid.clone());
                            let event = RegistryEvent::Deleted { name, uid };
                            self.queue.push_back(RegistryReport::Event(event));
                        }
                        file.view = Some(view);
                    }
                }
                // Gone since the listing: the next scan sees it.
                Ok(None) => {}
                Err(cause) => {
                    let holds = if file.view.is_some() {
                        "; its last good view holds"
                    } else {
                        ""
                    };
                    file.trouble = Some(format!("registry file {name}.json: {cause}{holds}"));
                }
            }
        }
    }

    /// Queues what is new since the last time, and forgets what is gone.
    fn tell(&mut self, present: &BTreeSet<String>) {
        let gone: Vec<String> = self
            .files
            .keys()
            .filter(|name| !present.contains(*name))
            .cloned()
            .collect();
        for name in gone {
            let view = self.files.remove(&name).and_then(|file| file.view);
            if let Some(view) = view.filter(|_| self.synced) {
                let event = RegistryEvent::Deleted {
                    name,
                    uid: view.uid,
                };
                self.queue.push_back(RegistryReport::Event(event));
            }
        }
        let first = !self.synced;
        let mut views = Vec::new();
        for file in self.files.values_mut().filter(|file| first || !file.told) {
            file.told = true;
            views.extend(file.view.clone());
        }
        if first {
            self.synced = true;
            self.queue
                .push_back(RegistryReport::Event(RegistryEvent::Synced(views)));
        } else {
            let events = views.into_iter().map(RegistryEvent::Applied);
            self.queue.extend(events.map(RegistryReport::Event));
        }
    }

    /// Waits until something may have changed, and returns whether everything must be read.
    async fn changed(&mut self) -> bool {
        loop {
            let settled = self.changed.as_ref().map(|changed| changed.since + SETTLE);
            tokio::select! {
                () = tokio::time::sleep_until(self.next_rescan) => {
                    self.next_rescan = Instant::now() + RESCAN;
                    return true;
                }
                () = sleep_until(settled) => return false,
                names = names(&self.watch) => match names {
                    Ok(names) => {
                        let since = Instant::now();
                        let changed =
                            self.changed.get_or_insert_with(|| Changed { since, names: BTreeSet::new() });
                        changed.names.extend(names);
                    }
                    // Events were lost, or the watch broke: everything is read, by a new watch.
                    Err(_) => {
                        self.watch = None;
                        return true;
                    }
                },
            }
        }
    }
}

impl NodeRegistry for FileRegistry {
    async fn next(&mut self) -> RegistryReport {
        loop {
            if let Some(report) = self.queue.pop_front() {
                return report;
            }
            let full = self.changed().await;
            self.scan(full);
        }
    }

    async fn publish(&mut self, own: &OwnRecord) -> Result<bool, RegistryError> {
        let now = Instant::now();
        let waiting = self.unwritten.as_ref().filter(|u| u.own == *own);
        if let Some(unwritten) = waiting.filter(|u| now < u.not_before) {
            return Err(RegistryError::Waiting {
                last: unwritten.cause.clone(),
                wait: unwritten.wait,
            });
        }
        let wait = waiting.map_or(FIRST_RETRY, |u| (u.wait * 2).min(LAST_RETRY));
        let result = self.write_own(own);
        self.unwritten = result.as_ref().err().map(|e| Unwritten {
            own: own.clone(),
            cause: e.to_string(),
            wait,
            not_before: now + wait,
        });
        result
    }
}

impl FileRegistry {
    fn write_own(&mut self, own: &OwnRecord) -> Result<bool, RegistryError> {
        let last_good = self
            .files
            .get(own.name.as_str())
            .and_then(|file| file.view.as_ref());
        let last_good = last_good.and_then(|view| serde_json::to_value(view).ok());
        let written = publish(&self.own_path(), own, last_good.as_ref(), self.published)?;
        self.published = true;
        Ok(written)
    }
}

impl Stamp {
    fn of(path: &Path) -> Option<Self> {
        let meta = std::fs::metadata(path).ok()?;
        Some(Self {
            inode: meta.ino(),
            len: meta.len(),
            changed: (meta.ctime(), meta.ctime_nsec()),
        })
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// The node that a file is of; hidden files and other names are none's.
pub(super) fn node_of(file_name: &OsStr) -> Option<String> {
    let node = file_name.to_str()?.strip_suffix(".json")?;
    (!node.is_empty() && !node.starts_with('.')).then(|| node.to_owned())
}

fn read_view(path: &Path, name: &str) -> Result<Option<NodeView>, String> {
    let content = match files::read_limited(path, MAX_FILE_LEN) {
        Ok(Some(content)) => content,
        Ok(None) => return Ok(None),
        Err(files::FileError::TooLarge { limit, .. }) => {
            return Err(format!("larger than {limit} bytes"));
        }
        Err(e) => return Err(e.to_string()),
    };
    let view: NodeView =
        serde_json::from_slice(&content).map_err(|e| format!("no node in JSON: {e}"))?;
    if view.name != name {
        return Err(format!(
            "its name is {:?}, which is not the file's",
            view.name
        ));
    }
    Ok(Some(view))
}
