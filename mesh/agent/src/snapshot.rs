//! What the reconcile last saw and did, for those who show it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use warren_core::Plan;
use warren_core::status::{DataPlaneKind, Health};
use warren_keyring::PublicKey;

use crate::dataplane::DeviceState;
use crate::host::Underlay;

/// A plan that is followed in place: whoever has a snapshot of it sees it go on, and nobody copies a
/// thousand nodes for one that joins.
#[derive(Clone, Debug, Default)]
pub struct LivePlan(Arc<RwLock<Plan>>);

impl LivePlan {
    /// A plan that was made anew.
    pub fn new(plan: Plan) -> Self {
        Self(Arc::new(RwLock::new(plan)))
    }

    /// The plan as it is now, which stays so until the result is dropped.
    pub fn read(&self) -> RwLockReadGuard<'_, Plan> {
        // Whoever panicked over it left a plan: each change of it is whole.
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn write(&self) -> RwLockWriteGuard<'_, Plan> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The outcome of a reconcile.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// When the loop last ran.
    pub at: Instant,
    /// Whether nothing was left to change that could be changed.
    pub settled: bool,
    /// This node's key, once known.
    pub public_key: Option<PublicKey>,
    /// The endpoints that this node publishes.
    pub endpoints: Vec<SocketAddr>,
    /// This node's pod ranges.
    pub pod_cidrs: BTreeSet<IpNet>,
    /// Whether filter and unreachable routes are in place.
    pub protected: bool,
    /// Who encrypts.
    pub data_plane: DataPlaneKind,
    /// Whether the tunnel answers.
    pub tunnel: Health,
    /// Whether the registry tells of nodes.
    pub registry: Health,
    /// Whether the whole view was received since the start.
    pub synced: bool,
    /// What needs attention.
    pub problems: Vec<String>,
    /// The plan that holds.
    pub plan: LivePlan,
    /// The device as last read.
    pub device: Option<DeviceState>,
    /// Packets that the filter dropped, by rule.
    pub filter_drops: BTreeMap<String, u64>,
    /// The network below the tunnel, as last read.
    pub underlay: Underlay,
    /// What the reconciles cost.
    pub stats: Stats,
}

/// What the reconciles cost since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Stats {
    /// How many there were.
    pub reconciles: u64,
    /// How many times single nodes' news were followed besides, without a look at the others.
    pub follows: u64,
    /// How many repairs of single things there were besides, because the kernel told of a change.
    pub repairs: u64,
    /// How many left something undone.
    pub failed: u64,
    /// How many changes were made.
    pub changes: u64,
    /// How many changes of known nodes' keys were believed.
    pub key_changes: u64,
    /// The time that all following took together.
    pub following: Duration,
    /// The time that all reconciles took together.
    pub total: Duration,
    /// The time that the last one took.
    pub last: Duration,
}
