//! What the tunnel and the agent tell of themselves.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use warren_core::consts;
use warren_core::status::AgentStatus;
use warren_core::uapi::{self, Device, UapiError};
use warren_keyring::PublicKey;
use warren_netlink::NetlinkError;
use zeroize::Zeroizing;

use crate::args::Directories;
use crate::kernel_device;
use crate::show::ShownDevice;
use crate::socket::{End, SocketError, ask};

/// Why a source could not be read.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The directory of the UAPI sockets cannot be listed.
    #[error("list interfaces in {path}: {source}; run this as root, or give --uapi-dir")]
    List {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The name cannot be that of an interface.
    #[error("read interface {name:?}: no such name is possible; `warren show interfaces` lists")]
    InterfaceName {
        /// The name that was given.
        name: String,
    },
    /// The interface is the kernel's, which told nothing of it.
    #[error("read interface {name}: {source}; run this as root")]
    Kernel {
        /// The interface.
        name: String,
        /// What the kernel said.
        source: NetlinkError,
    },
    /// The kernel does not list its links.
    #[error("list the kernel's interfaces: {0}")]
    Links(#[source] NetlinkError),
    /// The interface's socket gave no answer.
    #[error("read interface {name}: {source}")]
    Interface {
        /// The interface.
        name: String,
        /// Why.
        source: SocketError,
    },
    /// The interface's answer is none of UAPI.
    #[error("read interface {name}: {source}")]
    Device {
        /// The interface.
        name: String,
        /// Why.
        source: UapiError,
    },
    /// The agent's socket gave no answer.
    #[error("read the agent's status: {0}")]
    Agent(#[source] SocketError),
    /// The agent's answer is no status document.
    #[error("read the agent's status: {0}; are warren and warren-agent of the same version?")]
    Document(#[source] serde_json::Error),
    /// The tunnel's own socket gave no answer.
    #[error("read the tunnel's counters: {0}")]
    Tunnel(#[source] SocketError),
}

/// The sockets of one node.
#[derive(Clone, Debug)]
pub struct Sources {
    directories: Directories,
}

impl Sources {
    /// Makes the sources from the directories of their sockets.
    pub fn new(directories: Directories) -> Self {
        Self { directories }
    }

    /// Returns the names of the interfaces that have a living socket or are the kernel's, sorted.
    ///
    /// A directory that does not exist has none. Where another directory than the usual is given, it is
    /// read alone.
    ///
    /// # Errors
    /// [`SourceError::List`], [`SourceError::Links`].
    pub fn interfaces(&self) -> Result<Vec<String>, SourceError> {
        let path = &self.directories.uapi_dir;
        let failed = |source| SourceError::List {
            path: path.clone(),
            source,
        };
        let entries = match std::fs::read_dir(path) {
            Ok(entries) => Some(entries),
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => return Err(failed(error)),
        };
        let mut names = match self.has_kernel() {
            true => kernel_device::names().map_err(SourceError::Links)?,
            false => Vec::new(),
        };
        for entry in entries.into_iter().flatten() {
            let file = entry.map_err(failed)?.file_name();
            let name = file.to_str().and_then(|file| file.strip_suffix(SUFFIX));
            if let Some(name) = name.filter(|name| is_name(name) && self.may_answer(name)) {
                names.push(name.to_owned());
            }
        }
        names.sort();
        names.dedup();
        Ok(names)
    }

    /// Asks for the state of an interface: by its socket, else the kernel.
    ///
    /// # Errors
    /// [`SourceError::InterfaceName`], [`SourceError::Interface`], [`SourceError::Device`],
    /// [`SourceError::Kernel`].
    pub fn device(&self, name: &str) -> Result<ShownDevice, SourceError> {
        if !is_name(name) {
            return Err(SourceError::InterfaceName {
                name: name.to_owned(),
            });
        }
        if !self.may_answer(name) && self.has_kernel() && kernel_device::exists(name) {
            return kernel_device::read(name).map_err(|source| SourceError::Kernel {
                name: name.to_owned(),
                source,
            });
        }
        let answer =
            ask(&self.socket(name), uapi::GET, End::EmptyLine, LIMIT).map_err(|source| {
                SourceError::Interface {
                    name: name.to_owned(),
                    source,
                }
            })?;
        let device = Device::parse(&answer).map_err(|source| SourceError::Device {
            name: name.to_owned(),
            source,
        })?;
        Ok(device.into())
    }

    /// Whether the kernel is asked too, as `wg` does.
    fn has_kernel(&self) -> bool {
        self.directories.uapi_dir == std::path::Path::new(consts::UAPI_DIR)
    }

    /// Asks for the agent's status; returns its text too.
    ///
    /// # Errors
    /// [`SourceError::Agent`], [`SourceError::Document`].
    pub fn agent(&self) -> Result<(Zeroizing<String>, AgentStatus), SourceError> {
        self.agent_within(LIMIT)
    }

    /// Asks for the names of the nodes by their keys; none when the agent does not answer soon.
    pub fn node_names(&self) -> BTreeMap<PublicKey, String> {
        let Ok((_, status)) = self.agent_within(NAMES_LIMIT) else {
            return BTreeMap::new();
        };
        status
            .peers
            .into_iter()
            .map(|peer| (peer.public_key, peer.node))
            .collect()
    }

    /// Asks for the lines of the tunnel's own socket.
    ///
    /// # Errors
    /// [`SourceError::Tunnel`].
    pub fn tunnel(&self) -> Result<Zeroizing<String>, SourceError> {
        let path = self.directories.run_dir.join(consts::TUNNEL_SOCKET);
        ask(&path, "", End::Close, LIMIT).map_err(SourceError::Tunnel)
    }

    /// The directory of the UAPI sockets.
    pub fn uapi_dir(&self) -> &std::path::Path {
        &self.directories.uapi_dir
    }

    fn agent_within(
        &self,
        limit: Duration,
    ) -> Result<(Zeroizing<String>, AgentStatus), SourceError> {
        let path = self.directories.run_dir.join(consts::AGENT_SOCKET);
        let text = ask(&path, "", End::Close, limit).map_err(SourceError::Agent)?;
        let status = serde_json::from_str(&text).map_err(SourceError::Document)?;
        Ok((text, status))
    }

    fn socket(&self, name: &str) -> PathBuf {
        self.directories.uapi_dir.join(format!("{name}{SUFFIX}"))
    }

    /// As `wg`: a socket whose server is gone is no interface; one that may not be opened is, and
    /// the error comes when it is read.
    fn may_answer(&self, name: &str) -> bool {
        let path = self.socket(name);
        let is_socket = std::fs::metadata(&path).is_ok_and(|meta| meta.file_type().is_socket());
        is_socket
            && !UnixStream::connect(&path)
                .is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
    }
}

const SUFFIX: &str = ".sock";
/// Both servers answer from memory.
const LIMIT: Duration = Duration::from_secs(5);
/// Names are an extra: a hanging agent must not hide what the tunnel says.
const NAMES_LIMIT: Duration = Duration::from_secs(1);

/// What the kernel allows as an interface's name (`dev_valid_name`), printable alone.
fn is_name(name: &str) -> bool {
    (1..=15).contains(&name.len())
        && !matches!(name, "." | "..")
        && name
            .chars()
            .all(|c| c != '/' && c != ':' && !c.is_whitespace() && !c.is_control())
}
