//! What Warren has in this network namespace: devices, routes, rules, the filter.

use std::process::Command;

use warren_core::consts::{
    MAIN_TABLE, NFT_TABLE, NODE_TABLE, PROTOCOL_AGENT, PROTOCOL_CNI, RULE_PRIORITY, VETH_PREFIX,
};
use warren_netlink::{Link, Netlink, NetlinkError, Route, Rule, protection, sysctl};

use super::Report;
use crate::kernel_device;

/// What was found.
pub(super) struct Kernel {
    runtime: tokio::runtime::Runtime,
    netlink: Netlink,
    interface: String,
    tunnel: Option<Link>,
    pods: Vec<Link>,
    routes: Vec<Route>,
    rules: Vec<Rule>,
    filter: bool,
}

impl Kernel {
    /// Reads the calling thread's network namespace.
    pub(super) fn read(interface: &str) -> Result<Self, NetlinkError> {
        let runtime = kernel_device::runtime()?;
        let (netlink, links, routes, rules) = runtime.block_on(async {
            let netlink = Netlink::open()?;
            let links = netlink.links().await?;
            let mut routes = Vec::new();
            for (table, protocol) in [
                (MAIN_TABLE, PROTOCOL_AGENT),
                (MAIN_TABLE, PROTOCOL_CNI),
                (NODE_TABLE, PROTOCOL_AGENT),
            ] {
                routes.extend(netlink.routes_in(table, Some(protocol)).await?);
            }
            let mut rules = netlink.rules().await?;
            rules.retain(|r| r.priority == RULE_PRIORITY && r.protocol == PROTOCOL_AGENT);
            Ok::<_, NetlinkError>((netlink, links, routes, rules))
        })?;
        let filter = protection::table_exists("inet", NFT_TABLE)?;
        let tunnel = links.iter().find(|link| link.name == interface).cloned();
        let pods = links.into_iter().filter(is_pods).collect();
        Ok(Self {
            runtime,
            netlink,
            interface: interface.to_owned(),
            tunnel,
            pods,
            routes,
            rules,
            filter,
        })
    }

    /// A device of the tunnel's name that is none.
    pub(super) fn obstacle(&self) -> Option<String> {
        let link = self.tunnel.as_ref()?;
        let kind = link.kind.as_deref().unwrap_or("hardware");
        // As warren-tunnel makes it, and as the agent does with the data plane of the kernel.
        (!["tun", "wireguard"].contains(&kind)).then(|| {
            format!(
                "{} is no TUN or WireGuard device but {kind}: it is not Warren's; give --interface the name that \
                 Warren's has",
                self.interface
            )
        })
    }

    /// Pods that would lose their network, or have it in clear.
    pub(super) fn pods_obstacle(&self) -> Option<String> {
        let names: Vec<&str> = self
            .pods
            .iter()
            .map(|link| link.alias.as_deref().unwrap_or(&link.name))
            .collect();
        (!names.is_empty()).then(|| {
            format!(
                "{} pods have their network from Warren ({}): drain the node first, or give --pods to \
                 take it from them",
                names.len(),
                names.join(", ")
            )
        })
    }

    /// Removes the pods' veths, if that is told, and the tunnel's interface.
    pub(super) fn remove_devices(&self, report: &mut Report, pods: bool) {
        let pods = self.pods.iter().filter(|_| pods);
        for link in pods.chain(&self.tunnel) {
            let removed = || {
                let removed = self.runtime.block_on(self.netlink.delete_link(link.index));
                absent_is_fine(removed)
            };
            report.step(format!("interface {}", link.name), removed);
        }
    }

    /// Removes routes and rules.
    pub(super) fn remove_routes_and_rules(&self, report: &mut Report) {
        for rule in &self.rules {
            report.step(format!("rule {rule}"), || {
                absent_is_fine(self.runtime.block_on(self.netlink.delete_rule(rule)))
            });
        }
        // Those of the devices went with them; they are told here all the same.
        for route in &self.routes {
            report.step(format!("route {route}"), || {
                absent_is_fine(self.runtime.block_on(self.netlink.delete_route(route)))
            });
        }
    }

    fn no_pods_left(&self) -> Result<(), String> {
        let links = self.runtime.block_on(self.netlink.links());
        let links = links.map_err(|e| e.to_string())?;
        let left: Vec<String> = links
            .into_iter()
            .filter(is_pods)
            .map(|link| link.name)
            .collect();
        if left.is_empty() {
            return Ok(());
        }
        Err(format!(
            "pods are still attached ({}), which would be in clear without it; end them, and \
             uninstall again",
            left.join(", ")
        ))
    }

    /// Removes the nftables table, unless a pod is there that would be in clear without it.
    pub(super) fn remove_filter(&self, report: &mut Report) {
        if !self.filter {
            return;
        }
        report.step(format!("nftables table inet {NFT_TABLE}"), || {
            self.no_pods_left()?;
            let mut nft = Command::new("nft");
            nft.env("LC_ALL", "C")
                .args(["delete", "table", "inet", NFT_TABLE]);
            let output = nft
                .output()
                .map_err(|e| format!("run nft: {e}; is the package nftables installed?"))?;
            let message = String::from_utf8_lossy(&output.stderr);
            if output.status.success() || message.contains("No such file") {
                return Ok(());
            }
            Err(message.trim().to_owned())
        });
    }
}

/// A veth of the plugin's form: the prefix and 12 hex digits, with the container's id as its alias.
fn is_pods(link: &Link) -> bool {
    let digits = link.name.strip_prefix(VETH_PREFIX).unwrap_or_default();
    link.kind.as_deref() == Some("veth")
        && link.alias.is_some()
        && digits.len() == 12
        && digits.bytes().all(|b| b.is_ascii_hexdigit())
}

/// The settings of the node that Warren may have changed, as they are.
pub(super) fn settings() -> Vec<String> {
    let mut keys = vec![
        "net/ipv4/ip_forward".to_owned(),
        "net/ipv6/conf/all/forwarding".to_owned(),
    ];
    let devices = std::fs::read_dir("/proc/sys/net/ipv6/conf");
    let mut devices: Vec<String> = devices
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    devices.sort();
    let accepting = devices.iter().filter_map(|device| {
        let key = format!("net/ipv6/conf/{device}/accept_ra");
        (sysctl::read(&key).ok()? == "2").then_some(key)
    });
    keys.extend(accepting);
    keys.iter()
        .filter_map(|key| {
            let along = match key.as_str() {
                "net/ipv4/ip_forward" => {
                    ", which set net.ipv4.conf.*.forwarding and net.ipv4.conf.all.accept_redirects"
                }
                "net/ipv6/conf/all/forwarding" => ", which set net.ipv6.conf.*.forwarding",
                _ => "",
            };
            let value = sysctl::read(key).ok()?;
            Some(format!("sysctl {}={value}{along}", key.replace('/', ".")))
        })
        .collect()
}

fn absent_is_fine(result: Result<(), NetlinkError>) -> Result<(), NetlinkError> {
    match result {
        Err(e) if e.is_not_found() => Ok(()),
        other => other,
    }
}
