//! The allocator's core: who has which address, and which one comes next. No files, no clock.
//!
//! ```text
//!              cursor passes it                 DEL
//!  never used ------------------> reserved -----------> freed, cooling down
//!                                    ^                         | cool-down over
//!                                    |  nothing never used     v
//!                                    +------------------- freed, oldest first
//!                                    |                         | more freed ones than are kept
//!                                    +------------------- forgotten (large ranges only)
//! ```
//!
//! Nothing here grows with the size of a range, for an IPv6 podCIDR cannot be enumerated: the
//! never-used addresses are all those from the cursor on.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::net::IpAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
pub use warren_core::files::Reservation;

use super::live::LiveAttachment;
pub use super::pool_error::PoolError;
use super::range::{AddressRange, Bounds};
use crate::env::AttachmentId;
use crate::plan::host_name;

/// How long a freed address is not given again: peers, conntrack entries and DNS answers may still
/// mean the pod that had it.
pub const COOL_DOWN: Duration = Duration::from_secs(60);
/// How often reservations are compared with the interfaces that are there.
pub const SWEEP_INTERVAL: Duration = Duration::from_secs(60);
/// Freed addresses whose order is kept, of each family. Ranges of up to a /22 have no more; in
/// larger ones the oldest beyond it are forgotten, and found again when the cursor comes round.
const FREED_KEPT: usize = 1024;
/// In ranges with more addresses than this the cursor takes so long to come round that freed
/// addresses are forgotten as soon as they have cooled down.
const LARGE_RANGE: u64 = 1 << 16;
/// The document's format; another one is foreign.
const FORMAT: u32 = 2;

/// Time since the node's boot. Not the time of day: that one may be set back, and an address
/// would never cool down.
pub type Uptime = Duration;

/// What an attachment wants.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// The attachment.
    pub owner: &'a AttachmentId,
    /// The Kubernetes pod, `namespace/name`; for people only.
    pub pod: Option<&'a str>,
    /// The ranges that addresses are given from: one address of each family among them.
    pub ranges: &'a [AddressRange],
    /// Addresses that it must be, at most one of each family; a cool-down does not hold them back.
    pub addresses: &'a [IpAddr],
}

/// What the pool cannot know by itself.
#[derive(Clone, Copy, Debug)]
pub struct Circumstances<'a> {
    /// Addresses that are taken although this pool did not give them.
    pub elsewhere: &'a BTreeSet<IpAddr>,
    /// Time since the boot.
    pub now: Uptime,
    /// Unix time in seconds.
    pub unix_time: u64,
}

/// An address that a pod had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Freed {
    address: IpAddr,
    /// Seconds after boot when it was freed; 0 for an earlier boot.
    at: u64,
}

/// How far the never-used addresses of a range have been given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Cursor {
    /// The next one that was never used; none when the end is reached.
    next: Option<IpAddr>,
    /// Whether free addresses lie before it that `freed` does not list.
    forgotten: bool,
}

/// The addresses of one network on this node: the document that is stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pool {
    format: u32,
    network: String,
    #[serde(rename = "bootId")]
    boot_id: String,
    reservations: Vec<Reservation>,
    /// Oldest first.
    freed: VecDeque<Freed>,
    ranges: BTreeMap<Bounds, Cursor>,
    /// Seconds after boot when reservations were last compared with the interfaces.
    #[serde(rename = "sweptAt")]
    swept_at: u64,
}

/// What a reservation gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Granted {
    /// The attachment's addresses, IPv4 first.
    pub addresses: Vec<IpAddr>,
    /// Whether the reservation is new. One that was there belongs to an earlier ADD, and a failing
    /// later one must not take it away.
    pub fresh: bool,
}

impl Pool {
    /// A pool that nobody has used.
    pub fn new(network: &str, boot_id: &str) -> Self {
        Self {
            format: FORMAT,
            network: network.into(),
            boot_id: boot_id.into(),
            reservations: Vec::new(),
            freed: VecDeque::new(),
            ranges: BTreeMap::new(),
            swept_at: 0,
        }
    }

    /// What is reserved.
    pub fn reservations(&self) -> &[Reservation] {
        &self.reservations
    }

    /// The boot that the reservations are of.
    pub fn boot_id(&self) -> &str {
        &self.boot_id
    }

    /// Gives the attachment an address of each family that its ranges have; the one that it has
    /// already stays its own, also when it lies in none of the ranges any more, unless another one
    /// is asked for.
    ///
    /// # Errors
    /// [`PoolError`]; nothing is changed then.
    pub fn reserve(
        &mut self,
        wanted: &Wanted<'_>,
        with: &Circumstances<'_>,
    ) -> Result<Granted, PoolError> {
        if wanted.ranges.is_empty() {
            return Err(PoolError::NoRange);
        }
        let owner = wanted.owner;
        // What a reservation is known by: after the store was lost, the interface inside the
        // container is not known, but the one on the node is.
        let interface = host_name(owner);
        self.check_requested(wanted, &interface, with)?;
        let mut next = self.clone();
        let held = next.position_of(&interface);
        let mut addresses = held
            .map(|i| next.reservations[i].addresses.clone())
            .unwrap_or_default();
        for address in wanted.addresses {
            next.freed.retain(|freed| freed.address != *address);
            if addresses.contains(address) {
                continue;
            }
            if let Some(i) = addresses.iter().position(|a| same_family(*a, *address)) {
                next.free(addresses.remove(i), with.now);
            }
            addresses.push(*address);
        }
        for ipv6 in [false, true] {
            let family = of_family(wanted.ranges, ipv6);
            if !family.is_empty() && !addresses.iter().any(|a| a.is_ipv6() == ipv6) {
                addresses.push(next.pick_from(&family, with)?);
            }
        }
        addresses.sort();
        match held {
            Some(i) => next.reservations[i].addresses.clone_from(&addresses),
            None => next.reservations.push(Reservation {
                container_id: owner.container_id.as_str().into(),
                ifname: owner.ifname.as_str().into(),
                host_interface: interface,
                pod: wanted.pod.map(Into::into),
                since: Some(with.unix_time),
                addresses: addresses.clone(),
            }),
        }
        *self = next;
        Ok(Granted {
            addresses,
            fresh: held.is_none(),
        })
    }

    /// Checks that a new attachment would get an address of each family.
    ///
    /// # Errors
    /// [`PoolError::UsedUp`], [`PoolError::NoRange`].
    pub fn check_free(
        &self,
        ranges: &[AddressRange],
        with: &Circumstances<'_>,
    ) -> Result<(), PoolError> {
        if ranges.is_empty() {
            return Err(PoolError::NoRange);
        }
        let mut probe = self.clone();
        for ipv6 in [false, true] {
            let family = of_family(ranges, ipv6);
            if !family.is_empty() {
                probe.pick_from(&family, with)?;
            }
        }
        Ok(())
    }

    /// What this attachment has.
    pub fn held_by(&self, owner: &AttachmentId) -> Option<&Reservation> {
        let i = self.position_of(&host_name(owner))?;
        self.reservations.get(i)
    }

    /// The reservation that an address is part of.
    pub fn holder_of(&self, address: IpAddr) -> Option<&Reservation> {
        let mut all = self.reservations.iter();
        all.find(|r| r.addresses.contains(&address))
    }

    /// Takes the attachment's addresses away from it; they cool down. Tells which they were.
    pub fn release(&mut self, owner: &AttachmentId, now: Uptime) -> Vec<IpAddr> {
        let interface = host_name(owner);
        self.release_where(|r| r.host_interface == interface, now)
    }

    /// Releases every reservation that this holds for, and tells the addresses.
    pub fn release_where(
        &mut self,
        holds: impl Fn(&Reservation) -> bool,
        now: Uptime,
    ) -> Vec<IpAddr> {
        let mut addresses = Vec::new();
        self.reservations.retain(|r| {
            let gone = holds(r);
            if gone {
                addresses.extend(&r.addresses);
            }
            !gone
        });
        for address in &addresses {
            self.free(*address, now);
        }
        self.forget_oldest(now);
        addresses
    }

    /// Undoes a reservation that no pod ever used: its addresses need no cool-down, and come next
    /// among the freed ones, so that failing calls do not use the pool up.
    pub fn give_back(&mut self, owner: &AttachmentId) -> Vec<IpAddr> {
        let addresses = match self.position_of(&host_name(owner)) {
            Some(i) => self.reservations.remove(i).addresses,
            None => Vec::new(),
        };
        for address in &addresses {
            self.freed.push_front(Freed {
                address: *address,
                at: 0,
            });
        }
        addresses
    }

    /// Takes over what an earlier boot stored: reservations without an interface are released, for
    /// no pod survives a boot. Those with one are kept, should the boot's id have changed alone.
    pub fn begin_boot(&mut self, boot_id: &str, live: &[LiveAttachment]) {
        self.boot_id = boot_id.into();
        self.swept_at = 0;
        self.freed.iter_mut().for_each(|freed| freed.at = 0);
        let is_live = |r: &Reservation| live.iter().any(|l| l.host_interface == r.host_interface);
        self.release_where(|r| !is_live(r), Uptime::ZERO);
        self.forget_oldest(COOL_DOWN);
    }

    /// Reserves the addresses of attachments that are there and have no reservation, but for
    /// addresses that are taken elsewhere. Their time is not known.
    pub fn adopt(&mut self, live: &[LiveAttachment], elsewhere: &BTreeSet<IpAddr>) {
        for attachment in live {
            let known = |r: &Reservation| r.host_interface == attachment.host_interface;
            if self.reservations.iter().any(known) {
                continue;
            }
            let mut addresses = attachment.addresses.clone();
            addresses.retain(|a| !elsewhere.contains(a) && self.holder_of(*a).is_none());
            if addresses.is_empty() {
                continue;
            }
            self.freed.retain(|f| !addresses.contains(&f.address));
            addresses.sort();
            self.reservations.push(Reservation {
                container_id: attachment.container_id.clone(),
                ifname: attachment.ifname.clone(),
                host_interface: attachment.host_interface.clone(),
                pod: None,
                since: None,
                addresses,
            });
        }
    }

    /// Whether the reservations should be compared with the interfaces again.
    pub fn is_sweep_due(&self, now: Uptime) -> bool {
        now.as_secs().abs_diff(self.swept_at) >= SWEEP_INTERVAL.as_secs()
    }

    /// Notes that they were.
    pub fn swept(&mut self, now: Uptime) {
        self.swept_at = now.as_secs();
    }

    /// Reads a document of this network.
    ///
    /// # Errors
    /// Why it cannot be one that this program wrote, for people.
    pub fn from_document(bytes: &[u8], network: &str) -> Result<Self, String> {
        let pool: Self = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
        pool.check(network)?;
        Ok(pool)
    }

    /// The document of the pool.
    ///
    /// # Errors
    /// None that can come up: every pool can be written as JSON.
    pub fn to_document(&self) -> io::Result<Vec<u8>> {
        Ok(serde_json::to_vec(self)?)
    }

    /// Whether this is a document that this program could have written for this network.
    ///
    /// # Errors
    /// What is wrong with it, for people.
    pub fn check(&self, network: &str) -> Result<(), String> {
        if self.format != FORMAT {
            return Err(format!(
                "its format is {}, this program knows {FORMAT}",
                self.format
            ));
        }
        if self.network != network {
            return Err(format!(
                "it is of network {:?}, not {network:?}",
                self.network
            ));
        }
        let mut seen = BTreeSet::new();
        let reserved = self.reservations.iter().flat_map(|r| &r.addresses);
        for address in reserved.chain(self.freed.iter().map(|f| &f.address)) {
            if !seen.insert(address) {
                return Err(format!("it has {address} twice"));
            }
        }
        let mut owners = BTreeSet::new();
        for r in &self.reservations {
            if !owners.insert(&r.host_interface) {
                return Err(format!("it has {}/{} twice", r.container_id, r.ifname));
            }
        }
        for (range, cursor) in &self.ranges {
            if cursor.next.is_some_and(|next| !range.contains(next)) {
                return Err(format!("its next address of {range} is none of that range"));
            }
        }
        Ok(())
    }

    /// Checks that the addresses that were asked for can be given.
    fn check_requested(
        &self,
        wanted: &Wanted<'_>,
        interface: &str,
        with: &Circumstances<'_>,
    ) -> Result<(), PoolError> {
        let requested = wanted.addresses;
        for (i, address) in requested.iter().enumerate() {
            let second = requested[i + 1..]
                .iter()
                .find(|a| same_family(*address, **a));
            if let Some(second) = second {
                let (first, second) = (*address, *second);
                return Err(PoolError::TwoOfAFamily { first, second });
            }
            let holder = self.holder_of(*address);
            if holder.is_some_and(|r| r.host_interface == interface) {
                continue;
            }
            if !wanted.ranges.iter().any(|range| range.allows(*address)) {
                return Err(PoolError::NotAllowed {
                    address: *address,
                    ranges: wanted.ranges.to_vec(),
                });
            }
            let by = match holder {
                Some(r) => r.pod.clone().unwrap_or_else(|| name_of(r)),
                None if with.elsewhere.contains(address) => "a pod of another network".into(),
                None => continue,
            };
            return Err(PoolError::Taken {
                address: *address,
                by,
            });
        }
        Ok(())
    }

    fn position_of(&self, interface: &str) -> Option<usize> {
        let mut all = self.reservations.iter();
        all.position(|r| r.host_interface == interface)
    }

    fn free(&mut self, address: IpAddr, now: Uptime) {
        let at = now.as_secs();
        self.freed.push_back(Freed { address, at });
    }

    /// An address of one of the ranges, all of one family.
    fn pick_from(
        &mut self,
        ranges: &[&AddressRange],
        with: &Circumstances<'_>,
    ) -> Result<IpAddr, PoolError> {
        let ours = self.reservations.iter().flat_map(|r| &r.addresses);
        let taken: BTreeSet<IpAddr> = ours.chain(with.elsewhere).copied().collect();
        let mut listed = taken.clone();
        listed.extend(self.freed.iter().map(|f| f.address));
        for range in ranges {
            if let Some(address) = self.pick_unused(range, &listed, with.elsewhere) {
                return Ok(address);
            }
        }
        let inside = |address| ranges.iter().any(|range| range.allows(address));
        // Between the ranges of one family age decides, too.
        let usable = |f: &Freed| inside(f.address) && !taken.contains(&f.address);
        let oldest = self
            .freed
            .iter()
            .position(|f| usable(f) && cooled(f, with.now));
        if let Some(freed) = oldest.and_then(|i| self.freed.remove(i)) {
            return Ok(freed.address);
        }
        Err(PoolError::UsedUp {
            ranges: ranges.iter().map(|range| (*range).clone()).collect(),
            taken: taken.iter().filter(|a| inside(**a)).count(),
            cooling: self.freed.iter().filter(|f| usable(f)).count(),
        })
    }

    /// The next address of a range that is not listed anywhere, by the cursor; once more from the
    /// start if addresses were forgotten. Each step passes a listed address or a whole exclusion,
    /// so their number bounds the work.
    fn pick_unused(
        &mut self,
        range: &AddressRange,
        listed: &BTreeSet<IpAddr>,
        elsewhere: &BTreeSet<IpAddr>,
    ) -> Option<IpAddr> {
        let bounds = range.bounds()?;
        let start = Cursor {
            next: Some(bounds.first()),
            forgotten: false,
        };
        let cursor = self.ranges.entry(bounds).or_insert(start);
        for _ in 0..2 {
            while let Some(candidate) = cursor.next {
                if let Some(excluded) = range.excluded_by(candidate) {
                    cursor.next = bounds.after(excluded.broadcast());
                    // The exclusion may be lifted one day.
                    cursor.forgotten = true;
                    continue;
                }
                cursor.next = bounds.after(candidate);
                if !listed.contains(&candidate) {
                    return Some(candidate);
                }
                // Another pool will not tell this one when it frees the address.
                cursor.forgotten |= elsewhere.contains(&candidate);
            }
            if !cursor.forgotten {
                return None;
            }
            *cursor = Cursor {
                next: Some(bounds.first()),
                forgotten: false,
            };
        }
        // The second pass began at the start, so that only what it marked itself is behind it; and
        // the mark stays for the next call.
        None
    }

    fn forget_oldest(&mut self, now: Uptime) {
        for ipv6 in [false, true] {
            let of_family = |f: &Freed| f.address.is_ipv6() == ipv6;
            let count = self.freed.iter().filter(|f| of_family(f)).count();
            let mut excess = count.saturating_sub(FREED_KEPT);
            let ranges = &mut self.ranges;
            self.freed.retain(|f| {
                if !of_family(f) || !cooled(f, now) {
                    return true;
                }
                let within = |bounds: &Bounds| bounds.contains(f.address);
                let large = |bounds: &Bounds| within(bounds) && bounds.len() > LARGE_RANGE;
                if excess == 0 && !ranges.keys().any(large) {
                    return true;
                }
                excess = excess.saturating_sub(1);
                for (_, cursor) in ranges.iter_mut().filter(|(bounds, _)| within(bounds)) {
                    cursor.forgotten = true;
                }
                false
            });
        }
    }
}

fn cooled(freed: &Freed, now: Uptime) -> bool {
    now.as_secs().saturating_sub(freed.at) >= COOL_DOWN.as_secs()
}

fn same_family(one: IpAddr, other: IpAddr) -> bool {
    one.is_ipv6() == other.is_ipv6()
}

fn of_family(ranges: &[AddressRange], ipv6: bool) -> Vec<&AddressRange> {
    ranges.iter().filter(|r| r.is_ipv6() == ipv6).collect()
}

/// An attachment as people read it.
fn name_of(reservation: &Reservation) -> String {
    let or = |text: &str, other: &str| if text.is_empty() { other } else { text }.to_owned();
    let container = or(&reservation.container_id, &reservation.host_interface);
    format!("{container}/{}", or(&reservation.ifname, "?"))
}
