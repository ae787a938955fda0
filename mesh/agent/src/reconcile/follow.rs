//! Following the registry's news of single nodes: what one node's event asks for is done, and nothing
//! else is looked at.
//!
//! ```text
//!   news -> one route look-up for a new endpoint -> that node's part of the plan -> its changes
//! ```
//!
//! Nothing is read back. The next whole reconcile, at the tick at the latest, plans anew, looks at
//! everything, and repairs.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Instant;

use warren_core::files::ViewChange;
use warren_core::{Change, NodeName};
use warren_keyring::PublicKey;
use warren_netlink::NetEvent;

use super::{Pass, Reconciler};
use crate::dataplane::DataPlane;
use crate::host::Host;
use crate::store::Store;

/// What came of following.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Followed {
    /// All that is to be done is done.
    Enough,
    /// It is planned, and some of it failed: a whole reconcile is due.
    Failed,
    /// Nothing was planned: a whole reconcile is due.
    Not,
}

impl<H: Host, D: DataPlane, S: Store> Reconciler<H, D, S> {
    /// Does what the registry's news ask for since the last plan, where single nodes' news say all.
    ///
    /// The work does not grow with the number of nodes.
    pub async fn follow(&mut self) -> Followed {
        if !self.calm || self.public_key.is_none() {
            return Followed::Not;
        }
        if !self.planner.is_dirty() {
            return Followed::Enough;
        }
        let started = Instant::now();
        let mut pass = Pass::default();
        if !self.ask_new_ways(&mut pass).await {
            return Followed::Not;
        }
        let part = self.planner.follow(&mut self.plan.write());
        let Some(part) = part else {
            return Followed::Not;
        };
        let changes = part.changes(&self.applied_endpoints);
        self.apply(&changes, &mut pass).await;
        // Also after an error: what was done must not be unknown to the next start.
        let kept = self.add_to_view(
            ViewChange {
                nodes: part.nodes,
                applied_endpoints: self.given_by(&changes),
            },
            &mut pass,
        );
        if kept {
            self.saved.0 = self.planner.revision();
        }
        self.stats.follows += 1;
        self.stats.changes += changes.len() as u64;
        self.stats.following += started.elapsed();
        for problem in &pass.problems {
            tracing::warn!(problem, "follow");
        }
        self.calm = kept && pass.problems.is_empty();
        match self.calm {
            true => Followed::Enough,
            false => Followed::Failed,
        }
    }

    /// Whether an event of the kernel tells of nothing but this agent's own changes.
    pub fn is_echo(&mut self, event: &NetEvent) -> bool {
        self.host.is_echo(event)
    }

    /// Looks up the routes to endpoints that no peer had before. Tells whether that could be done.
    async fn ask_new_ways(&mut self, pass: &mut Pass) -> bool {
        let ways = self.planner.new_ways(&self.plan.read());
        // What the tunnel has proven of a peer's way counts at each of its endpoints.
        if !ways.is_empty() && self.is_way_proven() {
            return false;
        }
        for to in ways {
            let Some(way) = pass.note(self.host.way(to).await) else {
                return false;
            };
            self.planner.handle_way(to, way.mtu_bytes);
            if let Some(underlay) = &mut self.underlay {
                underlay.learn(to, way);
            }
        }
        true
    }

    /// Whether the tunnel has proven anything of the way to a peer that there is news of.
    fn is_way_proven(&self) -> bool {
        let plan = self.plan.read();
        let names = self.planner.news().filter_map(|n| NodeName::new(n).ok());
        let mut peers = names.filter_map(|name| plan.accepted.get(&name));
        peers.any(|node| self.proven_mtu.contains_key(&node.record.public_key))
    }

    /// The endpoints that the tunnel has been given by these changes.
    fn given_by(&self, changes: &[Change]) -> BTreeMap<PublicKey, Option<SocketAddr>> {
        let keys = changes.iter().filter_map(|change| match change {
            Change::AddPeer { public_key, .. }
            | Change::UpdatePeer { public_key, .. }
            | Change::RemovePeer { public_key, .. } => Some(*public_key),
            _ => None,
        });
        keys.map(|key| (key, self.applied_endpoints.get(&key).copied()))
            .collect()
    }
}
