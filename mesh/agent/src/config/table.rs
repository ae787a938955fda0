//! The table of settings.

use std::collections::BTreeSet;
use std::path::PathBuf;

use ipnet::IpNet;
use warren_core::Pinning;
use warren_core::consts;
use warren_core::node::overlap;

use super::{Config, DataPlaneChoice, LogFormat, RegistryKind, value};

/// One setting: its key in the file, of which the names of its flag and its environment variable
/// are made, and how its value gets into [`Config`].
#[derive(Debug)]
pub struct Setting {
    /// The key in the file; the flag is `--key`, the variable `WARREN_KEY` with underscores.
    pub key: &'static str,
    /// What it is for, one line.
    pub help: &'static str,
    /// What holds when it is not set.
    pub default: Default,
    /// What is allowed, for errors and help.
    pub allowed: &'static str,
    /// How the value is parsed and where it goes.
    pub(super) parse: Parse,
}

/// What holds when a setting is not set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Default {
    /// The setting must be set.
    Required,
    /// The setting must be set with the file registry, and must not be otherwise.
    RequiredByFiles,
    /// This text, parsed like any other.
    Text(&'static str),
    /// What is found out at start; the text says what.
    Found(&'static str),
}

/// How a value is parsed and where it goes.
#[derive(Debug)]
pub(super) enum Parse {
    /// A single value.
    One(fn(&mut Config, &str) -> Result<(), String>),
    /// A YAML sequence, or text with commas.
    List(fn(&mut Config, &[String]) -> Result<(), String>),
}

impl Setting {
    /// The environment variable's name.
    pub fn env(&self) -> String {
        format!("WARREN_{}", self.key.to_ascii_uppercase().replace('-', "_"))
    }

    /// Whether the value is a list.
    pub fn is_list(&self) -> bool {
        matches!(self.parse, Parse::List(_))
    }
}

macro_rules! one {
    ($field:ident, $parser:path) => {
        Parse::One(|config, text| {
            config.$field = $parser(text)?;
            Ok(())
        })
    };
}

macro_rules! list {
    ($field:ident, $parser:path) => {
        Parse::List(|config, items| {
            config.$field = $parser(items)?;
            Ok(())
        })
    };
}

/// Every setting, in the order of the help text. A setting may look at those before it.
pub const SETTINGS: &[Setting] = &[
    Setting {
        key: "node-name",
        help: "Name of this node in the registry",
        default: Default::Found("NODE_NAME of the environment, else the host's name in lower case"),
        allowed: "a DNS subdomain of at most 253 characters",
        parse: one!(node_name, value::node_name),
    },
    Setting {
        key: "registry",
        help: "What tells of the mesh's nodes: the Nodes of a Kubernetes cluster, or a directory",
        default: Default::Found(
            "kubernetes where KUBERNETES_SERVICE_HOST and a service account are, else file",
        ),
        allowed: "kubernetes or file",
        parse: one!(registry, value::registry),
    },
    Setting {
        key: "kubeconfig",
        help: "Kubeconfig file for the kubernetes registry; empty takes the pod's service account",
        default: Default::Text(""),
        allowed: "an absolute path, or nothing",
        parse: one!(kubeconfig, value::optional_file),
    },
    Setting {
        key: "pinning",
        help: "What becomes of a known node's changed key: warn believes and tells it, strict keeps \
               the old one until `warren trust NODE`",
        default: Default::Text("warn"),
        allowed: "warn or strict",
        parse: one!(pinning, value::pinning),
    },
    Setting {
        key: "registry-dir",
        help: "Directory of the file registry, one <node>.json a node, shared by all nodes",
        default: Default::Text("/var/lib/warren/registry"),
        allowed: "an absolute path",
        parse: one!(registry_dir, value::directory),
    },
    Setting {
        key: "cluster-cidrs",
        help: "Pod ranges of the whole cluster: these addresses never leave a node in clear",
        default: Default::Required,
        allowed: "a list of disjoint prefixes such as 10.244.0.0/16,fd00:10:244::/48",
        parse: list!(cluster_cidrs, value::pod_ranges),
    },
    Setting {
        key: "reserved-cidrs",
        help: "Ranges that no podCIDR and no node address may touch, such as the Services'",
        default: Default::Text(""),
        allowed: "a list of prefixes without host bits, or nothing",
        parse: list!(reserved_cidrs, value::ranges),
    },
    Setting {
        key: "pod-cidrs",
        help: "Pod ranges of this node, for the file registry; a Kubernetes Node has its own",
        default: Default::RequiredByFiles,
        allowed: "a list of disjoint prefixes inside cluster-cidrs and outside reserved-cidrs",
        parse: Parse::List(pod_cidrs),
    },
    Setting {
        key: "node-addresses",
        help: "Addresses of this node, preferred first",
        default: Default::Found("the source addresses of the default routes, IPv4 first"),
        allowed: "a list of unicast addresses",
        parse: list!(node_addresses, value::addresses),
    },
    Setting {
        key: "endpoint",
        help: "Where peers reach this node's tunnel, preferred first",
        default: Default::Found("the first node address of each family with listen-port"),
        allowed: "ip:port[,ip:port], at most one a family",
        parse: list!(endpoint, value::endpoint),
    },
    Setting {
        key: "interface",
        help: "Name of the tunnel's interface, as warren-tunnel makes it",
        default: Default::Text(consts::INTERFACE),
        allowed: "1 to 15 of A-Z a-z 0-9 - _ . that start with a letter or digit, not lo or wrn*",
        parse: one!(interface, value::interface),
    },
    Setting {
        key: "data-plane",
        help: "Who encrypts: warren-tunnel, the kernel's own WireGuard, or auto, the kernel's where it \
               has one and no warren-tunnel runs",
        default: Default::Text("userspace"),
        allowed: "userspace, kernel or auto",
        parse: one!(data_plane, value::data_plane),
    },
    Setting {
        key: "listen-port",
        help: "UDP port of the tunnel, as warren-tunnel listens on it",
        default: Default::Text("51871"),
        allowed: "1 to 65535",
        parse: one!(listen_port, value::port),
    },
    Setting {
        key: "masquerade",
        help: "Give the node's address to what pods send to outside the mesh",
        default: Default::Text("true"),
        allowed: "true or false",
        parse: one!(masquerade, value::boolean),
    },
    Setting {
        key: "persistent-keepalive",
        help: "Seconds between keepalives to every peer, 0 for none; for nodes behind NAT",
        default: Default::Text("0"),
        allowed: "0 to 65535",
        parse: one!(persistent_keepalive, value::seconds),
    },
    Setting {
        key: "mtu",
        help: "MTU of the tunnel; auto follows the underlay's routes, for each peer",
        default: Default::Text("auto"),
        allowed: "auto, or 1280 to 65535",
        parse: one!(mtu_bytes, value::mtu),
    },
    Setting {
        key: "state-dir",
        help: "Directory of the state that outlives restarts",
        default: Default::Text(consts::STATE_DIR),
        allowed: "an absolute path",
        parse: one!(state_dir, value::directory),
    },
    Setting {
        key: "run-dir",
        help: "Directory of Warren's own sockets",
        default: Default::Text(consts::RUN_DIR),
        allowed: "an absolute path",
        parse: one!(run_dir, value::directory),
    },
    Setting {
        key: "uapi-dir",
        help: "Directory of the WireGuard UAPI sockets",
        default: Default::Text(consts::UAPI_DIR),
        allowed: "an absolute path",
        parse: one!(uapi_dir, value::directory),
    },
    Setting {
        key: "cni-conf-dir",
        help: "Directory of the CNI configurations; empty writes none",
        default: Default::Text("/etc/cni/net.d"),
        allowed: "an absolute path, or nothing",
        parse: one!(cni_conf_dir, value::optional_directory),
    },
    Setting {
        key: "cni-conf-name",
        help: "Name of the CNI configuration; runtimes take the first by name",
        default: Default::Text("10-warren.conflist"),
        allowed: "a file name that ends in .conflist",
        parse: one!(cni_conf_name, value::file_name),
    },
    Setting {
        key: "cni-bin-dir",
        help: "Directory in which the container runtime looks for CNI plugins: portmap and \
               bandwidth are chained when they are there; empty chains none",
        default: Default::Text("/opt/cni/bin"),
        allowed: "an absolute path, or nothing",
        parse: one!(cni_bin_dir, value::optional_directory),
    },
    Setting {
        key: "sysctl-dir",
        help: "Where the settings of the node's network can be written, below net/; in a container \
               /proc/sys itself is read-only",
        default: Default::Text(warren_netlink::sysctl::PROC_SYS),
        allowed: "an absolute path",
        parse: one!(sysctl_dir, value::directory),
    },
    Setting {
        key: "http-listen",
        help: "Where /healthz, /readyz and /metrics are served",
        default: Default::Text("127.0.0.1:9151"),
        allowed: "off, or ip:port",
        parse: one!(http_listen, value::listen),
    },
    Setting {
        key: "log-format",
        help: "How log lines look",
        default: Default::Text("text"),
        allowed: "text or json",
        parse: one!(log_format, value::log_format),
    },
    Setting {
        key: "log-level",
        help: "The least important lines that are logged",
        default: Default::Text("info"),
        allowed: "error, warn, info, debug or trace",
        parse: one!(log_level, value::log_level),
    },
];

fn pod_cidrs(config: &mut Config, items: &[String]) -> Result<(), String> {
    if config.registry == RegistryKind::Kubernetes {
        let why =
            "is set, and with registry=kubernetes the spec.podCIDRs of this node's Node count";
        return Err(why.into());
    }
    let nets = value::pod_ranges(items)?;
    let inside = |net: &IpNet| {
        config
            .cluster_cidrs
            .iter()
            .any(|cluster| cluster.contains(net))
    };
    if let Some(net) = nets.iter().find(|net| !inside(net)) {
        return Err(format!("has {net}, which is outside cluster-cidrs"));
    }
    for net in &nets {
        if let Some(reserved) = config.reserved_cidrs.iter().find(|r| overlap(r, net)) {
            return Err(format!(
                "has {net}, which overlaps {reserved} of reserved-cidrs"
            ));
        }
    }
    config.pod_cidrs = nets;
    Ok(())
}

/// A configuration for the settings to be put into: each is set, by its default if by nothing else.
pub(super) fn blank(node_name: warren_core::NodeName) -> Config {
    Config {
        node_name,
        registry: RegistryKind::File,
        kubeconfig: None,
        pinning: Pinning::Warn,
        registry_dir: PathBuf::new(),
        cluster_cidrs: BTreeSet::new(),
        pod_cidrs: BTreeSet::new(),
        node_addresses: Vec::new(),
        endpoint: None,
        reserved_cidrs: BTreeSet::new(),
        interface: String::new(),
        data_plane: DataPlaneChoice::Userspace,
        listen_port: 0,
        masquerade: true,
        persistent_keepalive: 0,
        mtu_bytes: None,
        state_dir: PathBuf::new(),
        run_dir: PathBuf::new(),
        uapi_dir: PathBuf::new(),
        cni_conf_dir: None,
        cni_conf_name: String::new(),
        cni_bin_dir: None,
        sysctl_dir: PathBuf::new(),
        http_listen: None,
        log_format: LogFormat::Text,
        log_level: tracing::Level::INFO,
    }
}
