//! What people are to be told of nodes: what was refused of them, and that a key has changed.

use std::collections::BTreeMap;

use warren_core::{KeyChange, NodeName, NodeUid};

use super::{Pass, Reconciler};
use crate::dataplane::DataPlane;
use crate::host::Host;
use crate::registry::{Announcement, NodeNote};
use crate::snapshot::{LivePlan, Snapshot};
use crate::status::first_cause;
use crate::store::Store;

/// The reason of a change of key that was believed.
const KEY_CHANGED: &str = "PublicKeyChanged";

/// The last change of each node's key since the start.
#[derive(Debug, Default)]
pub(super) struct News {
    key_changes: BTreeMap<NodeName, (NodeUid, KeyChange)>,
}

impl<H: Host, D: DataPlane, S: Store> Reconciler<H, D, S> {
    /// Plans anew, and takes note of keys that have changed.
    pub(super) fn poll_plan(&mut self) {
        let plan = self.planner.poll_plan();
        for (name, change) in &plan.key_changes {
            tracing::warn!(node = %name, old = %change.old, new = %change.new, "node changed its key");
            self.stats.key_changes += 1;
            if let Some(uid) = self.planner.uid_of(name.as_str()) {
                let news = (uid.clone(), *change);
                self.news.key_changes.insert(name.clone(), news);
            }
        }
        self.plan = LivePlan::new(plan);
    }

    /// Lets nodes change to the keys that an operator has trusted here.
    pub(super) fn take_trust(&mut self, pass: &mut Pass) {
        let Some(trusted) = pass.note(self.store.trusted_keys()) else {
            return;
        };
        for (name, key) in trusted {
            if self.planner.handle_trust(&name, key) {
                tracing::info!(node = %name, public_key = %key, "an operator trusts this key");
            }
        }
    }

    /// All that is to be told now.
    pub(super) fn announcement(&mut self, snapshot: &Snapshot) -> Announcement {
        let planner = &self.planner;
        self.news
            .key_changes
            .retain(|name, (uid, _)| planner.uid_of(name.as_str()) == Some(uid));
        let mut notes = Vec::new();
        let mut note = |node: &str, reason, message| {
            if let Some(uid) = planner.uid_of(node) {
                notes.push(NodeNote {
                    node: node.to_owned(),
                    uid: uid.clone(),
                    reason,
                    message,
                });
            }
        };
        let plan = self.plan.read();
        for (name, reject) in plan.rejects.iter().filter(|(_, r)| !r.is_waiting()) {
            note(name, reject.reason(), format!("not in the mesh: {reject}"));
        }
        for (name, notice) in &plan.notices {
            note(name.as_str(), notice.reason(), notice.to_string());
        }
        for (name, (_, change)) in &self.news.key_changes {
            let KeyChange { old, new } = change;
            let message = format!("public key changed from {old} to {new}");
            note(name.as_str(), KEY_CHANGED, message);
        }
        Announcement {
            not_ready: first_cause(snapshot),
            notes,
        }
    }
}
