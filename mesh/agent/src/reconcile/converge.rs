//! Observing and applying, in rounds, until the node is as planned.

use std::collections::BTreeMap;

use warren_core::files::ViewChange;
use warren_core::state::ObservedPeer;
use warren_core::{Change, ObservedState, Removals, diff};
use warren_keyring::PublicKey;

use super::{Pass, Reconciler};
use crate::dataplane::{DataPlane, DeviceState};
use crate::host::Host;
use crate::store::Store;

/// How often a reconcile observes and applies before it leaves the rest to the next one. Two
/// rounds settle everything; a third finds that.
const MAX_ROUNDS: usize = 3;

impl<H: Host, D: DataPlane, S: Store> Reconciler<H, D, S> {
    /// Observes and applies until nothing is left to do, something fails, or the rounds are used.
    /// Returns what was observed last.
    pub(super) async fn converge(
        &mut self,
        mut device: Option<DeviceState>,
        removals: Removals,
        pass: &mut Pass,
    ) -> (Option<ObservedState>, Option<DeviceState>) {
        let mut observed = None;
        for round in 0..MAX_ROUNDS {
            if round > 0 {
                device = self.tunnel.observe().await.ok();
            }
            let Some(mut state) = pass.note(self.host.observe().await) else {
                pass.unsettled = true;
                return (None, device);
            };
            state.peers = device.as_ref().map(|device| self.observed_peers(device));
            let changes = self.changes_to(&state, removals);
            observed = Some(state);
            if changes.is_empty() {
                break;
            }
            let problems = pass.problems.len();
            pass.changes += changes.len();
            self.apply(&changes, pass).await;
            if pass.problems.len() > problems {
                // What failed will fail again right now; what worked must still be seen.
                device = self.tunnel.observe().await.ok();
                if let Ok(mut state) = self.host.observe().await {
                    state.peers = device.as_ref().map(|device| self.observed_peers(device));
                    observed = Some(state);
                }
                pass.unsettled = true;
                break;
            }
            if round + 1 == MAX_ROUNDS {
                pass.unsettled = true;
                pass.problems.push(format!(
                    "the node's network does not stay as set ({} changes come back); does another \
                     program manage it?",
                    changes.len()
                ));
            }
        }
        (observed, device)
    }

    /// What must be done to come to the plan. Pods of an earlier podCIDR keep what they have until
    /// they are made anew.
    pub(super) fn changes_to(&self, observed: &ObservedState, removals: Removals) -> Vec<Change> {
        let mut changes = diff(observed, &self.plan.read().desired, removals);
        changes.retain(|change| {
            let held = |net: &ipnet::IpNet| self.host.is_pods_source(net.addr());
            !matches!(change, Change::RemoveAddress(net) if held(net))
        });
        changes
    }

    /// Carries the changes out in their order, and goes on past errors.
    pub(super) async fn apply(&mut self, changes: &[Change], pass: &mut Pass) {
        let mut rest = changes;
        while let Some(first) = rest.first() {
            if !is_peer_change(first) {
                log_change(first);
                let result = self.host.apply(first).await;
                pass.note(result);
                rest = &rest[1..];
                continue;
            }
            let run = rest
                .iter()
                .take_while(|change| is_peer_change(change))
                .count();
            let (batch, after) = rest.split_at(run);
            batch.iter().for_each(log_change);
            self.forget_endpoints(batch, pass);
            if pass.note(self.tunnel.apply(batch).await).is_some() {
                batch
                    .iter()
                    .for_each(|change| self.remember_endpoint(change));
            }
            rest = after;
        }
    }

    /// Forgets, on the disk as well, what was applied of peers that are about to get other endpoints.
    /// Should this process be killed before it has written the new ones down, the next gives them again,
    /// and does not take a tunnel to be where it was told before.
    fn forget_endpoints(&mut self, batch: &[Change], pass: &mut Pass) {
        let mut forgotten = BTreeMap::new();
        for change in batch {
            if let Change::UpdatePeer {
                public_key, delta, ..
            } = change
                && delta.endpoint.is_some()
                && self.applied_endpoints.remove(public_key).is_some()
            {
                forgotten.insert(*public_key, None);
            }
        }
        if forgotten.is_empty() {
            return;
        }
        let change = ViewChange {
            applied_endpoints: forgotten,
            ..ViewChange::default()
        };
        if !self.add_to_view(change, pass) {
            self.leave_view(pass);
        }
    }

    fn remember_endpoint(&mut self, change: &Change) {
        match change {
            Change::AddPeer { public_key, new } => {
                self.applied_endpoints.insert(*public_key, new.endpoint);
            }
            Change::UpdatePeer {
                public_key, delta, ..
            } => {
                if let Some(endpoint) = delta.endpoint {
                    self.applied_endpoints.insert(*public_key, endpoint);
                }
            }
            Change::RemovePeer { public_key, .. } => {
                self.applied_endpoints.remove(public_key);
            }
            _ => {}
        }
    }

    fn observed_peers(&self, device: &DeviceState) -> BTreeMap<PublicKey, ObservedPeer> {
        let observed = |peer: &warren_core::uapi::Peer| ObservedPeer {
            endpoint: peer.endpoint,
            // A tunnel that forgot the endpoint must be given it again.
            applied_endpoint: peer
                .endpoint
                .and_then(|_| self.applied_endpoints.get(&peer.public_key).copied()),
            allowed_ips: peer.allowed_ips.iter().copied().collect(),
            persistent_keepalive: peer.persistent_keepalive,
            path_probes: peer.path_probes,
        };
        device
            .peers
            .iter()
            .map(|peer| (peer.public_key, observed(peer)))
            .collect()
    }
}

fn is_peer_change(change: &Change) -> bool {
    matches!(
        change,
        Change::AddPeer { .. } | Change::UpdatePeer { .. } | Change::RemovePeer { .. }
    )
}

fn log_change(change: &Change) {
    match change {
        Change::SetFilter { .. } => tracing::info!("load the filter"),
        Change::SetLink { new, .. } => {
            tracing::info!(
                mtu_bytes = new.mtu_bytes,
                up = new.up,
                "set the tunnel's interface"
            );
        }
        Change::AddPeer { public_key, new } => {
            tracing::info!(%public_key, endpoint = %new.endpoint, "add peer");
        }
        Change::RemovePeer { public_key, .. } => tracing::info!(%public_key, "remove peer"),
        Change::UpdatePeer {
            public_key, delta, ..
        } => {
            tracing::info!(%public_key, ?delta, "update peer");
        }
        other => tracing::debug!(change = ?other, "apply"),
    }
}
