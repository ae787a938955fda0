//! Pools on disk: one JSON document a network, replaced atomically under one lock.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::disk::{Disk, OsDisk, make_private_dir};
use super::pool::{Pool, PoolError};

/// The folder of the pools, in the state directory.
const FOLDER: &str = "ipam";
/// The lock's file. A network's name cannot begin with a dot, so that no document is called so.
/// INVARIANT: it is never renamed or removed, or two callers could hold "the" lock.
const LOCK: &str = ".lock";
/// How a document's name ends.
const SUFFIX: &str = ".json";

/// Why the store failed.
#[derive(Debug, Error)]
pub enum StoreError {
    /// The system refused an operation. CNI error code 5.
    #[error("cannot {operation} {path:?} of the address store: {cause}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// A document is truncated, damaged, or not ours. CNI error code 5.
    #[error(
        "the address store's file {path:?} cannot be used: {reason}. It says which addresses \
         running pods have, so it is not replaced; restore it, or remove this node's pods and then \
         the file (a reboot does the former)"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// No address can be given. CNI error code 11.
    #[error(transparent)]
    Pool(#[from] PoolError),
}

/// The pools of a node, opened for one network.
#[derive(Clone, Debug)]
pub struct Store<D = OsDisk> {
    folder: PathBuf,
    network: String,
    boot_id: String,
    disk: D,
}

impl<D: Disk> Store<D> {
    /// A store under this state directory. Nothing is touched until it is used.
    pub fn new(state_dir: &Path, network: &str, boot_id: &str, disk: D) -> Self {
        Self {
            folder: state_dir.join(FOLDER),
            network: network.into(),
            boot_id: boot_id.into(),
            disk,
        }
    }

    /// Whether any network ever stored anything: where not, nothing is reserved.
    pub fn exists(&self) -> bool {
        self.folder.exists()
    }

    /// The pool as it is stored; none when it is not there, or of an earlier boot.
    ///
    /// # Errors
    /// [`StoreError::Io`], [`StoreError::Damaged`].
    pub fn read(&self) -> Result<Option<Pool>, StoreError> {
        let path = self.folder.join(format!("{}{SUFFIX}", self.network));
        // Documents are replaced as a whole: no lock is needed to read one.
        let pool = self.load(&path, &self.network)?;
        Ok(pool.filter(|pool| pool.boot_id() == self.boot_id))
    }

    /// How many other networks have a pool here.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn beside(&self) -> Result<usize, StoreError> {
        match self.exists() {
            true => Ok(self.other_networks()?.len()),
            false => Ok(0),
        }
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
    /// As [`Store::update`]; also when another network's document is damaged.
    pub fn update_beside<T>(
        &self,
        change: impl FnOnce(&mut Pool, &BTreeSet<IpAddr>) -> Result<T, PoolError>,
    ) -> Result<T, StoreError> {
        self.transaction(|pool| Ok(change(pool, &self.elsewhere()?)?))
    }

    fn transaction<T>(
        &self,
        change: impl FnOnce(&mut Pool) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let _lock = self.lock()?;
        let path = self.folder.join(format!("{}{SUFFIX}", self.network));
        let stored = self.load(&path, &self.network)?;
        let mut pool = match &stored {
            Some(pool) => pool.clone(),
            None => Pool::new(&self.network, &self.boot_id),
        };
        pool.begin_boot(&self.boot_id);
        let value = change(&mut pool)?;
        if stored.as_ref() != Some(&pool) {
            self.save(&path, &pool)?;
        }
        Ok(value)
    }

    fn lock(&self) -> Result<File, StoreError> {
        make_private_dir(&self.folder).map_err(io_error("create", &self.folder))?;
        let path = self.folder.join(LOCK);
        let mut options = OpenOptions::new();
        let options = options
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600);
        let file = options.open(&path).map_err(io_error("open", &path))?;
        // The kernel lets it go when the process ends, however it ends.
        file.lock().map_err(io_error("lock", &path))?;
        Ok(file)
    }

    fn load(&self, path: &Path, network: &str) -> Result<Option<Pool>, StoreError> {
        let Some(bytes) = self.disk.read(path).map_err(io_error("read", path))? else {
            return Ok(None);
        };
        let damaged = |reason| StoreError::Damaged {
            path: path.into(),
            reason,
        };
        let pool: Pool = serde_json::from_slice(&bytes).map_err(|e| damaged(e.to_string()))?;
        pool.check(network).map_err(damaged)?;
        Ok(Some(pool))
    }

    fn save(&self, path: &Path, pool: &Pool) -> Result<(), StoreError> {
        let bytes = serde_json::to_vec(pool).map_err(|e| StoreError::Damaged {
            path: path.into(),
            reason: e.to_string(),
        })?;
        // One fixed name under the lock: what a killed call left there is overwritten by the next.
        let temporary = self.folder.join(format!(".{}{SUFFIX}.tmp", self.network));
        self.disk
            .write_synced(&temporary, &bytes)
            .map_err(io_error("write", &temporary))?;
        self.disk
            .replace_synced(&temporary, path)
            .map_err(io_error("replace", path))
    }

    fn other_networks(&self) -> Result<Vec<String>, StoreError> {
        let list = || -> io::Result<Vec<String>> {
            let names = fs::read_dir(&self.folder)?.map(|entry| Ok(entry?.file_name()));
            let names: io::Result<Vec<_>> = names.collect();
            Ok(names?
                .into_iter()
                .filter_map(|name| name.into_string().ok())
                .collect())
        };
        let mut names = list().map_err(io_error("list", &self.folder))?;
        names.retain(|name| !name.starts_with('.'));
        let networks = names.iter().filter_map(|name| name.strip_suffix(SUFFIX));
        Ok(networks
            .filter(|name| *name != self.network)
            .map(Into::into)
            .collect())
    }

    fn elsewhere(&self) -> Result<BTreeSet<IpAddr>, StoreError> {
        let mut out = BTreeSet::new();
        for network in self.other_networks()? {
            let path = self.folder.join(format!("{network}{SUFFIX}"));
            if let Some(pool) = self.load(&path, &network)?
                && pool.boot_id() == self.boot_id
            {
                out.extend(
                    pool.reservations()
                        .iter()
                        .flat_map(|r| r.addresses.iter().copied()),
                );
            }
        }
        Ok(out)
    }
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
