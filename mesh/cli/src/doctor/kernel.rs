//! What the kernel must be able to do, and how it must be set.

use std::fs::OpenOptions;
use std::path::Path;
use std::time::Duration;

use warren_core::consts::VETH_PREFIX;
use warren_netlink::sysctl;

use super::facts::Facts;
use super::finding::{Check, Finding};
use super::program;

const NFT_LIMIT: Duration = Duration::from_secs(10);

/// What the filter is made of, for the kernel to judge without loading it.
const TRIAL: &str = "\
table inet warren-doctor {
	set ranges { type ipv4_addr; flags interval; auto-merge
		elements = { 10.244.0.0/16 }
	}
	chain trial {
		type filter hook prerouting priority raw; policy accept;
		iifname \"wrn*\" fib saddr . iif oif missing counter drop
		ip saddr @ranges counter drop
	}
	chain trial-nat {
		type nat hook postrouting priority srcnat; policy accept;
		oifname \"wrn-none\" masquerade
	}
}
";

pub(super) fn features(facts: &Facts) -> Vec<Finding> {
    let mut check = Check::new("kernel");
    let tun = Path::new("/dev/net/tun");
    let opened = OpenOptions::new().read(true).write(true).open(tun);
    // A tunnel that answers has it; this command may be in the agent's container, which has not.
    if let (Err(e), Err(_)) = (opened, &facts.device) {
        check.error(
            format!("/dev/net/tun cannot be opened: {e}"),
            "warren-tunnel cannot make its interface",
            "modprobe tun; in a container, give it the device /dev/net/tun",
        );
    }
    match program::run("nft", &["-c", "-f", "-"], TRIAL, NFT_LIMIT) {
        Ok(ended) if ended.success => {}
        Ok(ended) => check.error(
            format!(
                "the kernel refuses the filter's rules: {}",
                ended.stderr.lines().next().unwrap_or_default()
            ),
            "the node cannot be protected, and gets no pods",
            "modprobe -a nf_tables nft_fib_inet nft_masq nft_ct; the kernel needs nftables with fib \
             and NAT in the inet family",
        ),
        Err(e) => check.error(
            e,
            "warren-agent loads its filter by nft: the node cannot be protected",
            "apt-get install nftables",
        ),
    }
    let limit = sysctl_number("user/max_net_namespaces");
    if !Path::new("/proc/self/ns/net").exists() || limit == Some(0) {
        check.error(
            "network namespaces cannot be made",
            "no pod can start",
            "sysctl -w user.max_net_namespaces=65536",
        );
    }
    if facts.has_ipv6() && !Path::new("/proc/net/if_inet6").exists() {
        check.error(
            "the kernel has no IPv6, and the cluster has IPv6 pod ranges",
            "pods get no IPv6 addresses, and the filter has nothing to hold for them",
            "boot without ipv6.disable=1",
        );
    }
    check.done("TUN, nftables with fib, network namespaces")
}

pub(super) fn sysctls(facts: &Facts) -> Vec<Finding> {
    let mut check = Check::new("sysctls");
    let mut want_forwarding = vec!["net/ipv4/ip_forward"];
    if facts.has_ipv6() {
        want_forwarding.push("net/ipv6/conf/all/forwarding");
    }
    for key in want_forwarding {
        if sysctl_number(key) == Some(0) {
            check.error(
                format!("{} is 0", dotted(key)),
                "the node does not route for its pods",
                format!(
                    "sysctl -w {}=1; see who sets it: grep -rs forward /etc/sysctl*",
                    dotted(key)
                ),
            );
        }
    }
    let interface = &facts.args.interface;
    let own = format!("net/ipv4/conf/{interface}/rp_filter");
    // The kernel takes the larger of the two; 1 is strict (Documentation/networking/ip-sysctl.rst).
    let effective = sysctl_number(&own).max(sysctl_number("net/ipv4/conf/all/rp_filter"));
    if facts.tunnel_link().is_some() && effective == Some(1) {
        check.error(
            format!("{} is strict", dotted(&own)),
            "packets from the tunnel are dropped where the way back is another",
            format!("sysctl -w {}=2", dotted(&own)),
        );
    }
    let disabled = format!("net/ipv6/conf/{interface}/disable_ipv6");
    if facts.has_ipv6() && sysctl_number(&disabled) == Some(1) {
        check.error(
            format!("{} is 1", dotted(&disabled)),
            "the tunnel carries no IPv6",
            format!("sysctl -w {}=0", dotted(&disabled)),
        );
    }
    let links = facts.net.iter().flat_map(|net| &net.links);
    let forwards = sysctl_number("net/ipv6/conf/all/forwarding") == Some(1);
    for link in links.filter(|link| forwards && !link.name.starts_with(VETH_PREFIX)) {
        let key = format!("net/ipv6/conf/{}/accept_ra", link.name);
        let none = link.name == "lo" || link.name == *interface;
        if !none && sysctl_number(&key) == Some(1) {
            check.warn(
                format!("{} is 1 while IPv6 forwarding is on", dotted(&key)),
                "the kernel ignores router advertisements there, and the node loses its default \
                 route",
                format!("sysctl -w {}=2", dotted(&key)),
            );
        }
    }
    check.done("forwarding, rp_filter and accept_ra are as Warren needs them")
}

fn sysctl_number(key: &str) -> Option<u64> {
    sysctl::read(key).ok()?.parse().ok()
}

/// As sysctl(8) writes it: dots and slashes change places.
fn dotted(key: &str) -> String {
    let swap = |c| match c {
        '/' => '.',
        '.' => '/',
        c => c,
    };
    key.chars().map(swap).collect()
}
