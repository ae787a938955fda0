//! What a network configuration says of pods.

use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::Value;
use warren_core::consts::MIN_MTU;

use super::runtime::Asked;
use super::{ConfigError, Fields, invalid, unsupported};
use crate::args::parse_address;
use crate::plan::Mac;
use crate::result::Dns;

/// The largest MTU that a veth takes (linux/if_ether.h, `ETH_MAX_MTU`).
const MAX_MTU: u32 = 65_535;
/// The smallest MTU that IPv4 works with (RFC 791, section 3.2).
const MIN_MTU_V4: u32 = 68;
/// The kernel's table of addresses of its own (`RT_TABLE_LOCAL`, linux/rtnetlink.h).
const LOCAL_TABLE: u32 = 255;
/// The most ranges, routes and exclusions that are read: each costs time at every call.
const MAX_ENTRIES: usize = 1024;

/// How pods of a network are attached.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PodConf {
    /// The hardware address of the node's ends of the pods' pairs, see
    /// [`network_mac`](crate::plan::network_mac).
    pub network_mac: Mac,
    /// `mtu`: the pods' MTU in bytes, 1280 to 65535. Default: what the node's record says.
    pub mtu_bytes: Option<u32>,
    /// `dns`: handed on in the result. Default: what an earlier plugin said, or nothing.
    pub dns: Dns,
    /// `ranges`: where addresses are taken from, one of each family that is listed. Default: the
    /// node's podCIDRs.
    pub ranges: Vec<RangeConf>,
    /// `routes`: routes inside the pod beside the default ones. Default: none.
    pub routes: Vec<ExtraRoute>,
    /// `masquerade` (or `ipMasq`, the name that CNI plugins share): whether what the pods send to
    /// outside the mesh gets the node's address. Default: as the agent is configured, which is yes.
    /// Without it, and without someone else's source NAT, such packets are dropped: Warren lets
    /// none with a pod's address out.
    pub masquerade: Option<bool>,
    /// `runtimeConfig` and `args`: what the runtime asks for this one pod.
    pub asked: Asked,
}

/// A range that addresses are given from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RangeConf {
    /// `subnet`: the prefix, inside a podCIDR of the node. Its network, first and (IPv4) last
    /// address are never given.
    pub subnet: IpNet,
    /// `rangeStart`: the first address that may be given. Default: the subnet's second.
    pub first: Option<IpAddr>,
    /// `rangeEnd`: the last one. Default: the subnet's last.
    pub last: Option<IpAddr>,
    /// `gateway`: the pods' gateway, which is the node whatever the address. Default: 169.254.1.1
    /// or fe80::1. It is never given to a pod.
    pub gateway: Option<IpAddr>,
    /// `exclude`: addresses and prefixes that are never given. Default: none.
    pub exclude: Vec<IpNet>,
}

/// A route inside the pod, by its gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExtraRoute {
    /// `dst`: the destination.
    pub dst: IpNet,
    /// `gw`: the pod's gateway of that family, if it is given at all: there is no other neighbour.
    pub gw: Option<IpAddr>,
    /// `mtu`: the path's MTU in bytes, 68 (IPv6: 1280) to 65535. Default: the interface's.
    pub mtu_bytes: Option<u32>,
    /// `advmss`: the largest TCP segment in bytes to advertise, 1 to 65535. Default: the kernel's.
    pub advmss_bytes: Option<u32>,
    /// `priority`: the metric; lower wins. Default: the kernel's.
    pub priority: Option<u32>,
    /// `table`: the routing table, any but 0 and 255. Default: the main one, 254.
    pub table: Option<u32>,
}

impl RangeConf {
    /// Whether this range gives the address.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.subnet.contains(&address)
            && self.first.is_none_or(|first| first <= address)
            && self.last.is_none_or(|last| address <= last)
    }
}

impl PodConf {
    pub(super) fn parse(fields: &Fields<'_>, network_mac: Mac) -> Result<Self, ConfigError> {
        if let Some(ipam) = fields.get("ipam")
            && ipam.as_object().is_none_or(|object| !object.is_empty())
        {
            let instead = "warren-cni gives the addresses itself, see \"ranges\"";
            return Err(unsupported("ipam", ipam, instead));
        }
        let allowed = "must be a whole number of bytes from 1280 to 65535";
        Ok(Self {
            network_mac,
            mtu_bytes: fields.number("mtu", (MIN_MTU, MAX_MTU), allowed)?,
            dns: dns(fields)?,
            ranges: objects(fields, "ranges")?
                .iter()
                .map(range)
                .collect::<Result<_, _>>()?,
            routes: objects(fields, "routes")?
                .iter()
                .map(route)
                .collect::<Result<_, _>>()?,
            masquerade: masquerade(fields)?,
            asked: Asked::parse(fields)?,
        })
    }
}

/// The objects of the list under this key.
fn objects<'a>(fields: &Fields<'a>, key: &str) -> Result<Vec<Fields<'a>>, ConfigError> {
    let Some(value) = fields.get(key) else {
        return Ok(Vec::new());
    };
    let Some(items) = value.as_array().filter(|items| items.len() <= MAX_ENTRIES) else {
        return Err(fields.invalid(key, value, "must be a list of at most 1024 objects"));
    };
    let entry = |(i, item): (usize, &'a Value)| Fields::of(item, format!("{key}[{i}]"));
    items.iter().enumerate().map(entry).collect()
}

fn masquerade(fields: &Fields<'_>) -> Result<Option<bool>, ConfigError> {
    let (ours, common) = (fields.boolean("masquerade")?, fields.boolean("ipMasq")?);
    match (ours, common) {
        (Some(ours), Some(common)) if ours != common => {
            let allowed = "must be what masquerade says, or be left out";
            Err(fields.invalid("ipMasq", &common.into(), allowed))
        }
        _ => Ok(ours.or(common)),
    }
}

fn range(fields: &Fields<'_>) -> Result<RangeConf, ConfigError> {
    let allowed = "must be a prefix without host bits, such as 10.244.1.0/24";
    let prefix = |text: &str| text.parse().ok().filter(|net: &IpNet| net.trunc() == *net);
    let subnet = fields
        .parsed("subnet", allowed, prefix)?
        .ok_or_else(|| fields.invalid("subnet", &Value::Null, allowed))?;
    let inside = |key| {
        let allowed = "must be an address inside the range's subnet";
        let address = |text: &str| text.parse().ok().filter(|ip: &IpAddr| subnet.contains(ip));
        fields.parsed(key, allowed, address)
    };
    let (first, last) = (inside("rangeStart")?, inside("rangeEnd")?);
    if let (Some(first), Some(last)) = (first, last)
        && last < first
    {
        let allowed = "must be rangeStart or an address behind it";
        return Err(fields.invalid("rangeEnd", &last.to_string().into(), allowed));
    }
    let allowed = "must be an address of the subnet's family that a node can have";
    let family = |ip: &IpAddr| ip.is_ipv4() == subnet.addr().is_ipv4();
    let gateway = fields.parsed("gateway", allowed, |text| {
        // With a prefix length it would be a mistake for something else.
        text.parse::<IpAddr>().ok()?;
        parse_address(text).filter(family)
    })?;
    let allowed = "each must be an address or a prefix inside the range's subnet";
    let exclude = fields.list("exclude", allowed, |text| {
        let net = text
            .parse()
            .ok()
            .or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from));
        net.map(|net| net.trunc())
            .filter(|net| subnet.contains(net))
    })?;
    if exclude.len() > MAX_ENTRIES {
        let allowed = "must be a list of at most 1024 addresses and prefixes";
        return Err(fields.invalid("exclude", &exclude.len().into(), allowed));
    }
    Ok(RangeConf {
        subnet,
        first,
        last,
        gateway,
        exclude,
    })
}

fn route(fields: &Fields<'_>) -> Result<ExtraRoute, ConfigError> {
    let allowed = "must be a prefix, such as 192.0.2.0/24";
    let dst = fields
        .parsed("dst", allowed, |text| text.parse::<IpNet>().ok())?
        .ok_or_else(|| fields.invalid("dst", &Value::Null, allowed))?
        .trunc();
    let family = |ip: &IpAddr| ip.is_ipv4() == dst.addr().is_ipv4();
    let allowed = "must be the pod's gateway, of the family of dst, or be left out";
    let gw = fields.parsed("gw", allowed, |text| text.parse().ok().filter(family))?;
    let (min, allowed) = match dst {
        IpNet::V4(_) => (
            MIN_MTU_V4,
            "must be a whole number of bytes from 68 to 65535",
        ),
        IpNet::V6(_) => (
            MIN_MTU,
            "must be a whole number of bytes from 1280 to 65535",
        ),
    };
    let mtu_bytes = fields.number("mtu", (min, MAX_MTU), allowed)?;
    let allowed = "must be a whole number of bytes from 1 to 65535";
    let advmss_bytes = fields.number("advmss", (1, MAX_MTU), allowed)?;
    let allowed = "must be a whole number from 0 to 4294967295";
    let priority = fields.number("priority", (0, u32::MAX), allowed)?;
    let allowed = "must be a whole number from 1 to 4294967295, but not 255";
    let table = fields.number("table", (1, u32::MAX), allowed)?;
    if let Some(local) = table.filter(|table| *table == LOCAL_TABLE) {
        return Err(fields.invalid("table", &local.into(), allowed));
    }
    // A route by a gateway is of global scope; nothing else works here.
    let allowed = "must be 0 or be left out: the route leads to the pod's gateway";
    fields.number("scope", (0, 0), allowed)?;
    Ok(ExtraRoute {
        dst,
        gw,
        mtu_bytes,
        advmss_bytes,
        priority,
        table,
    })
}

fn dns(fields: &Fields<'_>) -> Result<Dns, ConfigError> {
    let allowed = "must be an object of nameservers, search and options (lists of strings) and \
                   domain (a string)";
    let Some(value) = fields.get("dns") else {
        return Ok(Dns::default());
    };
    let dns: Dns =
        serde_json::from_value(value.clone()).map_err(|_| invalid("dns", value, allowed))?;
    for server in &dns.nameservers {
        if server.parse::<IpAddr>().is_err() {
            let allowed = "each must be an IP address";
            return Err(invalid("dns.nameservers", &server.as_str().into(), allowed));
        }
    }
    Ok(dns)
}
