//! Following a plan: what the events of a few nodes change of it, without planning the others anew.
//!
//! ```text
//!   event of a node --> does anybody else claim what it claims, or claimed? -- yes --> plan anew
//!                             | no
//!                             v
//!               its part of the plan, before and after --> diff --> its changes
//! ```
//!
//! INVARIANT: a node that shares no claim with anybody, neither before nor after, changes nothing
//! but its own part of a plan. All else is left to [`Planner::poll_plan`](crate::Planner::poll_plan),
//! which yields the same plan.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use warren_keyring::PublicKey;

use crate::claims::{Claim, ClaimIndex, claims};
use crate::diff::{Removals, diff};
use crate::files::NodeChange;
use crate::node::{NodeName, NodeRecord, NodeView};
use crate::plan::{
    LocalNode, Plan, PlannedNode, Settings, add_node, other_key, tunnel_mtu, way_to,
};
use crate::reject::NodeReject;
use crate::state::{Change, DesiredState, ObservedLink, ObservedPeer, ObservedState};

/// What a few nodes' events changed of a plan.
#[derive(Debug, Default)]
pub struct PlanPart {
    /// The nodes' own routes, peers and addresses as they were planned; nothing else.
    before: DesiredState,
    /// The same as they are planned now.
    after: DesiredState,
    /// The nodes, for the saved view.
    pub nodes: Vec<NodeChange>,
}

impl PlanPart {
    /// What must be done, in order, on a node that was as planned before. `applied` are the published
    /// endpoints that the tunnel was last given.
    pub fn changes(&self, applied: &BTreeMap<PublicKey, SocketAddr>) -> Vec<Change> {
        let peer = |(key, peer): (&PublicKey, &crate::state::DesiredPeer)| {
            let observed = ObservedPeer {
                endpoint: Some(peer.endpoint),
                applied_endpoint: applied.get(key).copied(),
                allowed_ips: peer.allowed_ips.clone(),
                persistent_keepalive: peer.persistent_keepalive,
                path_probes: peer.path_probes,
            };
            (*key, observed)
        };
        let observed = ObservedState {
            filter: Some(self.after.filter.clone()),
            link: Some(ObservedLink {
                mtu_bytes: self.after.mtu_bytes,
                up: true,
            }),
            routes: self.before.routes.clone(),
            peers: Some(self.before.peers.iter().map(peer).collect()),
            ..ObservedState::default()
        };
        let (before, after) = (
            &self.before.filter.peer_addresses,
            &self.after.filter.peer_addresses,
        );
        let only = |a: &BTreeSet<IpNet>, b: &BTreeSet<IpNet>| a.difference(b).copied().collect();
        let (add, remove): (BTreeSet<IpNet>, BTreeSet<IpNet>) =
            (only(after, before), only(before, after));
        let none = BTreeSet::new;
        let mut out = Vec::new();
        // What is to be refused outside the tunnel is so before anything leads into it, and until
        // nothing does any more.
        if !add.is_empty() {
            let remove = none();
            out.push(Change::SetPeerAddresses { add, remove });
        }
        out.extend(diff(&observed, &self.after, Removals::Allowed));
        if !remove.is_empty() {
            let add = none();
            out.push(Change::SetPeerAddresses { add, remove });
        }
        out
    }
}

/// What a plan stands on, by who claims what.
#[derive(Debug)]
pub(crate) struct Ground {
    claims: ClaimIndex,
    /// How many peers have each MTU.
    mtus: BTreeMap<u32, usize>,
    /// How many peers are reached at each address.
    ways: BTreeMap<IpAddr, usize>,
}

/// What following reads.
pub(crate) struct Sources<'a> {
    pub(crate) settings: &'a Settings,
    pub(crate) local: &'a LocalNode,
    pub(crate) views: &'a BTreeMap<String, NodeView>,
    pub(crate) incumbents: &'a BTreeMap<NodeName, NodeRecord>,
    pub(crate) path_mtu: &'a BTreeMap<IpAddr, u32>,
}

/// A node whose events can be followed.
struct Step {
    name: NodeName,
    after: After,
}

/// What becomes of a node.
enum After {
    Gone,
    Waiting(NodeReject),
    Planned(Box<PlannedNode>),
}

impl Ground {
    /// The ground of a plan that was just made.
    pub(crate) fn of(plan: &Plan, sources: &Sources<'_>) -> Self {
        let mut out = Self {
            claims: ClaimIndex::default(),
            mtus: BTreeMap::new(),
            ways: BTreeMap::new(),
        };
        let own = sources.local.record();
        out.claims.insert(&own.name, claims(&own));
        for (name, record) in sources.incumbents {
            out.claims.insert(name, claims(record));
        }
        for (name, node) in &plan.accepted {
            out.claims.insert(name, claims(&node.record));
            out.count(node);
        }
        // Whoever is refused for the moment claims all the same.
        for name in plan.rejects.keys() {
            let view = sources.views.get(name);
            let record = view.and_then(|v| NodeRecord::parse(v, &sources.settings.ranges).ok());
            if let Some(record) = record {
                out.claims.insert(&record.name, claims(&record));
            }
        }
        out
    }

    fn count(&mut self, node: &PlannedNode) {
        *self.mtus.entry(node.mtu_bytes).or_default() += 1;
        *self.ways.entry(node.endpoint.ip()).or_default() += 1;
    }

    fn discount(&mut self, node: &PlannedNode) {
        less(&mut self.mtus, &node.mtu_bytes);
        less(&mut self.ways, &node.endpoint.ip());
    }

    /// The addresses that these nodes will be reached at and nobody else is.
    pub(crate) fn new_ways(
        &self,
        names: &BTreeSet<String>,
        plan: &Plan,
        sources: &Sources<'_>,
    ) -> BTreeSet<IpAddr> {
        let planned = names.iter().filter_map(|name| {
            let record =
                NodeRecord::parse(sources.views.get(name)?, &sources.settings.ranges).ok()?;
            let (endpoint, _) = way_to(sources.settings, sources.local, sources.path_mtu, &record)?;
            let before = plan.accepted.get(&record.name).map(|n| n.endpoint.ip());
            (before != Some(endpoint.ip())).then_some(endpoint.ip())
        });
        planned.filter(|ip| !self.ways.contains_key(ip)).collect()
    }

    /// Changes the plan by what these nodes are now; nothing is changed when that does not suffice.
    pub(crate) fn follow(
        &mut self,
        names: &BTreeSet<String>,
        plan: &mut Plan,
        sources: &Sources<'_>,
    ) -> Option<PlanPart> {
        if plan.own_reject.is_some() {
            return None;
        }
        // None of it is done before all of it is certain; what one of them gives up is not free for
        // another of them yet.
        let mut taken = ClaimIndex::default();
        let mut steps = Vec::new();
        for name in names {
            let step = self.step(name, plan, sources)?;
            if let After::Planned(node) = &step.after {
                let claims = claims(&node.record);
                if taken.is_contested(&step.name, &claims) {
                    return None;
                }
                taken.insert(&step.name, claims);
            }
            steps.push(step);
        }
        self.keeps_mtu(&steps, plan, sources).then_some(())?;
        let mut part = PlanPart::default();
        part.before.mtu_bytes = plan.desired.mtu_bytes;
        part.after.mtu_bytes = plan.desired.mtu_bytes;
        for step in steps {
            self.take(step, plan, &mut part, sources);
        }
        plan.key_changes.clear();
        Some(part)
    }

    fn step(&self, name: &str, plan: &Plan, sources: &Sources<'_>) -> Option<Step> {
        let Sources {
            settings,
            local,
            views,
            incumbents,
            path_mtu,
        } = *sources;
        let name = NodeName::new(name)
            .ok()
            .filter(|name| *name != local.name)?;
        let before = plan.accepted.get(&name);
        match before {
            Some(node) => {
                let whole = node.addresses == node.record.addresses;
                let alone = !self.claims.is_contested(&name, &claims(&node.record));
                (whole && alone && !plan.notices.contains_key(&name)).then_some(())?;
            }
            None => {
                // One that was refused for another one's sake, or that is to be spoken of, is no news.
                let refused = plan.rejects.get(name.as_str());
                let quiet = refused.is_none_or(NodeReject::is_waiting);
                (quiet && !incumbents.contains_key(&name)).then_some(())?;
            }
        }
        let after = match views.get(name.as_str()) {
            None => After::Gone,
            Some(view) => match NodeRecord::parse(view, &settings.ranges) {
                Ok(record) => {
                    if other_key(&record, incumbents).is_some() {
                        return None;
                    }
                    let claims: BTreeSet<Claim> = claims(&record);
                    if self.claims.is_contested(&name, &claims) {
                        return None;
                    }
                    let (endpoint, mtu_bytes) = way_to(settings, local, path_mtu, &record)?;
                    After::Planned(Box::new(PlannedNode {
                        endpoint,
                        mtu_bytes,
                        addresses: record.addresses.clone(),
                        record,
                    }))
                }
                Err(reject) if before.is_none() && reject.is_waiting() => After::Waiting(reject),
                Err(_) => return None,
            },
        };
        Some(Step { name, after })
    }

    /// Whether the interface's own MTU stays, which is the whole node's matter.
    fn keeps_mtu(&self, steps: &[Step], plan: &Plan, sources: &Sources<'_>) -> bool {
        let mut mtus = self.mtus.clone();
        for step in steps {
            if let Some(before) = plan.accepted.get(&step.name) {
                less(&mut mtus, &before.mtu_bytes);
            }
            if let After::Planned(node) = &step.after {
                *mtus.entry(node.mtu_bytes).or_default() += 1;
            }
        }
        let largest = mtus.last_key_value().map(|(mtu, _)| *mtu);
        tunnel_mtu(sources.settings, sources.local, largest) == plan.desired.mtu_bytes
    }

    fn take(&mut self, step: Step, plan: &mut Plan, part: &mut PlanPart, sources: &Sources<'_>) {
        let Step { name, after } = step;
        plan.rejects.remove(name.as_str());
        if let Some(before) = plan.accepted.remove(&name) {
            self.claims.remove(&name, claims(&before.record));
            self.discount(&before);
            let mut own = DesiredState::default();
            add_node(&mut own, &before, sources.settings, sources.local);
            remove_from(&mut plan.desired, &own);
            add_to(&mut part.before, own);
        }
        let mut incumbent = None;
        match after {
            After::Gone => {}
            After::Waiting(reject) => drop(plan.rejects.insert(name.as_str().to_owned(), reject)),
            After::Planned(node) => {
                self.claims.insert(&name, claims(&node.record));
                self.count(&node);
                let mut own = DesiredState::default();
                add_node(&mut own, &node, sources.settings, sources.local);
                add_to(&mut plan.desired, own.clone());
                add_to(&mut part.after, own);
                incumbent = Some(node.record.clone());
                plan.accepted.insert(name.clone(), *node);
            }
        }
        part.nodes.push(NodeChange {
            view: sources.views.get(name.as_str()).cloned(),
            name: name.into(),
            incumbent,
        });
    }
}

fn less<K: Ord>(counts: &mut BTreeMap<K, usize>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}

fn add_to(state: &mut DesiredState, own: DesiredState) {
    state.routes.extend(own.routes);
    state.peers.extend(own.peers);
    let addresses = own.filter.peer_addresses;
    state.filter.peer_addresses.extend(addresses);
}

fn remove_from(state: &mut DesiredState, own: &DesiredState) {
    for key in own.routes.keys() {
        state.routes.remove(key);
    }
    for key in own.peers.keys() {
        state.peers.remove(key);
    }
    for net in &own.filter.peer_addresses {
        state.filter.peer_addresses.remove(net);
    }
}
