//! This node's kernel: links, addresses, routes, rules, the filter, and settings under `/proc/sys`.

mod apply;
mod foreign;
pub mod nft;
mod observe;
mod pods;
pub mod sysctl;
mod underlay;

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::net::IpAddr;

use ipnet::IpNet;
use thiserror::Error;
use warren_core::degraded::WayTrouble;
use warren_core::state::{RouteKey, RouteTarget};
use warren_core::{Change, ObservedState};
use warren_netlink::sysctl::Settings;
use warren_netlink::{Netlink, NetlinkError, Route, Rule};

pub use nft::{Filter, NftError};

/// Why the kernel could not be read or changed.
#[derive(Debug, Error)]
pub enum HostError {
    /// Links, addresses, routes or rules.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// The filter.
    #[error(transparent)]
    Nft(#[from] NftError),
    /// A route into the tunnel while there is no tunnel.
    #[error(
        "set route to {destination}: the interface {interface} is gone; is warren-tunnel running?"
    )]
    NoTunnel {
        /// The route's destination.
        destination: IpNet,
        /// The interface.
        interface: String,
    },
    /// A change that is not the kernel's.
    #[error("{change} is not for the kernel")]
    NotMine {
        /// What was asked for.
        change: String,
    },
}

/// What is asked of the underlay.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UnderlayQuery {
    /// The addresses that peers' tunnels are reached at.
    pub endpoints: BTreeSet<IpAddr>,
}

/// The network below the tunnel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Underlay {
    /// The source addresses of the default routes, IPv4 first.
    pub addresses: Vec<IpAddr>,
    /// The MTU in bytes of the way to the outside.
    pub mtu_bytes: u32,
    /// The MTU in bytes of the way to each endpoint that there is a route to.
    pub path_mtu: BTreeMap<IpAddr, u32>,
    /// The endpoints that cannot be reached now, and why.
    pub troubles: BTreeMap<IpAddr, WayTrouble>,
    /// The devices of the default routes that are down.
    pub down: BTreeSet<String>,
}

impl Underlay {
    /// Fills what a network that is down does not tell from what it told last: a cable that is out
    /// takes neither this node nor its peers out of the mesh, and changes no MTU.
    pub fn hold(&mut self, last: &Self) {
        if self.addresses.is_empty() && !last.addresses.is_empty() {
            self.addresses.clone_from(&last.addresses);
            self.mtu_bytes = last.mtu_bytes;
        }
        for (endpoint, mtu_bytes) in &last.path_mtu {
            if self.troubles.contains_key(endpoint) {
                self.path_mtu.entry(*endpoint).or_insert(*mtu_bytes);
            }
        }
    }
}

/// What the reconcile needs of the node's kernel.
pub trait Host {
    /// Switches forwarding on, and what must be set for it; the errors are for people.
    fn prepare(&mut self) -> Vec<String>;

    /// Reads what is there; its peers are `None`.
    ///
    /// # Errors
    /// [`HostError`]; nothing can be planned against an unknown state.
    fn observe(&mut self) -> impl Future<Output = Result<ObservedState, HostError>>;

    /// Carries out one change that is not a peer's. What is to be removed may be gone already.
    ///
    /// # Errors
    /// [`HostError`].
    fn apply(&mut self, change: &Change) -> impl Future<Output = Result<(), HostError>>;

    /// Reads the network below the tunnel.
    ///
    /// # Errors
    /// [`HostError`].
    fn underlay(
        &mut self,
        query: &UnderlayQuery,
    ) -> impl Future<Output = Result<Underlay, HostError>>;

    /// Whether the filter is known not to be there at all, without a long look.
    fn filter_is_gone(&mut self) -> bool {
        false
    }

    /// Routes of other programs that lead parts of these ranges elsewhere, each as people write it
    /// behind `ip route del` or `ip -6 route del`.
    ///
    /// # Errors
    /// [`HostError`].
    fn foreign_routes(
        &mut self,
        ranges: &BTreeSet<IpNet>,
    ) -> impl Future<Output = Result<Vec<String>, HostError>> {
        let _ = ranges;
        async { Ok(Vec::new()) }
    }

    /// Puts back the routes of this node's pods that lost them, with the sources that these pod
    /// ranges have, and returns how many.
    ///
    /// # Errors
    /// [`HostError`].
    fn repair_pods(
        &mut self,
        pod_cidrs: &BTreeSet<IpNet>,
    ) -> impl Future<Output = Result<usize, HostError>> {
        let _ = pod_cidrs;
        async { Ok(0) }
    }

    /// Packets that the filter's rules dropped, as last observed, by the rules' names.
    fn filter_drops(&self) -> BTreeMap<String, u64>;

    /// The addresses that the CNI plugin's routes lead to, as last observed.
    fn pods(&self) -> BTreeSet<IpNet> {
        BTreeSet::new()
    }

    /// Whether the CNI plugin's routes, as last observed, name this address as their source. With
    /// the address the kernel would delete them, and cut their pods off.
    fn is_pods_source(&self, _address: IpAddr) -> bool {
        false
    }
}

/// The kernel of the network namespace that it was made in.
#[derive(Debug)]
pub struct LinuxHost {
    netlink: Netlink,
    filter: Filter,
    interface: String,
    settings: Settings,
    /// The interface's index, as last observed.
    tunnel: Option<u32>,
    /// The routes as the kernel told them, to delete exactly those.
    routes: BTreeMap<RouteKey, Vec<Route>>,
    /// The rules of our priority, likewise.
    rules: Vec<Rule>,
    /// The CNI plugin's routes.
    pods: Vec<Route>,
    seen_pods: pods::SeenPods,
}

impl LinuxHost {
    /// The calling thread's network namespace, with this name of the tunnel's interface, and the
    /// kernel's settings where they can be written.
    ///
    /// # Errors
    /// [`NetlinkError::Socket`].
    pub fn open(interface: String, settings: Settings) -> Result<Self, NetlinkError> {
        let netlink = Netlink::open()?;
        let filter = Filter::new();
        let (routes, rules) = (BTreeMap::new(), Vec::new());
        Ok(Self {
            netlink,
            filter,
            interface,
            settings,
            tunnel: None,
            routes,
            rules,
            pods: Vec::new(),
            seen_pods: pods::SeenPods::default(),
        })
    }
}

impl Host for LinuxHost {
    fn prepare(&mut self) -> Vec<String> {
        sysctl::ensure(&mut self.settings, &self.interface)
    }

    async fn observe(&mut self) -> Result<ObservedState, HostError> {
        self.observe_all().await
    }

    async fn apply(&mut self, change: &Change) -> Result<(), HostError> {
        self.apply_one(change).await
    }

    async fn underlay(&mut self, query: &UnderlayQuery) -> Result<Underlay, HostError> {
        underlay::read(&self.netlink, self.tunnel, query).await
    }

    fn filter_drops(&self) -> BTreeMap<String, u64> {
        self.filter.drops()
    }

    fn filter_is_gone(&mut self) -> bool {
        self.filter.is_gone()
    }

    async fn repair_pods(&mut self, pod_cidrs: &BTreeSet<IpNet>) -> Result<usize, HostError> {
        Ok(pods::repair(&self.netlink, self.tunnel, &mut self.seen_pods, pod_cidrs).await?)
    }

    async fn foreign_routes(&mut self, ranges: &BTreeSet<IpNet>) -> Result<Vec<String>, HostError> {
        Ok(foreign::read(&self.netlink, ranges).await?)
    }

    fn pods(&self) -> BTreeSet<IpNet> {
        self.pods.iter().map(|route| route.dst).collect()
    }

    fn is_pods_source(&self, address: IpAddr) -> bool {
        self.pods.iter().any(|route| route.src == Some(address))
    }
}

/// What a route of ours leads to, seen from the link that the tunnel has.
fn target_of(route: &Route, tunnel: Option<u32>) -> RouteTarget {
    use warren_netlink::RouteKind;
    match route.kind {
        RouteKind::Unreachable => RouteTarget::Unreachable,
        RouteKind::Unicast
            if route.oif.is_some() && route.oif == tunnel && route.gateway.is_none() =>
        {
            RouteTarget::Tunnel {
                src: route.src,
                mtu_bytes: route.mtu,
            }
        }
        _ => RouteTarget::Foreign,
    }
}
