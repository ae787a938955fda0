//! The pods' routes on this node, told from what the kernel still has of each pod.
//!
//! An IPv4 route goes without a word when the address goes that it names as its source, and an IPv6
//! one loses the source: what takes an address off `warren0` cuts every pod of the node off. The
//! pods' veths stay, and with them the permanent neighbour entries that `warren-cni` made, which name
//! each pod's addresses.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use warren_core::consts::{MAIN_TABLE, PROTOCOL_CNI, VETH_PREFIX};
use warren_core::plan::{host_prefix, tunnel_address};
use warren_netlink::{Netlink, NetlinkError, Route};

/// How long a pod that was never whole may be in the making: its ADD fails when it meets a route.
const MAKING: Duration = Duration::from_secs(1);

/// The pods as they were seen last, by link and address.
#[derive(Debug, Default)]
pub(super) struct SeenPods {
    whole: BTreeSet<(u32, IpAddr)>,
    /// Those that were never whole, and since when they are seen.
    making: BTreeMap<(u32, IpAddr), Instant>,
}

impl SeenPods {
    /// Whether a pod without its route has lost it, and is not just being made.
    fn has_lost(&mut self, pod: (u32, IpAddr)) -> bool {
        self.whole.contains(&pod)
            || self
                .making
                .entry(pod)
                .or_insert_with(Instant::now)
                .elapsed()
                >= MAKING
    }
}

/// Puts back the routes of pods that lack theirs, and returns how many.
pub(super) async fn repair(
    netlink: &Netlink,
    tunnel: Option<u32>,
    seen: &mut SeenPods,
    pod_cidrs: &BTreeSet<IpNet>,
) -> Result<usize, NetlinkError> {
    let mut pods: BTreeMap<IpAddr, u32> = BTreeMap::new();
    for link in netlink.links().await? {
        if !link.name.starts_with(VETH_PREFIX) || !link.up {
            continue;
        }
        let neighbours = match netlink.neighbours(link.index).await {
            Ok(neighbours) => neighbours,
            // The pod has just ended.
            Err(e) if e.is_not_found() => continue,
            Err(e) => return Err(e),
        };
        let own = neighbours.iter().filter(|neighbour| neighbour.permanent);
        pods.extend(own.map(|neighbour| (neighbour.address, link.index)));
    }
    let lives = |pod: &(u32, IpAddr)| pods.get(&pod.1) == Some(&pod.0);
    seen.whole.retain(lives);
    seen.making.retain(|pod, _| lives(pod));
    if pods.is_empty() {
        return Ok(0);
    }
    let sources: BTreeSet<IpAddr> = match tunnel {
        Some(index) => match netlink.addresses(Some(index)).await {
            Ok(all) => all.into_iter().map(|address| address.net.addr()).collect(),
            Err(e) if e.is_not_found() => BTreeSet::new(),
            Err(e) => return Err(e),
        },
        None => BTreeSet::new(),
    };
    let present = netlink.routes_in(MAIN_TABLE, Some(PROTOCOL_CNI)).await?;
    let mut repaired = 0;
    for (address, index) in pods {
        let cidr = pod_cidrs.iter().find(|cidr| cidr.contains(&address));
        let source = cidr.map(tunnel_address).filter(|s| sources.contains(s));
        let dst = host_prefix(address);
        let leads = |route: &&Route| route.dst == dst && route.oif == Some(index);
        // A route with another source is of a pod that is older than the node's podCIDRs.
        let whole = |route: &&Route| route.src.is_some() || source.is_none();
        if present.iter().filter(leads).any(|route| whole(&route)) {
            seen.making.remove(&(index, address));
            seen.whole.insert((index, address));
            continue;
        }
        if !seen.has_lost((index, address)) {
            continue;
        }
        let wanted = Route {
            src: source,
            ..Route::on_link(MAIN_TABLE, dst, index, PROTOCOL_CNI)
        };
        match netlink.replace_route(&wanted).await {
            Ok(()) => repaired += 1,
            Err(e) if e.is_not_found() => {}
            Err(e) => return Err(e),
        }
    }
    if repaired > 0 {
        tracing::warn!(repaired, "put back routes of pods");
    }
    Ok(repaired)
}
