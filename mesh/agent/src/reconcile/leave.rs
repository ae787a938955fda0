//! What a reconcile leaves in files: for the next start, and for the CNI plugin.

use std::collections::BTreeSet;

use ipnet::IpNet;
use warren_core::ObservedState;
use warren_core::files::{NodeFile, SavedView};
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
        let desired = &self.plan.desired.peers;
        if self.planner.is_synced() && self.public_key.is_some() {
            endpoints.retain(|key, _| desired.contains_key(key));
        }
        let now = (self.planner.revision(), endpoints);
        // The view itself is copied only when it is written: it is most of what a large mesh takes.
        if now != self.saved {
            let view = SavedView {
                applied_endpoints: now.1.clone(),
                ..self.planner.saved_view()
            };
            if pass.note(self.store.save_view(&view)).is_some() {
                self.saved = now;
            }
        }
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
            mtu_bytes: self.plan.desired.mtu_bytes,
        };
        if self.node_file.as_ref() != Some(&node_file)
            && pass.note(self.store.save_node(&node_file)).is_some()
        {
            self.node_file = Some(node_file);
        }
        let Some(observed) = safe else { return };
        let up = observed.link.as_ref().is_some_and(|link| link.up);
        let addressed = observed.addresses.is_superset(&self.plan.desired.addresses);
        if up && addressed && self.node_file.is_some() {
            let installed = pass.note(self.store.install_cni());
            if installed == Some(true) {
                tracing::info!(dir = ?self.config.cni_conf_dir, "wrote the CNI configuration");
            }
        }
    }
}
