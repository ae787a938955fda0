//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use warren_core::consts;

/// Shows what the encrypted pod network of this node does.
#[derive(Debug, Parser)]
#[command(name = "warren", version, arg_required_else_help = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Print which pods of this node have which addresses, and what nothing owns
    #[command(after_help = PODS_HELP)]
    Pods(PodsArgs),
    /// Print what `wg show` prints, with the node's name beside each peer
    #[command(after_help = SHOW_HELP)]
    Show(ShowArgs),
    /// Print how this node and its peers are
    #[command(after_help = STATUS_HELP)]
    Status(StatusArgs),
    /// Check this node as an operator would, and say what to do
    #[command(after_help = DOCTOR_HELP)]
    Doctor(DoctorArgs),
    /// Let a peer change to the key that it publishes, where keys are pinned
    #[command(after_help = TRUST_HELP)]
    Trust(TrustArgs),
    /// Take all that is Warren's off this node, and nothing else
    #[command(after_help = UNINSTALL_HELP)]
    Uninstall(UninstallArgs),
    /// Put the plugin warren-cni where the container runtime looks for plugins
    #[command(after_help = INSTALL_CNI_HELP)]
    InstallCni(InstallCniArgs),
}

const SHOW_HELP: &str = "\
Without a FIELD, the form for people; the node's name stands after a peer's key, in parentheses,
when the agent answers. With a FIELD, the output is that of `wg show` byte for byte: `private-key`,
`preshared-keys` and `dump` print secret keys. (wg 1.0.20210914 leaves the interface's name out of
all lines but the first of `all endpoints`; here it begins every line.)

Interfaces are those with a socket in the UAPI directory, by name; WireGuard devices of the kernel
are not shown.

WG_COLOR_MODE (always, never) and WG_HIDE_KEYS (never) are honoured as by wg.

Exit code: 0 when something could be shown or no interface exists, 1 when nothing could be read,
2 for wrong usage.";

const PODS_HELP: &str = "\
The addresses that warren-cni has reserved on this node: for which pod and container, by which
interface on the node, and since when. A reservation lives as long as its interface; one without is
listed apart, and released by itself when pods come and go.

Exit code: 0 all could be read; 1 some could not; 2 nothing could be read, or wrong usage.";

const STATUS_HELP: &str = "\
Exit code: 0 all well; 1 trouble: not protected, the tunnel, the registry or the agent does not
answer, the nodes are not all known yet, or something could not be done; 2 nothing at all could be
read, or wrong usage.
Nodes that are refused, or idle, are no trouble of this node.";

const DOCTOR_HELP: &str = "\
Works with the daemons dead too. Changes nothing; sends a few pings through the tunnel to each peer, and
one datagram to its endpoint to learn the path's MTU (--no-probe sends nothing). Run it as root.

Exit code: 0 no error found (there may be warnings), 1 at least one error, 2 wrong usage.";
const UNINSTALL_HELP: &str = "\
It refuses while a daemon runs or a pod is attached, unless it is told to end them. It removes the CNI
configuration, Warren's devices, its routes (protocols 151 and 152), its rules, its nftables table, its
sockets, and its state with the private key. What is not Warren's stays, also in the same directories.
The agent's configuration file, the programs, and kernel settings stay; the settings are named.
--wait and --stay are for a pod: one that runs on each node while the DaemonSets go, and is not started
again when it is done.

Exit code: 0 when nothing of Warren's is left; 1 when something is in the way or could not be removed;
2 for wrong usage.";

const TRUST_HELP: &str = "\
With `pinning: strict` a node that publishes another key than the one it was first seen with keeps the
old one here, and traffic with it stops once the old key is gone. Compare the new key with what
`warren status` prints on that node before you trust it. Each node pins for itself: run this on each.

Exit code: 0 the peer has changed to the key; 1 nothing is to be trusted, or the key could not be
written or was not taken; 2 for wrong usage.";

const INSTALL_CNI_HELP: &str = "\
Written aside, synced and renamed, with mode 0755, so that the runtime finds the old plugin or the new
one, whole. Where the same plugin is there already nothing is written. No other file is touched.

Exit code: 0 the plugin is there; 1 it could not be put there; 2 for wrong usage.";

/// Arguments of `warren install-cni`.
#[derive(Clone, Debug, Args)]
pub struct InstallCniArgs {
    /// Directory of the container runtime's CNI plugins, such as /opt/cni/bin; it must exist
    #[arg(long)]
    pub to: PathBuf,
    /// The plugin to install
    #[arg(long, default_value = "/usr/bin/warren-cni")]
    pub from: PathBuf,
}

/// Arguments of `warren trust`.
#[derive(Clone, Debug, Args)]
pub struct TrustArgs {
    /// The peer's name
    pub node: String,
    /// The key that it must be; without it, whichever it publishes now
    pub public_key: Option<String>,
    /// Directory of Warren's state, which only root may write
    #[arg(long, env = "WARREN_STATE_DIR", default_value = consts::STATE_DIR)]
    pub state_dir: PathBuf,
    /// Where the sockets are.
    #[command(flatten)]
    pub directories: Directories,
}

/// Arguments of `warren uninstall`.
#[derive(Debug, Args)]
pub struct UninstallArgs {
    /// Only list what would be removed
    #[arg(long)]
    pub dry_run: bool,
    /// End the daemons first (SIGTERM); what restarts them must be gone already
    #[arg(long)]
    pub stop: bool,
    /// Wait so long for the daemons to be ended by what started them
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = 0,
        conflicts_with = "stop"
    )]
    pub wait: u64,
    /// Do nothing more, once nothing is left, until this is ended itself
    #[arg(long, conflicts_with = "dry_run")]
    pub stay: bool,
    /// Remove the pods' veths too: pods that run lose their network
    #[arg(long)]
    pub pods: bool,
    /// The tunnel's interface [default: as the state directory tells, else warren0]
    #[arg(long, env = "WARREN_INTERFACE")]
    pub interface: Option<String>,
    /// The state directory
    #[arg(long, env = "WARREN_STATE_DIR", default_value = consts::STATE_DIR)]
    pub state_dir: PathBuf,
    /// Directory of the container runtime's CNI configurations
    #[arg(long, env = "WARREN_CNI_CONF_DIR", default_value = "/etc/cni/net.d")]
    pub cni_conf_dir: PathBuf,
    /// Name of Warren's CNI configuration
    #[arg(
        long,
        env = "WARREN_CNI_CONF_NAME",
        default_value = "10-warren.conflist"
    )]
    pub cni_conf_name: String,
    /// Remove the plugin warren-cni from this directory too, such as /opt/cni/bin
    #[arg(long)]
    pub cni_bin_dir: Option<PathBuf>,
    /// Remove this node's record from this directory (the file registry) too
    #[arg(long, env = "WARREN_REGISTRY_DIR")]
    pub registry_dir: Option<PathBuf>,
    /// Where the sockets are.
    #[command(flatten)]
    pub directories: Directories,
}

/// Arguments of `warren show`.
#[derive(Debug, Args)]
pub struct ShowArgs {
    /// An interface's name; `all`; or `interfaces`, which lists their names [default: all]
    pub interface: Option<String>,
    /// Print this alone, in wg's form for scripts
    #[arg(value_enum, requires = "interface")]
    pub field: Option<Field>,
    /// Print JSON, with the field names of wireguard-tools' wg-json; secret keys are hidden
    #[arg(long, conflicts_with = "field")]
    pub json: bool,
    /// Where the sockets are.
    #[command(flatten)]
    pub directories: Directories,
}

/// Arguments of `warren pods`.
#[derive(Debug, Args)]
pub struct PodsArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Directory of Warren's state, which only root may read
    #[arg(long, env = "WARREN_STATE_DIR", default_value = consts::STATE_DIR)]
    pub state_dir: PathBuf,
}

/// Arguments of `warren status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Print the agent's status document, indented
    #[arg(long)]
    pub json: bool,
    /// Where the sockets are.
    #[command(flatten)]
    pub directories: Directories,
}

/// Arguments of `warren doctor`.
#[derive(Clone, Debug, Args)]
pub struct DoctorArgs {
    /// Print the findings as a JSON document
    #[arg(long)]
    pub json: bool,
    /// Send nothing to anyone
    #[arg(long)]
    pub no_probe: bool,
    /// Name of the tunnel's interface
    #[arg(long, env = "WARREN_INTERFACE", default_value = consts::INTERFACE)]
    pub interface: String,
    /// Directory of the state
    #[arg(long, env = "WARREN_STATE_DIR", default_value = consts::STATE_DIR)]
    pub state_dir: PathBuf,
    /// The private key's file [default: STATE_DIR/private.key]
    #[arg(long, env = "WARREN_KEY_FILE")]
    pub key_file: Option<PathBuf>,
    /// Directory of the CNI configurations
    #[arg(long, env = "WARREN_CNI_CONF_DIR", default_value = "/etc/cni/net.d")]
    pub cni_conf_dir: PathBuf,
    /// Name of the CNI configuration
    #[arg(
        long,
        env = "WARREN_CNI_CONF_NAME",
        default_value = "10-warren.conflist"
    )]
    pub cni_conf_name: String,
    /// Directory of the CNI plugins
    #[arg(long, env = "WARREN_CNI_BIN_DIR", default_value = "/opt/cni/bin")]
    pub cni_bin_dir: PathBuf,
    /// Where the sockets are.
    #[command(flatten)]
    pub directories: Directories,
}

impl DoctorArgs {
    /// The private key's file.
    pub fn key_file(&self) -> PathBuf {
        let default = || self.state_dir.join("private.key");
        self.key_file.clone().unwrap_or_else(default)
    }
}

/// The directories of the sockets.
#[derive(Clone, Debug, Args)]
pub struct Directories {
    /// Directory of the WireGuard UAPI sockets
    #[arg(long, env = "WARREN_UAPI_DIR", default_value = consts::UAPI_DIR)]
    pub uapi_dir: PathBuf,
    /// Directory of Warren's own sockets
    #[arg(long, env = "WARREN_RUN_DIR", default_value = consts::RUN_DIR)]
    pub run_dir: PathBuf,
}

/// The single fields of `wg show`, and its dump.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "kebab-case")]
pub enum Field {
    /// The device's public key
    PublicKey,
    /// The device's private key
    PrivateKey,
    /// The UDP port
    ListenPort,
    /// The mark of outgoing packets
    Fwmark,
    /// The peers' public keys
    Peers,
    /// The peers' preshared keys
    PresharedKeys,
    /// The peers' endpoints
    Endpoints,
    /// The peers' prefixes
    AllowedIps,
    /// Unix times of the newest handshakes
    LatestHandshakes,
    /// The peers' keepalive intervals in seconds
    PersistentKeepalive,
    /// Received and sent bytes
    Transfer,
    /// All of it, with tabs between
    Dump,
}
