//! The WireGuard device as the agent sees it, whoever runs it.

mod choice;
mod kernel;
mod linux;
mod uapi;

use std::collections::BTreeMap;
use std::future::Future;
use std::path::PathBuf;
use std::time::Duration;

use thiserror::Error;
use warren_claim::ClaimError;
use warren_core::Change;
use warren_core::status::DataPlaneKind;
use warren_core::uapi::{Peer, UapiError};
use warren_keyring::{KeyError, PublicKey, file::FileError};
use warren_netlink::NetlinkError;

pub use choice::{DeviceReader, NodeDataPlane, choose, open};
pub use kernel::{Found, KernelDataPlane, KernelOptions, WireGuardKernel, kernel_request};
pub use linux::LinuxWireGuard;
pub use uapi::{UapiDataPlane, set_request};

/// Why the device did not answer, or refused.
#[derive(Debug, Error)]
pub enum DataPlaneError {
    /// Nobody listens.
    #[error("connect to the tunnel at {}: {source}; is warren-tunnel running?", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The connection broke.
    #[error("{operation} the tunnel at {}: {source}", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// The socket.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// No answer in time.
    #[error("the tunnel at {} does not answer within {limit:?}", path.display())]
    Timeout {
        /// The socket.
        path: PathBuf,
        /// The limit.
        limit: Duration,
    },
    /// The answer is no answer, or a refusal.
    #[error("the tunnel at {}: {source}", path.display())]
    Answer {
        /// The socket.
        path: PathBuf,
        /// What is wrong.
        source: UapiError,
    },
    /// The answer is larger than any that is believed.
    #[error("the tunnel at {} answers with more than {limit} bytes", path.display())]
    TooLarge {
        /// The socket.
        path: PathBuf,
        /// The limit in bytes.
        limit: usize,
    },
    /// The kernel refused, or has no WireGuard.
    #[error("the kernel's WireGuard: {0}")]
    Kernel(#[from] NetlinkError),
    /// `warren-tunnel` serves the interface.
    #[error(
        "warren-tunnel serves {interface} ({holder}), and data-plane is kernel: stop warren-tunnel, or \
         set data-plane to userspace"
    )]
    Claimed {
        /// The interface.
        interface: String,
        /// Who has it.
        holder: String,
    },
    /// The interface cannot be claimed.
    #[error(transparent)]
    Claim(ClaimError),
    /// The interface's name belongs to a link of another kind.
    #[error(
        "{interface} is a link of the kind {kind}: remove it by `ip link delete {interface}`, or give \
         interface another name"
    )]
    OtherLink {
        /// The interface.
        interface: String,
        /// Its kind.
        kind: String,
    },
    /// The private key cannot be had.
    #[error(transparent)]
    Key(#[from] FileError),
    /// The private key's directory cannot be closed to others.
    #[error("close {} to others: {source}", path.display())]
    KeyDirectory {
        /// The directory.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The kernel gives no random bytes.
    #[error(transparent)]
    Random(KeyError),
}

/// The device's state. The private key is not part of it: only its public half leaves the parser.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceState {
    /// The device's key, if it has one.
    pub public_key: Option<PublicKey>,
    /// The UDP port it listens on; 0 when it does not listen.
    pub listen_port: u16,
    /// The peers.
    pub peers: Vec<Peer>,
    /// The largest outer packet in bytes that arrives at a peer, where larger ones are known not
    /// to, although no route says so.
    pub path_mtu: BTreeMap<PublicKey, u32>,
}

/// A WireGuard device: `warren-tunnel` by UAPI, or the kernel's by generic netlink.
pub trait DataPlane {
    /// Reads the device's state.
    ///
    /// # Errors
    /// [`DataPlaneError`]; the device is then taken as absent.
    fn observe(&mut self) -> impl Future<Output = Result<DeviceState, DataPlaneError>>;

    /// Carries out the changes of peers among `changes`, in order, so that a prefix moves from one
    /// peer to another without a gap. Other changes are passed over.
    ///
    /// # Errors
    /// [`DataPlaneError`]; `warren-tunnel` has then taken nothing of it, and the kernel perhaps the
    /// first of them.
    fn apply(&mut self, changes: &[Change]) -> impl Future<Output = Result<(), DataPlaneError>>;

    /// Whose it is.
    fn kind(&self) -> DataPlaneKind {
        DataPlaneKind::Userspace
    }
}
