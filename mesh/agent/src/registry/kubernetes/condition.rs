//! The condition `NetworkUnavailable` of this node's Node, written when it differs and only then.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::json;
use warren_core::kubernetes::{NETWORK_UNAVAILABLE, NodeCondition, NodeObject};

use super::FIELD_MANAGER;
use super::job::Job;
use super::object::Watched;
use crate::registry::NotReady;

/// The reason of a node that is ready for pods.
const UP_REASON: &str = "WarrenIsUp";
const UP_MESSAGE: &str = "Warren protects this node's pods, and its tunnel answers";

/// Writes the condition.
pub(super) struct ConditionWriter {
    nodes: Api<Watched>,
    stored: Option<Stored>,
    wanted: Option<NodeCondition>,
    job: Job<Watched>,
    failure: Option<String>,
}

/// This node's Node as last heard of.
struct Stored {
    name: String,
    uid: String,
    version: u64,
    condition: Option<NodeCondition>,
}

impl ConditionWriter {
    pub(super) fn new(nodes: Api<Watched>) -> Self {
        Self {
            nodes,
            stored: None,
            wanted: None,
            job: Job::new(),
            failure: None,
        }
    }

    /// This node's Node is like this; `listed` when a whole list says so.
    pub(super) fn handle_node(&mut self, object: &NodeObject, listed: bool) {
        let version = object.metadata.resource_version.as_deref();
        let node = Stored {
            name: object.metadata.name.clone(),
            uid: object.metadata.uid.clone(),
            version: version.and_then(|v| v.parse().ok()).unwrap_or(0),
            condition: object.network_condition().cloned(),
        };
        // An event from before the answer to the last write is not news.
        let is_late = |known: &Stored| known.uid == node.uid && node.version < known.version;
        if listed || !self.stored.as_ref().is_some_and(is_late) {
            self.stored = Some(node);
        }
    }

    /// This node has no Node.
    pub(super) fn handle_gone(&mut self) {
        self.stored = None;
    }

    /// The node is ready for pods, or why it is not.
    pub(super) fn announce(&mut self, not_ready: Option<NotReady>) {
        let condition = |status: &str, reason: &str, message: String| NodeCondition {
            kind: NETWORK_UNAVAILABLE.to_owned(),
            status: status.to_owned(),
            reason: reason.to_owned(),
            message,
            ..NodeCondition::default()
        };
        self.wanted = Some(match not_ready {
            None => condition("False", UP_REASON, UP_MESSAGE.to_owned()),
            Some(cause) => condition("True", cause.reason, cause.message),
        });
    }

    pub(super) fn trouble(&self) -> Option<String> {
        self.failure.clone()
    }

    /// Writes what differs, one write at a time; ends after each, and never when there is nothing to
    /// write.
    pub(super) async fn work(&mut self) {
        if !self.job.is_running() {
            if self.difference().is_none() {
                self.failure = None;
                return std::future::pending().await;
            }
            self.job.ready().await;
            self.start();
        }
        match self.job.done().await {
            Ok(node) => {
                self.failure = None;
                self.handle_node(&node.object, false);
            }
            Err(e) => {
                self.failure = Some(format!("write the condition {NETWORK_UNAVAILABLE}: {e}"));
            }
        }
    }

    /// What is to be written, with the name and uid of the Node that it is written to.
    fn difference(&self) -> Option<(&str, &str, NodeCondition)> {
        let Stored {
            name,
            uid,
            condition: stored,
            ..
        } = self.stored.as_ref()?;
        let wanted = self.wanted.clone()?;
        let says = |c: &NodeCondition| (c.status.clone(), c.reason.clone(), c.message.clone());
        if stored.as_ref().map(says) == Some(says(&wanted)) {
            return None;
        }
        let now = serde_json::to_value(Time(Timestamp::now())).ok()?;
        let now = now.as_str().map(str::to_owned);
        let since = stored.as_ref().filter(|c| c.status == wanted.status);
        let condition = NodeCondition {
            last_transition_time: (since.and_then(|c| c.last_transition_time.clone()))
                .or_else(|| now.clone()),
            last_heartbeat_time: now,
            ..wanted
        };
        Some((name, uid, condition))
    }

    fn start(&mut self) {
        let Some((name, uid, condition)) = self.difference() else {
            return;
        };
        let patch = json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": name, "uid": uid},
            "status": {"conditions": [condition]},
        });
        let (nodes, name) = (self.nodes.clone(), name.to_owned());
        self.job.start(async move {
            let params = PatchParams::apply(FIELD_MANAGER).force();
            let patch = Patch::Apply(patch);
            nodes.patch_status(&name, &params, &patch).await
        });
    }
}

#[cfg(test)]
mod tests {
    use http::{Request, Response};
    use kube::Client;
    use kube::client::Body;
    use warren_core::kubernetes::NodeStatus;

    use super::*;

    fn node(version: &str, condition: Option<NodeCondition>) -> NodeObject {
        let mut node = NodeObject::default();
        node.metadata.resource_version = Some(version.to_owned());
        node.status = Some(NodeStatus {
            conditions: Some(condition.into_iter().collect()),
            ..NodeStatus::default()
        });
        node
    }

    /// An event from before the last write comes after the answer to it whenever another write was
    /// under way.
    #[tokio::test]
    async fn a_late_event_does_not_make_it_write_again_and_a_whole_list_does() {
        let nobody = tower::service_fn(|_: Request<Body>| async {
            Ok::<_, std::io::Error>(Response::new(Body::empty()))
        });
        let mut writer = ConditionWriter::new(Api::all(Client::new(nobody, "default")));
        writer.handle_node(&node("4", None), true);
        writer.announce(None);
        let written = writer.difference().map(|(_, _, condition)| condition);
        assert!(written.is_some());
        writer.handle_node(&node("6", written), false);
        writer.handle_node(&node("5", None), false);
        assert_eq!(writer.difference(), None);
        // As after a restore from an older snapshot.
        writer.handle_node(&node("5", None), true);
        assert!(writer.difference().is_some());
    }
}
