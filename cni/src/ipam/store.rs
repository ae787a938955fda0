//! Pools on disk: one JSON document a network, replaced atomically under one lock.
//!
//! ```text
//!  <network>.json         the document
//!  .<network>.json.spare  its predecessor: the next document is written over it, and the two
//!                         change names. Its blocks are there already, so that addresses can be
//!                         released, which makes the document no longer, on a full disk
//! ```
//!
//! Nothing is synced: a document speaks of pods, none of which survives what loses unsynced writes.
//! What a power failure leaves of it is told by the boot's id or found to be damaged. A missing or
//! damaged document is made anew from the attachments that are there.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use thiserror::Error;
use warren_core::files::{IPAM_DIR, IPAM_SUFFIX};
use warren_netlink::NetlinkError;

use super::attachment_lock::AttachmentLock;
use super::disk::{Disk, OsDisk, make_private_dir, open_lock_file};
use super::live::{KernelLive, Live, LiveAttachment};
use super::pool::{Pool, PoolError};

/// The lock's file. A network's name cannot begin with a dot, so that no document is called so.
/// INVARIANT: it is never renamed or removed, or two callers could hold "the" lock.
const LOCK: &str = ".lock";
/// Documents are padded with line feeds to whole blocks of this size, with room for so much ...
const BLOCK: usize = 4096;
/// ... as a release may add, so that the document before has the blocks that the next one needs.
const ROOM: usize = 1024;

/// Why the store failed.
#[derive(Debug, Error)]
pub enum StoreError {
    /// The system refused an operation. CNI error code 5.
    #[error(
        "cannot {operation} {path:?} of the address store: {cause}{}",
        hint(cause)
    )]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// The attachments that are there could not be listed. CNI error code 5.
    #[error("cannot tell which addresses running pods have: {0}")]
    Live(#[from] NetlinkError),
    /// No address can be given. The CNI error code is its own.
    #[error(transparent)]
    Pool(#[from] PoolError),
}

fn is_full(cause: &io::Error) -> bool {
    matches!(
        cause.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

/// The likely fix, for the errors that have one.
fn hint(cause: &io::Error) -> &'static str {
    match cause.kind() {
        _ if is_full(cause) => {
            "; free space on that file system: the reservations are as they were"
        }
        io::ErrorKind::ReadOnlyFilesystem => "; mount that file system writable",
        io::ErrorKind::PermissionDenied => "; the plugin must run as root",
        _ => "",
    }
}

/// The pools of a node, opened for one network.
#[derive(Clone, Debug)]
pub struct Store<D = OsDisk, L = KernelLive> {
    folder: PathBuf,
    network: String,
    boot_id: String,
    disk: D,
    live: L,
}

/// A document as it was found.
struct Loaded {
    pool: Pool,
    /// Whether it is what the file holds.
    stored: bool,
    /// Bytes of the document in the file, without its padding; none when there is no file.
    length: Option<usize>,
}

/// A document with its length, none, or why it cannot be ours.
type Found = Result<Option<(Pool, usize)>, String>;

impl<D: Disk, L: Live> Store<D, L> {
    /// A store under this state directory. Nothing is touched until it is used.
    pub fn new(state_dir: &Path, network: &str, boot_id: &str, disk: D, live: L) -> Self {
        Self {
            folder: state_dir.join(IPAM_DIR),
            network: network.into(),
            boot_id: boot_id.into(),
            disk,
            live,
        }
    }

    /// Whether this network ever stored anything: where not, nothing is reserved.
    pub fn exists(&self) -> bool {
        self.path().exists()
    }

    /// Where the attachments that are there are seen.
    pub fn live(&self) -> &L {
        &self.live
    }

    /// Changes the pool under the lock. When `change` fails, or changes nothing, nothing is
    /// written.
    ///
    /// # Errors
    /// [`StoreError`]: whatever fails, the stored document is either the old or the new one.
    pub fn update<T>(
        &self,
        change: impl FnOnce(&mut Pool) -> Result<T, PoolError>,
    ) -> Result<T, StoreError> {
        self.transaction(|pool| Ok(change(pool)?))
    }

    /// As [`Store::update`], and `change` is told the addresses that the node's other networks
    /// have given: they share the podCIDRs.
    ///
    /// # Errors
    /// As [`Store::update`].
    pub fn update_beside<T>(
        &self,
        change: impl FnOnce(&mut Pool, &BTreeSet<IpAddr>) -> Result<T, PoolError>,
    ) -> Result<T, StoreError> {
        self.transaction(|pool| {
            let elsewhere = self.elsewhere(pool)?;
            Ok(change(pool, &elsewhere)?)
        })
    }

    /// Waits for the lock of an attachment: its ADD, DEL and sweep exclude each other.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn lock_attachment(&self, host_interface: &str) -> Result<AttachmentLock, StoreError> {
        make_private_dir(&self.folder).map_err(io_error("create", &self.folder))?;
        AttachmentLock::wait(&self.folder, host_interface)
            .map_err(io_error("lock an attachment in", &self.folder))
    }

    /// Takes the lock of an attachment unless a call is under way for it.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn try_lock_attachment(
        &self,
        host_interface: &str,
    ) -> Result<Option<AttachmentLock>, StoreError> {
        AttachmentLock::try_take(&self.folder, host_interface)
            .map_err(io_error("lock an attachment in", &self.folder))
    }

    fn transaction<T>(
        &self,
        change: impl FnOnce(&mut Pool) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let _lock = self.lock()?;
        let Loaded {
            mut pool,
            stored,
            length,
        } = self.load_or_rebuild()?;
        let before = pool.clone();
        let value = change(&mut pool)?;
        if !stored || pool != before {
            self.save(&pool, length)?;
        }
        Ok(value)
    }

    fn path(&self) -> PathBuf {
        self.folder.join(format!("{}{IPAM_SUFFIX}", self.network))
    }

    fn lock(&self) -> Result<File, StoreError> {
        let path = self.folder.join(LOCK);
        let file = match open_lock_file(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                make_private_dir(&self.folder).map_err(io_error("create", &self.folder))?;
                open_lock_file(&path)
            }
            other => other,
        };
        let file = file.map_err(io_error("open", &path))?;
        // The kernel lets it go when the process ends, however it ends.
        file.lock().map_err(io_error("lock", &path))?;
        Ok(file)
    }

    /// The network's document; a damaged one is set aside, and a missing one made from what lives.
    fn load_or_rebuild(&self) -> Result<Loaded, StoreError> {
        let path = self.path();
        match self.load(&path, &self.network)? {
            Ok(Some((mut pool, length))) => {
                let stored = pool.boot_id() == self.boot_id;
                if !stored {
                    let live = self.live.attachments()?;
                    pool.begin_boot(&self.boot_id, &live);
                    pool.adopt(&ours(live), &BTreeSet::new());
                }
                return Ok(Loaded {
                    pool,
                    stored,
                    length: Some(length),
                });
            }
            Ok(None) => {}
            Err(reason) => self.set_aside(&path, &reason)?,
        }
        let live = self.live.attachments()?;
        let mut pool = Pool::new(&self.network, &self.boot_id);
        pool.adopt(&ours(live), &BTreeSet::new());
        Ok(Loaded {
            pool,
            stored: false,
            length: None,
        })
    }

    /// Reads a document, and tells its length; the inner error says why it is none of ours.
    fn load(&self, path: &Path, network: &str) -> Result<Found, StoreError> {
        let bytes = match self.disk.read(path) {
            Ok(Some(bytes)) => bytes,
            Ok(None) => return Ok(Ok(None)),
            Err(e) if e.kind() == io::ErrorKind::InvalidData => return Ok(Err(e.to_string())),
            Err(cause) => return Err(io_error("read", path)(cause)),
        };
        let length = bytes.trim_ascii_end().len();
        Ok(Pool::from_document(&bytes, network).map(|pool| Some((pool, length))))
    }

    /// Keeps a file that is none of ours under another name: nothing of it is lost, and pods can be
    /// made again.
    fn set_aside(&self, path: &Path, reason: &str) -> Result<(), StoreError> {
        let time = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_secs();
        let name = |n: u32| {
            let file = format!("{}{IPAM_SUFFIX}.damaged-{time}-{n}", self.network);
            self.folder.join(file)
        };
        let free = (1..=u32::MAX)
            .map(name)
            .find(|path| fs::symlink_metadata(path).is_err());
        let aside = free.unwrap_or_else(|| name(0));
        fs::rename(path, &aside).map_err(io_error("set aside", path))?;
        tracing::warn!(
            file = %path.display(), kept_as = %aside.display(), reason,
            "the address store was damaged: reservations are made anew from the pods that run"
        );
        Ok(())
    }

    /// INVARIANT: afterwards the document's file and the spare one both have as many bytes as the
    /// document at least. So a release, which makes it shorter, needs no new block in either.
    fn save(&self, pool: &Pool, before: Option<usize>) -> Result<(), StoreError> {
        let path = self.path();
        let document = pool.to_document().map_err(io_error("encode", &path))?;
        let mut padded = document.clone();
        padded.resize((padded.len() + ROOM).next_multiple_of(BLOCK), b'\n');
        // One fixed name under the lock: what a killed call left there is overwritten by the next.
        let spare = self
            .folder
            .join(format!(".{}{IPAM_SUFFIX}.spare", self.network));
        let grows = before.is_none_or(|before| document.len() > before);
        if grows && before.is_some() {
            // This one is the spare next time.
            let extended = self.disk.extend(&path, padded.len());
            extended.map_err(io_error("extend", &path))?;
        }
        let written = match self.disk.overwrite(&spare, &padded) {
            // The room is for later.
            Err(cause) if !grows && is_full(&cause) => self.disk.overwrite(&spare, &document),
            other => other,
        };
        written.map_err(io_error("write", &spare))?;
        self.disk
            .exchange(&spare, &path)
            .map_err(io_error("replace", &path))?;
        if !spare.exists() {
            // Without it all goes well but a release on a full disk.
            let _ = self.disk.overwrite(&spare, &padded);
        }
        Ok(())
    }

    /// The addresses that other networks have given.
    fn elsewhere(&self, own: &Pool) -> Result<BTreeSet<IpAddr>, StoreError> {
        let (mut taken, complete) = self.stored_elsewhere()?;
        if !complete {
            // What another network's lost document said is seen in the kernel.
            let live = self.live.attachments()?;
            let unknown = |a: &IpAddr| own.holder_of(*a).is_none();
            taken.extend(live.into_iter().flat_map(|l| l.addresses).filter(unknown));
        }
        Ok(taken)
    }

    /// What the documents of other networks say, and whether all could be read.
    fn stored_elsewhere(&self) -> Result<(BTreeSet<IpAddr>, bool), StoreError> {
        let (mut out, mut complete) = (BTreeSet::new(), true);
        for network in self.networks()? {
            if network == self.network {
                continue;
            }
            let path = self.folder.join(format!("{network}{IPAM_SUFFIX}"));
            match self.load(&path, &network)? {
                Ok(Some((pool, _))) if pool.boot_id() == self.boot_id => {
                    out.extend(pool.reservations().iter().flat_map(|r| &r.addresses));
                }
                Ok(Some(_)) | Err(_) => complete = false,
                Ok(None) => {}
            }
        }
        Ok((out, complete))
    }

    /// The networks that have a document.
    fn networks(&self) -> Result<Vec<String>, StoreError> {
        let list = || -> io::Result<Vec<String>> {
            let names = fs::read_dir(&self.folder)?.map(|entry| Ok(entry?.file_name()));
            let names: io::Result<Vec<_>> = names.collect();
            Ok(names?
                .into_iter()
                .filter_map(|name| name.into_string().ok())
                .collect())
        };
        let files = list().map_err(io_error("list", &self.folder))?;
        let network = |file: &String| {
            let name = file.strip_suffix(IPAM_SUFFIX)?;
            (!name.starts_with('.')).then(|| name.to_owned())
        };
        Ok(files.iter().filter_map(network).collect())
    }
}

/// What of it is of this network.
fn ours(mut live: Vec<LiveAttachment>) -> Vec<LiveAttachment> {
    live.retain(|attachment| attachment.ours);
    live
}

fn io_error<'a>(
    operation: &'static str,
    path: &'a Path,
) -> impl FnOnce(io::Error) -> StoreError + 'a {
    move |cause| StoreError::Io {
        operation,
        path: path.into(),
        cause,
    }
}
