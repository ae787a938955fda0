//! What an attachment looks like in the kernel, decided before anything is touched.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use sha2::{Digest, Sha256};
use thiserror::Error;
use warren_core::consts::{GATEWAY_V4, GATEWAY_V6, PROTOCOL_CNI, VETH_PREFIX};
use warren_core::files::NodeFile;
use warren_core::plan::{host_prefix, tunnel_address};

use crate::env::AttachmentId;
use crate::result::{CniResult, Dns, Interface, IpConfig, Route};

/// A hardware address.
pub type Mac = [u8; 6];

/// `RT_SCOPE_UNIVERSE` (linux/rtnetlink.h).
const SCOPE_UNIVERSE: u8 = 0;
/// `RT_SCOPE_LINK`.
const SCOPE_LINK: u8 = 253;
/// `RTPROT_BOOT`: what ip-route(8) gives to routes that nobody claims.
const PROTOCOL_BOOT: u8 = 3;

/// Why no plan can be made.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PlanError {
    /// The node's record has no source for the pod's routes. CNI error code 11.
    #[error("the node's record names no tunnel address of the family of {address}")]
    NoTunnelAddress {
        /// The pod's address.
        address: IpAddr,
    },
}

/// An attachment as it shall be: ADD carries it out, and what is found can be compared with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttachPlan {
    /// The MTU of both ends in bytes.
    pub mtu_bytes: u32,
    /// The end in the node's namespace.
    pub host: EndPlan,
    /// The end in the pod's namespace.
    pub pod: EndPlan,
}

/// One end of the veth pair, with all that hangs on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndPlan {
    /// Its name.
    pub name: String,
    /// Its alias; empty for none.
    pub alias: String,
    /// Its hardware address: chosen here, so that the other end's neighbour entries need no
    /// reading back.
    pub mac: Mac,
    /// Its settings, written before it is switched on.
    pub sysctls: Vec<Sysctl>,
    /// Its addresses.
    pub addresses: Vec<IpNet>,
    /// Its permanent neighbour entries.
    pub neighbours: Vec<(IpAddr, Mac)>,
    /// Its routes, in the order of adding them.
    pub routes: Vec<PlannedRoute>,
}

/// A setting under `/proc/sys`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sysctl {
    /// Its path below `/proc/sys`.
    pub key: String,
    /// Its value.
    pub value: &'static str,
    /// Whether the attachment works without it: a kernel without IPv6 has none of its settings.
    pub optional: bool,
}

/// A route on one end, in the main table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedRoute {
    /// Its destination.
    pub destination: IpNet,
    /// Its gateway; none for what is on the link.
    pub gateway: Option<IpAddr>,
    /// The source that it gives to the node's own packets.
    pub source: Option<IpAddr>,
    /// Its scope (IPv6 has none and ignores it).
    pub scope: u8,
    /// Who made it.
    pub protocol: u8,
}

/// The host side's name of an attachment: `wrn` and 12 hexadecimal digits of a hash of it. It can
/// be found without the pod's namespace and without any stored state.
pub fn host_name(attachment: &AttachmentId) -> String {
    let digest = digest(attachment);
    let hex = |out: String, byte: &u8| out + &format!("{byte:02x}");
    digest[..6].iter().fold(VETH_PREFIX.to_owned(), hex)
}

/// Plans an attachment with these addresses. `mtu_bytes` overrides the node's.
///
/// # Errors
/// [`PlanError::NoTunnelAddress`]: the agent has not finished, or the node lost a family.
pub fn plan_add(
    attachment: &AttachmentId,
    addresses: &[IpAddr],
    node: &NodeFile,
    mtu_bytes: Option<u32>,
) -> Result<AttachPlan, PlanError> {
    let digest = digest(attachment);
    let (host_mac, pod_mac) = (mac(&digest[6..12]), mac(&digest[12..18]));
    let mut host = EndPlan {
        name: host_name(attachment),
        alias: attachment.container_id.as_str().into(),
        mac: host_mac,
        sysctls: Vec::new(),
        addresses: Vec::new(),
        neighbours: Vec::new(),
        routes: Vec::new(),
    };
    let mut pod = EndPlan {
        name: attachment.ifname.as_str().into(),
        alias: String::new(),
        mac: pod_mac,
        ..host.clone()
    };
    if addresses.iter().any(IpAddr::is_ipv6) {
        // Runtimes switch IPv6 off in a pod's namespace where they know of no IPv6.
        for end in [&mut host, &mut pod] {
            let key = format!("net/ipv6/conf/{}/disable_ipv6", end.name);
            end.sysctls.push(Sysctl {
                key,
                value: "0",
                optional: false,
            });
        }
    }
    for end in [&mut host, &mut pod] {
        // No router advertisement may change a node's or a pod's routes, and no link-local
        // address is needed: the filter drops fe80::/10 from pods anyway.
        for (name, value) in [("accept_ra", "0"), ("addr_gen_mode", "1")] {
            let key = format!("net/ipv6/conf/{}/{name}", end.name);
            end.sysctls.push(Sysctl {
                key,
                value,
                optional: true,
            });
        }
    }
    for address in addresses {
        let source =
            source_for(*address, node).ok_or(PlanError::NoTunnelAddress { address: *address })?;
        let gateway = gateway_for(*address);
        host.neighbours.push((*address, pod_mac));
        host.routes.push(PlannedRoute {
            destination: host_prefix(*address),
            gateway: None,
            source: Some(source),
            scope: SCOPE_LINK,
            protocol: PROTOCOL_CNI,
        });
        pod.addresses.push(host_prefix(*address));
        pod.neighbours.push((gateway, host_mac));
        pod.routes.push(PlannedRoute {
            destination: host_prefix(gateway),
            gateway: None,
            source: None,
            scope: SCOPE_LINK,
            protocol: PROTOCOL_BOOT,
        });
        pod.routes.push(PlannedRoute {
            destination: default_route(*address),
            gateway: Some(gateway),
            source: None,
            scope: SCOPE_UNIVERSE,
            protocol: PROTOCOL_BOOT,
        });
    }
    Ok(AttachPlan {
        mtu_bytes: mtu_bytes.unwrap_or(node.mtu_bytes),
        host,
        pod,
    })
}

impl AttachPlan {
    /// Adds this attachment to the result of the plugins before.
    pub fn extend(&self, mut result: CniResult, netns: &str, dns: &Dns) -> CniResult {
        let interface = |end: &EndPlan, sandbox: Option<String>| Interface {
            name: end.name.clone(),
            mac: Some(mac_text(&end.mac)),
            mtu_bytes: Some(self.mtu_bytes),
            sandbox,
            ..Interface::default()
        };
        result.interfaces.push(interface(&self.host, None));
        let index = result.interfaces.len();
        result
            .interfaces
            .push(interface(&self.pod, Some(netns.to_owned())));
        for address in &self.pod.addresses {
            result
                .ips
                .push(IpConfig::new(*address, index, gateway_for(address.addr())));
        }
        // The link routes to the gateways are left out: a route without a gateway is read as one
        // by the default gateway.
        for route in self
            .pod
            .routes
            .iter()
            .filter(|route| route.gateway.is_some())
        {
            result.routes.push(Route {
                dst: route.destination,
                gw: route.gateway,
                extra: Default::default(),
            });
        }
        if *dns != Dns::default() {
            result.dns = dns.clone();
        }
        result
    }
}

fn digest(attachment: &AttachmentId) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(attachment.container_id.as_str());
    // No container id holds a NUL, so that no two attachments give the same text.
    hash.update([0]);
    hash.update(attachment.ifname.as_str());
    hash.finalize().into()
}

/// A locally administered unicast address (IEEE 802, section 8) of these six bytes.
fn mac(bytes: &[u8]) -> Mac {
    let mut mac = [0; 6];
    mac.copy_from_slice(bytes);
    mac[0] = (mac[0] | 0x02) & !0x01;
    mac
}

fn mac_text(mac: &Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

fn gateway_for(address: IpAddr) -> IpAddr {
    if address.is_ipv4() {
        GATEWAY_V4.into()
    } else {
        GATEWAY_V6.into()
    }
}

fn default_route(address: IpAddr) -> IpNet {
    match address {
        IpAddr::V4(_) => IpNet::V4(ipnet::Ipv4Net::default()),
        IpAddr::V6(_) => IpNet::V6(ipnet::Ipv6Net::default()),
    }
}

/// The tunnel's address for a pod: of the podCIDR that the pod is in, else any of its family, for
/// a pod keeps its address when the podCIDR changes.
fn source_for(address: IpAddr, node: &NodeFile) -> Option<IpAddr> {
    let of_family: BTreeSet<IpAddr> = node
        .tunnel_addresses
        .iter()
        .copied()
        .filter(|a| a.is_ipv4() == address.is_ipv4())
        .collect();
    let own = node
        .pod_cidrs
        .iter()
        .filter(|cidr| cidr.contains(&address))
        .map(tunnel_address);
    own.into_iter()
        .find(|a| of_family.contains(a))
        .or_else(|| of_family.first().copied())
}
