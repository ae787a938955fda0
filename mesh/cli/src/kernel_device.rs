//! The devices of the kernel's own WireGuard, in this network namespace.

use tokio::runtime::Runtime;
use warren_core::uapi::Device;
use warren_netlink::wireguard::WireGuard;
use warren_netlink::{Link, Netlink, NetlinkError};

use crate::show::ShownDevice;

/// The kind of link that the kernel's WireGuard is.
const WIREGUARD: &str = "wireguard";

/// Whether a link is a device of the kernel's WireGuard.
pub(crate) fn is_wireguard(link: &Link) -> bool {
    link.kind.as_deref() == Some(WIREGUARD)
}

/// The names of the devices, in the kernel's order.
///
/// # Errors
/// [`NetlinkError`].
pub(crate) fn names() -> Result<Vec<String>, NetlinkError> {
    let links = on_netlink(async |netlink| netlink.links().await)?;
    let devices = links.into_iter().filter(is_wireguard);
    Ok(devices.map(|link| link.name).collect())
}

/// Whether there is such a device.
pub(crate) fn exists(name: &str) -> bool {
    let link = on_netlink(async |netlink| netlink.link_by_name(name).await);
    link.is_ok_and(|link| link.as_ref().is_some_and(is_wireguard))
}

/// Reads a device. Its private key stays in the kernel, and so do the preshared keys.
///
/// # Errors
/// [`NetlinkError`]: `is_not_found` without such a link, EPERM for others than root.
pub(crate) fn read(name: &str) -> Result<ShownDevice, NetlinkError> {
    let device = WireGuard::open()?.device(name)?;
    Ok(ShownDevice {
        hidden_key: device.public_key,
        device: Device {
            private_key: None,
            listen_port: device.listen_port,
            fwmark: device.fwmark,
            peers: device.peers,
        },
    })
}

/// Runs something on a netlink connection of its own.
///
/// # Errors
/// [`NetlinkError`].
pub(crate) fn on_netlink<T>(
    work: impl AsyncFnOnce(&Netlink) -> Result<T, NetlinkError>,
) -> Result<T, NetlinkError> {
    runtime()?.block_on(async { work(&Netlink::open()?).await })
}

/// A runtime for netlink connections, on the calling thread.
///
/// # Errors
/// [`NetlinkError::Socket`].
pub(crate) fn runtime() -> Result<Runtime, NetlinkError> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| NetlinkError::Socket {
            operation: "start a runtime",
            source,
        })
}
