//! What the checks look at, read once.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use serde_json::Value;
use warren_core::consts::NODE_FILE;
use warren_core::files::NodeFile;
use warren_core::status::AgentStatus;
use warren_core::uapi::Device;
use warren_netlink::{Address, Link, Netlink, NetlinkError, Route, RouteLookupOptions, Rule};

use super::program;
use crate::Environment;
use crate::args::DoctorArgs;
use crate::kernel_device;
use crate::sources::Sources;

/// How long `nft` may take for its listing.
const NFT_LIMIT: Duration = Duration::from_secs(10);

/// What could be read of this node; an error is text for people.
pub(super) struct Facts {
    pub(super) args: DoctorArgs,
    /// Unix time in seconds.
    pub(super) now: u64,
    pub(super) agent: Result<AgentStatus, String>,
    pub(super) device: Result<Device, String>,
    /// Whether the kernel's own WireGuard is the data plane. It tells no private key, and nothing but
    /// the device.
    pub(super) is_kernel: bool,
    /// The lines of the tunnel's own socket.
    pub(super) tunnel: Result<BTreeMap<String, String>, String>,
    pub(super) node: Result<NodeFile, String>,
    pub(super) net: Result<Net, String>,
    /// What `nft -j list ruleset` says.
    pub(super) ruleset: Result<Value, String>,
}

/// The kernel's network of this node.
#[derive(Default)]
pub(super) struct Net {
    pub(super) links: Vec<Link>,
    pub(super) addresses: Vec<Address>,
    pub(super) routes: Vec<Route>,
    pub(super) rules: Vec<Rule>,
}

impl Facts {
    pub(super) fn gather(args: &DoctorArgs, environment: &Environment) -> Self {
        let sources = Sources::new(args.directories.clone());
        let tunnel = sources.tunnel().map_err(|e| e.to_string());
        let lines = |text: &str| {
            let pairs = text.lines().filter_map(|line| line.split_once('='));
            pairs.map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
        };
        let net = read_net().map_err(|e| e.to_string());
        let is_device = |l: &Link| l.name == args.interface && kernel_device::is_wireguard(l);
        let is_kernel = net
            .as_ref()
            .is_ok_and(|net| net.links.iter().any(is_device));
        let device = match is_kernel {
            true => kernel_device::read(&args.interface).map_err(|e| e.to_string()),
            false => sources.device(&args.interface).map_err(|e| e.to_string()),
        };
        let device = device.map(|shown| shown.device);
        Self {
            now: environment.now,
            agent: sources.agent().map(|(_, s)| s).map_err(|e| e.to_string()),
            device,
            is_kernel,
            tunnel: tunnel.map(|text| lines(&text)),
            node: read_node(args),
            net,
            ruleset: read_ruleset(),
            args: args.clone(),
        }
    }

    /// The cluster's pod ranges, as far as this node was ever set up.
    pub(super) fn pod_ranges(&self) -> Vec<IpNet> {
        let node = self.node.iter();
        node.flat_map(|node| node.cluster_cidrs.iter().copied())
            .collect()
    }

    /// The tunnel's UDP port.
    pub(super) fn port(&self) -> u16 {
        let port = self.device.as_ref().map(|device| device.listen_port);
        port.unwrap_or(warren_core::consts::DEFAULT_PORT)
    }

    /// The tunnel's link.
    pub(super) fn tunnel_link(&self) -> Option<&Link> {
        let links = self.net.as_ref().ok()?.links.iter();
        links.into_iter().find(|l| l.name == self.args.interface)
    }

    /// Whether the node has pod ranges of IPv6.
    pub(super) fn has_ipv6(&self) -> bool {
        self.pod_ranges().iter().any(|net| net.addr().is_ipv6())
    }
}

impl Net {
    pub(super) fn link_name(&self, index: Option<u32>) -> Option<&str> {
        let link = self.links.iter().find(|link| Some(link.index) == index)?;
        Some(&link.name)
    }
}

fn read_node(args: &DoctorArgs) -> Result<NodeFile, String> {
    let path = args.state_dir.join(NODE_FILE);
    let text = std::fs::read(&path).map_err(|e| format!("read {}: {e}", path.display()))?;
    serde_json::from_slice(&text).map_err(|e| format!("parse {}: {e}", path.display()))
}

/// Runs something on a netlink connection of its own.
pub(super) fn with_netlink<T>(
    work: impl AsyncFnOnce(&Netlink) -> Result<T, NetlinkError>,
) -> Result<T, String> {
    kernel_device::on_netlink(work).map_err(|e| e.to_string())
}

/// The largest packet in bytes that the kernel sends to an address in one piece: the route's MTU,
/// or what the path has taught; `None` without a route.
pub(super) fn path_mtu(to: IpAddr, links: &[Link]) -> Option<u32> {
    let way =
        with_netlink(async |netlink| netlink.route_to(to, RouteLookupOptions::default()).await);
    let way = way.ok()??;
    let link = links.iter().find(|link| link.index == way.oif)?;
    Some(way.mtu.map_or(link.mtu, |mtu| mtu.min(link.mtu)))
}

fn read_net() -> Result<Net, String> {
    with_netlink(async |netlink| {
        Ok(Net {
            links: netlink.links().await?,
            addresses: netlink.addresses(None).await?,
            routes: netlink.routes(None).await?,
            rules: netlink.rules().await?,
        })
    })
}

fn read_ruleset() -> Result<Value, String> {
    let ended = program::run("nft", &["-j", "list", "ruleset"], "", NFT_LIMIT)?;
    if !ended.success {
        return Err(format!("nft list ruleset: {}", ended.stderr.trim()));
    }
    serde_json::from_str(&ended.stdout).map_err(|e| format!("parse nft's listing: {e}"))
}
