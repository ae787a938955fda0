//! Where the agent learns of the mesh's nodes and tells of its own.

mod file;
mod kubernetes;
mod publish;
mod thread;
mod watch;

use std::collections::BTreeSet;
use std::future::Future;
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use thiserror::Error;
use warren_core::status::DataPlaneKind;
use warren_core::{Endpoints, NodeName, NodeUid, RegistryEvent};
use warren_keyring::PublicKey;

use crate::files::FileError;

pub use file::FileRegistry;
pub(crate) use kubernetes::{FIELD_MANAGER, describe, kubernetes_client};
pub use kubernetes::{KubernetesError, KubernetesRegistry, Options as KubernetesOptions};
pub use thread::RegistryThread;

/// What a registry reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RegistryReport {
    /// Something about nodes.
    Event(RegistryEvent),
    /// All that is wrong with the registry now, one line each; empty when it is well again. Sent
    /// when it changes. What was told of nodes before keeps holding.
    Troubles(Vec<String>),
}

/// What this node tells of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnRecord {
    /// Its name.
    pub name: NodeName,
    /// The uid of this life of it.
    pub uid: NodeUid,
    /// The key that its tunnel has.
    pub public_key: PublicKey,
    /// The endpoints that the agent found or was configured with.
    pub endpoints: Endpoints,
    /// The MTU of its underlay in bytes.
    pub underlay_mtu_bytes: u32,
    /// Who encrypts there.
    pub data_plane: DataPlaneKind,
    /// Its pod ranges; a registry that itself assigns them does not take them from here.
    pub pod_cidrs: BTreeSet<IpNet>,
    /// Its own addresses, preferred first; as its pod ranges.
    pub addresses: Vec<IpAddr>,
}

/// What is told to people by the registry's own means, where it has any.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Announcement {
    /// Why this node is not ready for pods; `None` when it is.
    pub not_ready: Option<NotReady>,
    /// All that is to be said of other nodes now.
    pub notes: Vec<NodeNote>,
}

/// Why a node is not ready for pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotReady {
    /// A stable word for it, in the manner of Kubernetes reasons.
    pub reason: &'static str,
    /// The cause for people.
    pub message: String,
}

/// Something about a node that its operators should know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeNote {
    /// The node's name.
    pub node: String,
    /// The uid of the life of it that this is about.
    pub uid: NodeUid,
    /// A stable word for it, in the manner of Kubernetes reasons.
    pub reason: &'static str,
    /// What it is, for people.
    pub message: String,
}

/// Why this node's record could not be published.
#[derive(Debug, Error)]
pub enum RegistryError {
    /// A file could not be read or written.
    #[error("publish this node: {0}")]
    File(#[from] FileError),
    /// Another machine writes the record of this node's name.
    #[error(
        "publish this node: another machine, with uid {uid}, publishes as {name} too; give one of \
         them another node-name"
    )]
    NameTaken {
        /// The name.
        name: NodeName,
        /// The other's uid.
        uid: String,
    },
    /// The cluster has no Node of this node's name.
    #[error(
        "publish this node: there is no Node {name} in the cluster; has the kubelet registered it? \
         If it has another name, set node-name"
    )]
    NoNode {
        /// The name.
        name: NodeName,
    },
    /// The API server did not take it.
    #[error("publish this node: {cause}")]
    Kubernetes {
        /// What it, or the way to it, says.
        cause: String,
    },
    /// Writing failed a moment ago, and it is not time to try again.
    #[error("{last}; the next try comes within {} s", wait.as_secs().max(1))]
    Waiting {
        /// The failure.
        last: String,
        /// The time between the tries.
        wait: Duration,
    },
}

/// A registry of nodes.
///
/// The first event is [`RegistryEvent::Synced`], as soon as the whole view is known; until then,
/// and whenever the registry is away, it tells only of troubles.
pub trait NodeRegistry {
    /// Waits for the next report. Dropping the future loses nothing: the next call goes on.
    fn next(&mut self) -> impl Future<Output = RegistryReport>;

    /// Makes the registry tell this of this node, and keeps what others have set on it, such as
    /// `force-endpoint`. Returns whether anything had to be written.
    ///
    /// # Errors
    /// [`RegistryError`]; the caller tries again later.
    fn publish(&mut self, own: &OwnRecord) -> impl Future<Output = Result<bool, RegistryError>>;

    /// Takes what is to be told to people, whole each time; [`NodeRegistry::next`] tells it, and
    /// nothing twice. A registry without means of its own drops it.
    fn announce(&mut self, announcement: Announcement) {
        let _ = announcement;
    }
}
