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

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use warren_keyring::PublicKey;

use crate::consts::annotation;
use crate::diff::Removals;
use crate::files::SavedView;
use crate::follow::{Ground, PlanPart, Sources};
use crate::node::{NodeName, NodeRecord, NodeUid, NodeView, overlap};
use crate::plan::{LocalNode, Plan, PlanInput, PlannedNode, Settings, plan};
use crate::reject::NodeReject;

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
    /// Whether more has changed since the last plan than the nodes of `news`.
    dirty: bool,
    /// The other nodes that have changed since the last plan.
    news: BTreeSet<String>,
    /// What the last plan stands on, where it can be followed.
    ground: Option<Ground>,
    /// Whether the plan was followed since it was made.
    followed: bool,
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
            news: BTreeSet::new(),
            ground: None,
            followed: false,
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
                self.dirty |= changed || !self.synced;
                self.views = views;
                self.synced = true;
            }
            RegistryEvent::Applied(view) => {
                let name = view.name.clone();
                if self.views.get(&name) != Some(&view) {
                    self.views.insert(name.clone(), view);
                    self.note_news(name);
                }
            }
            RegistryEvent::Deleted { name, uid } => {
                if self.views.get(&name).is_some_and(|v| v.uid == uid) {
                    self.views.remove(&name);
                    self.note_news(name);
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
                self.dirty = true;
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
        self.news.clear();
        self.followed = false;
        let firm = self.synced && self.is_firm(&plan);
        self.ground = firm.then(|| Ground::of(&plan, &self.sources()));
        plan
    }

    /// Whether the plan is the same when it is made once more. Where nodes are refused, taking note of
    /// who holds what may change why.
    fn is_firm(&self, plan: &Plan) -> bool {
        let others = self.incumbents.keys().filter(|n| **n != self.local.name);
        let orderly = plan.rejects.values().all(NodeReject::is_waiting)
            && plan.notices.is_empty()
            && others.count() == plan.accepted.len();
        orderly || {
            let mut again = self.plan_once();
            again.key_changes.clone_from(&plan.key_changes);
            again == *plan
        }
    }

    /// The addresses of the underlay that what was told since the last plan leads to, and nothing else
    /// of it; [`Planner::handle_way`] takes what is found out of them.
    pub fn new_ways(&self, plan: &Plan) -> BTreeSet<IpAddr> {
        let ground = self.ground.as_ref().filter(|_| !self.dirty);
        let ways = ground.map(|ground| ground.new_ways(&self.news, plan, &self.sources()));
        ways.unwrap_or_default()
    }

    /// Takes in the MTU in bytes of the way to an address of [`Planner::new_ways`], if there is one.
    pub fn handle_way(&mut self, to: IpAddr, mtu_bytes: Option<u32>) {
        match mtu_bytes {
            Some(mtu_bytes) => drop(self.path_mtu.insert(to, mtu_bytes)),
            None => drop(self.path_mtu.remove(&to)),
        }
    }

    /// The other nodes that have changed since the last plan.
    pub fn news(&self) -> impl Iterator<Item = &str> {
        self.news.iter().map(String::as_str)
    }

    /// Brings the last plan to what is known now by the nodes alone that have changed since, and
    /// returns what that changes of it. `None`, with nothing changed, when that cannot be told from
    /// those nodes alone: [`Planner::poll_plan`] is to be asked then.
    ///
    /// The result is that of [`Planner::poll_plan`]; the work does not grow with the number of nodes.
    pub fn follow(&mut self, plan: &mut Plan) -> Option<PlanPart> {
        if self.dirty {
            return None;
        }
        let mut ground = self.ground.take()?;
        let followed = ground.follow(&self.news, plan, &self.sources());
        self.ground = Some(ground);
        let part = followed?;
        let mut changed = false;
        for node in &part.nodes {
            let Ok(name) = NodeName::new(node.name.as_str()) else {
                continue;
            };
            let before = match node.incumbent.clone() {
                Some(record) => self.incumbents.insert(name, record),
                None => self.incumbents.remove(&name),
            };
            changed |= before != node.incumbent;
        }
        self.revision += u64::from(changed);
        self.news.clear();
        self.followed = true;
        Some(part)
    }

    /// Whether the last plan was followed since it was made anew.
    pub fn has_followed(&self) -> bool {
        self.followed
    }

    fn sources(&self) -> Sources<'_> {
        Sources {
            settings: &self.settings,
            local: &self.local,
            views: &self.views,
            incumbents: &self.incumbents,
            path_mtu: &self.path_mtu,
        }
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
        self.dirty || !self.news.is_empty()
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
        self.revision += u64::from(changed);
    }

    /// This node's own entry is part of every peer's plan.
    fn note_news(&mut self, name: String) {
        self.note_change(true);
        if name == self.local.name.as_str() {
            self.dirty = true;
        } else {
            self.news.insert(name);
        }
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
