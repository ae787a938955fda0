//! CHECK: whether a pod is still attached as ADD left it.
//!
//! What the kernel has is compared with the plan that ADD would carry out again, and with the
//! runtime's `prevResult`. Later plugins of the chain may have changed things: what they took out
//! of the result is not missed, a hardware address is expected as the result tells it, an MTU may
//! be smaller, a route may be in another table.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use thiserror::Error;
use warren_netlink::{Address, Link, Neighbour, Netlink, NetlinkError, Route, SyncNetlink};

use crate::aliases::Aliases;
use crate::attach::{AttachError, Pod, kernel_route};
use crate::config::NetConf;
use crate::env::PodRequest;
use crate::error::Error;
use crate::ipam::Ipam;
use crate::plan::{AttachPlan, EndPlan, Mac, host_name, mac_text, plan_add};
use crate::protect;
use crate::result::{CniResult, Interface, PrevResultError};

/// One thing that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Damage {
    /// The address store knows nothing of the attachment.
    #[error("its addresses are not reserved")]
    NoReservation,
    /// The runtime's result lacks something of the attachment.
    #[error("prevResult does not list {0}")]
    NotInResult(String),
    /// An interface is missing.
    #[error("interface {0} is missing")]
    NoInterface(String),
    /// An interface is another one than ADD made.
    #[error("interface {name} has {what} {found}, not {expected}")]
    Interface {
        /// The interface.
        name: String,
        /// Which property of it.
        what: &'static str,
        /// As it is.
        found: String,
        /// As it should be.
        expected: String,
    },
    /// An address is missing.
    #[error("address {address} on {name} is {state}")]
    Address {
        /// The interface.
        name: String,
        /// The address.
        address: IpNet,
        /// What is wrong.
        state: &'static str,
    },
    /// A route is missing.
    #[error("route to {destination} by {name} is missing")]
    Route {
        /// The interface.
        name: String,
        /// The destination.
        destination: IpNet,
    },
    /// The names that were asked for are not published.
    #[error("its aliases are not published as they were asked for")]
    Aliases,
    /// A neighbour entry is missing or wrong: what is sent there arrives nowhere.
    #[error("neighbour {address} on {name} is not {mac} for good")]
    Neighbour {
        /// The interface.
        name: String,
        /// The neighbour.
        address: IpAddr,
        /// The hardware address that it should have.
        mac: String,
    },
}

/// One end of a pair as the kernel has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObservedEnd {
    /// The interface.
    pub link: Link,
    /// Its addresses.
    pub addresses: Vec<Address>,
    /// Its neighbour entries.
    pub neighbours: Vec<Neighbour>,
    /// The routes by it, of all tables.
    pub routes: Vec<Route>,
}

/// Compares the attachment with what ADD would make.
///
/// # Errors
/// [`Error::Check`] with all that is wrong; [`Error::UnknownContainer`] when there is nothing of
/// it at all; [`Error::Protect`].
pub(crate) async fn check(conf: &NetConf, request: &PodRequest) -> Result<(), Error> {
    let pod_conf = conf.pod()?;
    let prev = conf.prev_result.as_ref().ok_or(PrevResultError::Missing)?;
    let prev = CniResult::from_prev(Some(prev))?;
    let node = protect::load_node(&conf.state_dir)?;
    let host = Netlink::open().map_err(AttachError::from)?;
    let ipam = Ipam::open(&conf.state_dir, &conf.name)?;
    let attachment = &request.attachment;
    let reservation = ipam.reservation(attachment)?;
    let name = host_name(attachment);
    let host_end = observe(&host, &name).await.map_err(AttachError::from)?;
    if reservation.is_none() && host_end.is_none() {
        return Err(Error::UnknownContainer(attachment.clone()));
    }
    let pod = Pod::open(&request.netns)?;
    let ifname = attachment.ifname.as_str();
    let pod_end = observe(&pod.netlink()?, ifname)
        .await
        .map_err(AttachError::from)?;
    let mut damages = Vec::new();
    let addresses = reservation.map(|r| r.addresses).unwrap_or_else(|| {
        damages.push(Damage::NoReservation);
        let own = listed_interface(&prev, ifname).map(|(index, _)| index);
        let ips = prev.ips.iter().filter(|ip| ip.interface == own);
        ips.map(|ip| ip.address.addr()).collect()
    });
    let mac = pod_conf.asked.mac.or(request.args.mac);
    let plan = plan_add(attachment, &addresses, &node, &pod_conf, mac)?;
    damages.extend(compare(&plan, &prev, host_end.as_ref(), pod_end.as_ref()));
    let aliases = Aliases::new(&conf.run_dir, &conf.name);
    if !aliases.are(attachment, &addresses, &pod_conf.asked.aliases) {
        damages.push(Damage::Aliases);
    }
    if !damages.is_empty() {
        return Err(Error::Check(damages));
    }
    protect::check(&mut SyncNetlink::open().map_err(AttachError::from)?, &node)?;
    protect::check_masquerade(pod_conf.masquerade)?;
    Ok(())
}

async fn observe(netlink: &Netlink, name: &str) -> Result<Option<ObservedEnd>, NetlinkError> {
    let Some(link) = netlink.link_by_name(name).await? else {
        return Ok(None);
    };
    let index = link.index;
    let mut routes = netlink.routes(None).await?;
    routes.retain(|route| route.oif == Some(index));
    Ok(Some(ObservedEnd {
        addresses: netlink.addresses(Some(index)).await?,
        neighbours: netlink.neighbours(index).await?,
        routes,
        link,
    }))
}

/// The container's interface of this name in a result.
fn listed_interface<'a>(prev: &'a CniResult, name: &str) -> Option<(usize, &'a Interface)> {
    let inside = |i: &Interface| i.sandbox.as_deref().is_some_and(|path| !path.is_empty());
    let mut listed = prev.interfaces.iter().enumerate();
    listed.find(|(_, interface)| interface.name == name && inside(interface))
}

/// What is not as it should be, in the order in which ADD makes it.
pub fn compare(
    plan: &AttachPlan,
    prev: &CniResult,
    host: Option<&ObservedEnd>,
    pod: Option<&ObservedEnd>,
) -> Vec<Damage> {
    let mut damages = Vec::new();
    let listed = listed_interface(prev, &plan.pod.name);
    if listed.is_none() {
        let what = format!("interface {} of the container", plan.pod.name);
        damages.push(Damage::NotInResult(what));
    }
    for address in &plan.pod.addresses {
        if !prev
            .ips
            .iter()
            .any(|ip| ip.address.addr() == address.addr())
        {
            damages.push(Damage::NotInResult(format!("address {}", address.addr())));
        }
    }
    let (Some(host), Some(pod)) = (host, pod) else {
        for (end, plan) in [(host, &plan.host), (pod, &plan.pod)] {
            if end.is_none() {
                damages.push(Damage::NoInterface(plan.name.clone()));
            }
        }
        return damages;
    };
    // The pod's may have been changed by a later plugin, which says so in the result.
    let told = listed.and_then(|(_, interface)| interface.mac.as_deref());
    let pod_mac = told.map_or_else(|| mac_text(&plan.pod.mac), str::to_ascii_lowercase);
    let mut see = |end: &EndPlan, what, found: String, expected: String| {
        if found != expected {
            damages.push(Damage::Interface {
                name: end.name.clone(),
                what,
                found,
                expected,
            });
        }
    };
    let state = |up: bool| if up { "up" } else { "down" }.to_owned();
    let mac_of = |link: &Link| link.mac.as_ref().map(mac_text).unwrap_or_default();
    see(&plan.host, "the state", state(host.link.up), state(true));
    see(&plan.pod, "the state", state(pod.link.up), state(true));
    let alias = host.link.alias.clone().unwrap_or_default();
    see(&plan.host, "the alias", alias, plan.host.alias.clone());
    let group = host.link.group.to_string();
    see(&plan.host, "the group", group, plan.host.group.to_string());
    let mac = mac_text(&plan.host.mac);
    see(&plan.host, "the hardware address", mac_of(&host.link), mac);
    see(
        &plan.pod,
        "the hardware address",
        mac_of(&pod.link),
        pod_mac,
    );
    let peer = |link: &Link| link.lower.map_or("none".into(), |index| index.to_string());
    let expected = host.link.index.to_string();
    see(&plan.pod, "the peer's index", peer(&pod.link), expected);
    // Packets that are larger than the receiving end's MTU are dropped without a word.
    let told = |name: &str, sandbox: bool| {
        let same = |i: &&Interface| i.name == name && i.sandbox.is_some() == sandbox;
        prev.interfaces.iter().find(same)?.mtu_bytes
    };
    let mtu = told(&plan.host.name, false).unwrap_or(host.link.mtu);
    let found = host.link.mtu.to_string();
    see(&plan.host, "the MTU", found, mtu.to_string());
    let most = told(&plan.pod.name, true).unwrap_or(host.link.mtu);
    if pod.link.mtu > most {
        let found = pod.link.mtu.to_string();
        see(&plan.pod, "the MTU", found, format!("at most {most}"));
    }

    damages.extend(missing_addresses(&plan.pod, pod));
    let host_mac = host.link.mac.unwrap_or_default();
    let pod_mac = pod.link.mac.unwrap_or_default();
    damages.extend(wrong_neighbours(&plan.host, host, pod_mac));
    damages.extend(wrong_neighbours(&plan.pod, pod, host_mac));
    let all = plan
        .host
        .routes
        .iter()
        .map(|route| route.destination)
        .collect();
    damages.extend(missing_routes(&plan.host, host, &all));
    let kept: BTreeSet<IpNet> = prev.routes.iter().map(|route| route.dst.trunc()).collect();
    damages.extend(missing_routes(&plan.pod, pod, &kept));
    damages
}

fn missing_addresses<'a>(
    plan: &'a EndPlan,
    end: &'a ObservedEnd,
) -> impl Iterator<Item = Damage> + 'a {
    plan.addresses.iter().filter_map(|address| {
        let found = end.addresses.iter().find(|found| found.net == *address);
        let state = match found {
            None => "missing",
            Some(found) if found.dad_failed => "refused as a duplicate",
            Some(found) if found.tentative => "not usable yet",
            Some(_) => return None,
        };
        Some(Damage::Address {
            name: plan.name.clone(),
            address: *address,
            state,
        })
    })
}

fn wrong_neighbours<'a>(
    plan: &'a EndPlan,
    end: &'a ObservedEnd,
    mac: Mac,
) -> impl Iterator<Item = Damage> + 'a {
    let right = move |address: &IpAddr| {
        let mut found = end.neighbours.iter();
        found.any(|n| n.address == *address && n.mac == Some(mac) && n.permanent)
    };
    let wrong = plan
        .neighbours
        .iter()
        .filter(move |(address, _)| !right(address));
    wrong.map(move |(address, _)| Damage::Neighbour {
        name: plan.name.clone(),
        address: *address,
        mac: mac_text(&mac),
    })
}

/// The routes that are not there, of those by a gateway only the `kept` ones.
fn missing_routes<'a>(
    plan: &'a EndPlan,
    end: &'a ObservedEnd,
    kept: &'a BTreeSet<IpNet>,
) -> impl Iterator<Item = Damage> + 'a {
    let there = |wanted: &Route| {
        let same = |found: &&Route| {
            // A later plugin may have given it another table and another metric.
            let other = Route {
                table: wanted.table,
                metric: wanted.metric,
                src: wanted.src,
                protocol: wanted.protocol,
                mtu: wanted.mtu,
                advmss: wanted.advmss,
                onlink: wanted.onlink,
                ..**found
            };
            other == *wanted
        };
        end.routes.iter().any(|found| same(&found))
    };
    let wanted = plan
        .routes
        .iter()
        .filter(move |route| route.gateway.is_none() || kept.contains(&route.destination));
    wanted
        .filter(move |route| !there(&kernel_route(route, end.link.index)))
        .map(|route| Damage::Route {
            name: plan.name.clone(),
            destination: route.destination,
        })
}
