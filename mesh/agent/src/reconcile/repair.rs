//! Repairing what others changed in the kernel, without asking the tunnel, the underlay or the
//! registry: what was planned last is put back.

use warren_core::status::DataPlaneKind;
use warren_core::{Change, Removals};

use super::{Pass, Reconciler};
use crate::dataplane::DataPlane;
use crate::host::Host;
use crate::store::Store;

/// How often a repair observes and applies; what is still amiss is for the reconcile that follows.
const ROUNDS: usize = 2;

/// What of the node others may have touched.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Touched {
    /// Settings under `/proc/sys`.
    pub settings: bool,
    /// The nftables table.
    pub filter: bool,
    /// Links, addresses, routes or rules.
    pub network: bool,
    /// The routes of this node's pods.
    pub pods: bool,
}

impl Touched {
    /// Adds what the other names.
    pub fn merge(&mut self, other: Self) {
        self.settings |= other.settings;
        self.filter |= other.filter;
        self.network |= other.network;
        self.pods |= other.pods;
    }
}

/// What a repair did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Repair {
    /// How many changes were made.
    pub changes: usize,
    /// Whether a whole reconcile must look at the node.
    pub unsettled: bool,
}

impl<H: Host, D: DataPlane, S: Store> Reconciler<H, D, S> {
    /// Puts back what others changed; peers are left alone. Before the first reconcile there is
    /// nothing to put back.
    pub async fn repair(&mut self, touched: Touched) -> Repair {
        if self.stats.reconciles == 0 {
            return Repair {
                unsettled: true,
                ..Repair::default()
            };
        }
        let mut pass = Pass::default();
        let mut is_without_link = false;
        if touched.settings {
            pass.problems = self.host.prepare();
        }
        // Before anything else is even read: what is open is open until then.
        if touched.filter && self.host.filter_is_gone() {
            tracing::warn!("somebody removed the filter; loading it anew");
            let (old, new) = (None, self.plan.read().desired.filter.clone());
            let loaded = self.host.apply(&Change::SetFilter { old, new }).await;
            pass.note(loaded);
            pass.changes += 1;
        }
        if touched.filter || touched.network {
            // A plan older than what was heard since does not say what is stale.
            let removals = if self.planner.is_dirty() {
                Removals::Held
            } else {
                self.removals()
            };
            for _ in 0..ROUNDS {
                let Some(state) = pass.note(self.host.observe().await) else {
                    break;
                };
                // A device that this agent makes is a whole reconcile's to make again.
                is_without_link = state.link.is_none();
                let changes = self.changes_to(&state, removals);
                if changes.is_empty() {
                    break;
                }
                tracing::info!(changes = changes.len(), "putting back what others changed");
                pass.changes += changes.len();
                self.apply(&changes, &mut pass).await;
                if !pass.problems.is_empty() {
                    break;
                }
            }
        }
        if touched.network || touched.pods {
            let repaired = self.host.repair_pods(&self.planner.local().pod_cidrs).await;
            pass.changes += pass.note(repaired).unwrap_or_default();
        }
        for problem in &pass.problems {
            tracing::warn!(problem, "repair");
        }
        self.stats.repairs += 1;
        self.stats.changes += pass.changes as u64;
        self.calm &= pass.problems.is_empty();
        Repair {
            changes: pass.changes,
            unsettled: !pass.problems.is_empty()
                || is_without_link && self.tunnel.kind() == DataPlaneKind::Kernel,
        }
    }

    /// Looks for routes of other programs that lead pods' packets astray.
    pub async fn look_for_foreign_routes(&mut self) {
        let found = self.host.foreign_routes(&self.config.cluster_cidrs).await;
        match found {
            Ok(found) => {
                for problem in found.iter().filter(|p| !self.foreign_routes.contains(*p)) {
                    tracing::warn!(problem, "foreign route");
                }
                self.foreign_routes = found;
            }
            Err(e) => tracing::warn!(error = %e, "cannot look for foreign routes"),
        }
    }
}
