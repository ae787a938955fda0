//! The agent that ships, on a simulated machine, beside the reference model that watches it.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use ipnet::IpNet;
use warren_agent::config::{Config, DataPlaneChoice, LogFormat, RegistryKind};
use warren_agent::pace::{Pace, RepairPace};
use warren_agent::reconcile::{Followed, Reconciler, Repair, Seams};
use warren_agent::registry::RegistryReport;
use warren_agent::snapshot::Snapshot;
use warren_core::consts::{DEFAULT_PORT, INTERFACE};
use warren_core::{NodeName, NodeUid, Plan, RegistryEvent};
use warren_keyring::PublicKey;

use crate::entry::{Flaw, Listed};
use crate::machine::{Machine, Pass};
use crate::mutation::Mutation;
use crate::oracle::{Judged, Local, Oracle, overlap};
use crate::port::Port;

/// What a registry tells.
#[derive(Clone, Debug)]
pub enum Told {
    /// The whole view.
    Synced(Rc<Vec<Rc<Listed>>>),
    /// A node.
    Applied(Rc<Listed>),
    /// The end of a node's life.
    Deleted {
        /// Its name.
        name: String,
        /// That life's uid.
        uid: String,
    },
}

/// An agent.
pub struct Agent {
    /// Which process of it this is; what was meant for an earlier one is lost.
    pub life: u64,
    /// When it reconciles.
    pub pace: Pace,
    /// When it repairs what others touched.
    pub repairs: RepairPace,
    /// Whether it was told the whole view in this life.
    pub synced: bool,
    /// The outcome of its last reconcile.
    pub last: Option<Snapshot>,
    /// What must have come of it.
    pub judged: Option<Rc<BTreeMap<String, Judged>>>,
    /// What the reference model knows.
    pub oracle: Oracle,
    /// Whether the reference model watches it.
    pub watched: bool,
    /// How often it followed the registry's news.
    pub follows: u64,
    /// Whether it has planned with the whole view.
    planned_synced: bool,
    /// This node as the last whole reconcile saw it, which following goes by.
    seen: Option<Local>,
    reconciler: Option<Reconciler<Port, Port, Port>>,
    key: Option<PublicKey>,
    /// This node and its peers' entries at the last reconcile.
    before: Option<(Local, Vec<Rc<Listed>>)>,
    /// What a planted bug hides until the next reconcile.
    hidden: Vec<Rc<Listed>>,
}

impl Agent {
    /// An agent that does not run.
    pub fn dead(watched: bool) -> Self {
        Self {
            life: 0,
            pace: Pace::default(),
            repairs: RepairPace::default(),
            synced: false,
            last: None,
            judged: None,
            oracle: Oracle::default(),
            watched,
            follows: 0,
            planned_synced: false,
            seen: None,
            reconciler: None,
            key: None,
            before: None,
            hidden: Vec::new(),
        }
    }

    /// Whether it runs.
    pub fn runs(&self) -> bool {
        self.reconciler.is_some()
    }

    /// Starts it with what is on the disk.
    pub fn start(&mut self, port: &Port) {
        let mut machine = port.0.borrow_mut();
        // What it does not remember to have given it may give again.
        let mut given = machine.disk.view.applied_endpoints.clone();
        if let Some(device) = &machine.device {
            given.retain(|key, _| device.knows(key));
        }
        machine.given = given;
        let mut saved = machine.disk.view.read();
        if machine.mutation == Some(Mutation::ForgetsIncumbents) {
            saved.incumbents.clear();
        }
        let seams = Seams {
            host: port.clone(),
            tunnel: port.clone(),
            store: port.clone(),
        };
        let uid = NodeUid(machine.uid.clone());
        let reconciler = Reconciler::with_seams(config(&machine), uid, seams, saved);
        *self = Self {
            life: self.life + 1,
            oracle: machine.disk.oracle.clone(),
            ..Self::dead(self.watched)
        };
        let own = self.oracle.view.get(&machine.name);
        let readable = |l: &&Rc<Listed>| !matches!(l.entry.flaw, Some(Flaw::Key | Flaw::NoKey));
        self.key = own.filter(readable).map(|listed| listed.entry.key);
        self.reconciler = reconciler.ok();
        self.pace.handle_tick(Instant::now());
    }

    /// Kills it.
    pub fn kill(&mut self) {
        self.reconciler = None;
        // It may have heard more since.
        self.judged = None;
        self.life += 1;
    }

    /// Hands it what the registry tells.
    pub fn tell(&mut self, told: &Told, machine: &Machine) {
        let Some(reconciler) = &mut self.reconciler else {
            return;
        };
        let mut hear = |event| reconciler.handle_report(RegistryReport::Event(event));
        match told {
            Told::Synced(all) => {
                self.synced = true;
                let mut views: Vec<_> = all.iter().map(|l| l.view.clone()).collect();
                if machine.mutation == Some(Mutation::DeafToDeletions) {
                    let gone = self.oracle.view.values();
                    let gone = gone.filter(|l| all.iter().all(|n| n.entry.name != l.entry.name));
                    views.extend(gone.map(|l| l.view.clone()));
                }
                self.oracle.synced(all);
                hear(RegistryEvent::Synced(views));
            }
            Told::Applied(listed) => {
                if machine.mutation == Some(Mutation::NewcomerWins) {
                    let clashes = |other: &&Rc<Listed>| {
                        let (a, b) = (&listed.entry, &other.entry);
                        a.name != b.name
                            && (a.key == b.key
                                || a.pod_cidrs
                                    .iter()
                                    .any(|x| b.pod_cidrs.iter().any(|y| overlap(x, y))))
                    };
                    for victim in self.oracle.view.values().filter(clashes) {
                        hear(RegistryEvent::Deleted {
                            name: victim.entry.name.clone(),
                            uid: NodeUid(victim.entry.uid.clone()),
                        });
                        self.hidden.push(Rc::clone(victim));
                    }
                }
                self.oracle.applied(listed);
                hear(RegistryEvent::Applied(listed.view.clone()));
            }
            Told::Deleted { name, uid } => {
                let known = self.oracle.view.get(name).map(|l| l.entry.uid.clone());
                self.oracle.deleted(name, uid);
                let uid = match machine.mutation {
                    Some(Mutation::DeafToDeletions) => return,
                    Some(Mutation::IgnoresUid) => known.unwrap_or_else(|| uid.clone()),
                    _ => uid.clone(),
                };
                hear(RegistryEvent::Deleted {
                    name: name.clone(),
                    uid: NodeUid(uid),
                });
            }
        }
    }

    /// Does what is due: a whole reconcile, or to follow the registry's news. Returns false when the
    /// agent was killed on the way.
    pub fn reconcile(&mut self, port: &Port) -> bool {
        if self.pace.is_whole_due(Instant::now()) {
            return self.reconcile_whole(port);
        }
        let Some(mut reconciler) = self.reconciler.take() else {
            return false;
        };
        // What is not followed is not judged either.
        let before = (self.oracle.clone(), self.judged.clone());
        let is_seen = self.hold(port, self.seen.clone());
        let polled = {
            let running = pin!(reconciler.follow());
            running.poll(&mut Context::from_waker(Waker::noop()))
        };
        let mut machine = port.0.borrow_mut();
        if std::mem::take(&mut machine.disk.saved) {
            machine.disk.oracle = self.oracle.clone();
        }
        let Poll::Ready(followed) = polled else {
            drop(machine);
            self.kill();
            return false;
        };
        machine.pass.fails = None;
        machine.pass.owners = None;
        match &self.last {
            Some(last) if followed != Followed::Not => {
                self.follows += 1;
                let plan = last.plan.clone();
                // A node that has moved meanwhile is planned anew in a moment.
                if is_seen {
                    self.compare(&plan.read(), &mut machine);
                }
            }
            _ => (self.oracle, self.judged) = before,
        }
        self.pace.handle_followed(Instant::now(), followed);
        self.reconciler = Some(reconciler);
        true
    }

    /// Reconciles, and compares what comes of it with what must. Returns false when the agent was
    /// killed on the way.
    fn reconcile_whole(&mut self, port: &Port) -> bool {
        let Some(mut reconciler) = self.reconciler.take() else {
            return false;
        };
        self.hold(port, None);
        let mut desk = port.clone();
        let polled = {
            let running = pin!(reconciler.reconcile(&mut desk));
            running.poll(&mut Context::from_waker(Waker::noop()))
        };
        let mut machine = port.0.borrow_mut();
        // A reconcile that was killed may have written its view before.
        if std::mem::take(&mut machine.disk.saved) {
            machine.disk.oracle = self.oracle.clone();
        }
        let Poll::Ready(mut snapshot) = polled else {
            drop(machine);
            self.kill();
            return false;
        };
        machine.pass.fails = None;
        machine.pass.owners = None;
        self.compare(&snapshot.plan.read(), &mut machine);
        self.pace.handle_outcome(Instant::now(), &snapshot);
        // What nobody asks for would be a copy of the cluster for each of its nodes.
        snapshot.device = None;
        snapshot.underlay.path_mtu.clear();
        self.last = Some(snapshot);
        self.planned_synced = self.synced;
        for hidden in std::mem::take(&mut self.hidden) {
            let event = RegistryEvent::Applied(hidden.view.clone());
            reconciler.handle_report(RegistryReport::Event(event));
        }
        self.reconciler = Some(reconciler);
        true
    }

    /// Says what the machine is held to until what runs now is done.
    ///
    /// `seen` is this node where it is not looked at anew. Tells whether it is as seen.
    fn hold(&mut self, port: &Port, seen: Option<Local>) -> bool {
        let mut machine = port.0.borrow_mut();
        if machine.device.is_some() {
            self.key = Some(machine.keys.public);
        }
        let local = self.key.map(|key| machine.local(key, self.synced));
        let seen = seen.or_else(|| local.clone());
        let is_seen = seen == local;
        self.judged = match seen.as_ref().filter(|_| self.watched) {
            Some(seen) => Some(self.oracle.judge(seen)),
            None => None,
        };
        self.seen = seen;
        machine.pass = Pass {
            synced: self.synced,
            owners: self.judged.as_ref().map(|judged| self.owners(judged)),
            failed: false,
            repair: false,
            ..std::mem::take(&mut machine.pass)
        };
        is_seen
    }

    /// Puts back what others touched. Returns nothing when the agent was killed on the way.
    pub fn repair(&mut self, port: &Port) -> Option<Repair> {
        let mut reconciler = self.reconciler.take()?;
        let touched = self.repairs.start(Instant::now());
        {
            let mut machine = port.0.borrow_mut();
            machine.pass = Pass {
                synced: self.planned_synced,
                repair: true,
                fuse: machine.pass.fuse,
                fails: machine.pass.fails,
                ..Pass::default()
            };
        }
        let polled = {
            let running = pin!(reconciler.repair(touched));
            running.poll(&mut Context::from_waker(Waker::noop()))
        };
        let Poll::Ready(repair) = polled else {
            self.kill();
            return None;
        };
        self.reconciler = Some(reconciler);
        Some(repair)
    }

    /// Who must own which prefix.
    fn owners(&self, judged: &BTreeMap<String, Judged>) -> BTreeMap<IpNet, PublicKey> {
        let mut out = BTreeMap::new();
        for (name, how) in judged {
            let Judged::Accepted { addresses, .. } = how else {
                continue;
            };
            let entry = &self.oracle.view[name].entry;
            let hosts = addresses.iter().copied().map(IpNet::from);
            for net in entry.pod_cidrs.iter().copied().chain(hosts) {
                out.insert(net, entry.key);
            }
        }
        out
    }

    fn compare(&mut self, plan: &Plan, machine: &mut Machine) {
        let (Some(judged), Some(key)) = (&self.judged, self.key) else {
            return;
        };
        for (name, how) in judged.iter() {
            let accepted = NodeName::new(name.as_str()).ok();
            let accepted = accepted.and_then(|name| plan.accepted.get(&name));
            let rejected = plan.rejects.get(name).map(|reject| reject.reason());
            let fits = match (how, accepted, rejected) {
                (
                    Judged::Accepted {
                        endpoint,
                        mtu,
                        addresses,
                    },
                    Some(node),
                    None,
                ) => {
                    node.endpoint == *endpoint
                        && node.mtu_bytes == *mtu
                        && node.addresses == *addresses
                        && node.record.public_key == self.oracle.view[name].entry.key
                }
                (Judged::Refused(reasons), None, Some(reason)) => reasons.contains(reason),
                (Judged::Silent, None, None) => true,
                _ => false,
            };
            if !fits {
                let planned = (
                    accepted.map(|n| (n.endpoint, n.mtu_bytes, &n.addresses)),
                    rejected,
                );
                machine.fault(format!("{name} must be {how:?} and is {planned:?}"));
            }
        }
        let known = plan.accepted.len() + plan.rejects.len();
        let silent = judged.values().filter(|how| **how == Judged::Silent);
        if known + silent.count() != judged.len() {
            machine.fault(format!("{known} nodes are planned of {}", judged.len()));
        }
        self.check_incumbents(plan, machine, key);
    }

    fn is_silent(&self) -> bool {
        let silent = |how: &Judged| *how == Judged::Silent;
        self.judged.iter().any(|judged| judged.values().any(silent))
    }

    /// Whoever was a peer and still says the same is one, whatever others say.
    fn check_incumbents(&mut self, plan: &Plan, machine: &mut Machine, key: PublicKey) {
        let mut local = machine.local(key, self.synced);
        local.endpoints = self.oracle.own_endpoints(&local);
        if let Some((_, peers)) = self
            .before
            .take()
            .filter(|(before, _)| *before == local && !self.is_silent())
        {
            let accepted: BTreeSet<&str> = plan.accepted.keys().map(NodeName::as_str).collect();
            for peer in peers {
                let entry = &peer.entry;
                let same = self
                    .oracle
                    .view
                    .get(&entry.name)
                    .is_some_and(|l| l.entry == *entry);
                if same && !accepted.contains(entry.name.as_str()) {
                    machine.fault(format!("{} was displaced by others", entry.name));
                }
            }
        }
        let entries = plan
            .accepted
            .keys()
            .filter_map(|name| self.oracle.view.get(name.as_str()));
        self.before = Some((local, entries.cloned().collect()));
    }
}

/// The configuration of a machine's agent.
pub fn config(machine: &Machine) -> Config {
    Config {
        // The names of this world are DNS labels.
        node_name: NodeName::new(machine.name.as_str()).expect("a name of the simulator's own"),
        registry: RegistryKind::File,
        registry_dir: "/simulated".into(),
        cluster_cidrs: machine.cluster.iter().copied().collect(),
        pod_cidrs: machine.pod_cidrs.iter().copied().collect(),
        node_addresses: Vec::new(),
        endpoint: None,
        reserved_cidrs: Default::default(),
        interface: INTERFACE.into(),
        data_plane: DataPlaneChoice::Userspace,
        listen_port: DEFAULT_PORT,
        masquerade: true,
        persistent_keepalive: 0,
        mtu_bytes: None,
        kubeconfig: None,
        pinning: warren_core::Pinning::Warn,
        state_dir: "/simulated".into(),
        run_dir: "/simulated".into(),
        uapi_dir: "/simulated".into(),
        cni_conf_dir: None,
        cni_bin_dir: None,
        sysctl_dir: "/simulated".into(),
        cni_conf_name: "10-warren.conflist".into(),
        http_listen: None,
        log_format: LogFormat::Text,
        log_level: tracing::Level::ERROR,
    }
}
