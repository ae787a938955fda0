//! Carries a plan out, or leaves nothing behind; and takes an attachment away.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use thiserror::Error;
use warren_netlink::{
    Batch, Netlink, NetlinkError, Netns, Route, SyncNetlink, VethPeer, VethSpec, sysctl,
};

use crate::env::{AttachmentId, IfName};
use crate::error::code;
use crate::plan::{AttachPlan, EndPlan, PlannedRoute, Sysctl, host_name};

/// Index of `lo` in every namespace.
const LOOPBACK_INDEX: u32 = 1;
/// How long the kernel may take to notice that both ends of a pair are up.
const CARRIER_PATIENCE: Duration = Duration::from_secs(5);
const CARRIER_POLL: Duration = Duration::from_millis(1);
const LOCAL_POLL: Duration = Duration::from_micros(100);
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
    /// The pod has such a route by another interface. CNI error code 100.
    #[error(
        "the container has a route to {destination} by {interface} already: it can have one \
         interface of Warren; beside another plugin's, \"routes\" of the network configuration \
         gives ours to {destination} a priority of its own"
    )]
    RouteTaken {
        /// The route's destination.
        destination: IpNet,
        /// The interface that has it.
        interface: String,
    },
    /// An interface did not become usable. CNI error code 100.
    #[error("interface {name} has no carrier although both its ends are up")]
    NoCarrier {
        /// The interface.
        name: String,
    },
    /// An address did not become usable. CNI error code 100.
    #[error("address {address} of interface {name} is not in use by the kernel")]
    NotLocal {
        /// The interface.
        name: String,
        /// The address.
        address: IpNet,
    },
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

/// A pod's namespace, opened, and found not to be the node's own.
#[derive(Debug)]
pub struct Pod {
    path: PathBuf,
    netns: Netns,
}

impl Pod {
    /// Opens the namespace.
    ///
    /// # Errors
    /// [`AttachError::Netns`], [`AttachError::OwnNetns`].
    pub fn open(path: &Path) -> Result<Self, AttachError> {
        let unusable = |cause| AttachError::Netns {
            path: path.into(),
            cause,
        };
        let metadata = |path: &Path| fs::metadata(path).map_err(unusable);
        let (pod, own) = (metadata(path)?, metadata(Path::new(OWN_NETNS))?);
        if (pod.dev(), pod.ino()) == (own.dev(), own.ino()) {
            return Err(AttachError::OwnNetns { path: path.into() });
        }
        // Namespaces are files; to open a FIFO could take for ever.
        if !pod.is_file() {
            return Err(unusable(io::Error::other("it is no network namespace")));
        }
        let netns = Netns::from_path(path).map_err(unusable)?;
        let path = path.into();
        Ok(Self { path, netns })
    }

    /// A connection inside the namespace.
    ///
    /// # Errors
    /// [`AttachError::Netns`] when the path names something else than a network namespace.
    pub(crate) fn netlink(&self) -> Result<Netlink, AttachError> {
        Netlink::open_in(&self.netns).map_err(|error| self.unusable(error))
    }

    /// Checks that there is no interface of this name.
    ///
    /// # Errors
    /// [`AttachError::IfNameTaken`], [`AttachError::Netns`].
    pub fn refuse_taken(&self, ifname: &IfName) -> Result<(), AttachError> {
        let netlink = SyncNetlink::open_in(&self.netns);
        let mut netlink = netlink.map_err(|error| self.unusable(error))?;
        match netlink.link_by_name(ifname.as_str())? {
            None => Ok(()),
            Some(_) => Err(AttachError::IfNameTaken {
                name: ifname.as_str().into(),
            }),
        }
    }

    fn unusable(&self, error: NetlinkError) -> AttachError {
        match error {
            NetlinkError::Socket { source, .. } => AttachError::Netns {
                path: self.path.clone(),
                cause: source,
            },
            other => AttachError::Kernel(other),
        }
    }
}

/// Makes the attachment. When a step fails, everything made before it is removed again.
///
/// Each request takes the kernel's lock for network configuration, which the calls for all other
/// pods want too: so they are few, and what can go together goes in one datagram.
///
/// # Errors
/// [`AttachError`]; only [`AttachError::Undo`] leaves something behind, and names it.
pub fn attach(host: &mut SyncNetlink, pod: &Pod, plan: &AttachPlan) -> Result<(), AttachError> {
    let name = &plan.host.name;
    let spec = VethSpec {
        name,
        alias: None,
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
    if let Err(error) = host.add_veth(&spec) {
        return Err(why_refused(host, pod, plan, error));
    }
    let Err(cause) = set_up(host, pod, plan) else {
        return Ok(());
    };
    // The pair holds all the rest: with it go the pod's end, addresses, neighbours and routes.
    match remove(host, name) {
        Ok(_) => Err(cause),
        Err(undo) => Err(AttachError::Undo {
            cause: Box::new(cause),
            name: name.clone(),
            undo,
        }),
    }
}

/// Finds out what the kernel meant when it refused a pair.
fn why_refused(
    host: &mut SyncNetlink,
    pod: &Pod,
    plan: &AttachPlan,
    error: NetlinkError,
) -> AttachError {
    // Not a network namespace: the file opens, but cannot be entered.
    if let Err(not_entered) = pod.netns.run(|| ()) {
        return AttachError::Netns {
            path: pod.path.clone(),
            cause: not_entered,
        };
    }
    if !error.is_exists() {
        return error.into();
    }
    if let Some(ifname) = IfName::new(&*plan.pod.name)
        && let Err(taken) = pod.refuse_taken(&ifname)
    {
        return taken;
    }
    match host.link_by_name(&plan.host.name) {
        Ok(Some(link)) => AttachError::HostNameTaken {
            name: link.name,
            alias: link.alias.unwrap_or_default(),
        },
        _ => error.into(),
    }
}

/// Removes the attachment's host side, and with it everything of it; true if there was one.
///
/// An interface of that name that was made for another container stays: it is not ours to remove.
///
/// # Errors
/// [`AttachError::Kernel`].
pub fn detach(host: &mut SyncNetlink, attachment: &AttachmentId) -> Result<bool, AttachError> {
    let name = host_name(attachment);
    let Some(link) = host.link_by_name(&name)? else {
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
    Ok(remove_index(host, link.index)?)
}

fn set_up(host: &mut SyncNetlink, pod: &Pod, plan: &AttachPlan) -> Result<(), AttachError> {
    let vanished = |end: &EndPlan| AttachError::Vanished {
        name: end.name.clone(),
    };
    let link = host.link_by_name(&plan.host.name)?;
    let link = link.ok_or_else(|| vanished(&plan.host))?;
    let host_index = link.index;
    // A veth names its peer.
    let pod_index = link.lower.ok_or_else(|| vanished(&plan.pod))?;
    write_sysctls(&plan.host.sysctls).map_err(AttachError::Sysctl)?;
    let mut batch = Batch::default();
    batch.set_alias(host_index, &plan.host.alias);
    no_link_local(&mut batch, host_index, &plan.host);
    batch.set_up(host_index);
    host.run(&batch)?;
    let inside = pod.netns.run(|| set_up_inside(pod_index, &plan.pod));
    inside.map_err(AttachError::Sysctl)??;
    // Both ends are up before any route: a route on a link without carrier is not used.
    let mut batch = Batch::default();
    fill(&mut batch, host_index, &plan.host);
    host.run(&batch)?;
    wait_until_operational(host, &plan.host)
}

/// Sets the pod's end up, inside its namespace.
fn set_up_inside(index: u32, end: &EndPlan) -> Result<(), AttachError> {
    write_sysctls(&end.sysctls).map_err(AttachError::Sysctl)?;
    let mut netlink = SyncNetlink::open()?;
    let mut batch = Batch::default();
    no_link_local(&mut batch, index, end);
    batch.set_up(index);
    fill(&mut batch, index, end);
    if let Err(error) = netlink.run(&batch) {
        return Err(why_not_filled(&mut netlink, index, end, error));
    }
    wait_until_operational(&mut netlink, end)?;
    wait_until_local(&mut netlink, end)?;
    // Last, for it is all that the pair's removal would not take along.
    let mut batch = Batch::default();
    batch.set_up(LOOPBACK_INDEX);
    Ok(netlink.run(&batch)?)
}

/// Finds out which of the pod's routes are in the way.
fn why_not_filled(
    netlink: &mut SyncNetlink,
    index: u32,
    end: &EndPlan,
    error: NetlinkError,
) -> AttachError {
    if !error.is_exists() {
        return error.into();
    }
    for planned in &end.routes {
        let planned = kernel_route(planned, index);
        let found = netlink.routes_of(planned.table, planned.kind, None);
        let same =
            |r: &Route| (r.dst, r.metric) == (planned.dst, planned.metric) && r.oif != planned.oif;
        let Some(other) = found.unwrap_or_default().into_iter().find(same) else {
            continue;
        };
        let veths = netlink.veths().unwrap_or_default();
        let of_it = veths.into_iter().find(|link| other.oif == Some(link.index));
        return AttachError::RouteTaken {
            destination: planned.dst,
            interface: of_it.map_or("another interface".into(), |link| link.name),
        };
    }
    error.into()
}

/// Waits until an end takes packets. When the second end of a pair comes up, the kernel learns of
/// the first one's carrier in the background, and drops what is sent before; asked for a link, newer
/// kernels do that work at once.
fn wait_until_operational(netlink: &mut SyncNetlink, end: &EndPlan) -> Result<(), AttachError> {
    let deadline = Instant::now() + CARRIER_PATIENCE;
    loop {
        let link = netlink.link_by_name(&end.name)?;
        let link = link.ok_or_else(|| AttachError::Vanished {
            name: end.name.clone(),
        })?;
        if link.operational {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(AttachError::NoCarrier {
                name: end.name.clone(),
            });
        }
        thread::sleep(CARRIER_POLL);
    }
}

/// Waits until the end's addresses are delivered to it. The kernel adds an IPv6 address's route to
/// itself in the background, also without duplicate address detection; what arrives before is lost.
fn wait_until_local(netlink: &mut SyncNetlink, end: &EndPlan) -> Result<(), AttachError> {
    let deadline = Instant::now() + CARRIER_PATIENCE;
    for net in &end.addresses {
        while !netlink.is_local(net.addr())? {
            if Instant::now() >= deadline {
                return Err(AttachError::NotLocal {
                    name: end.name.clone(),
                    address: *net,
                });
            }
            thread::sleep(LOCAL_POLL);
        }
    }
    Ok(())
}

/// The filter drops fe80::/10 from pods anyway. Not by sysctl: its writer fights for the kernel's
/// lock instead of waiting for it.
fn no_link_local(batch: &mut Batch, index: u32, end: &EndPlan) {
    if Path::new("/proc/sys/net/ipv6/conf")
        .join(&end.name)
        .exists()
    {
        batch.no_link_local(index);
    }
}

fn fill(batch: &mut Batch, index: u32, end: &EndPlan) {
    for address in &end.addresses {
        batch.add_address(index, *address);
    }
    for (address, mac) in &end.neighbours {
        batch.add_neighbour(index, *address, *mac);
    }
    for route in &end.routes {
        // Never replaced: a route that is there means that someone else has the address.
        batch.add_route(&kernel_route(route, index));
    }
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

fn remove(host: &mut SyncNetlink, name: &str) -> Result<bool, NetlinkError> {
    match host.link_by_name(name)? {
        Some(link) => remove_index(host, link.index),
        None => Ok(false),
    }
}

fn remove_index(host: &mut SyncNetlink, index: u32) -> Result<bool, NetlinkError> {
    match host.delete_link(index) {
        Ok(()) => Ok(true),
        Err(error) if error.is_not_found() => Ok(false),
        Err(error) => Err(error),
    }
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
