//! Which attachments are there, whatever is stored: an attachment lives as long as its interface on
//! the node, which goes with the pod's namespace.

use std::collections::BTreeSet;
use std::net::IpAddr;

use warren_core::consts::{MAIN_TABLE, PROTOCOL_CNI, VETH_PREFIX};
use warren_netlink::{Link, NetlinkError, RouteKind, SyncNetlink};

use crate::env::{AttachmentId, ContainerId, IfName};
use crate::plan::{Mac, host_name};

/// Names that runtimes give to a pod's interfaces: the host side's name is a hash, so that a guess
/// can be verified.
const USUAL_IFNAMES: [&str; 8] = [
    "eth0", "net0", "eth1", "net1", "eth2", "net2", "eth3", "net3",
];

/// An attachment as the kernel shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LiveAttachment {
    /// Its interface on the node.
    pub host_interface: String,
    /// The container; empty when the ADD was killed before it named the interface.
    pub container_id: String,
    /// The interface inside the container; empty when it has no usual name.
    pub ifname: String,
    /// Whether it is of this network, and not of another one on this node.
    pub ours: bool,
    /// The addresses that are routed to it.
    pub addresses: Vec<IpAddr>,
}

/// Where live attachments are seen.
pub trait Live {
    /// The names of the interfaces on the node that this network's attachments have.
    ///
    /// # Errors
    /// [`NetlinkError`].
    fn names(&self) -> Result<BTreeSet<String>, NetlinkError>;

    /// The attachments of all networks that are there.
    ///
    /// # Errors
    /// [`NetlinkError`].
    fn attachments(&self) -> Result<Vec<LiveAttachment>, NetlinkError>;
}

/// The kernel of the calling thread's network namespace.
#[derive(Clone, Copy, Debug)]
pub struct KernelLive {
    /// The hardware address that the interfaces of this network have.
    pub network_mac: Mac,
}

impl Live for KernelLive {
    fn names(&self) -> Result<BTreeSet<String>, NetlinkError> {
        let mut links = warrens_links(&mut SyncNetlink::open()?)?;
        links.retain(|link| link.mac == Some(self.network_mac));
        Ok(links.into_iter().map(|link| link.name).collect())
    }

    fn attachments(&self) -> Result<Vec<LiveAttachment>, NetlinkError> {
        let mut netlink = SyncNetlink::open()?;
        let links = warrens_links(&mut netlink)?;
        let routes = netlink.routes_of(MAIN_TABLE, RouteKind::Unicast, Some(PROTOCOL_CNI))?;
        let attachment = |link: Link| {
            let container_id = link.alias.unwrap_or_default();
            let to_it = routes.iter().filter(|route| route.oif == Some(link.index));
            LiveAttachment {
                ifname: guess_ifname(&container_id, &link.name),
                ours: link.mac == Some(self.network_mac),
                host_interface: link.name,
                container_id,
                addresses: to_it.map(|route| route.dst.addr()).collect(),
            }
        };
        Ok(links.into_iter().map(attachment).collect())
    }
}

fn warrens_links(netlink: &mut SyncNetlink) -> Result<Vec<Link>, NetlinkError> {
    let mut links = netlink.veths()?;
    links.retain(|link| link.name.starts_with(VETH_PREFIX));
    Ok(links)
}

fn guess_ifname(container_id: &str, host_interface: &str) -> String {
    let matches = |ifname: &&str| {
        let container_id = ContainerId::new(container_id);
        container_id
            .zip(IfName::new(*ifname))
            .is_some_and(|(container_id, ifname)| {
                let id = AttachmentId {
                    container_id,
                    ifname,
                };
                host_name(&id) == host_interface
            })
    };
    let found = USUAL_IFNAMES.iter().copied().find(|name| matches(name));
    found.unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_usual_interface_is_recognised_by_the_hash() {
        let id = |ifname| AttachmentId {
            container_id: ContainerId::new("c1").expect("allowed"),
            ifname: IfName::new(ifname).expect("allowed"),
        };
        assert_eq!(guess_ifname("c1", &host_name(&id("eth0"))), "eth0");
        assert_eq!(guess_ifname("c1", &host_name(&id("net3"))), "net3");
        assert_eq!(guess_ifname("c1", &host_name(&id("other"))), "");
        assert_eq!(guess_ifname("", &host_name(&id("eth0"))), "");
    }
}
