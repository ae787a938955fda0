//! Events on Nodes about what is refused: each thing said once, whoever says it and however often.
//!
//! An Event's name is made of what it says, so that of all agents that refuse a node for one cause
//! the first writes it, and the others are told that it exists. Names that were written are kept in a
//! file: the API server forgets Events after an hour, and a restart says nothing again.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::{Api, Client};
use sha2::{Digest, Sha256};
use warren_core::NodeName;

use super::FIELD_MANAGER;
use super::job::{Job, JobError};
use crate::files;
use crate::registry::NodeNote;

const EVENTS_MODE: u32 = 0o600;
const MAX_FILE_LEN: u64 = 16 * 1024 * 1024;
/// Where Events about what has no namespace, such as Nodes, must be.
const NAMESPACE: &str = "default";
/// The longest name of a Node that is part of an Event's name, in bytes.
const MAX_NAME_PART: usize = 200;
/// The longest message of an Event, in bytes (`k8s.io/kubernetes/pkg/apis/core/validation`).
const MAX_MESSAGE: usize = 1024;

/// Writes Events.
pub(super) struct EventWriter {
    events: Api<Event>,
    instance: String,
    file: PathBuf,
    /// The names of the Events that were written about what is still so.
    told: BTreeSet<String>,
    /// What is to be written, by name.
    waiting: BTreeMap<String, NodeNote>,
    writing: Option<String>,
    job: Job<()>,
    failure: Option<String>,
}

impl EventWriter {
    pub(super) fn new(client: Client, own_name: &NodeName, file: PathBuf) -> Self {
        let told = files::read_json(&file, MAX_FILE_LEN);
        let told = told.inspect_err(|e| tracing::warn!(error = %e, "start without it"));
        Self {
            events: Api::namespaced(client, NAMESPACE),
            instance: own_name.to_string(),
            file,
            told: told.ok().flatten().unwrap_or_default(),
            waiting: BTreeMap::new(),
            writing: None,
            job: Job::new(),
            failure: None,
        }
    }

    /// All that is to be said now; what was said of it already is not said again.
    pub(super) fn announce(&mut self, notes: Vec<NodeNote>) {
        let now: BTreeMap<String, NodeNote> = notes
            .into_iter()
            .map(|note| (event_name(&note), note))
            .collect();
        let before = self.told.len();
        self.told.retain(|name| now.contains_key(name));
        if self.told.len() != before {
            self.keep();
        }
        self.waiting = now;
        self.waiting.retain(|name, _| !self.told.contains(name));
    }

    pub(super) fn trouble(&self) -> Option<String> {
        self.failure.clone()
    }

    /// Writes what is to be said, one Event at a time; ends after each, and never when there is
    /// nothing to say.
    pub(super) async fn work(&mut self) {
        if !self.job.is_running() {
            let Some((name, note)) = self.waiting.iter().next() else {
                self.failure = None;
                return std::future::pending().await;
            };
            let event = event(name, note, &self.instance);
            let name = name.clone();
            self.job.ready().await;
            self.writing = Some(name);
            let events = self.events.clone();
            self.job.start(async move {
                let params = PostParams {
                    field_manager: Some(FIELD_MANAGER.to_owned()),
                    ..PostParams::default()
                };
                events.create(&params, &event).await.map(drop)
            });
        }
        let result = self.job.done().await;
        let Some(name) = self.writing.take() else {
            return;
        };
        match result {
            Ok(()) => self.handle_told(name),
            Err(JobError::Kube(e)) if matches!(&*e, kube::Error::Api(s) if s.is_already_exists()) =>
            {
                self.job.forgive();
                self.handle_told(name);
            }
            Err(e) => self.failure = Some(format!("write an Event: {e}")),
        }
    }

    fn handle_told(&mut self, name: String) {
        self.failure = None;
        if self.waiting.remove(&name).is_some() {
            self.told.insert(name);
            self.keep();
        }
    }

    fn keep(&self) {
        if let Err(e) = files::replace_json(&self.file, &self.told, EVENTS_MODE) {
            tracing::warn!(error = %e, "keep which Events were written");
        }
    }
}

/// A name that is the same for the same words about the same life of a node.
fn event_name(note: &NodeNote) -> String {
    let mut hash = Sha256::new();
    for part in [&note.uid.0, note.reason, &note.message] {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part.as_bytes());
    }
    let hash: String = hash.finalize()[..8]
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect();
    let name = cut(&note.node, MAX_NAME_PART).trim_end_matches(['.', '-']);
    format!("{name}.{hash}")
}

fn event(name: &str, note: &NodeNote, instance: &str) -> Event {
    let now = Timestamp::now();
    Event {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some(NAMESPACE.to_owned()),
            ..ObjectMeta::default()
        },
        involved_object: ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Node".to_owned()),
            name: Some(note.node.clone()),
            uid: Some(note.uid.0.clone()),
            ..ObjectReference::default()
        },
        type_: Some("Warning".to_owned()),
        reason: Some(note.reason.to_owned()),
        message: Some(cut(&note.message, MAX_MESSAGE).to_owned()),
        action: Some("Plan".to_owned()),
        count: Some(1),
        first_timestamp: Some(Time(now)),
        last_timestamp: Some(Time(now)),
        source: Some(EventSource {
            component: Some(FIELD_MANAGER.to_owned()),
            ..EventSource::default()
        }),
        reporting_component: Some(FIELD_MANAGER.to_owned()),
        reporting_instance: Some(cut(instance, 128).to_owned()),
        ..Event::default()
    }
}

/// The longest part of a text of at most `max` bytes.
fn cut(text: &str, max: usize) -> &str {
    &text[..text.floor_char_boundary(max)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(node: &str, uid: &str, message: &str) -> NodeNote {
        NodeNote {
            node: node.to_owned(),
            uid: warren_core::NodeUid(uid.to_owned()),
            reason: "InvalidEndpoint",
            message: message.to_owned(),
        }
    }

    #[test]
    fn the_same_words_about_the_same_life_have_one_name_and_others_another() {
        let one = event_name(&note("node-1", "a", "bad"));
        assert_eq!(one, event_name(&note("node-1", "a", "bad")));
        assert_ne!(one, event_name(&note("node-1", "b", "bad")));
        assert_ne!(one, event_name(&note("node-1", "a", "worse")));
        assert!(one.starts_with("node-1."), "{one}");
    }

    #[test]
    fn names_and_messages_keep_to_the_limits_of_the_api() {
        let long = note(&"a.".repeat(126), "a", &"ü".repeat(2000));
        let name = event_name(&long);
        assert!(name.len() <= 253 && !name.contains(".."), "{name}");
        let event = event(&name, &long, "node-1");
        assert!(event.message.is_some_and(|m| m.len() <= MAX_MESSAGE));
    }
}
