//! Which data plane this node has.

use std::path::PathBuf;
use std::time::{Duration, UNIX_EPOCH};

use warren_core::Change;
use warren_core::status::DataPlaneKind;
use warren_netlink::wireguard::WireGuard;
use warren_netlink::{Netlink, NetlinkError};

use super::linux::{LinuxWireGuard, remove_link};
use super::{
    DataPlane, DataPlaneError, DeviceState, KernelDataPlane, KernelOptions, UapiDataPlane,
};
use crate::config::{Config, DataPlaneChoice};
use crate::tunnel_socket::{TunnelReport, TunnelSocket};

/// The kind of link that the kernel's WireGuard is.
const WIREGUARD: &str = "wireguard";
/// The private key's file, in the state directory.
const KEY_FILE: &str = "private.key";

/// The data plane of this node.
#[derive(Debug)]
pub enum NodeDataPlane {
    /// `warren-tunnel`.
    Userspace(UapiDataPlane),
    /// The kernel.
    Kernel(KernelDataPlane<LinuxWireGuard>),
}

/// Reads the device for those who show it; it makes and changes nothing.
#[derive(Clone, Debug)]
pub enum DeviceReader {
    /// `warren-tunnel`, and its own socket.
    Userspace(UapiDataPlane, TunnelSocket),
    /// The kernel.
    Kernel {
        /// Name of the interface.
        interface: String,
        /// The private key's file, whose age is told.
        key_file: PathBuf,
    },
}

/// Decides by the configuration and, where it leaves that open, by the kernel.
pub fn choose(config: &Config) -> DataPlaneKind {
    let (kind, why) = match config.data_plane {
        DataPlaneChoice::Userspace => (DataPlaneKind::Userspace, "as configured".to_owned()),
        DataPlaneChoice::Kernel => (DataPlaneKind::Kernel, "as configured".to_owned()),
        DataPlaneChoice::Auto => {
            let tunnel = warren_claim::tunnel(&config.interface);
            match (WireGuard::open(), warren_claim::holder(&tunnel)) {
                (Err(e), _) => (DataPlaneKind::Userspace, e.to_string()),
                (Ok(_), Some(holder)) => {
                    let why = format!("warren-tunnel runs ({holder})");
                    (DataPlaneKind::Userspace, why)
                }
                (Ok(_), None) => (DataPlaneKind::Kernel, "the kernel has it".to_owned()),
            }
        }
    };
    tracing::info!(data_plane = %kind, why, "data plane");
    kind
}

/// Makes the data plane of that kind. A device that the other kind left is removed by the kernel's
/// data plane when it first looks, and here for `warren-tunnel`, which cannot do so.
///
/// # Errors
/// [`NetlinkError`].
pub async fn open(
    kind: DataPlaneKind,
    config: &Config,
    tunnel: UapiDataPlane,
) -> Result<NodeDataPlane, NetlinkError> {
    match kind {
        DataPlaneKind::Userspace => {
            let netlink = Netlink::open()?;
            let link = netlink.link_by_name(&config.interface).await?;
            if link.is_some_and(|link| link.kind.as_deref() == Some(WIREGUARD)) {
                let interface = &config.interface;
                tracing::warn!(interface, "removing the kernel's WireGuard interface");
                remove_link(&netlink, interface).await?;
            }
            Ok(NodeDataPlane::Userspace(tunnel))
        }
        DataPlaneKind::Kernel => {
            let options = KernelOptions {
                interface: config.interface.clone(),
                listen_port: config.listen_port,
                key_file: key_file(config),
            };
            let kernel = LinuxWireGuard::open()?;
            Ok(NodeDataPlane::Kernel(KernelDataPlane::new(kernel, options)))
        }
    }
}

/// The private key's file of this node.
fn key_file(config: &Config) -> PathBuf {
    config.state_dir.join(KEY_FILE)
}

impl DataPlane for NodeDataPlane {
    async fn observe(&mut self) -> Result<DeviceState, DataPlaneError> {
        match self {
            Self::Userspace(tunnel) => tunnel.observe().await,
            Self::Kernel(kernel) => kernel.observe().await,
        }
    }

    async fn apply(&mut self, changes: &[Change]) -> Result<(), DataPlaneError> {
        match self {
            Self::Userspace(tunnel) => tunnel.apply(changes).await,
            Self::Kernel(kernel) => kernel.apply(changes).await,
        }
    }

    fn kind(&self) -> DataPlaneKind {
        match self {
            Self::Userspace(tunnel) => tunnel.kind(),
            Self::Kernel(kernel) => kernel.kind(),
        }
    }
}

impl DeviceReader {
    /// The reader of a data plane.
    pub fn of(
        kind: DataPlaneKind,
        config: &Config,
        tunnel: UapiDataPlane,
        socket: TunnelSocket,
    ) -> Self {
        match kind {
            DataPlaneKind::Userspace => Self::Userspace(tunnel, socket),
            DataPlaneKind::Kernel => Self::Kernel {
                interface: config.interface.clone(),
                key_file: key_file(config),
            },
        }
    }

    /// Reads the device's state.
    ///
    /// # Errors
    /// [`DataPlaneError`].
    pub async fn get(&self) -> Result<DeviceState, DataPlaneError> {
        match self {
            Self::Userspace(tunnel, _) => tunnel.get().await,
            Self::Kernel { interface, .. } => Ok(WireGuard::open()?.device(interface)?.into()),
        }
    }

    /// What the data plane tells beside the device. The kernel tells nothing: of it there is the age
    /// of the key alone.
    pub async fn report(&self) -> TunnelReport {
        match self {
            Self::Userspace(_, socket) => socket.report().await,
            Self::Kernel { key_file, .. } => TunnelReport {
                key_written: written(key_file),
                ..TunnelReport::default()
            },
        }
    }
}

/// When a file was written, since the Unix epoch.
fn written(path: &std::path::Path) -> Option<Duration> {
    let modified = std::fs::metadata(path).and_then(|file| file.modified());
    modified.ok()?.duration_since(UNIX_EPOCH).ok()
}
