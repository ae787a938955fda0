//! The network below the tunnel: this node's addresses, and how large its packets may be.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use warren_core::degraded::WayTrouble;
use warren_core::endpoint::unusable;
use warren_core::mtu::DEFAULT_UNDERLAY_MTU;
use warren_netlink::{Link, Netlink, NetlinkError, RouteLookup, RouteLookupOptions};

use super::{HostError, Underlay, UnderlayQuery, Way};

/// Addresses that only a default route leads to: reserved for documentation (RFC 5737, RFC 3849).
/// Nothing is sent to them; the kernel is asked which source it would take.
const OUTSIDE: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(203, 0, 113, 1)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0xffff, 0, 0, 0, 1)),
];

/// Index of `lo`, the same in every network namespace.
const LOOPBACK: u32 = 1;

pub(super) async fn read(
    netlink: &Netlink,
    tunnel: Option<u32>,
    query: &UnderlayQuery,
) -> Result<Underlay, HostError> {
    let links: BTreeMap<u32, Link> = netlink
        .links()
        .await?
        .into_iter()
        .map(|link| (link.index, link))
        .collect();
    let mtu_of = |way: &RouteLookup| mtu_of(way, links.get(&way.oif)?, tunnel);
    let down_of = |way: &RouteLookup| down_of(links.get(&way.oif)?);
    let mut addresses = Vec::new();
    let mut down = BTreeSet::new();
    let mut smallest = None::<u32>;
    for outside in OUTSIDE {
        let Some(way) = lookup(netlink, outside).await? else {
            continue;
        };
        let Some(mtu) = mtu_of(&way) else { continue };
        down.extend(down_of(&way));
        smallest = Some(smallest.map_or(mtu, |least| least.min(mtu)));
        addresses.extend(way.prefsrc.filter(|address| unusable(*address).is_none()));
    }
    let (mut path_mtu, mut troubles) = (BTreeMap::new(), BTreeMap::new());
    for endpoint in &query.endpoints {
        let way = lookup(netlink, *endpoint).await?;
        if let Some(mtu) = way.as_ref().and_then(mtu_of) {
            path_mtu.insert(*endpoint, mtu);
        }
        let trouble = match &way {
            None => Some(WayTrouble::NoRoute),
            Some(way) => down_of(way).map(|device| WayTrouble::LinkDown { device }),
        };
        troubles.extend(trouble.map(|trouble| (*endpoint, trouble)));
    }
    let nearest = path_mtu.values().copied().min();
    let mtu_bytes = smallest.or(nearest).unwrap_or(DEFAULT_UNDERLAY_MTU);
    Ok(Underlay {
        addresses,
        mtu_bytes,
        path_mtu,
        troubles,
        down,
    })
}

/// The way to one address: a look-up of its route and of one link.
pub(super) async fn read_way(
    netlink: &Netlink,
    tunnel: Option<u32>,
    to: IpAddr,
) -> Result<Way, HostError> {
    let Some(route) = lookup(netlink, to).await? else {
        return Ok(Way {
            mtu_bytes: None,
            trouble: Some(WayTrouble::NoRoute),
        });
    };
    let link = netlink.link_by_index(route.oif).await?;
    Ok(Way {
        mtu_bytes: link.as_ref().and_then(|link| mtu_of(&route, link, tunnel)),
        trouble: link
            .as_ref()
            .and_then(down_of)
            .map(|device| WayTrouble::LinkDown { device }),
    })
}

/// The MTU in bytes of a way. Loopback's is no underlay's, and a way through the tunnel itself is a
/// loop.
fn mtu_of(way: &RouteLookup, link: &Link, tunnel: Option<u32>) -> Option<u32> {
    if way.oif == LOOPBACK || Some(way.oif) == tunnel {
        return None;
    }
    Some(way.mtu.map_or(link.mtu, |mtu| mtu.min(link.mtu)))
}

/// The link's name, if nothing passes it.
fn down_of(link: &Link) -> Option<String> {
    (!(link.up && link.carrier)).then(|| link.name.clone())
}

async fn lookup(netlink: &Netlink, to: IpAddr) -> Result<Option<RouteLookup>, NetlinkError> {
    netlink.route_to(to, RouteLookupOptions::default()).await
}
