//! This node's own record: annotations on its Node, by server-side apply, so that what others set
//! there stays.

use std::collections::BTreeMap;
use std::time::Duration;

use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::json;
use tokio::time::timeout;
use warren_core::consts::annotation;
use warren_core::kubernetes::NodeObject;
use warren_core::status::DataPlaneKind;

use super::FIELD_MANAGER;
use super::job::{Job, JobError};
use super::object::Watched;
use crate::registry::{OwnRecord, RegistryError};

/// The annotations that this program writes.
const OURS: [&str; 4] = [
    annotation::PUBLIC_KEY,
    annotation::ENDPOINT,
    annotation::MTU,
    annotation::DATA_PLANE,
];

type Annotations = BTreeMap<String, String>;

/// Writes the record when it differs.
pub(super) struct RecordWriter {
    nodes: Api<Watched>,
    stored: Option<Stored>,
    job: Job<Watched>,
    /// What is being written.
    writing: Annotations,
    /// What was written last, and what the Node had then: what somebody else adds is not fought.
    written: Option<(Annotations, Annotations)>,
    failure: Option<String>,
}

/// This node's Node as last heard of.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Stored {
    uid: String,
    version: u64,
    ours: Annotations,
}

impl Stored {
    fn of(object: &NodeObject) -> Self {
        let all = object.metadata.annotations.iter().flatten();
        let ours = all.filter(|(key, _)| OURS.contains(&key.as_str()));
        let version = object.metadata.resource_version.as_deref();
        Self {
            uid: object.metadata.uid.clone(),
            version: version.and_then(|v| v.parse().ok()).unwrap_or(0),
            ours: ours.map(|(k, v)| (k.clone(), v.clone())).collect(),
        }
    }
}

impl RecordWriter {
    pub(super) fn new(nodes: Api<Watched>) -> Self {
        Self {
            nodes,
            stored: None,
            job: Job::new(),
            writing: Annotations::new(),
            written: None,
            failure: None,
        }
    }

    /// This node's Node is like this; `listed` when a whole list says so.
    pub(super) fn handle_node(&mut self, object: &NodeObject, listed: bool) {
        let node = Stored::of(object);
        // An event from before the answer to the last write is not news.
        let is_late = |known: &Stored| known.uid == node.uid && node.version < known.version;
        if listed || !self.stored.as_ref().is_some_and(is_late) {
            if self
                .stored
                .as_ref()
                .is_none_or(|known| known.uid != node.uid)
            {
                self.job.forgive();
                self.written = None;
            }
            self.stored = Some(node);
        }
    }

    /// This node has no Node.
    pub(super) fn handle_gone(&mut self) {
        self.stored = None;
        self.written = None;
    }

    /// Begins to write the record if the Node has another one, and waits for the end of it for a
    /// while. Returns whether it was written; what takes longer goes on in [`RecordWriter::work`].
    pub(super) async fn publish(
        &mut self,
        own: &OwnRecord,
        patience: Duration,
    ) -> Result<bool, RegistryError> {
        let Some(stored) = self.stored.clone() else {
            return Err(RegistryError::NoNode {
                name: own.name.clone(),
            });
        };
        let wanted = annotations(own);
        if stored.ours == wanted {
            self.failure = None;
            return Ok(false);
        }
        if self.written.as_ref() == Some(&(wanted.clone(), stored.ours.clone())) {
            return Ok(false);
        }
        if !self.job.is_running() {
            if let (Some(wait), Some(last)) = (self.job.wait(), &self.failure)
                && self.writing == wanted
            {
                return Err(RegistryError::Waiting {
                    last: last.clone(),
                    wait,
                });
            }
            self.start(own, &stored, wanted);
        }
        match timeout(patience, self.job.done()).await {
            Ok(Ok(node)) => {
                self.handle_written(&node);
                Ok(true)
            }
            Ok(Err(e)) => {
                let cause = self.handle_failed(&e);
                Err(RegistryError::Kubernetes { cause })
            }
            Err(_) => Ok(false),
        }
    }

    /// Goes on with a write that is under way; ends when it does.
    pub(super) async fn work(&mut self) {
        match self.job.done().await {
            Ok(node) => self.handle_written(&node),
            Err(e) => {
                let cause = self.handle_failed(&e);
                tracing::warn!(cause, "publish this node");
            }
        }
    }

    fn start(&mut self, own: &OwnRecord, stored: &Stored, wanted: Annotations) {
        // The uid keeps it off a Node that was made anew, and from making one.
        let patch = json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": own.name.as_str(), "uid": stored.uid, "annotations": wanted},
        });
        self.writing = wanted;
        let (nodes, name) = (self.nodes.clone(), own.name.to_string());
        self.job.start(async move {
            let params = PatchParams::apply(FIELD_MANAGER).force();
            nodes.patch(&name, &params, &Patch::Apply(patch)).await
        });
    }

    fn handle_written(&mut self, node: &Watched) {
        self.failure = None;
        self.handle_node(&node.object, false);
        let stored = self.stored.as_ref().map(|stored| stored.ours.clone());
        self.written = Some((self.writing.clone(), stored.unwrap_or_default()));
    }

    fn handle_failed(&mut self, error: &JobError) -> String {
        let cause = error.to_string();
        self.failure = Some(format!("publish this node: {cause}"));
        cause
    }
}

fn annotations(own: &OwnRecord) -> Annotations {
    let mut out = Annotations::from([
        (
            annotation::PUBLIC_KEY.to_owned(),
            own.public_key.to_base64(),
        ),
        (
            annotation::MTU.to_owned(),
            own.underlay_mtu_bytes.to_string(),
        ),
    ]);
    if !own.endpoints.is_empty() {
        out.insert(annotation::ENDPOINT.to_owned(), own.endpoints.to_string());
    }
    // What most nodes have is not said: older agents wrote nothing of it.
    if own.data_plane != DataPlaneKind::Userspace {
        let word = own.data_plane.to_string();
        out.insert(annotation::DATA_PLANE.to_owned(), word);
    }
    out
}
