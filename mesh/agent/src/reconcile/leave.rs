//! What a reconcile leaves in files: for the next start, and for the CNI plugin.

use std::collections::BTreeSet;

use ipnet::IpNet;
use warren_core::ObservedState;
use warren_core::files::{NodeFile, SavedView, ViewChange};
use warren_core::plan::tunnel_address;

use super::{Pass, Reconciler};
use crate::dataplane::DataPlane;
use crate::host::Host;
use crate::store::Store;

impl<H: Host, D: DataPlane, S: Store> Reconciler<H, D, S> {
    /// Writes the view for the next start, if it is another one than was written last.
    pub(super) fn leave_view(&mut self, pass: &mut Pass) {
        let mut endpoints = self.applied_endpoints.clone();
        // Before the full view a peer without a plan may be one not heard of yet.
        let plan = self.plan.read();
        let desired = &plan.desired.peers;
        if self.planner.is_synced() && self.public_key.is_some() {
            endpoints.retain(|key, _| desired.contains_key(key));
        }
        drop(plan);
        let now = (self.planner.revision(), endpoints);
        // The view itself is copied only when it is written: it is most of what a large mesh takes.
        // What was added one by one is written whole, at the pace of whole reconciles.
        if now != self.saved || self.added {
            let view = SavedView {
                applied_endpoints: now.1.clone(),
                ..self.planner.saved_view()
            };
            if pass.note(self.store.save_view(&view)).is_some() {
                self.saved = now;
                self.added = false;
            }
        }
    }

    /// Adds a change to the view that was written last. Tells whether it is there now; if not, the
    /// whole view is to be written.
    pub(super) fn add_to_view(&mut self, change: ViewChange, pass: &mut Pass) -> bool {
        if pass.note(self.store.add_to_view(&change)) != Some(true) {
            return false;
        }
        self.added = true;
        for (key, endpoint) in change.applied_endpoints {
            match endpoint {
                Some(endpoint) => drop(self.saved.1.insert(key, endpoint)),
                None => drop(self.saved.1.remove(&key)),
            }
        }
        true
    }

    /// Writes the view for the next start, and what the CNI plugin needs; `safe` is the observed
    /// state when the node is protected.
    pub(super) fn leave_files(
        &mut self,
        pod_cidrs: &BTreeSet<IpNet>,
        safe: Option<&ObservedState>,
        pass: &mut Pass,
    ) {
        self.leave_view(pass);
        // Without a range there is nothing that a pod could be given.
        if pod_cidrs.is_empty() {
            return;
        }
        let node_file = NodeFile {
            name: self.config.node_name.clone(),
            interface: self.config.interface.clone(),
            cluster_cidrs: self.config.cluster_cidrs.clone(),
            pod_cidrs: pod_cidrs.clone(),
            tunnel_addresses: pod_cidrs.iter().map(tunnel_address).collect(),
            mtu_bytes: self.plan.read().desired.mtu_bytes,
        };
        if self.node_file.as_ref() != Some(&node_file)
            && pass.note(self.store.save_node(&node_file)).is_some()
        {
            self.node_file = Some(node_file);
        }
        let Some(observed) = safe else { return };
        let up = observed.link.as_ref().is_some_and(|link| link.up);
        let planned = &self.plan.read().desired.addresses;
        let addressed = observed.addresses.is_superset(planned);
        if up && addressed && self.node_file.is_some() {
            let installed = pass.note(self.store.install_cni());
            if installed == Some(true) {
                tracing::info!(dir = ?self.config.cni_conf_dir, "wrote the CNI configuration");
            }
        }
    }
}
