//! The `aliases` capability: names under which others on the node find a pod.
//!
//! Each attachment with aliases has one file in `hosts` of the run directory, in the form of
//! hosts(5), written and removed with the attachment. A resolver that reads such a directory serves
//! them: dnsmasq with `--hostsdir`, for one. The plugin runs no resolver itself.

use std::fs;
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use thiserror::Error;
use warren_core::consts::HOSTS_DIR;

use crate::env::{AttachmentId, ContainerId, IfName};
use crate::plan::host_name;

/// What is read of a file at most, in bytes: more than is ever written.
const MAX_FILE: u64 = 64 * 1024;

/// Why names could not be kept. CNI error code 5.
#[derive(Debug, Error)]
#[error("cannot {operation} {path:?} with the aliases of a pod: {cause}")]
pub struct AliasError {
    operation: &'static str,
    path: PathBuf,
    cause: io::Error,
}

/// The files of one node.
#[derive(Clone, Debug)]
pub struct Aliases {
    folder: PathBuf,
    network: String,
}

impl Aliases {
    /// Those of `network`, under this run directory.
    pub fn new(run_dir: &Path, network: &str) -> Self {
        Self {
            folder: run_dir.join(HOSTS_DIR),
            network: network.into(),
        }
    }

    /// Publishes the names for the addresses; without names nothing is written.
    ///
    /// # Errors
    /// [`AliasError`]; what was published before is then still so.
    pub fn publish(
        &self,
        owner: &AttachmentId,
        addresses: &[IpAddr],
        names: &[String],
    ) -> Result<(), AliasError> {
        if names.is_empty() {
            return Ok(());
        }
        let mut builder = fs::DirBuilder::new();
        builder
            .recursive(true)
            .mode(0o755)
            .create(&self.folder)
            .map_err(failed("create", &self.folder))?;
        let path = self.file_of(owner);
        // Resolvers pass over names that begin with a dot.
        let temporary = self.folder.join(format!(".{}", host_name(owner)));
        let write = || {
            let mut options = fs::OpenOptions::new();
            let options = options.write(true).create(true).truncate(true).mode(0o644);
            let mut file = options.open(&temporary)?;
            // Whatever the umask is: resolvers are seldom root.
            file.set_permissions(fs::Permissions::from_mode(0o644))?;
            file.write_all(self.text(owner, addresses, names).as_bytes())
        };
        write().map_err(failed("write", &temporary))?;
        fs::rename(&temporary, &path).map_err(failed("replace", &path))
    }

    /// Removes the attachment's names, if it has any.
    ///
    /// # Errors
    /// [`AliasError`].
    pub fn withdraw(&self, owner: &AttachmentId) -> Result<(), AliasError> {
        let path = self.file_of(owner);
        match fs::remove_file(&path) {
            Ok(()) => Ok(()),
            Err(cause) if is_absent(&cause) => Ok(()),
            Err(cause) => Err(failed("remove", &path)(cause)),
        }
    }

    /// Whether exactly these names are published.
    pub fn are(&self, owner: &AttachmentId, addresses: &[IpAddr], names: &[String]) -> bool {
        let found = fs::read_to_string(self.file_of(owner)).ok();
        match names.is_empty() {
            true => found.is_none(),
            false => found == Some(self.text(owner, addresses, names)),
        }
    }

    /// The attachments of this network that have names.
    ///
    /// # Errors
    /// [`AliasError`] when the folder cannot be listed; files that are not ours are passed over.
    pub fn owners(&self) -> Result<Vec<AttachmentId>, AliasError> {
        let entries = match fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            Err(cause) if is_absent(&cause) => return Ok(Vec::new()),
            Err(cause) => return Err(failed("list", &self.folder)(cause)),
        };
        let owner = |path: &Path| -> Option<AttachmentId> {
            let small = path.symlink_metadata().ok()?;
            if !small.is_file() || small.len() > MAX_FILE {
                return None;
            }
            let text = fs::read_to_string(path).ok()?;
            let head = text.lines().next()?.strip_prefix("# ")?;
            let (network, attachment) = head.split_once(' ')?;
            let (container_id, ifname) = attachment.split_once('/')?;
            let owner = AttachmentId {
                container_id: ContainerId::new(container_id)?,
                ifname: IfName::new(ifname)?,
            };
            (network == self.network && self.file_of(&owner) == path).then_some(owner)
        };
        Ok(entries
            .flatten()
            .filter_map(|entry| owner(&entry.path()))
            .collect())
    }

    fn file_of(&self, owner: &AttachmentId) -> PathBuf {
        self.folder.join(host_name(owner))
    }

    fn text(&self, owner: &AttachmentId, addresses: &[IpAddr], names: &[String]) -> String {
        let mut text = format!("# {} {owner}\n", self.network);
        for address in addresses {
            text += &format!("{address}\t{}\n", names.join(" "));
        }
        text
    }
}

/// Whether there is nothing, or something else in the folder's place.
fn is_absent(error: &io::Error) -> bool {
    use io::ErrorKind::{NotADirectory, NotFound};
    matches!(error.kind(), NotFound | NotADirectory)
}

fn failed<'a>(
    operation: &'static str,
    path: &'a Path,
) -> impl FnOnce(io::Error) -> AliasError + 'a {
    move |cause| AliasError {
        operation,
        path: path.into(),
        cause,
    }
}
