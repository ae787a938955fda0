//! The planner: a state machine that takes what the registry says and yields plans.
//!
//! ```text
//!            Applied/Deleted (kept)             Applied/Deleted
//!             +-------+                          +-------+
//!             v       |                          v       |
//!   start -> [ not synced ] ------- Synced ---> [ synced ]
//!    from     plans from the                     plans from the
//!    files    last full view,                    registry's view,
//!             removals held                      removals allowed
//! ```
//!
//! A registry that goes away says nothing, and so nothing changes: the last good view holds.

use std::collections::BTreeMap;
use std::net::IpAddr;

use warren_keyring::PublicKey;

use crate::consts::annotation;
use crate::diff::Removals;
use crate::files::SavedView;
use crate::node::{NodeName, NodeRecord, NodeUid, NodeView, overlap};
use crate::plan::{LocalNode, Plan, PlanInput, PlannedNode, Settings, plan};

/// What a registry tells of nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RegistryEvent {
    /// The whole view: every node that there is.
    Synced(Vec<NodeView>),
    /// One node is new or has changed.
    Applied(NodeView),
    /// One node is gone. A uid that is not the one known belongs to an earlier life of the node,
    /// and is ignored.
    Deleted {
        /// The node's name.
        name: String,
        /// The uid of the life that ended.
        uid: NodeUid,
    },
}

/// Holds the view of the mesh and plans from it.
#[derive(Debug)]
pub struct Planner {
    settings: Settings,
    local: LocalNode,
    views: BTreeMap<String, NodeView>,
    incumbents: BTreeMap<NodeName, NodeRecord>,
    path_mtu: BTreeMap<IpAddr, u32>,
    synced: bool,
    dirty: bool,
    revision: u64,
}

impl Planner {
    /// A planner that starts from what was saved last, or from nothing.
    pub fn new(settings: Settings, local: LocalNode, saved: SavedView) -> Self {
        let SavedView {
            views, incumbents, ..
        } = saved;
        Self {
            settings,
            local,
            views: views.into_iter().map(|v| (v.name.clone(), v)).collect(),
            incumbents: incumbents
                .into_iter()
                .map(|r| (r.name.clone(), r))
                .collect(),
            path_mtu: BTreeMap::new(),
            synced: false,
            dirty: true,
            revision: 0,
        }
    }

    /// Takes in what the registry said.
    pub fn handle_event(&mut self, event: RegistryEvent) {
        match event {
            RegistryEvent::Synced(views) => {
                let views = views.into_iter().map(|v| (v.name.clone(), v)).collect();
                let changed = self.views != views;
                self.note_change(changed);
                self.dirty |= !self.synced;
                self.views = views;
                self.synced = true;
            }
            RegistryEvent::Applied(view) => {
                let old = self.views.insert(view.name.clone(), view.clone());
                self.note_change(old != Some(view));
            }
            RegistryEvent::Deleted { name, uid } => {
                if self.views.get(&name).is_some_and(|v| v.uid == uid) {
                    self.views.remove(&name);
                    self.note_change(true);
                }
            }
        }
    }

    /// Takes in how this node is now.
    pub fn handle_local(&mut self, local: LocalNode) {
        self.dirty |= self.local != local;
        self.local = local;
    }

    /// Takes in the MTU in bytes of the underlay's routes to the peers' addresses.
    pub fn handle_path_mtu(&mut self, path_mtu: BTreeMap<IpAddr, u32>) {
        self.dirty |= self.path_mtu != path_mtu;
        self.path_mtu = path_mtu;
    }

    /// Takes in that an operator trusts this key of a node, and returns whether that changes
    /// anything: the node is known with another key, publishes this one, and no other node has it.
    pub fn handle_trust(&mut self, name: &NodeName, public_key: PublicKey) -> bool {
        let view = self.views.get(name.as_str());
        let published = view.and_then(|view| view.annotations.get(annotation::PUBLIC_KEY));
        let published = published.and_then(|text| PublicKey::from_base64(text).ok());
        let is_known = self.incumbents.values().any(|r| r.public_key == public_key);
        let known = self.incumbents.get_mut(name);
        match known {
            Some(known) if published == Some(public_key) && !is_known => {
                known.public_key = public_key;
                self.note_change(true);
                true
            }
            _ => false,
        }
    }

    /// The uid of the node's life that the registry tells of.
    pub fn uid_of(&self, name: &str) -> Option<&NodeUid> {
        self.views.get(name).map(|view| &view.uid)
    }

    /// The plan for what is known now. Records that it accepts are the incumbents from here on;
    /// those of nodes that left are forgotten.
    pub fn poll_plan(&mut self) -> Plan {
        let before = self.incumbents.clone();
        let mut plan = self.plan_once();
        // What an incumbent has just given up is somebody else's now, and not only once anything
        // else changes. Whoever is accepted stays so, and so each turn refuses fewer.
        while self.note_incumbents(&plan) {
            plan = self.plan_once();
        }
        // Without the whole view another holder of the same may not have been heard of yet.
        if self.synced && plan.own_reject.is_none() {
            let own = self.local.record();
            self.incumbents.insert(own.name.clone(), own);
        }
        self.revision += u64::from(self.incumbents != before);
        self.dirty = false;
        plan
    }

    fn plan_once(&self) -> Plan {
        plan(&PlanInput {
            settings: &self.settings,
            local: &self.local,
            views: &self.views,
            incumbents: &self.incumbents,
            path_mtu: &self.path_mtu,
        })
    }

    /// Takes note of who holds what by a plan. Tells whether a refused incumbent has less by it.
    fn note_incumbents(&mut self, plan: &Plan) -> bool {
        let (own, views, accepted) = (&self.local.name, &self.views, &plan.accepted);
        // Refused for the moment is not gone: `plan` keeps the claims of such an incumbent.
        let present = |r: &NodeRecord| {
            views
                .get(r.name.as_str())
                .is_some_and(|view| view.uid == r.uid)
        };
        self.incumbents
            .retain(|name, record| name == own || present(record));
        // What a refused one no longer claims and another was given is that one's by now.
        let mut given_up = false;
        self.incumbents.retain(|name, record| {
            if name == own || accepted.contains_key(name) {
                return true;
            }
            let before = record.clone();
            let stays = gives_up(record, accepted);
            given_up |= !stays || *record != before;
            stays
        });
        for (name, node) in accepted {
            // An address that was not granted is not held either: the next plan would take it from
            // its incumbent.
            let record = NodeRecord {
                addresses: node.addresses.clone(),
                ..node.record.clone()
            };
            self.incumbents.insert(name.clone(), record);
        }
        given_up
    }

    /// Whether something changed since the last plan.
    pub fn is_dirty(&self) -> bool {
        self.dirty
    }

    /// Whether the registry has told the whole view since the start.
    pub fn is_synced(&self) -> bool {
        self.synced
    }

    /// Whether a plan of this planner may take things away.
    pub fn removals(&self) -> Removals {
        if self.synced {
            Removals::Allowed
        } else {
            Removals::Held
        }
    }

    /// This node, as the planner has it.
    pub fn local(&self) -> &LocalNode {
        &self.local
    }

    /// This node's own entry, as the registry tells of it.
    pub fn own_view(&self) -> Option<&NodeView> {
        self.views.get(self.local.name.as_str())
    }

    /// What the mesh is set up with.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Changes whenever [`Planner::saved_view`] may have: 0 while it is what this planner began with.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    fn note_change(&mut self, changed: bool) {
        self.dirty |= changed;
        self.revision += u64::from(changed);
    }

    /// What to save, so that a restart without a registry plans the same.
    pub fn saved_view(&self) -> SavedView {
        SavedView {
            views: self.views.values().cloned().collect(),
            incumbents: self.incumbents.values().cloned().collect(),
            ..SavedView::default()
        }
    }
}

/// Takes from the record of a refused incumbent what accepted nodes have, and tells whether
/// anything is left that it could be known by: without its key it is not.
fn gives_up(record: &mut NodeRecord, accepted: &BTreeMap<NodeName, PlannedNode>) -> bool {
    for node in accepted.values() {
        let theirs = &node.record;
        let has = |key| theirs.public_key == key || theirs.next_public_key == Some(key);
        if has(record.public_key) {
            return false;
        }
        record.next_public_key = record.next_public_key.filter(|key| !has(*key));
        record
            .pod_cidrs
            .retain(|net| !theirs.pod_cidrs.iter().any(|other| overlap(other, net)));
        record.endpoints = record.endpoints.without(&theirs.endpoints);
        record.addresses.retain(|a| !node.addresses.contains(a));
    }
    true
}
