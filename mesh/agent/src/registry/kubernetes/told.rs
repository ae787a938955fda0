//! What the planner was told of the Nodes, and what it is told next.
//!
//! ```text
//!   Init, InitApply..., InitDone   a full list: what it lacks is gone, what it has anew is told
//!   Apply, Delete                  one Node; what is known already, or of an earlier life, is not
//! ```

use std::collections::BTreeMap;

use kube::runtime::watcher::Event;
use warren_core::{NodeName, NodeView, RegistryEvent};

use super::object::Watched;

/// The view that has been told.
#[derive(Debug)]
pub(super) struct Told {
    own_name: String,
    views: BTreeMap<String, NodeView>,
    /// A list that is being read.
    listing: Option<BTreeMap<String, NodeView>>,
    /// What came in place of a view with nodes, and has none.
    hollow: Option<BTreeMap<String, NodeView>>,
    synced: bool,
}

impl Told {
    pub(super) fn new(own_name: &NodeName) -> Self {
        Self {
            own_name: own_name.to_string(),
            views: BTreeMap::new(),
            listing: None,
            hollow: None,
            synced: false,
        }
    }

    /// Whether the whole view was told once.
    pub(super) fn is_synced(&self) -> bool {
        self.synced
    }

    /// Whether this node's own Node was there when last heard of.
    pub(super) fn has_own(&self) -> bool {
        let now = self.hollow.as_ref().unwrap_or(&self.views);
        now.contains_key(&self.own_name)
    }

    pub(super) fn trouble(&self) -> Option<String> {
        self.hollow.as_ref().map(|_| {
            "the Kubernetes API server tells of no other node, though there were some: is it this \
             cluster's? the last view holds"
                .to_owned()
        })
    }

    /// Another list follows, whatever was being read.
    pub(super) fn begin_anew(&mut self) {
        self.listing = None;
    }

    /// Takes in what the watch says, and returns what that changes.
    pub(super) fn handle(&mut self, event: Event<Watched>) -> Vec<RegistryEvent> {
        match event {
            Event::Init => {
                self.listing = Some(BTreeMap::new());
                Vec::new()
            }
            Event::InitApply(node) => {
                let view = node.object.view();
                let listing = self.listing.get_or_insert_default();
                listing.insert(view.name.clone(), view);
                Vec::new()
            }
            Event::InitDone => {
                let listed = self.listing.take().unwrap_or_default();
                self.handle_list(listed)
            }
            Event::Apply(node) => self.handle_view(node.object.view()),
            Event::Delete(node) => self.handle_deleted(&node.object.view()),
        }
    }

    /// INVARIANT: a list without any other node in place of a view with some takes no node away; an
    /// API server that lost its data, or is another cluster's, looks like that. The first other node
    /// that is heard of shows that it is in use.
    fn handle_list(&mut self, listed: BTreeMap<String, NodeView>) -> Vec<RegistryEvent> {
        self.hollow = None;
        if self.synced && self.has_others(&self.views) && !self.has_others(&listed) {
            self.hollow = Some(listed);
            return Vec::new();
        }
        if !self.synced {
            self.synced = true;
            self.views = listed;
            let views = self.views.values().cloned().collect();
            return vec![RegistryEvent::Synced(views)];
        }
        let gone = self
            .views
            .values()
            .filter(|v| !listed.contains_key(&v.name));
        let gone: Vec<NodeView> = gone.cloned().collect();
        let mut events: Vec<RegistryEvent> = gone
            .iter()
            .flat_map(|view| self.handle_deleted(view))
            .collect();
        for view in listed.into_values() {
            events.extend(self.handle_view(view));
        }
        events
    }

    fn handle_view(&mut self, view: NodeView) -> Vec<RegistryEvent> {
        if let Some(mut found) = self.hollow.take() {
            found.insert(view.name.clone(), view);
            return self.handle_list(found);
        }
        let old = self.views.insert(view.name.clone(), view.clone());
        if old.as_ref() == Some(&view) {
            return Vec::new();
        }
        let mut events = Vec::new();
        // Deleted and made again while nobody looked.
        if let Some(old) = old.filter(|old| old.uid != view.uid) {
            events.push(deleted(&old));
        }
        events.push(RegistryEvent::Applied(view));
        events
    }

    fn handle_deleted(&mut self, view: &NodeView) -> Vec<RegistryEvent> {
        if let Some(found) = &mut self.hollow {
            found.remove(&view.name);
            return Vec::new();
        }
        let known = self.views.get(&view.name);
        if known.is_none_or(|known| known.uid != view.uid) {
            return Vec::new();
        }
        self.views.remove(&view.name);
        vec![deleted(view)]
    }

    fn has_others(&self, views: &BTreeMap<String, NodeView>) -> bool {
        views.keys().any(|name| *name != self.own_name)
    }
}

fn deleted(view: &NodeView) -> RegistryEvent {
    RegistryEvent::Deleted {
        name: view.name.clone(),
        uid: view.uid.clone(),
    }
}

#[cfg(test)]
mod tests;
