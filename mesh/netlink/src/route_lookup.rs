//! Asking the kernel which way a packet would go.

use std::net::IpAddr;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::route::{RouteAttribute, RouteMessage};

use crate::routes::{family_of, route_of};
use crate::{Netlink, NetlinkError, RouteKind};

/// What is known of a packet besides its destination.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RouteLookupOptions {
    /// Its mark, which rules may select by; by default 0.
    pub mark: Option<u32>,
    /// Index of the link it is bound to; by default any.
    pub oif: Option<u32>,
}

/// The way a packet would go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouteLookup {
    /// Index of the link it leaves by; `lo` for the node's own addresses.
    pub oif: u32,
    /// The next hop's address; none when the destination is on the link.
    pub gateway: Option<IpAddr>,
    /// The source address it would get.
    pub prefsrc: Option<IpAddr>,
    /// Largest packet in bytes: the route's, or a smaller one that the path taught (ICMP too big).
    /// None means the link's MTU.
    pub mtu: Option<u32>,
}

impl Netlink {
    /// Looks up the route to `dst`; none when there is none, or one that refuses.
    ///
    /// # Errors
    /// [`NetlinkError::Kernel`].
    pub async fn route_to(
        &self,
        dst: IpAddr,
        options: RouteLookupOptions,
    ) -> Result<Option<RouteLookup>, NetlinkError> {
        let mut message = RouteMessage::default();
        message.header.address_family = family_of(dst);
        message.header.destination_prefix_length = if dst.is_ipv4() { 32 } else { 128 };
        message
            .attributes
            .push(RouteAttribute::Destination(dst.into()));
        message
            .attributes
            .extend(options.mark.map(RouteAttribute::Mark));
        message
            .attributes
            .extend(options.oif.map(RouteAttribute::Oif));
        let answer = match self
            .get(
                "look up route",
                &dst,
                RouteNetlinkMessage::GetRoute(message),
            )
            .await
        {
            Ok(answer) => answer,
            Err(error) if is_no_route(&error) => return Ok(None),
            Err(error) => return Err(error),
        };
        let Some(route) = route_of(answer) else {
            return Ok(None);
        };
        // IPv6 answers with the refusing route where IPv4 answers with its errno.
        let (RouteKind::Unicast | RouteKind::Local, Some(oif)) = (route.kind, route.oif) else {
            return Ok(None);
        };
        Ok(Some(RouteLookup {
            oif,
            gateway: route.gateway,
            prefsrc: route.src,
            mtu: route.mtu,
        }))
    }
}

/// No route; unreachable; prohibited; blackhole (`fib_props`, net/ipv4/fib_semantics.c).
fn is_no_route(error: &NetlinkError) -> bool {
    const REFUSALS: [i32; 4] = [
        libc::ENETUNREACH,
        libc::EHOSTUNREACH,
        libc::EACCES,
        libc::EINVAL,
    ];
    error.errno().is_some_and(|errno| REFUSALS.contains(&errno))
}
