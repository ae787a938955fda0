//! The agent's configuration: one [table](SETTINGS) of settings drives the YAML file, the
//! environment and the command line.
//!
//! ```text
//! default  <  file (key: value)  <  environment (WARREN_KEY)  <  flag (--key)
//! ```
//!
//! A value is parsed once into [`Config`]; an error names the key, the value, where it came from,
//! and what is allowed.

mod source;
mod table;
mod value;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use ipnet::IpNet;
use thiserror::Error;
use warren_core::{Endpoints, MeshRanges, NodeName, Pinning, Settings};

pub use source::{Loaded, Source, Surroundings, command, load};
pub use table::{Default, SETTINGS, Setting};

/// Why the configuration was refused.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The command line was not understood, or asked for help or the version.
    #[error("{0}")]
    CommandLine(#[from] Box<clap::Error>),
    /// The file cannot be read.
    #[error("read config {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The file is no flat YAML mapping.
    #[error("parse config {}: {cause}", path.display())]
    Yaml {
        /// The file.
        path: PathBuf,
        /// What the parser says, with the place.
        cause: String,
    },
    /// The file has a key that does not exist.
    #[error("config {}: unknown key \"{key}\"; {hint}", path.display())]
    UnknownKey {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// The closest key, or all keys.
        hint: String,
    },
    /// A value is not allowed.
    #[error("setting {key}={value:?} (from {from}) {why}; allowed: {allowed}")]
    Value {
        /// The key.
        key: &'static str,
        /// The value.
        value: String,
        /// Where it came from.
        from: Source,
        /// What is wrong with it.
        why: String,
        /// What is allowed.
        allowed: &'static str,
    },
    /// A setting without a default is not set.
    #[error(
        "setting {key} is missing: set {key} in the config file, {env} in the environment, or \
         --{key}; allowed: {allowed}"
    )]
    Missing {
        /// The key.
        key: &'static str,
        /// The environment variable's name.
        env: String,
        /// What is allowed.
        allowed: &'static str,
    },
}

/// Which registry tells of the nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RegistryKind {
    /// The Node objects of a Kubernetes API server.
    Kubernetes,
    /// A directory of one file a node.
    File,
}

/// Who shall encrypt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataPlaneChoice {
    /// `warren-tunnel`.
    Userspace,
    /// The kernel's own WireGuard.
    Kernel,
    /// The kernel's where it has one and no `warren-tunnel` runs.
    Auto,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// The configuration, every value checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// This node's name. Default: `NODE_NAME` of the environment, else the host's name in lower case.
    pub node_name: NodeName,
    /// Which registry tells of the nodes. Default: `kubernetes` in a cluster, else `file`.
    pub registry: RegistryKind,
    /// Whom to ask for the Nodes, and as whom; `None` means the pod's service account.
    pub kubeconfig: Option<PathBuf>,
    /// What becomes of a known node's changed key.
    pub pinning: Pinning,
    /// The directory of the file registry.
    pub registry_dir: PathBuf,
    /// The cluster's pod ranges.
    pub cluster_cidrs: BTreeSet<IpNet>,
    /// This node's pod ranges, inside the cluster's; empty where its Node object tells them.
    pub pod_cidrs: BTreeSet<IpNet>,
    /// This node's addresses; empty means the source addresses of the default routes.
    pub node_addresses: Vec<IpAddr>,
    /// The endpoints to publish; `None` means the node's addresses with the listen port.
    pub endpoint: Option<Endpoints>,
    /// Ranges that no podCIDR and no node address may touch.
    pub reserved_cidrs: BTreeSet<IpNet>,
    /// Name of the tunnel's interface.
    pub interface: String,
    /// Who encrypts. Default: `warren-tunnel`.
    pub data_plane: DataPlaneChoice,
    /// The tunnel's UDP port.
    pub listen_port: u16,
    /// Whether pods' traffic to outside the mesh gets the node's address.
    pub masquerade: bool,
    /// Seconds between keepalives to every peer, 0 for none.
    pub persistent_keepalive: u16,
    /// The tunnel's MTU in bytes, at least 1280; `None` finds it out.
    pub mtu_bytes: Option<u32>,
    /// Directory of the agent's state.
    pub state_dir: PathBuf,
    /// Directory of the agent's sockets.
    pub run_dir: PathBuf,
    /// Directory of the WireGuard UAPI sockets.
    pub uapi_dir: PathBuf,
    /// Directory of the CNI configurations; `None` writes none.
    pub cni_conf_dir: Option<PathBuf>,
    /// Name of the CNI configuration's file.
    pub cni_conf_name: String,
    /// Directory in which the container runtime looks for CNI plugins; `None` chains none.
    pub cni_bin_dir: Option<PathBuf>,
    /// Directory of the kernel's settings, as `/proc/sys` is, in which those of the node's network
    /// can be written.
    pub sysctl_dir: PathBuf,
    /// Where health and metrics are served; `None` serves none.
    pub http_listen: Option<SocketAddr>,
    /// How log lines look.
    pub log_format: LogFormat,
    /// What is logged.
    pub log_level: tracing::Level,
}

impl Config {
    /// What planning needs of it.
    pub fn settings(&self) -> Settings {
        Settings {
            ranges: MeshRanges {
                cluster_cidrs: self.cluster_cidrs.clone(),
                reserved_cidrs: self.reserved_cidrs.clone(),
                default_port: self.listen_port,
            },
            interface: self.interface.clone(),
            masquerade: self.masquerade,
            persistent_keepalive: self.persistent_keepalive,
            mtu_bytes: self.mtu_bytes,
            pinning: self.pinning,
        }
    }
}
