//! Carries a plan out, or leaves nothing behind; and takes an attachment away.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use thiserror::Error;
use warren_netlink::{Netlink, NetlinkError, Netns, Route, VethPeer, VethSpec, sysctl};

use crate::env::{AttachmentId, IfName};
use crate::error::code;
use crate::plan::{AttachPlan, EndPlan, PlannedRoute, Sysctl, host_name};

/// Index of `lo` in every namespace.
const LOOPBACK_INDEX: u32 = 1;
/// The namespace that this thread is in.
const OWN_NETNS: &str = "/proc/thread-self/ns/net";

/// Why an attachment could not be made or removed.
#[derive(Debug, Error)]
pub enum AttachError {
    /// The pod's namespace cannot be used. CNI error code 4.
    #[error("CNI_NETNS={path:?} cannot be used: {cause}")]
    Netns {
        /// The path.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// The pod's namespace is the node's. CNI error code 4.
    #[error("CNI_NETNS={path:?} is the namespace of the node itself: a pod needs its own")]
    OwnNetns {
        /// The path.
        path: PathBuf,
    },
    /// The interface exists in the pod. CNI error code 4.
    #[error("CNI_IFNAME={name:?} exists in the container already; DEL comes before another ADD")]
    IfNameTaken {
        /// The interface.
        name: String,
    },
    /// The host side's name is taken. CNI error code 100.
    #[error(
        "interface {name} of the node exists already, with alias {alias:?}; DEL comes before \
         another ADD"
    )]
    HostNameTaken {
        /// The interface.
        name: String,
        /// Its alias: the container that it was made for.
        alias: String,
    },
    /// The kernel refused something. CNI error code 100.
    #[error(transparent)]
    Kernel(#[from] NetlinkError),
    /// A setting could not be written. CNI error code 100.
    #[error("cannot set a sysctl: {0}")]
    Sysctl(io::Error),
    /// An interface vanished while it was set up. CNI error code 100.
    #[error("interface {name} vanished while it was set up: did someone else delete it?")]
    Vanished {
        /// The interface.
        name: String,
    },
    /// A step failed, and so did undoing the earlier ones. CNI error code of the step.
    #[error("{cause}; and interface {name} could not be removed again: {undo}")]
    Undo {
        /// Why it had to be undone.
        cause: Box<AttachError>,
        /// What is left.
        name: String,
        /// Why it is.
        undo: NetlinkError,
    },
}

impl AttachError {
    /// The CNI error's code.
    pub fn code(&self) -> u32 {
        match self {
            Self::Netns { .. } | Self::OwnNetns { .. } | Self::IfNameTaken { .. } => {
                code::ENVIRONMENT
            }
            Self::Undo { cause, .. } => cause.code(),
            _ => code::KERNEL,
        }
    }
}

/// A pod's namespace, opened, and found to be fit for an attachment.
#[derive(Debug)]
pub struct Pod {
    netns: Netns,
    pub(crate) netlink: Netlink,
}

impl Pod {
    /// Opens the namespace, and checks that it is not the node's own.
    ///
    /// # Errors
    /// [`AttachError::Netns`], [`AttachError::OwnNetns`].
    pub fn open(path: &Path) -> Result<Self, AttachError> {
        let unusable = |cause| AttachError::Netns {
            path: path.into(),
            cause,
        };
        let identity = |path: &Path| fs::metadata(path).map(|meta| (meta.dev(), meta.ino()));
        if identity(path).map_err(unusable)? == identity(Path::new(OWN_NETNS)).map_err(unusable)? {
            return Err(AttachError::OwnNetns { path: path.into() });
        }
        let netns = Netns::from_path(path).map_err(unusable)?;
        let netlink = Netlink::open_in(&netns).map_err(|error| match error {
            NetlinkError::Socket { source, .. } => unusable(source),
            other => AttachError::Kernel(other),
        })?;
        Ok(Self { netns, netlink })
    }

    /// Checks that there is no interface of this name.
    ///
    /// # Errors
    /// [`AttachError::IfNameTaken`]; nothing has been made yet.
    pub async fn refuse_taken(&self, ifname: &IfName) -> Result<(), AttachError> {
        match self.netlink.link_by_name(ifname.as_str()).await? {
            None => Ok(()),
            Some(_) => Err(AttachError::IfNameTaken {
                name: ifname.as_str().into(),
            }),
        }
    }
}

/// Makes the attachment. When a step fails, everything made before it is removed again.
///
/// # Errors
/// [`AttachError`]; only [`AttachError::Undo`] leaves something behind, and names it.
pub async fn attach(host: &Netlink, pod: &Pod, plan: &AttachPlan) -> Result<(), AttachError> {
    let name = &plan.host.name;
    if let Some(link) = host.link_by_name(name).await? {
        let alias = link.alias.unwrap_or_default();
        return Err(AttachError::HostNameTaken {
            name: name.clone(),
            alias,
        });
    }
    let spec = VethSpec {
        name,
        alias: Some(&plan.host.alias),
        group: plan.host.group,
        mtu: plan.mtu_bytes,
        mac: Some(plan.host.mac),
        peer: VethPeer {
            name: &plan.pod.name,
            netns: &pod.netns,
            mac: Some(plan.pod.mac),
            mtu: plan.mtu_bytes,
        },
    };
    host.add_veth(&spec).await?;
    let Err(cause) = set_up(host, pod, plan).await else {
        return Ok(());
    };
    // The pair holds all the rest: with it go the pod's end, addresses, neighbours and routes.
    match remove_link(host, name).await {
        Ok(_) => Err(cause),
        Err(undo) => Err(AttachError::Undo {
            cause: Box::new(cause),
            name: name.clone(),
            undo,
        }),
    }
}

/// Removes the attachment's host side, and with it everything of it; true if there was one.
///
/// An interface of that name that was made for another container stays: it is not ours to remove.
///
/// # Errors
/// [`AttachError::Kernel`].
pub async fn detach(host: &Netlink, attachment: &AttachmentId) -> Result<bool, AttachError> {
    let name = host_name(attachment);
    let Some(link) = host.link_by_name(&name).await? else {
        return Ok(false);
    };
    match link.alias.as_deref() {
        // Without an alias: an ADD was killed between making the pair and naming it.
        None | Some("") => {}
        Some(alias) if alias == attachment.container_id.as_str() => {}
        Some(alias) => {
            tracing::warn!(interface = %name, alias, "left alone: made for another container");
            return Ok(false);
        }
    }
    Ok(remove_link(host, &name).await?)
}

async fn set_up(host: &Netlink, pod: &Pod, plan: &AttachPlan) -> Result<(), AttachError> {
    pod.netns
        .run(|| write_sysctls(&plan.pod.sysctls))
        .and_then(|written| written)
        .map_err(AttachError::Sysctl)?;
    write_sysctls(&plan.host.sysctls).map_err(AttachError::Sysctl)?;
    let pod_index = index_of(&pod.netlink, &plan.pod.name).await?;
    let host_index = index_of(host, &plan.host.name).await?;
    // Both ends up before any route: a route on a link without carrier is not used.
    pod.netlink.set_up(pod_index).await?;
    host.set_up(host_index).await?;
    fill(&pod.netlink, pod_index, &plan.pod).await?;
    fill(host, host_index, &plan.host).await?;
    // Last, for it is all that the pair's removal would not take along.
    pod.netlink.set_up(LOOPBACK_INDEX).await?;
    Ok(())
}

async fn fill(netlink: &Netlink, index: u32, end: &EndPlan) -> Result<(), AttachError> {
    for address in &end.addresses {
        netlink.add_address(index, *address).await?;
    }
    for (address, mac) in &end.neighbours {
        netlink.add_neighbour(index, *address, *mac).await?;
    }
    for route in &end.routes {
        // Never replaced: a route that is there means that someone else has the address.
        netlink.add_route(&kernel_route(route, index)).await?;
    }
    Ok(())
}

/// The route as the kernel reports it on the link with this index.
pub(crate) fn kernel_route(route: &PlannedRoute, index: u32) -> Route {
    let base = Route::on_link(route.table, route.destination, index, route.protocol);
    Route {
        gateway: route.gateway,
        src: route.source,
        metric: route.metric.unwrap_or(0),
        mtu: route.mtu_bytes,
        advmss: route.advmss_bytes,
        scope: route.scope,
        ..base
    }
    .as_reported()
}

fn write_sysctls(sysctls: &[Sysctl]) -> io::Result<()> {
    for setting in sysctls {
        match sysctl::write_if_different(&setting.key, setting.value) {
            Err(e) if setting.optional && e.kind() == io::ErrorKind::NotFound => {}
            other => drop(other?),
        }
    }
    Ok(())
}

async fn index_of(netlink: &Netlink, name: &str) -> Result<u32, AttachError> {
    let link = netlink.link_by_name(name).await?;
    link.map(|link| link.index)
        .ok_or_else(|| AttachError::Vanished { name: name.into() })
}

/// Removes a link; false if there was none, or it went by itself meanwhile with its namespace.
pub(crate) async fn remove_link(netlink: &Netlink, name: &str) -> Result<bool, NetlinkError> {
    let Some(link) = netlink.link_by_name(name).await? else {
        return Ok(false);
    };
    match netlink.delete_link(link.index).await {
        Ok(()) => Ok(true),
        Err(error) if error.is_not_found() => Ok(false),
        Err(error) => Err(error),
    }
}
