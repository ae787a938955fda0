//! The kernel of this network namespace, for [`KernelDataPlane`](super::KernelDataPlane).

use warren_claim::{AGENT_AS_TUNNEL, Claim, ClaimError};
use warren_netlink::wireguard::{SetMessage, WireGuard};
use warren_netlink::{Netlink, NetlinkError};

use super::DataPlaneError;
use super::kernel::{Found, WireGuardKernel};

/// EOPNOTSUPP (errno.h): what the kernel says of a link of another kind.
const NOT_SUPPORTED: i32 = 95;

/// The kernel of the network namespace that it was made in.
#[derive(Debug)]
pub struct LinuxWireGuard {
    netlink: Netlink,
    /// Opened when it is needed: the module may be loaded later.
    socket: Option<WireGuard>,
    is_claimed: bool,
}

impl LinuxWireGuard {
    /// The calling thread's network namespace.
    ///
    /// # Errors
    /// [`NetlinkError::Socket`].
    pub fn open() -> Result<Self, NetlinkError> {
        Ok(Self {
            netlink: Netlink::open()?,
            socket: None,
            is_claimed: false,
        })
    }

    fn socket(&mut self) -> Result<&mut WireGuard, NetlinkError> {
        match self.socket.take() {
            Some(socket) => Ok(self.socket.insert(socket)),
            None => Ok(self.socket.insert(WireGuard::open()?)),
        }
    }
}

impl WireGuardKernel for LinuxWireGuard {
    fn claim(&mut self, interface: &str) -> Result<(), DataPlaneError> {
        if self.is_claimed {
            return Ok(());
        }
        match Claim::take(&warren_claim::tunnel(interface), AGENT_AS_TUNNEL) {
            Ok(claim) => {
                if let Some(squatter) = claim.squatter() {
                    tracing::warn!(%squatter, "another user's process sits on the tunnel's name");
                }
                self.is_claimed = true;
                Ok(())
            }
            Err(ClaimError::Held { holder, .. }) => Err(DataPlaneError::Claimed {
                interface: interface.to_owned(),
                holder: holder.to_string(),
            }),
            Err(error) => Err(DataPlaneError::Claim(error)),
        }
    }

    async fn find(&mut self, interface: &str) -> Result<Found, NetlinkError> {
        let socket = self.socket()?;
        match socket.device(interface) {
            Ok(device) => return Ok(Found::Device(device)),
            Err(e) if e.is_not_found() => return Ok(Found::Nothing),
            Err(e) if e.errno() == Some(NOT_SUPPORTED) => {}
            Err(e) => {
                // An answer that comes too late must not be taken for the next one.
                self.socket = None;
                return Err(e);
            }
        }
        let link = self.netlink.link_by_name(interface).await?;
        Ok(match link {
            Some(link) => Found::Other(link.kind.unwrap_or_else(|| "hardware".to_owned())),
            None => Found::Nothing,
        })
    }

    async fn make_link(&mut self, interface: &str, mtu_bytes: u32) -> Result<(), NetlinkError> {
        self.netlink.add_wireguard(interface, mtu_bytes).await
    }

    async fn remove_link(&mut self, interface: &str) -> Result<(), NetlinkError> {
        remove_link(&self.netlink, interface).await
    }

    fn set(&mut self, interface: &str, message: &SetMessage) -> Result<(), NetlinkError> {
        let done = self.socket()?.set(interface, message);
        if matches!(done, Err(NetlinkError::Socket { .. })) {
            self.socket = None;
        }
        done
    }
}

/// Removes a link, which may be gone already.
pub(super) async fn remove_link(netlink: &Netlink, interface: &str) -> Result<(), NetlinkError> {
    let Some(link) = netlink.link_by_name(interface).await? else {
        return Ok(());
    };
    match netlink.delete_link(link.index).await {
        Err(e) if !e.is_not_found() => Err(e),
        _ => Ok(()),
    }
}
