//! The kernel's own WireGuard as the data plane.
//!
//! ```text
//!   claim of the interface -> link there? -- no, or warren-tunnel's TUN --> make it (down)
//!                                 | yes                                        |
//!                                 v                                            v
//!                        its key and port ours? -- no --> give them <----------+
//! ```
//!
//! The device outlives the agent, with its peers and sessions. It has no peers until the filter
//! stands, for the reconcile sets that up first.

use std::future::Future;
use std::path::{Path, PathBuf};

use warren_core::Change;
use warren_core::files::is_state;
use warren_core::status::DataPlaneKind;
use warren_core::uapi::{PeerUpdate, SetRequest};
use warren_keyring::{PrivateKey, PublicKey, directory, file};
use warren_netlink::NetlinkError;
use warren_netlink::wireguard::{Removal, SetMessage, WireGuardDevice, set_messages};

use super::uapi::update_of;
use super::{DataPlane, DataPlaneError, DeviceState};

/// The MTU in bytes that a new link has until the reconcile sets it.
pub(super) const NEW_LINK_MTU: u32 = 1420;
/// The kind of the link that `warren-tunnel` makes.
const TUN: &str = "tun";
/// EINVAL (errno-base.h): what a kernel says to a flag that it does not know.
const INVALID: i32 = 22;
/// Seconds between keepalives for the moment that makes the kernel send the first.
const KICK: u16 = 1;

/// What there is under the interface's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// A device of the kernel's WireGuard.
    Device(WireGuardDevice),
    /// A link of another kind, as rtnetlink calls it.
    Other(String),
    /// No link.
    Nothing,
}

/// The kernel, as far as this data plane needs it.
pub trait WireGuardKernel {
    /// Makes sure that no `warren-tunnel` serves the interface, now or as long as this process runs.
    ///
    /// # Errors
    /// [`DataPlaneError::Claimed`], [`DataPlaneError::Claim`].
    fn claim(&mut self, interface: &str) -> Result<(), DataPlaneError>;

    /// Reads what there is.
    ///
    /// # Errors
    /// [`NetlinkError`]; `is_not_found` when this kernel has no WireGuard.
    fn find(&mut self, interface: &str) -> impl Future<Output = Result<Found, NetlinkError>>;

    /// Makes the link, down and with nothing set.
    ///
    /// # Errors
    /// [`NetlinkError`].
    fn make_link(
        &mut self,
        interface: &str,
        mtu_bytes: u32,
    ) -> impl Future<Output = Result<(), NetlinkError>>;

    /// Removes a link, of whatever kind.
    ///
    /// # Errors
    /// [`NetlinkError`].
    fn remove_link(&mut self, interface: &str) -> impl Future<Output = Result<(), NetlinkError>>;

    /// Sends one message.
    ///
    /// # Errors
    /// [`NetlinkError`]; the entries before the one that failed are carried out.
    fn set(&mut self, interface: &str, message: &SetMessage) -> Result<(), NetlinkError>;
}

/// What [`KernelDataPlane`] is made from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelOptions {
    /// Name of the interface.
    pub interface: String,
    /// The UDP port.
    pub listen_port: u16,
    /// The private key's file; it is made where it is missing.
    pub key_file: PathBuf,
}

/// The kernel's WireGuard device of this node, which this makes and keeps.
#[derive(Debug)]
pub struct KernelDataPlane<K> {
    kernel: K,
    options: KernelOptions,
    /// The key of the file. The private half is read when it is given to the kernel, and wiped.
    own: Option<PublicKey>,
    /// Whether this kernel does not know how to remove single prefixes.
    throws_away: bool,
}

impl<K: WireGuardKernel> KernelDataPlane<K> {
    /// The device of these options, which need not be there yet.
    pub fn new(kernel: K, options: KernelOptions) -> Self {
        Self {
            kernel,
            options,
            own: None,
            throws_away: false,
        }
    }

    /// The kernel.
    pub fn kernel(&self) -> &K {
        &self.kernel
    }

    /// The kernel, to be changed.
    pub fn kernel_mut(&mut self) -> &mut K {
        &mut self.kernel
    }

    async fn find_or_make(&mut self) -> Result<WireGuardDevice, DataPlaneError> {
        let interface = &self.options.interface;
        match self.kernel.find(interface).await? {
            Found::Device(device) => return Ok(device),
            Found::Nothing => {}
            // Nobody serves it: the claim is ours. Its routes go with it, the filter and the
            // unreachable routes stay.
            Found::Other(kind) if kind == TUN => {
                tracing::warn!(interface, "removing the interface that warren-tunnel left");
                self.kernel.remove_link(interface).await?;
            }
            Found::Other(kind) => {
                return Err(DataPlaneError::OtherLink {
                    interface: interface.clone(),
                    kind,
                });
            }
        }
        self.kernel.make_link(interface, NEW_LINK_MTU).await?;
        tracing::info!(interface, "made the kernel's WireGuard interface");
        match self.kernel.find(interface).await? {
            Found::Device(device) => Ok(device),
            Found::Other(kind) => Err(DataPlaneError::OtherLink {
                interface: interface.clone(),
                kind,
            }),
            // Somebody removed it at once; the next reconcile makes it again.
            Found::Nothing => Ok(WireGuardDevice::default()),
        }
    }

    /// Gives the device its key and port, where it has others.
    async fn identify(
        &mut self,
        device: WireGuardDevice,
    ) -> Result<WireGuardDevice, DataPlaneError> {
        let own = match self.own {
            Some(own) => own,
            None => read_key(&self.options.key_file)?.public_key(),
        };
        self.own = Some(own);
        let port = self.options.listen_port;
        if device.public_key == Some(own) && device.listen_port == port {
            return Ok(device);
        }
        let key = read_key(&self.options.key_file)?;
        self.own = Some(key.public_key());
        let request = SetRequest {
            private_key: Some(Some(key)),
            listen_port: (device.listen_port != port).then_some(port),
            ..SetRequest::default()
        };
        self.send(&request, Removal::Flagged)?;
        match self.kernel.find(&self.options.interface).await? {
            Found::Device(device) => Ok(device),
            _ => Ok(WireGuardDevice::default()),
        }
    }

    fn send(&mut self, request: &SetRequest, removal: Removal) -> Result<(), SendError> {
        let interface = &self.options.interface;
        for message in set_messages(interface, request, removal) {
            let sent = self.kernel.set(interface, &message);
            sent.map_err(|source| SendError {
                is_unknown_flag: source.errno() == Some(INVALID) && message.has_flagged_removals(),
                source,
            })?;
        }
        Ok(())
    }

    fn throw_away(&self) -> Result<Removal, DataPlaneError> {
        let key = PrivateKey::generate().map_err(DataPlaneError::Random)?;
        Ok(Removal::ThrowAway(key.public_key()))
    }
}

/// Why a request was not carried out to its end.
struct SendError {
    /// Whether it may be for a flag that this kernel does not know.
    is_unknown_flag: bool,
    source: NetlinkError,
}

impl From<SendError> for DataPlaneError {
    fn from(error: SendError) -> Self {
        Self::Kernel(error.source)
    }
}

impl<K: WireGuardKernel> DataPlane for KernelDataPlane<K> {
    async fn observe(&mut self) -> Result<DeviceState, DataPlaneError> {
        self.kernel.claim(&self.options.interface)?;
        let device = self.find_or_make().await?;
        Ok(self.identify(device).await?.into())
    }

    async fn apply(&mut self, changes: &[Change]) -> Result<(), DataPlaneError> {
        let request = kernel_request(changes);
        let removal = match self.throws_away {
            true => self.throw_away()?,
            false => Removal::Flagged,
        };
        match self.send(&request, removal) {
            Err(error) if error.is_unknown_flag => {
                // What was carried out already comes to the same a second time.
                let removal = self.throw_away()?;
                self.send(&request, removal)?;
                self.throws_away = true;
                tracing::info!("this kernel removes single prefixes by way of a throw-away peer");
                Ok(())
            }
            other => Ok(other?),
        }
    }

    fn kind(&self) -> DataPlaneKind {
        DataPlaneKind::Kernel
    }
}

impl From<WireGuardDevice> for DeviceState {
    fn from(device: WireGuardDevice) -> Self {
        Self {
            public_key: device.public_key,
            listen_port: device.listen_port,
            peers: device.peers,
            ..Self::default()
        }
    }
}

/// Reads the key; one is made where there is none, in a directory that others cannot look into.
fn read_key(path: &Path) -> Result<PrivateKey, DataPlaneError> {
    // A key that is there already may have been read by others: that is for people to judge.
    if !path.exists()
        && let Some(dir) = path.parent()
    {
        let closed = directory::close_to_others(dir, is_state);
        let closed = closed.map_err(|source| DataPlaneError::KeyDirectory {
            path: dir.to_owned(),
            source,
        })?;
        if let Some(mode) = closed {
            let mode = format!("{mode:04o}");
            tracing::info!(dir = %dir.display(), mode, "closed to other users");
        }
    }
    Ok(file::load_or_create(path)?)
}

/// What is asked of the kernel for these changes, in their order; those that are not of peers are
/// left out.
///
/// The kernel sends nothing to a new peer by itself. It does when keepalives are switched on: so they
/// are, for a moment, and the handshake is done before the first packet waits for it.
pub fn kernel_request(changes: &[Change]) -> SetRequest {
    let mut peers = Vec::new();
    for change in changes {
        let Some(mut update) = update_of(change) else {
            continue;
        };
        if !is_to_be_kicked(change) {
            peers.push(update);
            continue;
        }
        let mut quiet = PeerUpdate::new(update.public_key);
        quiet.update_only = true;
        quiet.persistent_keepalive = Some(0);
        update.persistent_keepalive = Some(KICK);
        peers.extend([update, quiet]);
    }
    SetRequest {
        peers,
        ..SetRequest::default()
    }
}

/// Whether the peer has a new endpoint, and no keepalives that would go there at once.
fn is_to_be_kicked(change: &Change) -> bool {
    match change {
        Change::AddPeer { new, .. } => new.persistent_keepalive == 0,
        Change::UpdatePeer { old, delta, .. } => {
            let keepalive = delta.persistent_keepalive;
            delta.endpoint.is_some() && keepalive.unwrap_or(old.persistent_keepalive) == 0
        }
        _ => false,
    }
}
