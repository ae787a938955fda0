//! One reconcile: observe, plan, apply the difference, observe again, and leave word of it.
//!
//! ```text
//!   settings -> tunnel? -> underlay -> plan -+-> observe -> diff -> apply -+-> publish, save,
//!   (sysctl)    (its key)                    +------ while it changes -----+   CNI configuration
//! ```
//!
//! Protection does not wait: the filter and the unreachable routes are put in place with neither a
//! tunnel nor a registry, and before the node's key is known nothing else is.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use warren_core::consts::{MAIN_TABLE, NODE_FILE, UNREACHABLE_METRIC, VIEW_FILE, annotation};
use warren_core::files::{NodeFile, SavedView};
use warren_core::plan::tunnel_address;
use warren_core::state::{ObservedPeer, RouteKey, RouteTarget};
use warren_core::status::Health;
use warren_core::{
    Change, NodeUid, NodeView, ObservedState, Plan, PlanInput, Planner, RegistryEvent, Removals,
    diff, plan,
};
use warren_keyring::{PrivateKey, PublicKey};

use crate::config::Config;
use crate::dataplane::{DataPlane, DeviceState};
use crate::host::{Host, Underlay, UnderlayQuery};
use crate::local::{Identity, refused_by_peers};
use crate::registry::{NodeRegistry, RegistryReport};
use crate::snapshot::{Snapshot, Stats};
use crate::{cni_config, files};

/// How often a reconcile observes and applies before it leaves the rest to the next one. Two
/// rounds settle everything; a third finds that.
const MAX_ROUNDS: usize = 3;
/// The agent's own files are nobody else's matter.
const FILE_MODE: u32 = 0o600;
/// The most errors of one reconcile that are told apart.
const MAX_PROBLEMS: usize = 20;

/// The mesh controller of this node.
#[derive(Debug)]
pub struct Reconciler<H, D> {
    config: Config,
    uid: NodeUid,
    host: H,
    tunnel: D,
    planner: Planner,
    plan: Arc<Plan>,
    public_key: Option<PublicKey>,
    own_view: Option<NodeView>,
    underlay: Option<Underlay>,
    applied_endpoints: BTreeMap<PublicKey, SocketAddr>,
    registry_troubles: Vec<String>,
    saved: SavedView,
    node_file: Option<NodeFile>,
    stats: Stats,
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
    /// A controller that starts from what was saved last, or from nothing.
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
        let own_view = saved
            .views
            .iter()
            .find(|v| v.name == config.node_name.as_str())
            .cloned();
        let published = own_view
            .as_ref()
            .and_then(|v| v.annotations.get(annotation::PUBLIC_KEY));
        let public_key = published.and_then(|text| PublicKey::from_base64(text).ok());
        // Until the key is known the planner is not asked; what it holds meanwhile is a key that
        // nobody has.
        let key = match public_key {
            Some(key) => key,
            None => PrivateKey::generate()?.public_key(),
        };
        let nowhere = Underlay {
            addresses: Vec::new(),
            mtu_bytes: 1500,
            path_mtu: BTreeMap::new(),
        };
        let identity = Identity::new(&config, uid.clone(), &nowhere);
        let local = identity.local_node(&config, key, own_view.as_ref());
        Ok(Self {
            planner: Planner::new(config.settings(), local, saved.clone()),
            config,
            uid,
            host,
            tunnel,
            plan: Arc::default(),
            public_key,
            own_view,
            underlay: None,
            applied_endpoints: saved.applied_endpoints.clone(),
            registry_troubles: Vec::new(),
            saved,
            node_file: None,
            stats: Stats::default(),
        })
    }

    /// Takes in what the registry reports.
    pub fn handle_report(&mut self, report: RegistryReport) {
        let event = match report {
            RegistryReport::Troubles(troubles) => {
                for trouble in &troubles {
                    tracing::warn!(trouble, "registry");
                }
                self.registry_troubles = troubles;
                return;
            }
            RegistryReport::Event(event) => event,
        };
        let own = self.config.node_name.as_str();
        match &event {
            RegistryEvent::Synced(views) => {
                self.own_view = views.iter().find(|view| view.name == own).cloned();
            }
            RegistryEvent::Applied(view) if view.name == own => self.own_view = Some(view.clone()),
            RegistryEvent::Deleted { name, .. } if name == own => self.own_view = None,
            _ => {}
        }
        self.planner.handle_event(event);
    }

    /// Brings the node to what the plan says, as far as it goes now.
    pub async fn reconcile(&mut self, registry: &mut impl NodeRegistry) -> Snapshot {
        let started = Instant::now();
        let mut pass = Pass {
            problems: self.host.prepare(),
            ..Pass::default()
        };
        let device = self.tunnel.observe().await;
        if let Some(key) = device.as_ref().ok().and_then(|device| device.public_key) {
            self.take_key(key);
        }
        let identity = self.look_around(&mut pass).await;
        let removals = self.make_plan(&identity).await;
        let (observed, device) = self.converge(device.ok(), removals, &mut pass).await;
        let protected = observed
            .as_ref()
            .is_some_and(|observed| self.is_protected(observed));
        if let Some(key) = self.public_key {
            let own = identity.own_record(&self.config, key);
            if pass.note(registry.publish(&own).await) == Some(true) {
                tracing::info!(public_key = %key, endpoint = %own.endpoints, "published this node");
            }
        }
        self.leave_files(observed.as_ref().filter(|_| protected), &mut pass);
        self.stats.reconciles += 1;
        self.stats.failed += u64::from(!pass.problems.is_empty());
        self.stats.changes += pass.changes as u64;
        self.stats.last = started.elapsed();
        self.stats.total += self.stats.last;
        self.snapshot(pass, identity, protected, device)
    }

    fn take_key(&mut self, key: PublicKey) {
        if self.public_key != Some(key) {
            tracing::info!(public_key = %key, "the tunnel's key");
            self.public_key = Some(key);
        }
    }

    /// Reads the underlay; what was read last holds when it cannot be.
    async fn look_around(&mut self, pass: &mut Pass) -> Identity {
        let planned = self.plan.accepted.values();
        let endpoints: BTreeSet<IpAddr> = planned.map(|node| node.endpoint.ip()).collect();
        let read = self.host.underlay(&UnderlayQuery { endpoints }).await;
        if let Some(underlay) = pass.note(read) {
            self.planner.handle_path_mtu(underlay.path_mtu.clone());
            self.underlay = Some(underlay);
        }
        let nowhere = || Underlay {
            addresses: Vec::new(),
            mtu_bytes: 1500,
            path_mtu: BTreeMap::new(),
        };
        let underlay = self.underlay.clone().unwrap_or_else(nowhere);
        let identity = Identity::new(&self.config, self.uid.clone(), &underlay);
        if identity.endpoints.is_empty() {
            let problem = "no address of this node found: there is no default route; set \
                           node-addresses";
            pass.problems.push(problem.into());
        }
        identity
    }

    async fn make_plan(&mut self, identity: &Identity) -> Removals {
        let Some(key) = self.public_key else {
            // Conflicts are judged by the node's own key: without it there are no peers, but there
            // is protection.
            let local = self.planner.local().public_key;
            let local = identity.local_node(&self.config, local, self.own_view.as_ref());
            self.plan = Arc::new(plan(&PlanInput {
                settings: self.planner.settings(),
                local: &local,
                views: &BTreeMap::new(),
                incumbents: &BTreeMap::new(),
                path_mtu: &BTreeMap::new(),
            }));
            return Removals::Held;
        };
        let local = identity.local_node(&self.config, key, self.own_view.as_ref());
        self.planner.handle_local(local);
        if self.planner.is_dirty() {
            self.plan = Arc::new(self.planner.poll_plan());
            self.ask_new_endpoints().await;
        }
        self.planner.removals()
    }

    /// The MTU of the way to peers that the plan has only just brought.
    async fn ask_new_endpoints(&mut self) {
        let known = self
            .underlay
            .as_ref()
            .map(|u| u.path_mtu.clone())
            .unwrap_or_default();
        let planned = self.plan.accepted.values();
        let endpoints: BTreeSet<IpAddr> = planned.map(|node| node.endpoint.ip()).collect();
        if endpoints
            .iter()
            .all(|endpoint| known.contains_key(endpoint))
        {
            return;
        }
        // An error here was one of `look_around` a moment ago, and will be again.
        if let Ok(underlay) = self.host.underlay(&UnderlayQuery { endpoints }).await {
            self.planner.handle_path_mtu(underlay.path_mtu.clone());
            self.underlay = Some(underlay);
            if self.planner.is_dirty() {
                self.plan = Arc::new(self.planner.poll_plan());
            }
        }
    }

    /// Observes and applies until nothing is left to do, something fails, or the rounds are used.
    /// Returns what was observed last.
    async fn converge(
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
            let changes = diff(&state, &self.plan.desired, removals);
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

    /// Carries the changes out in their order, and goes on past errors.
    async fn apply(&mut self, changes: &[Change], pass: &mut Pass) {
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
            if pass.note(self.tunnel.apply(batch).await).is_some() {
                batch
                    .iter()
                    .for_each(|change| self.remember_endpoint(change));
            }
            rest = after;
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
        };
        device
            .peers
            .iter()
            .map(|peer| (peer.public_key, observed(peer)))
            .collect()
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
        observed.filter.as_ref() == Some(&self.plan.desired.filter)
            && self.config.cluster_cidrs.iter().all(guarded)
    }

    /// Writes the view for the next start, and what the CNI plugin needs; `safe` is the observed
    /// state when the node is protected.
    fn leave_files(&mut self, safe: Option<&ObservedState>, pass: &mut Pass) {
        // Before the first full view what was saved is as good, and a plan without a key has no
        // incumbents.
        let mut view = SavedView {
            applied_endpoints: self.applied_endpoints.clone(),
            ..self.planner.saved_view()
        };
        // The age of a roamed endpoint is its peer's: those of peers long gone are dropped.
        let desired = &self.plan.desired.peers;
        if self.planner.is_synced() && self.public_key.is_some() {
            view.applied_endpoints
                .retain(|key, _| desired.contains_key(key));
        }
        if view != self.saved {
            let path = self.config.state_dir.join(VIEW_FILE);
            if pass
                .note(files::replace_json(&path, &view, FILE_MODE))
                .is_some()
            {
                self.saved = view;
            }
        }
        let node_file = NodeFile {
            name: self.config.node_name.clone(),
            interface: self.config.interface.clone(),
            cluster_cidrs: self.config.cluster_cidrs.clone(),
            pod_cidrs: self.config.pod_cidrs.clone(),
            tunnel_addresses: self.config.pod_cidrs.iter().map(tunnel_address).collect(),
            mtu_bytes: self.plan.desired.mtu_bytes,
        };
        if self.node_file.as_ref() != Some(&node_file) {
            let path = self.config.state_dir.join(NODE_FILE);
            if pass
                .note(files::replace_json(&path, &node_file, FILE_MODE))
                .is_some()
            {
                self.node_file = Some(node_file);
            }
        }
        let Some(observed) = safe else { return };
        let up = observed.link.as_ref().is_some_and(|link| link.up);
        let addressed = observed.addresses.is_superset(&self.plan.desired.addresses);
        let Some(dir) = self.config.cni_conf_dir.as_deref() else {
            return;
        };
        if up && addressed && self.node_file.is_some() {
            let installed = pass.note(cni_config::install(&self.config, dir));
            if installed == Some(true) {
                tracing::info!(dir = %dir.display(), "wrote the CNI configuration");
            }
        }
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
        let own = self.own_view.as_ref().filter(|_| self.public_key.is_some());
        problems.extend(own.and_then(|view| refused_by_peers(&self.config, view)));
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
            protected,
            tunnel: tunnel_health(device.as_ref()),
            registry: self.registry_health(),
            synced: self.planner.is_synced(),
            problems,
            plan: self.plan.clone(),
            device,
            filter_drops: self.host.filter_drops(),
            stats: self.stats,
        }
    }

    fn registry_health(&self) -> Health {
        let ok = self.registry_troubles.is_empty() && self.planner.is_synced();
        let detail = match self.registry_troubles.as_slice() {
            [] if ok => format!("directory {}", self.config.registry_dir.display()),
            [] => format!("reading {}", self.config.registry_dir.display()),
            troubles => troubles.join("; "),
        };
        Health { ok, detail }
    }
}

fn tunnel_health(device: Option<&DeviceState>) -> Health {
    let (ok, detail) = match device {
        Some(DeviceState {
            public_key: Some(_),
            listen_port,
            ..
        }) => (true, format!("listening on port {listen_port}")),
        Some(_) => (false, "the tunnel has no private key".into()),
        None => (
            false,
            "the tunnel does not answer; is warren-tunnel running?".into(),
        ),
    };
    Health { ok, detail }
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
