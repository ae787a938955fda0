//! What an attachment looks like in the kernel, decided before anything is touched.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;

use ipnet::IpNet;
use sha2::{Digest, Sha256};
use thiserror::Error;
use warren_core::consts::{
    GATEWAY_V4, GATEWAY_V6, MAIN_TABLE, PROTOCOL_CNI, UNMASQUERADED_GROUP, VETH_PREFIX,
};
use warren_core::files::NodeFile;
use warren_core::plan::{host_prefix, tunnel_address};

use crate::config::{ExtraRoute, PodConf, RangeConf};
use crate::env::AttachmentId;
use crate::result::{CniResult, Interface, IpConfig, Route, RouteDetails};

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
    /// A route goes by a gateway that is not the pod's. CNI error code 7.
    #[error(
        "network configuration has a route to {dst} by gw = {gw}: must be the pod's gateway \
         {gateway}, or be left out"
    )]
    Gateway {
        /// The route's destination.
        dst: IpNet,
        /// Its gateway.
        gw: IpAddr,
        /// The pod's gateway.
        gateway: IpAddr,
    },
    /// A route is of a family that the pod has no address of. CNI error code 7.
    #[error(
        "network configuration has a route to dst = {dst}: must be of a family that the pod has an \
         address of"
    )]
    Family {
        /// The route's destination.
        dst: IpNet,
    },
}

/// An attachment as it shall be: ADD carries it out, and what is found can be compared with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttachPlan {
    /// The MTU of both ends in bytes.
    pub mtu_bytes: u32,
    /// The pod's gateways, one for each of its addresses.
    pub gateways: Vec<IpAddr>,
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
    /// Its link group; 0 is none in particular.
    pub group: u32,
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

/// A route on one end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedRoute {
    /// Its destination.
    pub destination: IpNet,
    /// Its gateway; none for what is on the link.
    pub gateway: Option<IpAddr>,
    /// Its table.
    pub table: u32,
    /// Its metric; none for the kernel's default.
    pub metric: Option<u32>,
    /// Its MTU in bytes; none for the interface's.
    pub mtu_bytes: Option<u32>,
    /// The TCP segment size that it advertises, in bytes; none for the kernel's choice.
    pub advmss_bytes: Option<u32>,
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

/// The hardware address of the node's ends of a network's pods. Each pod sees only its own node end,
/// so that they need not differ; the pair has it from the first instant, so that whatever becomes
/// of an ADD or of the stored state, the kernel tells whose an interface is.
pub fn network_mac(state_dir: &Path, network: &str) -> Mac {
    let mut hash = Sha256::new();
    // Its components: `/var/lib/warren` and `/var/lib/warren/` are one directory.
    for part in state_dir {
        hash.update(part.as_encoded_bytes());
        hash.update([0]);
    }
    hash.update([0]);
    hash.update(network);
    let digest: [u8; 32] = hash.finalize().into();
    mac(&digest[..6])
}

/// Plans an attachment with these addresses. `pod_mac` overrides the hardware address that the
/// pod's end gets by itself.
///
/// # Errors
/// [`PlanError`]; nothing can be made then.
pub fn plan_add(
    attachment: &AttachmentId,
    addresses: &[IpAddr],
    node: &NodeFile,
    conf: &PodConf,
    pod_mac: Option<Mac>,
) -> Result<AttachPlan, PlanError> {
    let host_mac = conf.network_mac;
    let pod_mac = pod_mac.unwrap_or_else(|| mac(&digest(attachment)[12..18]));
    let mut host = EndPlan {
        name: host_name(attachment),
        alias: attachment.container_id.as_str().into(),
        group: match conf.masquerade {
            Some(false) => UNMASQUERADED_GROUP,
            _ => 0,
        },
        mac: host_mac,
        sysctls: Vec::new(),
        addresses: Vec::new(),
        neighbours: Vec::new(),
        routes: Vec::new(),
    };
    let mut pod = EndPlan {
        name: attachment.ifname.as_str().into(),
        alias: String::new(),
        group: 0,
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
        // No router advertisement may change a node's or a pod's routes.
        let key = format!("net/ipv6/conf/{}/accept_ra", end.name);
        end.sysctls.push(Sysctl {
            key,
            value: "0",
            optional: true,
        });
    }
    let mut gateways = Vec::new();
    for address in addresses {
        let source =
            source_for(*address, node).ok_or(PlanError::NoTunnelAddress { address: *address })?;
        let gateway = gateway_for(*address, &conf.ranges);
        gateways.push(gateway);
        host.neighbours.push((*address, pod_mac));
        host.routes.push(PlannedRoute {
            source: Some(source),
            protocol: PROTOCOL_CNI,
            ..on_link(*address)
        });
        pod.addresses.push(host_prefix(*address));
        pod.neighbours.push((gateway, host_mac));
        pod.routes.push(on_link(gateway));
    }
    pod.routes.extend(routed(&gateways, &conf.routes)?);
    Ok(AttachPlan {
        mtu_bytes: conf.mtu_bytes.unwrap_or(node.mtu_bytes),
        gateways,
        host,
        pod,
    })
}

impl AttachPlan {
    /// Adds this attachment to the result of the plugins before.
    pub fn extend(&self, mut result: CniResult, netns: &str, conf: &PodConf) -> CniResult {
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
        for (address, gateway) in self.pod.addresses.iter().zip(&self.gateways) {
            result.ips.push(IpConfig::new(*address, index, *gateway));
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
                details: RouteDetails {
                    mtu_bytes: route.mtu_bytes,
                    advmss_bytes: route.advmss_bytes,
                    priority: route.metric,
                    table: Some(route.table).filter(|table| *table != MAIN_TABLE),
                },
                extra: Default::default(),
            });
        }
        if !conf.dns.is_empty() {
            result.dns = conf.dns.clone();
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

pub(crate) fn mac_text(mac: &Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// The route to what is on the link itself.
fn on_link(address: IpAddr) -> PlannedRoute {
    PlannedRoute {
        destination: host_prefix(address),
        gateway: None,
        table: MAIN_TABLE,
        metric: None,
        mtu_bytes: None,
        advmss_bytes: None,
        source: None,
        scope: SCOPE_LINK,
        protocol: PROTOCOL_BOOT,
    }
}

/// The pod's routes by its gateways: the default ones, and the configuration's. One that names a
/// default route only says more about it.
fn routed(gateways: &[IpAddr], extra: &[ExtraRoute]) -> Result<Vec<PlannedRoute>, PlanError> {
    let by_gateway = |destination: IpNet, gateway: IpAddr| PlannedRoute {
        destination,
        gateway: Some(gateway),
        scope: SCOPE_UNIVERSE,
        ..on_link(gateway)
    };
    let defaults = gateways
        .iter()
        .map(|gw| by_gateway(default_route(*gw), *gw));
    let mut routes: Vec<PlannedRoute> = defaults.collect();
    for route in extra {
        let dst = route.dst;
        let same_family = |gw: &&IpAddr| gw.is_ipv4() == dst.addr().is_ipv4();
        let gateway = *gateways
            .iter()
            .find(same_family)
            .ok_or(PlanError::Family { dst })?;
        if let Some(gw) = route.gw.filter(|gw| *gw != gateway) {
            return Err(PlanError::Gateway { dst, gw, gateway });
        }
        let wanted = PlannedRoute {
            table: route.table.unwrap_or(MAIN_TABLE),
            metric: route.priority,
            mtu_bytes: route.mtu_bytes,
            advmss_bytes: route.advmss_bytes,
            ..by_gateway(dst, gateway)
        };
        let same = |other: &&mut PlannedRoute| {
            (other.destination, other.table) == (dst, wanted.table)
                && (other.metric == wanted.metric || dst.prefix_len() == 0)
        };
        match routes.iter_mut().find(same) {
            Some(other) => *other = wanted,
            None => routes.push(wanted),
        }
    }
    Ok(routes)
}

/// The gateway of the range that the address is in, else the common one.
fn gateway_for(address: IpAddr, ranges: &[RangeConf]) -> IpAddr {
    let own = ranges.iter().find(|range| range.contains(address));
    if let Some(gateway) = own.and_then(|range| range.gateway) {
        return gateway;
    }
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
