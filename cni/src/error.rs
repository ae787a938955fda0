//! One error for a whole call, and its published form.

use serde_json::{Value, json};
use thiserror::Error;

use crate::aliases::AliasError;
use crate::attach::AttachError;
use crate::check::Damage;
use crate::config::ConfigError;
use crate::env::{AttachmentId, EnvError};
use crate::ipam::{PoolError, RangeError, StoreError};
use crate::plan::PlanError;
use crate::protect::ProtectError;
use crate::result::PrevResultError;
use crate::status::TunnelError;
use crate::version::CniVersion;

/// Codes of the CNI specification, and one of ours.
pub mod code {
    /// The configuration's version is not supported.
    pub const VERSION: u32 = 1;
    /// The configuration asks for something that is not supported.
    pub const UNSUPPORTED: u32 = 2;
    /// The container is not known: there is nothing to clean up.
    pub const UNKNOWN_CONTAINER: u32 = 3;
    /// An environment variable is missing or invalid.
    pub const ENVIRONMENT: u32 = 4;
    /// Input or output failed.
    pub const IO: u32 = 5;
    /// Something could not be decoded.
    pub const DECODING: u32 = 6;
    /// The network configuration is invalid.
    pub const CONFIG: u32 = 7;
    /// The call may work later.
    pub const TRY_LATER: u32 = 11;
    /// ADD would not work.
    pub const UNAVAILABLE: u32 = 50;
    /// ADD would not work, and the pods that are there may be cut off.
    pub const LIMITED: u32 = 51;
    /// The kernel refused a step of the attachment or the detachment.
    pub const KERNEL: u32 = 100;
    /// A DEL or GC could not remove everything.
    pub const DETACH: u32 = 101;
    /// A CHECK found the attachment not as it should be.
    pub const DAMAGED: u32 = 102;
    /// The program is at fault.
    pub const INTERNAL: u32 = 999;
}

/// Why a call failed.
#[derive(Debug, Error)]
pub enum Error {
    /// The environment is refused.
    #[error(transparent)]
    Env(#[from] EnvError),
    /// The configuration is refused.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The chain's earlier result is refused.
    #[error(transparent)]
    PrevResult(#[from] PrevResultError),
    /// Stdin could not be read.
    #[error("cannot read the network configuration from stdin: {0}")]
    Stdin(#[source] std::io::Error),
    /// The log file could not be opened.
    #[error("cannot open logFile {path:?}: {cause}")]
    LogFile {
        /// The file.
        path: std::path::PathBuf,
        /// What the system said.
        cause: std::io::Error,
    },
    /// The tokio runtime could not be made.
    #[error("cannot start: {0}")]
    Runtime(#[source] std::io::Error),
    /// The node is not protected.
    #[error(transparent)]
    Protect(#[from] ProtectError),
    /// No address, or no store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A range of the configuration cannot be used.
    #[error("network configuration has ranges that cannot be used: {0}")]
    Range(#[from] RangeError),
    /// No plan.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The attachment failed, and what had been made of it is gone again.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// The pod's names could not be kept.
    #[error(transparent)]
    Alias(#[from] AliasError),
    /// The verb came with a later version than the configuration is of.
    #[error(
        "{verb} is not allowed with cniVersion {version}: it came with {since} of the CNI \
         specification"
    )]
    Verb {
        /// The verb.
        verb: &'static str,
        /// The configuration's version.
        version: CniVersion,
        /// The first version that has it.
        since: CniVersion,
    },
    /// The pods are cut off.
    #[error(transparent)]
    Tunnel(#[from] TunnelError),
    /// ADD would not work.
    #[error("{}", join(.reasons))]
    Unavailable {
        /// Whether pods that are there may be cut off.
        affected: bool,
        /// Why.
        reasons: Vec<Error>,
    },
    /// There is nothing of this container.
    #[error("{0} is not attached: there is neither a reservation nor an interface of it")]
    UnknownContainer(AttachmentId),
    /// The attachment is not as it should be.
    #[error("not as ADD left it: {}", join(.0))]
    Check(Vec<Damage>),
    /// A DEL or GC went on past these, and removed what it could.
    #[error("cannot detach completely: {}", join(.0))]
    Detach(Vec<Error>),
    /// The program panicked.
    #[error("internal error: {0}")]
    Panic(String),
}

impl Error {
    /// The error's code.
    pub fn code(&self) -> u32 {
        match self {
            Self::Env(_) => code::ENVIRONMENT,
            Self::Config(ConfigError::Version { .. }) => code::VERSION,
            Self::Verb { .. } => code::VERSION,
            Self::Config(ConfigError::Decode(_)) => code::DECODING,
            Self::Config(ConfigError::Unsupported { .. }) => code::UNSUPPORTED,
            Self::Config(_) | Self::PrevResult(_) => code::CONFIG,
            Self::Alias(_) | Self::Stdin(_) | Self::LogFile { .. } | Self::Runtime(_) => code::IO,
            Self::Protect(ProtectError::Kernel(_) | ProtectError::NoIpv6(_)) => code::KERNEL,
            Self::Protect(ProtectError::NoMasquerade) => code::CONFIG,
            Self::Plan(PlanError::Gateway { .. } | PlanError::Family { .. }) => code::CONFIG,
            Self::Protect(_) | Self::Plan(_) | Self::Tunnel(_) => code::TRY_LATER,
            Self::Unavailable { affected: true, .. } => code::LIMITED,
            Self::Unavailable { .. } => code::UNAVAILABLE,
            Self::UnknownContainer(_) => code::UNKNOWN_CONTAINER,
            Self::Check(_) => code::DAMAGED,
            Self::Range(_) => code::CONFIG,
            Self::Store(StoreError::Pool(
                PoolError::NotAllowed { .. } | PoolError::TwoOfAFamily { .. },
            )) => code::CONFIG,
            Self::Store(StoreError::Pool(_)) => code::TRY_LATER,
            Self::Store(_) => code::IO,
            Self::Attach(error) => error.code(),
            Self::Detach(errors) => match errors.as_slice() {
                [only] => only.code(),
                _ => code::DETACH,
            },
            Self::Panic(_) => code::INTERNAL,
        }
    }

    /// What a person can do about it.
    pub fn details(&self) -> &'static str {
        match self {
            Self::Env(EnvError::UnsupportedVerb { .. }) => {
                "this plugin carries out only the verbs that msg lists"
            }
            Self::Env(_) => "the container runtime sets these, see the CNI specification",
            Self::Config(_) | Self::PrevResult(_) | Self::Range(_) | Self::LogFile { .. } => {
                "correct the CNI configuration of this node"
            }
            Self::Verb { .. } => "set a later cniVersion in the network configuration",
            Self::Plan(PlanError::Gateway { .. } | PlanError::Family { .. }) => {
                "correct the CNI configuration of this node"
            }
            Self::Unavailable { .. } => "see `warren status` and the logs of Warren's programs",
            Self::Check(_) => {
                "someone changed what the plugin had made; a new pod in its place is whole again"
            }
            Self::Protect(_) | Self::Plan(_) => {
                "the agent has not protected this node yet, or someone removed its rules; see \
                 `warren status` and the agent's log"
            }
            Self::Store(StoreError::Pool(
                PoolError::NotAllowed { .. } | PoolError::TwoOfAFamily { .. },
            )) => "correct the addresses that the pod requests",
            Self::Store(StoreError::Pool(PoolError::Taken { .. })) => {
                "remove the pod that has the address, or request another one"
            }
            Self::Store(StoreError::Pool(_)) => {
                "`warren pods` lists who has which address; remove pods, or give the node a larger \
                 podCIDR"
            }
            _ => "",
        }
    }

    /// The error as the runtime reads it.
    pub fn to_json(&self, version: CniVersion) -> Value {
        json!({
            "cniVersion": version.as_str(),
            "code": self.code(),
            "msg": self.to_string(),
            "details": self.details(),
        })
    }
}

fn join<T: std::fmt::Display>(items: &[T]) -> String {
    items
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join("; ")
}
