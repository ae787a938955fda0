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
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use warren_core::plan::tunnel_address;

use crate::env::AttachmentId;

/// How long a freed address is not given again: peers, conntrack entries and DNS answers may still
/// mean the pod that had it.
pub const COOL_DOWN: Duration = Duration::from_secs(60);
/// Freed addresses whose order is kept, of each family. Ranges of up to a /22 have no more; in
/// larger ones the oldest beyond it are forgotten, and found again when the cursor comes round.
const FREED_KEPT: usize = 1024;
/// The document's format; another one is foreign.
const FORMAT: u32 = 1;

/// Why no address was given.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PoolError {
    /// No address of a family is free. CNI error code 11.
    #[error(
        "no free address in {}: {taken} taken by pods, {cooling} freed less than {} s ago",
        ranges.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "), COOL_DOWN.as_secs()
    )]
    UsedUp {
        /// The ranges that were tried.
        ranges: Vec<IpNet>,
        /// How many of their addresses pods have.
        taken: usize,
        /// How many are free and cool down.
        cooling: usize,
    },
    /// The node has no podCIDR, so that there is nothing to give. CNI error code 11.
    #[error("this node has no podCIDR yet")]
    NoRange,
}

/// Time since the node's boot. Not the time of day: that one may be set back, and an address
/// would never cool down.
pub type Uptime = Duration;

/// One attachment's addresses, one of each family.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reservation {
    /// The container.
    #[serde(rename = "containerId")]
    pub container_id: String,
    /// The interface inside it.
    pub ifname: String,
    /// The Kubernetes pod, `namespace/name`; for people only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
}

impl Reservation {
    fn belongs_to(&self, owner: &AttachmentId) -> bool {
        self.container_id == owner.container_id.as_str() && self.ifname == owner.ifname.as_str()
    }
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
    ranges: BTreeMap<IpNet, Cursor>,
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

    /// Gives the attachment an address of each family that `ranges` has; the one that it has
    /// already stays its own, also when it lies in none of `ranges` any more.
    ///
    /// `elsewhere` are addresses that other pools have given from the same ranges.
    ///
    /// # Errors
    /// [`PoolError`]; nothing is changed then. It passes once pods have gone.
    pub fn reserve(
        &mut self,
        owner: &AttachmentId,
        pod: Option<&str>,
        ranges: &BTreeSet<IpNet>,
        elsewhere: &BTreeSet<IpAddr>,
        now: Uptime,
    ) -> Result<Granted, PoolError> {
        if ranges.is_empty() {
            return Err(PoolError::NoRange);
        }
        let mut next = self.clone();
        let held = next.reservations.iter().position(|r| r.belongs_to(owner));
        let mut addresses = held
            .map(|i| next.reservations[i].addresses.clone())
            .unwrap_or_default();
        for ipv6 in [false, true] {
            let family: Vec<IpNet> = ranges
                .iter()
                .copied()
                .filter(|r| r.addr().is_ipv6() == ipv6)
                .collect();
            if !family.is_empty() && !addresses.iter().any(|a| a.is_ipv6() == ipv6) {
                addresses.push(next.pick_from(&family, elsewhere, now)?);
            }
        }
        addresses.sort();
        match held {
            Some(i) => next.reservations[i].addresses.clone_from(&addresses),
            None => next.reservations.push(Reservation {
                container_id: owner.container_id.as_str().into(),
                ifname: owner.ifname.as_str().into(),
                pod: pod.map(Into::into),
                addresses: addresses.clone(),
            }),
        }
        *self = next;
        Ok(Granted {
            addresses,
            fresh: held.is_none(),
        })
    }

    /// Whether an address of each family of `ranges` is free.
    ///
    /// # Errors
    /// [`PoolError`].
    pub fn check_free(
        &mut self,
        ranges: &BTreeSet<IpNet>,
        elsewhere: &BTreeSet<IpAddr>,
        now: Uptime,
    ) -> Result<(), PoolError> {
        if ranges.is_empty() {
            return Err(PoolError::NoRange);
        }
        for ipv6 in [false, true] {
            let family = ranges.iter().copied();
            let family: Vec<IpNet> = family.filter(|r| r.addr().is_ipv6() == ipv6).collect();
            if !family.is_empty() {
                self.pick_from(&family, elsewhere, now)?;
            }
        }
        Ok(())
    }

    /// Takes the attachment's addresses away from it; they cool down. Tells which they were.
    pub fn release(&mut self, owner: &AttachmentId, now: Uptime) -> Vec<IpAddr> {
        let addresses = self.remove(owner);
        for address in &addresses {
            self.freed.push_back(Freed {
                address: *address,
                at: now.as_secs(),
            });
        }
        self.forget_oldest(now);
        addresses
    }

    /// Undoes a reservation that no pod ever used: its addresses need no cool-down, and come next
    /// among the freed ones, so that failing calls do not use the pool up.
    pub fn give_back(&mut self, owner: &AttachmentId) -> Vec<IpAddr> {
        let addresses = self.remove(owner);
        for address in &addresses {
            self.freed.push_front(Freed {
                address: *address,
                at: 0,
            });
        }
        addresses
    }

    /// Releases every reservation of an earlier boot: no pod survives one.
    pub fn begin_boot(&mut self, boot_id: &str) {
        if self.boot_id == boot_id {
            return;
        }
        self.boot_id = boot_id.into();
        self.freed.iter_mut().for_each(|freed| freed.at = 0);
        let addresses = self.reservations.drain(..).flat_map(|r| r.addresses);
        self.freed
            .extend(addresses.map(|address| Freed { address, at: 0 }));
        self.forget_oldest(COOL_DOWN);
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
            if !owners.insert((&r.container_id, &r.ifname)) {
                return Err(format!("it has {}/{} twice", r.container_id, r.ifname));
            }
        }
        for (range, cursor) in &self.ranges {
            if cursor
                .next
                .is_some_and(|next| !Span::of(range).contains(next))
            {
                return Err(format!("its next address of {range} is none of that range"));
            }
        }
        Ok(())
    }

    fn remove(&mut self, owner: &AttachmentId) -> Vec<IpAddr> {
        match self.reservations.iter().position(|r| r.belongs_to(owner)) {
            Some(i) => self.reservations.remove(i).addresses,
            None => Vec::new(),
        }
    }

    /// An address of one of the ranges, all of one family.
    fn pick_from(
        &mut self,
        ranges: &[IpNet],
        elsewhere: &BTreeSet<IpAddr>,
        now: Uptime,
    ) -> Result<IpAddr, PoolError> {
        let ours = self
            .reservations
            .iter()
            .flat_map(|r| r.addresses.iter().copied());
        let taken: BTreeSet<IpAddr> = ours.chain(elsewhere.iter().copied()).collect();
        let mut listed = taken.clone();
        listed.extend(self.freed.iter().map(|f| f.address));
        let unused = |range| self.pick_unused(range, &listed, elsewhere);
        if let Some(address) = ranges.iter().find_map(unused) {
            return Ok(address);
        }
        let spans: Vec<Span> = ranges.iter().map(Span::of).collect();
        let inside = |address| spans.iter().any(|span| span.contains(address));
        // Between the ranges of one family age decides, too.
        let usable = |f: &Freed| inside(f.address) && !taken.contains(&f.address);
        let oldest = self.freed.iter().position(|f| usable(f) && cooled(f, now));
        if let Some(freed) = oldest.and_then(|i| self.freed.remove(i)) {
            return Ok(freed.address);
        }
        Err(PoolError::UsedUp {
            ranges: ranges.to_vec(),
            taken: taken.iter().filter(|a| inside(**a)).count(),
            cooling: self.freed.iter().filter(|f| usable(f)).count(),
        })
    }

    /// The next address of a range that is not listed anywhere, by the cursor; once more from the
    /// start if addresses were forgotten. Each step passes a listed address, so their number bounds
    /// the work.
    fn pick_unused(
        &mut self,
        range: &IpNet,
        listed: &BTreeSet<IpAddr>,
        elsewhere: &BTreeSet<IpAddr>,
    ) -> Option<IpAddr> {
        let span = Span::of(range);
        let start = Cursor {
            next: span.first(),
            forgotten: false,
        };
        let cursor = self.ranges.entry(*range).or_insert(start);
        for _ in 0..2 {
            while let Some(candidate) = cursor.next {
                cursor.next = span.after(candidate);
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
                next: span.first(),
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
            let mut excess = self
                .freed
                .iter()
                .filter(|f| of_family(f))
                .count()
                .saturating_sub(FREED_KEPT);
            let ranges = &mut self.ranges;
            self.freed.retain(|f| {
                if excess == 0 || !of_family(f) || !cooled(f, now) {
                    return true;
                }
                excess -= 1;
                for (range, cursor) in ranges.iter_mut() {
                    cursor.forgotten |= range.contains(&f.address);
                }
                false
            });
        }
    }
}

fn cooled(freed: &Freed, now: Uptime) -> bool {
    now.as_secs().saturating_sub(freed.at) >= COOL_DOWN.as_secs()
}

/// The addresses of a podCIDR that pods may have: all but the network address, `warren0`'s, and
/// the IPv4 broadcast address.
struct Span {
    first: u128,
    last: u128,
    ipv6: bool,
}

impl Span {
    fn of(range: &IpNet) -> Self {
        let first = number(tunnel_address(range)).saturating_add(1);
        let last = number(range.broadcast());
        match range {
            IpNet::V4(_) => Self {
                first,
                last: last.saturating_sub(1),
                ipv6: false,
            },
            IpNet::V6(_) => Self {
                first,
                last,
                ipv6: true,
            },
        }
    }

    fn contains(&self, address: IpAddr) -> bool {
        address.is_ipv6() == self.ipv6 && (self.first..=self.last).contains(&number(address))
    }

    fn first(&self) -> Option<IpAddr> {
        self.address(self.first)
    }

    fn after(&self, address: IpAddr) -> Option<IpAddr> {
        self.address(number(address).checked_add(1)?)
    }

    fn address(&self, number: u128) -> Option<IpAddr> {
        if !(self.first..=self.last).contains(&number) {
            return None;
        }
        if self.ipv6 {
            return Some(IpAddr::V6(number.into()));
        }
        u32::try_from(number).ok().map(|n| IpAddr::V4(n.into()))
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u32::from(address).into(),
        IpAddr::V6(address) => address.into(),
    }
}
