//! Addresses of pods: an allocator without I/O ([`pool`]) on a store that survives being killed at
//! any point ([`store`]).
//!
//! An attachment (container id, interface) has one address of each family, for its whole life.
//! Freed addresses are given again oldest first, only when no never-used one is left, and not
//! within [`COOL_DOWN`]; when all free ones cool down there is none to give. Reservations of an
//! earlier boot are released, for no pod survives one.

pub mod disk;
pub mod pool;
pub mod store;

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use nix::time::{ClockId, clock_gettime};

use crate::env::AttachmentId;
pub use disk::{Disk, OsDisk};
pub use pool::{COOL_DOWN, Granted, Pool, PoolError, Reservation, Uptime};
pub use store::{Store, StoreError};

/// Where the kernel tells this boot from others.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The addresses of one network on this node, with the system's clock and boot.
#[derive(Clone, Debug)]
pub struct Ipam {
    store: Store<OsDisk>,
}

impl Ipam {
    /// The addresses of `network`, kept under `state_dir`.
    ///
    /// # Errors
    /// [`StoreError::Io`] when the boot's id cannot be read.
    pub fn open(state_dir: &Path, network: &str) -> Result<Self, StoreError> {
        let path = PathBuf::from(BOOT_ID);
        let boot_id = fs::read_to_string(&path).map_err(|cause| StoreError::Io {
            operation: "read",
            path,
            cause,
        })?;
        Ok(Self {
            store: Store::new(state_dir, network, boot_id.trim(), OsDisk),
        })
    }

    /// Gives the attachment an address of each family of `ranges`, or what it has already.
    ///
    /// # Errors
    /// See [`Store::update_beside`] and [`Pool::reserve`].
    pub fn reserve(
        &self,
        owner: &AttachmentId,
        pod: Option<&str>,
        ranges: &BTreeSet<IpNet>,
    ) -> Result<Granted, StoreError> {
        let now = uptime()?;
        self.store
            .update_beside(|pool, elsewhere| pool.reserve(owner, pod, ranges, elsewhere, now))
    }

    /// Releases the attachment's addresses, if it has any, and tells which they were.
    ///
    /// # Errors
    /// See [`Store::update`].
    pub fn release(&self, owner: &AttachmentId) -> Result<Vec<IpAddr>, StoreError> {
        if !self.store.exists() {
            return Ok(Vec::new());
        }
        let now = uptime()?;
        self.store.update(|pool| Ok(pool.release(owner, now)))
    }

    /// What the attachment has, if anything.
    ///
    /// # Errors
    /// See [`Store::read`].
    pub fn reservation(&self, owner: &AttachmentId) -> Result<Option<Reservation>, StoreError> {
        Ok(self.reservations()?.into_iter().find(|reservation| {
            reservation.container_id == owner.container_id.as_str()
                && reservation.ifname == owner.ifname.as_str()
        }))
    }

    /// All reservations of the network in this boot.
    ///
    /// # Errors
    /// See [`Store::read`].
    pub fn reservations(&self) -> Result<Vec<Reservation>, StoreError> {
        let pool = self.store.read()?;
        Ok(pool.map_or_else(Vec::new, |pool| pool.reservations().to_vec()))
    }

    /// Whether an address of each family of `ranges` could be given now; nothing is changed.
    ///
    /// # Errors
    /// See [`Store::update_beside`] and [`Pool::reserve`].
    pub fn check_free(&self, ranges: &BTreeSet<IpNet>) -> Result<(), StoreError> {
        let now = uptime()?;
        self.store
            .update_beside(|pool, elsewhere| pool.clone().check_free(ranges, elsewhere, now))
    }

    /// How many other networks have addresses on this node.
    ///
    /// # Errors
    /// See [`Store::update_beside`].
    pub fn beside(&self) -> Result<usize, StoreError> {
        self.store.beside()
    }

    /// Undoes a fresh reservation that no pod ever used.
    ///
    /// # Errors
    /// See [`Store::update`].
    pub fn give_back(&self, owner: &AttachmentId) -> Result<Vec<IpAddr>, StoreError> {
        self.store.update(|pool| Ok(pool.give_back(owner)))
    }
}

fn uptime() -> Result<Uptime, StoreError> {
    let clock = clock_gettime(ClockId::CLOCK_BOOTTIME).map_err(|errno| StoreError::Io {
        operation: "read the clock for",
        path: PathBuf::from("CLOCK_BOOTTIME"),
        cause: io::Error::from(errno),
    })?;
    Ok(clock.into())
}
