//! STATUS: whether an ADD would work now, and whether the pods that are there work.

use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use thiserror::Error;
use warren_core::consts::{TUNNEL_SOCKET, VETH_PREFIX};
use warren_core::files::NodeFile;
use warren_netlink::{Netlink, NetlinkError, SyncNetlink};

use crate::attach::AttachError;
use crate::config::NetConf;
use crate::error::Error;
use crate::ipam::{Ipam, ranges};
use crate::protect;

/// How long the tunnel may take to answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// Larger than any answer of the tunnel.
const MAX_ANSWER: u64 = 64 * 1024;
/// The line that the tunnel leaves out while it has no device.
const DEVICE_LINE: &str = "mtu_bytes=";

/// Why pods are cut off from those on other nodes.
#[derive(Debug, Error)]
pub enum TunnelError {
    /// Nobody answers.
    #[error("the tunnel does not answer on {path:?}: {cause}; is warren-tunnel running?")]
    Silent {
        /// Its socket.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// It has no device.
    #[error("the tunnel has no interface; see the log of warren-tunnel")]
    NoDevice,
    /// The interface is gone or switched off.
    #[error("interface {name} is {state}; see `warren status`")]
    Interface {
        /// Its name.
        name: String,
        /// What is wrong with it.
        state: &'static str,
    },
    /// The kernel could not be asked.
    #[error(transparent)]
    Kernel(#[from] NetlinkError),
}

/// Tells whether ADD would work.
///
/// # Errors
/// [`Error::Unavailable`] with all reasons; [`Error::Config`].
pub(crate) async fn status(conf: &NetConf) -> Result<(), Error> {
    let pod_conf = conf.pod()?;
    let host = Netlink::open().map_err(AttachError::from)?;
    let mut reasons = Vec::new();
    let node = match protect::load_node(&conf.state_dir) {
        Ok(node) => Some(node),
        Err(error) => {
            reasons.push(error.into());
            None
        }
    };
    let mut protected = false;
    if let Some(node) = &node {
        let mut kernel = SyncNetlink::open().map_err(AttachError::from)?;
        match protect::check(&mut kernel, node) {
            Ok(()) => protected = true,
            Err(error) => reasons.push(error.into()),
        }
        if protected && let Err(error) = protect::check_masquerade(pod_conf.masquerade) {
            reasons.push(error.into());
        }
        let ranges = ranges(&pod_conf, node)?;
        if let Err(error) = protect::check_families(&ranges) {
            reasons.push(error.into());
        }
        let ipam = Ipam::open(&conf.state_dir, &conf.name);
        if let Err(error) = ipam.and_then(|ipam| ipam.check_free(&ranges)) {
            reasons.push(error.into());
        }
    }
    let mut affected = false;
    if let Err(error) = tunnel(conf, node.as_ref(), &host).await {
        // A node that was never set up has no pods that miss their tunnel.
        affected = protected || has_pods(&host).await;
        reasons.push(error.into());
    }
    match reasons.is_empty() {
        true => Ok(()),
        false => Err(Error::Unavailable { affected, reasons }),
    }
}

async fn tunnel(
    conf: &NetConf,
    node: Option<&NodeFile>,
    host: &Netlink,
) -> Result<(), TunnelError> {
    let path = conf.run_dir.join(TUNNEL_SOCKET);
    let answer = ask(&path).map_err(|cause| TunnelError::Silent { path, cause })?;
    if !answer.lines().any(|line| line.starts_with(DEVICE_LINE)) {
        return Err(TunnelError::NoDevice);
    }
    let Some(node) = node else { return Ok(()) };
    let name = node.interface.clone();
    match host.link_by_name(&name).await? {
        Some(link) if link.up => Ok(()),
        Some(_) => {
            let state = "switched off";
            Err(TunnelError::Interface { name, state })
        }
        None => {
            let state = "not there";
            Err(TunnelError::Interface { name, state })
        }
    }
}

/// The tunnel's answer. A thread asks, for connecting to a daemon that hangs may block for ever;
/// it ends with the process.
fn ask(path: &Path) -> io::Result<String> {
    let (sender, answer) = mpsc::channel();
    let path = path.to_owned();
    thread::Builder::new().spawn(move || {
        let read = || {
            let stream = UnixStream::connect(&path)?;
            let mut text = String::new();
            stream.take(MAX_ANSWER).read_to_string(&mut text)?;
            Ok(text)
        };
        // Nobody listens any more when it took too long.
        let _ = sender.send(read());
    })?;
    answer
        .recv_timeout(PATIENCE)
        .unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut)))
}

async fn has_pods(host: &Netlink) -> bool {
    let links = host.links().await.unwrap_or_default();
    links.iter().any(|link| link.name.starts_with(VETH_PREFIX))
}
