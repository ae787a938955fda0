//! One reconcile: observe, plan, apply the difference, observe again, and leave word of it.
//!
//! ```text
//!   settings -> tunnel? -> underlay -> plan -+-> observe -> diff -> apply -+-> publish, save,
//!   (sysctl)    (its key)                    +------ while it changes -----+   CNI configuration
//! ```
//!
//! Between two such rounds the registry's news of single nodes are followed without a look at the
//! others (`follow`).
//!
//! Protection does not wait: the filter and the unreachable routes are put in place with neither a
//! tunnel nor a registry, and before the node's key is known nothing else is.

mod converge;
mod follow;
mod leave;
mod news;
mod repair;

pub use follow::Followed;
pub use repair::{Repair, Touched};

use news::News;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use warren_core::consts::{MAIN_TABLE, UNREACHABLE_METRIC, annotation};
use warren_core::files::{NodeFile, SavedView};
use warren_core::mtu::DEFAULT_UNDERLAY_MTU;
use warren_core::state::{RouteKey, RouteTarget};
use warren_core::status::{DataPlaneKind, Health};
use warren_core::{LocalNode, NodeUid, ObservedState, PlanInput, Planner, Removals, plan};
use warren_keyring::{PrivateKey, PublicKey};

use crate::concern::Ours;
use crate::config::{Config, RegistryKind};
use crate::dataplane::{DataPlane, DeviceState};
use crate::host::{Host, Underlay, UnderlayQuery};
use crate::local::{Assigned, Identity, clashes_with_peers, refused_by_peers, stranded_pods};
use crate::registry::{NodeRegistry, RegistryReport};
use crate::snapshot::{LivePlan, Snapshot, Stats};
use crate::status::NO_POD_CIDR;
use crate::store::{Disk, Store};

/// The most errors of one reconcile that are told apart.
const MAX_PROBLEMS: usize = 20;

/// The mesh controller of this node.
#[derive(Debug)]
pub struct Reconciler<H, D, S = Disk> {
    config: Config,
    uid: NodeUid,
    host: H,
    tunnel: D,
    store: S,
    planner: Planner,
    plan: LivePlan,
    public_key: Option<PublicKey>,
    assigned: Assigned,
    news: News,
    underlay: Option<Underlay>,
    /// What the tunnel has found to arrive at a peer, in bytes.
    proven_mtu: BTreeMap<PublicKey, u32>,
    applied_endpoints: BTreeMap<PublicKey, SocketAddr>,
    registry_troubles: Vec<String>,
    /// Why the device could not be read last.
    tunnel_trouble: Option<String>,
    /// The planner's revision and the endpoints that were saved last.
    saved: (u64, BTreeMap<PublicKey, SocketAddr>),
    /// Whether changes were added to what was saved since.
    added: bool,
    /// Whether the node was as planned when a reconcile looked at it last, and nothing failed since.
    calm: bool,
    node_file: Option<NodeFile>,
    foreign_routes: Vec<String>,
    stats: Stats,
}

/// All that a reconcile reads and changes, the registry aside: behind them there is no I/O.
#[derive(Debug)]
pub struct Seams<H, D, S> {
    /// The node's kernel.
    pub host: H,
    /// The WireGuard device.
    pub tunnel: D,
    /// The disk.
    pub store: S,
}

/// What is collected while one reconcile runs.
#[derive(Default)]
struct Pass {
    problems: Vec<String>,
    changes: usize,
    unsettled: bool,
}

impl Pass {
    fn note<T, E: std::fmt::Display>(&mut self, result: Result<T, E>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(e) => {
                self.problems.push(e.to_string());
                None
            }
        }
    }
}

impl<H: Host, D: DataPlane> Reconciler<H, D> {
    /// A controller that keeps its files where the configuration says. As [`Reconciler::with_seams`].
    ///
    /// # Errors
    /// [`warren_keyring::KeyError::Random`] when the kernel gives no random bytes.
    pub fn new(
        config: Config,
        uid: NodeUid,
        host: H,
        tunnel: D,
        saved: SavedView,
    ) -> Result<Self, warren_keyring::KeyError> {
        let seams = Seams {
            host,
            tunnel,
            store: Disk::new(config.clone()),
        };
        Self::with_seams(config, uid, seams, saved)
    }
}

impl<H: Host, D: DataPlane, S: Store> Reconciler<H, D, S> {
    /// A controller that starts from what was saved last, or from nothing.
    ///
    /// # Errors
    /// [`warren_keyring::KeyError::Random`] when the kernel gives no random bytes.
    pub fn with_seams(
        config: Config,
        uid: NodeUid,
        seams: Seams<H, D, S>,
        saved: SavedView,
    ) -> Result<Self, warren_keyring::KeyError> {
        let Seams {
            host,
            tunnel,
            store,
        } = seams;
        let own_view = saved
            .views
            .iter()
            .find(|v| v.name == config.node_name.as_str());
        let published = own_view.and_then(|v| v.annotations.get(annotation::PUBLIC_KEY));
        let public_key = published.and_then(|text| PublicKey::from_base64(text).ok());
        // Until the key is known the planner is not asked; what it holds meanwhile is a key that
        // nobody has.
        let key = match public_key {
            Some(key) => key,
            None => PrivateKey::generate()?.public_key(),
        };
        let nowhere = unknown_underlay();
        let mut assigned = Assigned::default();
        if let Some(view) = own_view {
            assigned.handle_view(&config, view);
        }
        let identity = Identity::new(&config, &uid, &assigned, &nowhere);
        let local = identity.local_node(&config, key, tunnel.kind(), own_view);
        Ok(Self {
            applied_endpoints: saved.applied_endpoints.clone(),
            saved: (0, saved.applied_endpoints.clone()),
            planner: Planner::new(config.settings(), local, saved),
            config,
            uid,
            host,
            tunnel,
            store,
            plan: LivePlan::default(),
            public_key,
            assigned,
            news: News::default(),
            underlay: None,
            proven_mtu: BTreeMap::new(),
            registry_troubles: Vec::new(),
            tunnel_trouble: None,
            added: false,
            calm: false,
            node_file: None,
            foreign_routes: Vec::new(),
            stats: Stats::default(),
        })
    }

    /// What of the kernel is this node's, to judge events by.
    pub fn ours(&self) -> Ours {
        Ours {
            interface: self.config.interface.clone(),
            ranges: self.config.cluster_cidrs.clone(),
        }
    }

    /// Takes in what the registry reports.
    pub fn handle_report(&mut self, report: RegistryReport) {
        match report {
            RegistryReport::Troubles(troubles) => {
                for trouble in &troubles {
                    tracing::warn!(trouble, "registry");
                }
                self.registry_troubles = troubles;
            }
            RegistryReport::Event(event) => {
                self.planner.handle_event(event);
                if let Some(view) = self.planner.own_view() {
                    self.assigned.handle_view(&self.config, view);
                }
            }
        }
    }

    /// Brings the node to what the plan says, as far as it goes now.
    pub async fn reconcile(&mut self, registry: &mut impl NodeRegistry) -> Snapshot {
        let started = Instant::now();
        let mut pass = Pass {
            problems: self.host.prepare(),
            ..Pass::default()
        };
        let device = self.tunnel.observe().await;
        self.tunnel_trouble = device.as_ref().err().map(ToString::to_string);
        if let Some(key) = device.as_ref().ok().and_then(|device| device.public_key) {
            self.take_key(key);
        }
        let identity = self.look_around(device.as_ref().ok(), &mut pass).await;
        self.take_trust(&mut pass);
        let removals = self.make_plan(&identity).await;
        let (observed, device) = self.converge(device.ok(), removals, &mut pass).await;
        let repaired = self.host.repair_pods(&identity.pod_cidrs).await;
        pass.changes += pass.note(repaired).unwrap_or_default();
        let protected = observed
            .as_ref()
            .is_some_and(|observed| self.is_protected(observed));
        if let Some(key) = self.public_key {
            let own = identity.own_record(&self.config, key, self.tunnel.kind());
            if pass.note(registry.publish(&own).await) == Some(true) {
                tracing::info!(public_key = %key, endpoint = %own.endpoints, "published this node");
            }
        }
        let safe = observed.as_ref().filter(|_| protected);
        self.leave_files(&identity.pod_cidrs, safe, &mut pass);
        self.calm = !pass.unsettled
            && safe.is_some_and(|observed| observed.link.is_some())
            && device.as_ref().is_some_and(|d| d.public_key.is_some())
            && self.saved.0 == self.planner.revision();
        self.stats.reconciles += 1;
        self.stats.failed += u64::from(!pass.problems.is_empty());
        self.stats.changes += pass.changes as u64;
        self.stats.last = started.elapsed();
        self.stats.total += self.stats.last;
        let snapshot = self.snapshot(pass, identity, protected, device);
        registry.announce(self.announcement(&snapshot));
        snapshot
    }

    fn take_key(&mut self, key: PublicKey) {
        if self.public_key != Some(key) {
            tracing::info!(public_key = %key, "the tunnel's key");
            self.public_key = Some(key);
        }
    }

    /// Reads the underlay; what was read last holds when it cannot be.
    async fn look_around(&mut self, device: Option<&DeviceState>, pass: &mut Pass) -> Identity {
        let mut endpoints = self.planned_endpoints();
        // A peer behind a NAT router is somewhere else than it publishes.
        let learned = device.into_iter().flat_map(|device| &device.peers);
        endpoints.extend(learned.filter_map(|peer| peer.endpoint).map(|e| e.ip()));
        if let Some(device) = device {
            self.proven_mtu.clone_from(&device.path_mtu);
        }
        let read = self.host.underlay(&UnderlayQuery { endpoints }).await;
        if let Some(mut underlay) = pass.note(read) {
            let found_out = self.config.node_addresses.is_empty() && self.config.endpoint.is_none();
            if found_out && underlay.addresses.is_empty() {
                let problem = "no address of this node found: there is no default route; set \
                               node-addresses";
                pass.problems.push(problem.into());
            }
            if let Some(last) = &self.underlay {
                underlay.hold(last);
            }
            self.narrow(&mut underlay);
            self.planner.handle_path_mtu(underlay.path_mtu.clone());
            self.underlay = Some(underlay);
        }
        let underlay = self.underlay.clone().unwrap_or_else(unknown_underlay);
        Identity::new(&self.config, &self.uid, &self.assigned, &underlay)
    }

    async fn make_plan(&mut self, identity: &Identity) -> Removals {
        let Some(key) = self.public_key else {
            // Conflicts are judged by the node's own key: without it there are no peers, but there
            // is protection.
            let local = self.local_node(identity, self.planner.local().public_key);
            self.plan = LivePlan::new(plan(&PlanInput {
                settings: self.planner.settings(),
                local: &local,
                views: &BTreeMap::new(),
                incumbents: &BTreeMap::new(),
                path_mtu: &BTreeMap::new(),
            }));
            return self.removals();
        };
        let local = self.local_node(identity, key);
        self.planner.handle_local(local);
        // What was followed is planned anew as well: the plan does not rest on it for long.
        if self.planner.is_dirty() || self.planner.has_followed() {
            self.poll_plan();
            self.ask_new_endpoints().await;
        }
        self.removals()
    }

    fn local_node(&self, identity: &Identity, key: PublicKey) -> LocalNode {
        let own_view = self.planner.own_view();
        identity.local_node(&self.config, key, self.tunnel.kind(), own_view)
    }

    /// Whether what the plan does not name is stale.
    fn removals(&self) -> Removals {
        match self.public_key {
            Some(_) => self.planner.removals(),
            None => Removals::Held,
        }
    }

    /// A narrow place that no route tells of counts as much as one that does.
    fn narrow(&self, underlay: &mut Underlay) {
        for node in self.plan.read().accepted.values() {
            if let Some(proven) = self.proven_mtu.get(&node.record.public_key) {
                let known = underlay.path_mtu.entry(node.endpoint.ip());
                known
                    .and_modify(|mtu| *mtu = (*mtu).min(*proven))
                    .or_insert(*proven);
            }
        }
    }

    /// The addresses that the planned peers are reached at.
    fn planned_endpoints(&self) -> BTreeSet<IpAddr> {
        let plan = self.plan.read();
        let planned = plan.accepted.values();
        planned.map(|node| node.endpoint.ip()).collect()
    }

    /// The MTU of the way to peers that the plan has only just brought.
    async fn ask_new_endpoints(&mut self) {
        let known = self
            .underlay
            .as_ref()
            .map(|u| u.path_mtu.clone())
            .unwrap_or_default();
        let endpoints = self.planned_endpoints();
        if endpoints
            .iter()
            .all(|endpoint| known.contains_key(endpoint))
        {
            return;
        }
        // An error here was one of `look_around` a moment ago, and will be again.
        if let Ok(mut underlay) = self.host.underlay(&UnderlayQuery { endpoints }).await {
            if let Some(last) = &self.underlay {
                underlay.hold(last);
            }
            self.narrow(&mut underlay);
            self.planner.handle_path_mtu(underlay.path_mtu.clone());
            self.underlay = Some(underlay);
            if self.planner.is_dirty() {
                self.poll_plan();
            }
        }
    }

    /// Whether no pod's packet can leave in clear: the filter is as planned, and each pod range
    /// has its unreachable route.
    fn is_protected(&self, observed: &ObservedState) -> bool {
        let guarded = |range: &ipnet::IpNet| {
            let key = RouteKey {
                table: MAIN_TABLE,
                destination: *range,
                metric: UNREACHABLE_METRIC,
            };
            observed.routes.get(&key) == Some(&RouteTarget::Unreachable)
        };
        observed.filter.as_ref() == Some(&self.plan.read().desired.filter)
            && self.config.cluster_cidrs.iter().all(guarded)
    }

    fn snapshot(
        &self,
        pass: Pass,
        identity: Identity,
        protected: bool,
        device: Option<DeviceState>,
    ) -> Snapshot {
        let Pass {
            mut problems,
            unsettled,
            ..
        } = pass;
        if let Some(device) = device
            .as_ref()
            .filter(|d| d.listen_port != self.config.listen_port)
        {
            problems.push(format!(
                "the tunnel listens on port {} and this node publishes {}; give warren-tunnel and \
                 warren-agent the same listen-port",
                device.listen_port, self.config.listen_port
            ));
        }
        problems.extend(self.foreign_routes.iter().cloned());
        let own = self
            .planner
            .own_view()
            .filter(|_| self.public_key.is_some());
        problems.extend(own.and_then(|view| refused_by_peers(&self.config, view)));
        if identity.pod_cidrs.is_empty() {
            problems.push(NO_POD_CIDR.to_owned());
        }
        problems.extend(self.plan.read().own_reject.as_ref().map(clashes_with_peers));
        problems.extend(stranded_pods(&identity.pod_cidrs, &self.host.pods()));
        problems.extend(self.registry_troubles.iter().cloned());
        let more = problems.len().saturating_sub(MAX_PROBLEMS);
        if more > 0 {
            problems.truncate(MAX_PROBLEMS);
            problems.push(format!("and {more} more"));
        }
        Snapshot {
            at: Instant::now(),
            settled: !unsettled,
            public_key: self.public_key,
            endpoints: identity.endpoints.iter().copied().collect(),
            pod_cidrs: identity.pod_cidrs,
            protected,
            data_plane: self.tunnel.kind(),
            tunnel: self.tunnel_health(device.as_ref()),
            registry: self.registry_health(),
            synced: self.planner.is_synced(),
            problems,
            plan: self.plan.clone(),
            device,
            filter_drops: self.host.filter_drops(),
            underlay: self.underlay.clone().unwrap_or_else(unknown_underlay),
            stats: self.stats,
        }
    }

    fn tunnel_health(&self, device: Option<&DeviceState>) -> Health {
        let (ok, detail) = match device {
            Some(DeviceState {
                public_key: Some(_),
                listen_port,
                ..
            }) => (true, format!("listening on port {listen_port}")),
            Some(_) => (false, "the tunnel has no private key".into()),
            None => (false, self.tunnel_absent()),
        };
        Health { ok, detail }
    }

    fn tunnel_absent(&self) -> String {
        match (self.tunnel.kind(), &self.tunnel_trouble) {
            (DataPlaneKind::Kernel, Some(trouble)) => trouble.clone(),
            (DataPlaneKind::Kernel, None) => "the kernel's WireGuard could not be read".into(),
            (DataPlaneKind::Userspace, _) => {
                "the tunnel does not answer; is warren-tunnel running?".into()
            }
        }
    }

    fn registry_health(&self) -> Health {
        let what = match self.config.registry {
            RegistryKind::File => format!("directory {}", self.config.registry_dir.display()),
            RegistryKind::Kubernetes => "Nodes of the Kubernetes API".to_owned(),
        };
        let ok = self.registry_troubles.is_empty() && self.planner.is_synced();
        let detail = match self.registry_troubles.as_slice() {
            [] if ok => what,
            [] => format!("reading {what}"),
            [trouble] => trouble.clone(),
            [first, more @ ..] => format!("{first}; and {} more, see problems", more.len()),
        };
        Health { ok, detail }
    }
}

/// What is assumed until the underlay could be read once.
fn unknown_underlay() -> Underlay {
    Underlay {
        addresses: Vec::new(),
        mtu_bytes: DEFAULT_UNDERLAY_MTU,
        path_mtu: BTreeMap::new(),
        troubles: BTreeMap::new(),
        down: BTreeSet::new(),
    }
}
