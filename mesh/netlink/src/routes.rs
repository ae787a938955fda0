//! Routes.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RouteScope,
    RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::{Netlink, NetlinkError};

/// The metric that the kernel gives an IPv6 route that asks for none (`IP6_RT_PRIO_USER`,
/// linux/ipv6_route.h).
const IPV6_DEFAULT_METRIC: u32 = 1024;
/// Index of `lo`, the same in every namespace; IPv6 routes that refuse are tied to it.
const LOOPBACK_INDEX: u32 = 1;

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Returns the family of an address.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() {
            Self::V4
        } else {
            Self::V6
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// What happens to a packet that a route matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RouteKind {
    /// It is sent on.
    Unicast,
    /// It is refused, and the sender told (ICMP unreachable).
    Unreachable,
    /// It is dropped without a word.
    Blackhole,
    /// It is delivered here.
    Local,
    /// Any other (`RTN_*`, linux/rtnetlink.h).
    Other(u8),
}

/// A route, as the kernel has it and as it is asked for.
///
/// What [`Netlink::routes`] returns for a route equals what was added, if that was what
/// [`Route::as_reported`] returns. The kernel tells routes apart by table, destination and metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Route {
    /// Routing table: 254 is main, 255 local.
    pub table: u32,
    /// Destination prefix; host bits are ignored.
    pub dst: IpNet,
    /// What happens to a packet.
    pub kind: RouteKind,
    /// Index of the link it leaves by; none for routes that refuse, and on multipath routes.
    pub oif: Option<u32>,
    /// The next hop's address; none means the destination is on the link.
    pub gateway: Option<IpAddr>,
    /// The source address that local programs get.
    pub src: Option<IpAddr>,
    /// Lower wins. For IPv6, 0 asks for the kernel's default and becomes 1024.
    pub metric: u32,
    /// Largest packet in bytes; none means the link's MTU.
    pub mtu: Option<u32>,
    /// Largest TCP segment in bytes to advertise; none means what fits the MTU.
    pub advmss: Option<u32>,
    /// Who made it (`RTPROT_*`, linux/rtnetlink.h): 2 the kernel, 3 and 4 people, 9 router
    /// advertisements.
    pub protocol: u8,
    /// IPv4's distance (`RT_SCOPE_*`, linux/rtnetlink.h): 0 by a gateway, 253 on the link, 254
    /// here. IPv6 has none: it is ignored, and 0 in what the kernel reports.
    pub scope: u8,
    /// Whether the gateway counts as on the link although no address there covers it.
    pub onlink: bool,
}

impl Route {
    /// Returns the route to a destination that is on the link `oif`, with metric 0.
    pub fn on_link(table: u32, dst: IpNet, oif: u32, protocol: u8) -> Self {
        let kind = RouteKind::Unicast;
        let scope = u8::from(RouteScope::Link);
        Self {
            oif: Some(oif),
            scope,
            ..Self::bare(table, dst, kind, protocol)
        }
        .as_reported()
    }

    /// Returns the route to a destination by a gateway on the link `oif`, with metric 0.
    pub fn by_gateway(table: u32, dst: IpNet, oif: u32, gateway: IpAddr, protocol: u8) -> Self {
        let bare = Self::bare(table, dst, RouteKind::Unicast, protocol);
        Self {
            oif: Some(oif),
            gateway: Some(gateway),
            ..bare
        }
        .as_reported()
    }

    /// Returns the route that refuses a destination.
    pub fn unreachable(table: u32, dst: IpNet, metric: u32, protocol: u8) -> Self {
        Self {
            metric,
            ..Self::bare(table, dst, RouteKind::Unreachable, protocol)
        }
        .as_reported()
    }

    /// Returns the route in the form in which the kernel will report it: no host bits, and for IPv6
    /// the default metric written out and no scope.
    pub fn as_reported(self) -> Self {
        let mut route = Self {
            dst: self.dst.trunc(),
            ..self
        };
        if Family::of(route.dst.addr()) == Family::V6 {
            route.scope = 0;
            if route.metric == 0 {
                route.metric = IPV6_DEFAULT_METRIC;
            }
        }
        if !route.leaves() {
            route.oif = None;
        }
        route
    }

    fn bare(table: u32, dst: IpNet, kind: RouteKind, protocol: u8) -> Self {
        Self {
            table,
            dst,
            kind,
            oif: None,
            gateway: None,
            src: None,
            metric: 0,
            mtu: None,
            advmss: None,
            protocol,
            scope: 0,
            onlink: false,
        }
    }

    /// Whether its packets leave by a link; the others name `lo` in IPv6 and nothing in IPv4.
    fn leaves(&self) -> bool {
        !matches!(
            RouteType::from(self.kind),
            RouteType::BlackHole | RouteType::Unreachable | RouteType::Prohibit | RouteType::Throw
        )
    }

    /// What the kernel tells routes apart by.
    fn key(&self) -> (u32, IpNet, u32) {
        (self.table, self.dst, self.metric)
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.kind != RouteKind::Unicast {
            write!(f, "{:?} ", self.kind)?;
        }
        write!(f, "{}", self.dst)?;
        if let Some(gateway) = self.gateway {
            write!(f, " via {gateway}")?;
        }
        if let Some(oif) = self.oif {
            write!(f, " link {oif}")?;
        }
        if let Some(src) = self.src {
            write!(f, " src {src}")?;
        }
        if let Some(mtu) = self.mtu {
            write!(f, " mtu {mtu}")?;
        }
        write!(
            f,
            " table {} metric {} protocol {}",
            self.table, self.metric, self.protocol
        )
    }
}

impl Netlink {
    /// Lists the routes of every table, of one family or both. Cached exceptions are not routes.
    ///
    /// # Errors
    /// [`NetlinkError::Kernel`], [`NetlinkError::Interrupted`].
    pub async fn routes(&self, family: Option<Family>) -> Result<Vec<Route>, NetlinkError> {
        let mut routes = Vec::new();
        for one in [Family::V4, Family::V6] {
            if family.is_none_or(|family| family == one) {
                routes.extend(self.routes_of(one, None).await?);
            }
        }
        Ok(routes)
    }

    /// Lists the routes of one table, of both families, and if told those that one program made
    /// (`RTPROT_*`). The kernel selects: a table of a million others costs little.
    ///
    /// # Errors
    /// [`NetlinkError::Kernel`], [`NetlinkError::Interrupted`].
    pub async fn routes_in(
        &self,
        table: u32,
        protocol: Option<u8>,
    ) -> Result<Vec<Route>, NetlinkError> {
        let mut routes = Vec::new();
        for family in [Family::V4, Family::V6] {
            routes.extend(self.routes_by(family, Some(table), protocol).await?);
        }
        Ok(routes)
    }

    /// Lists the routes of one family and, if told, one table.
    async fn routes_of(
        &self,
        family: Family,
        table: Option<u32>,
    ) -> Result<Vec<Route>, NetlinkError> {
        self.routes_by(family, table, None).await
    }

    async fn routes_by(
        &self,
        family: Family,
        table: Option<u32>,
        protocol: Option<u8>,
    ) -> Result<Vec<Route>, NetlinkError> {
        let mut message = RouteMessage::default();
        message.header.address_family = family.into();
        message.header.protocol = protocol.unwrap_or(0).into();
        message.attributes.extend(table.map(RouteAttribute::Table));
        let answers = match self
            .dump("list routes", RouteNetlinkMessage::GetRoute(message))
            .await
        {
            Ok(answers) => answers,
            // The table was never made, or IPv6 is not there at all: no routes.
            Err(error) if error.is_not_found() => return Ok(Vec::new()),
            Err(error) if error.errno() == Some(libc::EAFNOSUPPORT) => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let wanted = |route: &Route| {
            Family::of(route.dst.addr()) == family
                && table.is_none_or(|table| route.table == table)
                && protocol.is_none_or(|protocol| route.protocol == protocol)
        };
        Ok(answers
            .into_iter()
            .filter_map(route_of)
            .filter(wanted)
            .collect())
    }

    /// Adds a route.
    ///
    /// # Errors
    /// [`NetlinkError::Kernel`]; `is_exists` when its table has a route of that destination and
    /// metric; `is_not_found` when its link does not exist; ENETDOWN when it is down.
    pub async fn add_route(&self, route: &Route) -> Result<(), NetlinkError> {
        let message = RouteNetlinkMessage::NewRoute(message_of(&route.as_reported()));
        self.change("add route", route, message, NLM_F_CREATE | NLM_F_EXCL)
            .await
    }

    /// Makes this the only route of its table, destination and metric.
    ///
    /// There is no moment without one. The kernel alone does not see to it: in IPv6 it replaces only
    /// a route of the same sort (with a gateway or without), and in both families it leaves any
    /// further ones of the same metric.
    ///
    /// # Errors
    /// [`NetlinkError::Kernel`]; `is_not_found` when its link does not exist.
    pub async fn replace_route(&self, route: &Route) -> Result<(), NetlinkError> {
        match self.add_route(route).await {
            Err(error) if error.is_exists() => {}
            other => return other,
        }
        self.force_route(route).await?;
        let wanted = route.as_reported();
        let mut present = self
            .routes_of(Family::of(wanted.dst.addr()), Some(wanted.table))
            .await?;
        present.retain(|other| other.key() == wanted.key());
        if present.iter().filter(|other| **other != wanted).count() == 0 {
            return Ok(());
        }
        for other in present.iter().filter(|other| **other != wanted) {
            match self.delete_route(other).await {
                Err(error) if !error.is_not_found() => return Err(error),
                _ => {}
            }
        }
        // The kernel may have taken ours for one that differs in what it does not compare.
        self.force_route(route).await
    }

    /// Makes this the route of its table, destination and metric where there is one of the same sort
    /// and no other: [`Netlink::replace_route`] without the look at all routes of the table.
    ///
    /// # Errors
    /// [`NetlinkError::Kernel`]; `is_not_found` when its link does not exist.
    pub async fn overwrite_route(&self, route: &Route) -> Result<(), NetlinkError> {
        self.force_route(route).await
    }

    async fn force_route(&self, route: &Route) -> Result<(), NetlinkError> {
        let message = RouteNetlinkMessage::NewRoute(message_of(&route.as_reported()));
        match self
            .change(
                "replace route",
                route,
                message,
                NLM_F_CREATE | NLM_F_REPLACE,
            )
            .await
        {
            // It is there, though not as the first of its metric.
            Err(error) if error.is_exists() => Ok(()),
            other => other,
        }
    }

    /// Deletes a route: the one of this table, destination, metric, kind, link and gateway.
    ///
    /// # Errors
    /// [`NetlinkError::Kernel`]; `is_not_found` when there is none.
    pub async fn delete_route(&self, route: &Route) -> Result<(), NetlinkError> {
        let wanted = route.as_reported();
        let family = Family::of(wanted.dst.addr());
        if family == Family::V4 && wanted.metric == 0 {
            // IPv4 takes a metric of 0 for "any", and would delete a guard of higher metric.
            let present = self.routes_of(family, Some(wanted.table)).await?;
            if !present.iter().any(|other| other.key() == wanted.key()) {
                return Err(NetlinkError::Kernel {
                    operation: "delete route",
                    subject: route.to_string(),
                    errno: libc::ESRCH,
                    detail: None,
                });
            }
        }
        let mut message = message_of(&wanted);
        message.attributes.retain(|attribute| {
            !matches!(
                attribute,
                RouteAttribute::Metrics(_) | RouteAttribute::PrefSource(_)
            )
        });
        // "Any" here: a route's scope and maker are not what it is known by.
        message.header.scope = RouteScope::NoWhere;
        message.header.protocol = 0.into();
        if family == Family::V6 && !wanted.leaves() {
            // IPv6 does not compare kinds: without the link it may delete a unicast route.
            message.attributes.push(RouteAttribute::Oif(LOOPBACK_INDEX));
        }
        self.change(
            "delete route",
            route,
            RouteNetlinkMessage::DelRoute(message),
            0,
        )
        .await
    }
}

pub(crate) fn message_of(route: &Route) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header = RouteHeader {
        address_family: family_of(route.dst.addr()),
        destination_prefix_length: route.dst.prefix_len(),
        protocol: route.protocol.into(),
        scope: route.scope.into(),
        kind: route.kind.into(),
        flags: if route.onlink {
            RouteFlags::Onlink
        } else {
            RouteFlags::empty()
        },
        ..RouteHeader::default()
    };
    let attributes = &mut message.attributes;
    attributes.push(RouteAttribute::Table(route.table));
    attributes.push(RouteAttribute::Destination(route.dst.network().into()));
    attributes.extend(route.oif.map(RouteAttribute::Oif));
    attributes.extend(route.gateway.map(|ip| RouteAttribute::Gateway(ip.into())));
    attributes.extend(route.src.map(|ip| RouteAttribute::PrefSource(ip.into())));
    if route.metric != 0 {
        attributes.push(RouteAttribute::Priority(route.metric));
    }
    let mtu = route.mtu.map(RouteMetric::Mtu);
    let metrics: Vec<_> = mtu
        .into_iter()
        .chain(route.advmss.map(RouteMetric::Advmss))
        .collect();
    if !metrics.is_empty() {
        attributes.push(RouteAttribute::Metrics(metrics));
    }
    message
}

/// Reads a route; messages that are no routes, or of other families, are none.
pub(crate) fn route_of(message: RouteNetlinkMessage) -> Option<Route> {
    let RouteNetlinkMessage::NewRoute(message) = message else {
        return None;
    };
    let header = message.header;
    let unspecified: IpAddr = match Family::try_from(header.address_family).ok()? {
        Family::V4 => std::net::Ipv4Addr::UNSPECIFIED.into(),
        Family::V6 => std::net::Ipv6Addr::UNSPECIFIED.into(),
    };
    let whole = IpNet::new(unspecified, header.destination_prefix_length).ok()?;
    let mut route = Route {
        scope: header.scope.into(),
        onlink: header.flags.contains(RouteFlags::Onlink),
        ..Route::bare(
            header.table.into(),
            whole,
            header.kind.into(),
            header.protocol.into(),
        )
    };
    for attribute in message.attributes {
        match attribute {
            RouteAttribute::Table(table) => route.table = table,
            RouteAttribute::Destination(address) => {
                route.dst = IpNet::new(ip_of(&address)?, header.destination_prefix_length).ok()?;
            }
            RouteAttribute::Oif(index) => route.oif = Some(index),
            RouteAttribute::Gateway(address) => route.gateway = ip_of(&address),
            RouteAttribute::PrefSource(address) => route.src = ip_of(&address),
            RouteAttribute::Priority(metric) => route.metric = metric,
            RouteAttribute::Metrics(metrics) => {
                for metric in metrics {
                    match metric {
                        RouteMetric::Mtu(mtu) => route.mtu = Some(mtu),
                        RouteMetric::Advmss(advmss) => route.advmss = Some(advmss),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    if !route.leaves() {
        route.oif = None;
    }
    Some(route)
}

pub(crate) fn ip_of(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(ip) => Some((*ip).into()),
        RouteAddress::Inet6(ip) => Some((*ip).into()),
        _ => None,
    }
}

pub(crate) fn family_of(address: IpAddr) -> AddressFamily {
    Family::of(address).into()
}

impl From<Family> for AddressFamily {
    fn from(family: Family) -> Self {
        match family {
            Family::V4 => Self::Inet,
            Family::V6 => Self::Inet6,
        }
    }
}

impl TryFrom<AddressFamily> for Family {
    type Error = AddressFamily;

    fn try_from(family: AddressFamily) -> Result<Self, AddressFamily> {
        match family {
            AddressFamily::Inet => Ok(Self::V4),
            AddressFamily::Inet6 => Ok(Self::V6),
            other => Err(other),
        }
    }
}

impl From<RouteKind> for RouteType {
    fn from(kind: RouteKind) -> Self {
        match kind {
            RouteKind::Unicast => Self::Unicast,
            RouteKind::Unreachable => Self::Unreachable,
            RouteKind::Blackhole => Self::BlackHole,
            RouteKind::Local => Self::Local,
            RouteKind::Other(number) => number.into(),
        }
    }
}

impl From<RouteType> for RouteKind {
    fn from(kind: RouteType) -> Self {
        match kind {
            RouteType::Unicast => Self::Unicast,
            RouteType::Unreachable => Self::Unreachable,
            RouteType::BlackHole => Self::Blackhole,
            RouteType::Local => Self::Local,
            other => Self::Other(other.into()),
        }
    }
}
