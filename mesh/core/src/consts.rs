//! The names and numbers that Warren's programs agree on.

/// Name of the WireGuard interface.
pub const INTERFACE: &str = "warren0";
/// Default UDP port of the tunnel. Not 51820, which other WireGuard users and filters often hold.
pub const DEFAULT_PORT: u16 = 51871;
/// Routing table of Warren's own: the peers' pod ranges, and for pods the peers' node addresses.
pub const NODE_TABLE: u32 = 51871;
/// The kernel's main routing table (`RT_TABLE_MAIN`, linux/rtnetlink.h).
pub const MAIN_TABLE: u32 = 254;
/// Priority of the `from <own podCIDR>` and `to <cluster CIDR> lookup 51871` rules; before the main
/// table's 32766.
pub const RULE_PRIORITY: u32 = 5187;
/// Route protocol number of what the agent installs; unassigned in iproute2's `rt_protos`.
pub const PROTOCOL_AGENT: u8 = 151;
/// Route protocol number of the pod routes that the CNI plugin installs.
pub const PROTOCOL_CNI: u8 = 152;
/// Metric of tunnel routes: IPv6's default, written out so that both families look alike.
pub const TUNNEL_METRIC: u32 = 1024;
/// Metric of the `unreachable` routes: any other route of the same prefix wins.
pub const UNREACHABLE_METRIC: u32 = 0xffff_fff0;
/// Name of the nftables table (family `inet`).
pub const NFT_TABLE: &str = "warren";
/// Name of the small nftables table (family `inet`) that the running agent owns.
pub const NFT_GUARD_TABLE: &str = "warren-guard";
/// How the host side of every pod's veth starts.
pub const VETH_PREFIX: &str = "wrn";
/// The CNI plugin's file name.
pub const CNI_PLUGIN: &str = "warren-cni";
/// The name of the network in the agent's CNI configuration.
pub const CNI_NETWORK: &str = "warren";
/// The versions of the CNI specification that the plugin speaks, oldest first.
pub const CNI_VERSIONS: [&str; 4] = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"];
/// Link group (ip-link(8)) of the host sides of pods that are not to be masqueraded: the plugin
/// sets it, and the agent's rules look for it.
pub const UNMASQUERADED_GROUP: u32 = 152;
/// The pods' IPv4 default gateway; answered for by a permanent neighbour entry.
pub const GATEWAY_V4: std::net::Ipv4Addr = std::net::Ipv4Addr::new(169, 254, 1, 1);
/// The pods' IPv6 default gateway.
pub const GATEWAY_V6: std::net::Ipv6Addr = std::net::Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// Directory of the WireGuard UAPI sockets (wireguard.com/xplatform).
pub const UAPI_DIR: &str = "/var/run/wireguard";
/// Directory of Warren's own sockets.
pub const RUN_DIR: &str = "/run/warren";
/// Directory of Warren's state.
pub const STATE_DIR: &str = "/var/lib/warren";
/// The agent's status socket, in the run directory: one JSON document a connection.
pub const AGENT_SOCKET: &str = "agent.sock";
/// The tunnel's read-only socket, in the run directory: `key=value` lines, one answer a connection.
pub const TUNNEL_SOCKET: &str = "tunnel.sock";
/// Directory of the aliases of pods, in the run directory.
pub const HOSTS_DIR: &str = "hosts";
/// The node's record for the CNI plugin, in the state directory.
pub const NODE_FILE: &str = "node.json";
/// The agent's last full view, in the state directory.
pub const VIEW_FILE: &str = "view.json";
/// The names of the Kubernetes Events that the agent has written, in the state directory.
pub const EVENTS_FILE: &str = "events.json";
/// Directory of the keys that an operator trusts while keys are pinned, in the state directory.
pub const TRUSTED_DIR: &str = "trusted-keys";

/// The smallest MTU that IPv6 works with (RFC 8200, section 5); the kernel drops a link's IPv6
/// addresses below it.
pub const MIN_MTU: u32 = 1280;
/// Bytes that WireGuard over IPv4 adds to an inner packet: IPv4 20, UDP 8, header and tag 32.
pub const OVERHEAD_V4: u32 = 60;
/// Bytes that WireGuard over IPv6 adds to an inner packet: IPv6 40, UDP 8, header and tag 32.
pub const OVERHEAD_V6: u32 = 80;

/// Names of a Node's annotations.
pub mod annotation {
    /// The node's current WireGuard public key, base64.
    pub const PUBLIC_KEY: &str = "warren.network/public-key";
    /// The node's next key during a rotation, base64.
    pub const NEXT_PUBLIC_KEY: &str = "warren.network/next-public-key";
    /// The endpoints that the agent found: `ip:port[,ip:port]`.
    pub const ENDPOINT: &str = "warren.network/endpoint";
    /// The endpoints that an operator sets, instead of what the agent found.
    pub const FORCE_ENDPOINT: &str = "warren.network/force-endpoint";
    /// The MTU of the node's underlay in bytes.
    pub const MTU: &str = "warren.network/mtu";
    /// Who encrypts on the node, where that is not `warren-tunnel`: `kernel`. What is neither this nor
    /// `userspace` is taken for a data plane that knows nothing but WireGuard.
    pub const DATA_PLANE: &str = "warren.network/data-plane";
    /// The longest accepted value of any of them, in bytes.
    pub const MAX_LEN: usize = 1024;
}

/// Comments of the rules in the nftables table: the agent writes them, `warren-cni` looks for
/// [`REQUIRED`](rule_comment::REQUIRED) in the kernel before it makes a pod, and metrics are
/// labelled with what follows the colon.
pub mod rule_comment {
    /// How every comment starts.
    pub const PREFIX: &str = "warren:";
    /// A packet from a pod's veth whose source does not route back to that veth.
    pub const ANTISPOOF: &str = "warren:antispoof";
    /// A packet from a pod with a link-local source.
    pub const POD_LINK_LOCAL: &str = "warren:pod-link-local";
    /// A packet from a pod to 127.0.0.0/8.
    pub const POD_LOOPBACK: &str = "warren:pod-loopback";
    /// A packet from a pod to an IPv4-mapped IPv6 address, such as ::ffff:127.0.0.1.
    pub const POD_MAPPED: &str = "warren:pod-mapped";
    /// A packet from a pod to an address of the node in 169.254.0.0/16.
    pub const POD_TO_LINK_LOCAL_V4: &str = "warren:pod-to-link-local-v4";
    /// A packet from a pod to fe80::/10.
    pub const POD_TO_LINK_LOCAL_V6: &str = "warren:pod-to-link-local-v6";
    /// A packet from the underlay with an IPv4 source of the pod ranges.
    pub const INGRESS_SRC_V4: &str = "warren:ingress-src-v4";
    /// A packet from the underlay with an IPv6 source of the pod ranges.
    pub const INGRESS_SRC_V6: &str = "warren:ingress-src-v6";
    /// A packet from the underlay to an IPv4 destination of the pod ranges.
    pub const INGRESS_DST_V4: &str = "warren:ingress-dst-v4";
    /// A packet from the underlay to an IPv6 destination of the pod ranges.
    pub const INGRESS_DST_V6: &str = "warren:ingress-dst-v6";
    /// A packet to the underlay with an IPv4 source of the pod ranges.
    pub const EGRESS_SRC_V4: &str = "warren:egress-src-v4";
    /// A packet to the underlay with an IPv6 source of the pod ranges.
    pub const EGRESS_SRC_V6: &str = "warren:egress-src-v6";
    /// A packet to the underlay with an IPv4 destination of the pod ranges.
    pub const EGRESS_DST_V4: &str = "warren:egress-dst-v4";
    /// A packet to the underlay with an IPv6 destination of the pod ranges.
    pub const EGRESS_DST_V6: &str = "warren:egress-dst-v6";
    /// An ICMP error to the underlay that quotes a packet to an IPv4 destination of the pod ranges.
    pub const EGRESS_QUOTE_V4: &str = "warren:egress-quote-v4";
    /// An ICMPv6 error to the underlay that quotes a packet to an IPv6 destination of the pod ranges.
    pub const EGRESS_QUOTE_V6: &str = "warren:egress-quote-v6";
    /// A packet from a pod to a peer's IPv4 node address that would not take the tunnel.
    pub const POD_TO_NODE_V4: &str = "warren:pod-to-node-v4";
    /// A packet from a pod to a peer's IPv6 node address that would not take the tunnel.
    pub const POD_TO_NODE_V6: &str = "warren:pod-to-node-v6";
    /// What a pod sends whose network has no masquerade.
    pub const NAT_UNMASQUERADED: &str = "warren:nat-unmasqueraded";
    /// What a pod sends over IPv4 to outside the mesh.
    pub const MASQUERADE_V4: &str = "warren:masquerade-v4";
    /// What a pod sends over IPv6 to outside the mesh.
    pub const MASQUERADE_V6: &str = "warren:masquerade-v6";
    /// The rules that drop, all of them: without any one a node is not protected from its pods, or
    /// they from the underlay.
    pub const REQUIRED: [&str; 18] = [
        ANTISPOOF,
        POD_LINK_LOCAL,
        POD_LOOPBACK,
        POD_MAPPED,
        POD_TO_LINK_LOCAL_V4,
        POD_TO_LINK_LOCAL_V6,
        INGRESS_SRC_V4,
        INGRESS_SRC_V6,
        INGRESS_DST_V4,
        INGRESS_DST_V6,
        EGRESS_SRC_V4,
        EGRESS_SRC_V6,
        EGRESS_DST_V4,
        EGRESS_DST_V6,
        EGRESS_QUOTE_V4,
        EGRESS_QUOTE_V6,
        POD_TO_NODE_V4,
        POD_TO_NODE_V6,
    ];
}
