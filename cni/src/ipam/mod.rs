//! Addresses of pods: an allocator without I/O ([`pool`]) on a store that survives being killed at
//! any point ([`store`]).
//!
//! An attachment (container id, interface) has one address of each family, for its whole life.
//! Freed addresses are given again oldest first, only when no never-used one is left, and not
//! within [`COOL_DOWN`]; when all free ones cool down there is none to give.
//!
//! An attachment lives as long as its interface on the node ([`live`]). By that, reservations that
//! nothing owns are found and released ([`Ipam::sweep`]): those of a runtime that never called DEL,
//! of an ADD that was killed, and of an earlier boot. The plugin sweeps by itself, when the pool is
//! used up and at most every [`SWEEP_INTERVAL`]: no daemon is needed for it. By the same, a lost or
//! damaged document is made anew.
//!
//! ```text
//!  ADD    [attachment lock ................................................]
//!              [pool lock: reserve]   veth, addresses, routes
//!  sweep                [list interfaces] [attachment lock? taken: left alone]
//!                                          free: look again, release under the pool lock
//! ```

mod attachment_lock;
pub mod disk;
pub mod live;
pub mod pool;
mod pool_error;
pub mod range;
pub mod store;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use nix::time::{ClockId, clock_gettime};

use crate::env::AttachmentId;
use crate::plan::{host_name, network_mac};
pub use attachment_lock::AttachmentLock;
pub use disk::{Disk, OsDisk};
pub use live::{KernelLive, Live, LiveAttachment};
pub use pool::{
    COOL_DOWN, Circumstances, Granted, Pool, PoolError, Reservation, SWEEP_INTERVAL, Uptime, Wanted,
};
pub use range::{AddressRange, RangeError, check_disjoint, ranges};
pub use store::{Store, StoreError};

/// Where the kernel tells this boot from others.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The addresses of one network on this node, with the system's clock and boot.
#[derive(Clone, Debug)]
pub struct Ipam<D = OsDisk, L = KernelLive> {
    store: Store<D, L>,
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
        Ok(Self::on(Store::new(
            state_dir,
            network,
            boot_id.trim(),
            OsDisk,
            KernelLive {
                network_mac: network_mac(state_dir, network),
            },
        )))
    }
}

impl<D: Disk, L: Live> Ipam<D, L> {
    /// The addresses that a store keeps.
    pub fn on(store: Store<D, L>) -> Self {
        Self { store }
    }

    /// Waits until no other call is under way for this attachment, and keeps others away until the
    /// value is dropped. ADD, DEL and GC hold it while they look at or change the attachment.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn lock(&self, owner: &AttachmentId) -> Result<AttachmentLock, StoreError> {
        self.store.lock_attachment(&host_name(owner))
    }

    /// Gives the attachment an address of each family that the ranges have, or what it has already.
    /// When none is left, reservations that nothing owns are released first.
    ///
    /// # Errors
    /// See [`Store::update_beside`] and [`Pool::reserve`].
    pub fn reserve(&self, wanted: &Wanted<'_>) -> Result<Granted, StoreError> {
        let once = || -> Result<(Granted, bool), StoreError> {
            let (now, unix_time) = (uptime()?, unix_time());
            self.store.update_beside(|pool, elsewhere| {
                let with = Circumstances {
                    elsewhere,
                    now,
                    unix_time,
                };
                let granted = pool.reserve(wanted, &with)?;
                Ok((granted, pool.is_sweep_due(now)))
            })
        };
        match once() {
            Ok((granted, false)) => Ok(granted),
            Ok((granted, true)) => {
                self.sweep_or_warn();
                Ok(granted)
            }
            Err(StoreError::Pool(PoolError::UsedUp { .. } | PoolError::Taken { .. })) => {
                self.sweep_or_warn();
                once().map(|(granted, _)| granted)
            }
            Err(error) => Err(error),
        }
    }

    /// What the attachment has reserved.
    ///
    /// # Errors
    /// See [`Store::update`].
    pub fn reservation(&self, owner: &AttachmentId) -> Result<Option<Reservation>, StoreError> {
        if !self.store.exists() {
            return Ok(None);
        }
        self.store.update(|pool| Ok(pool.held_by(owner).cloned()))
    }

    /// All that is reserved.
    ///
    /// # Errors
    /// See [`Store::update`].
    pub fn reservations(&self) -> Result<Vec<Reservation>, StoreError> {
        if !self.store.exists() {
            return Ok(Vec::new());
        }
        self.store.update(|pool| Ok(pool.reservations().to_vec()))
    }

    /// Checks that a new attachment would get an address of each family.
    ///
    /// # Errors
    /// [`StoreError::Pool`] when it would not; see [`Store::update_beside`].
    pub fn check_free(&self, ranges: &[AddressRange]) -> Result<(), StoreError> {
        let once = || {
            let now = uptime()?;
            self.store.update_beside(|pool, elsewhere| {
                let with = Circumstances {
                    elsewhere,
                    now,
                    unix_time: 0,
                };
                pool.check_free(ranges, &with)
            })
        };
        match once() {
            Err(StoreError::Pool(PoolError::UsedUp { .. })) => {
                self.sweep_or_warn();
                once()
            }
            other => other,
        }
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
        let (addresses, sweep) = self
            .store
            .update(|pool| Ok((pool.release(owner, now), pool.is_sweep_due(now))))?;
        if sweep {
            self.sweep_or_warn();
        }
        Ok(addresses)
    }

    /// Undoes a fresh reservation that no pod ever used.
    ///
    /// # Errors
    /// See [`Store::update`].
    pub fn give_back(&self, owner: &AttachmentId) -> Result<Vec<IpAddr>, StoreError> {
        self.store.update(|pool| Ok(pool.give_back(owner)))
    }

    /// Compares reservations with what is there: those whose interface is not on the node are
    /// released, while no ADD is under way for them, and told; and the addresses of this network's
    /// interfaces that have no reservation are reserved.
    ///
    /// # Errors
    /// See [`Store::update`]; [`StoreError::Live`].
    pub fn sweep(&self) -> Result<Vec<Reservation>, StoreError> {
        if !self.store.exists() {
            return Ok(Vec::new());
        }
        // In this order: what is reserved before the interfaces are listed and has none is either
        // being added, which its lock tells, or left behind.
        let reserved = self.store.update(|pool| Ok(pool.reservations().to_vec()))?;
        let names = self.store.live().names()?;
        let of_reserved: BTreeSet<&str> = reserved.iter().map(|r| &*r.host_interface).collect();
        let unequal = of_reserved
            .iter()
            .copied()
            .filter(|name| !names.contains(*name))
            .chain(
                names
                    .iter()
                    .map(String::as_str)
                    .filter(|n| !of_reserved.contains(n)),
            );
        let mut locks = BTreeMap::new();
        for name in unequal {
            if let Some(lock) = self.store.try_lock_attachment(name)? {
                locks.insert(name, lock);
            }
        }
        // Between the list and the locks an ADD or a DEL may have ended.
        let live = match locks.is_empty() {
            true => Vec::new(),
            false => self.store.live().attachments()?,
        };
        let lives = |name: &str| live.iter().any(|l| l.host_interface == name);
        let is_gone =
            |r: &Reservation| locks.contains_key(&*r.host_interface) && !lives(&r.host_interface);
        let found: Vec<LiveAttachment> = live
            .iter()
            .filter(|l| l.ours && locks.contains_key(&*l.host_interface))
            .cloned()
            .collect();
        let now = uptime()?;
        let gone = self.store.update_beside(|pool, elsewhere| {
            let gone = pool.reservations().iter().filter(|r| is_gone(r));
            let gone: Vec<Reservation> = gone.cloned().collect();
            pool.release_where(is_gone, now);
            pool.adopt(&found, elsewhere);
            pool.swept(now);
            Ok(gone)
        })?;
        for r in &gone {
            tracing::info!(
                container = r.container_id, interface = r.ifname, pod = r.pod,
                addresses = ?r.addresses, "released: its interface is gone"
            );
        }
        Ok(gone)
    }

    fn sweep_or_warn(&self) {
        if let Err(error) = self.sweep() {
            tracing::warn!(%error, "cannot look for addresses that nothing owns");
        }
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

fn unix_time() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.unwrap_or_default().as_secs()
}
