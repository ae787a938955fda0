//! The addresses that pods may get: a subnet, narrowed by bounds and exclusions.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use warren_core::files::NodeFile;
use warren_core::plan::tunnel_address;

use crate::config::PodConf;

/// Why a range is refused. CNI error code 7.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RangeError {
    /// A bound, gateway or exclusion lies outside the subnet.
    #[error("{what} {value} lies outside the subnet {subnet}")]
    Outside {
        /// Which one.
        what: &'static str,
        /// Its value.
        value: String,
        /// The subnet.
        subnet: IpNet,
    },
    /// The last address comes before the first.
    #[error("range of {subnet} ends with {last} before it starts with {first}")]
    Reversed {
        /// The subnet.
        subnet: IpNet,
        /// The first address.
        first: IpAddr,
        /// The last one.
        last: IpAddr,
    },
    /// No address is left: the subnet is too small.
    #[error("{subnet} has no address for a pod: want /30 or larger, in IPv6 /126 or larger")]
    Empty {
        /// The subnet.
        subnet: IpNet,
    },
    /// A range of the configuration is not this node's: nobody would send its packets here.
    #[error(
        "network configuration has a range of subnet = {subnet}: must lie inside a podCIDR of this \
         node, {}", pod_cidrs.iter().map(ToString::to_string).collect::<Vec<_>>().join(" or ")
    )]
    Foreign {
        /// The range's subnet.
        subnet: IpNet,
        /// What the node has.
        pod_cidrs: Vec<IpNet>,
    },
    /// Two ranges share addresses.
    #[error("ranges {first} and {second} share addresses")]
    Overlap {
        /// One.
        first: IpNet,
        /// The other.
        second: IpNet,
    },
}

/// A subnet's addresses that pods may have: from `first` to `last`, less the exclusions.
///
/// By default these are all but the network address, the first one (a podCIDR's belongs to
/// `warren0`), and in IPv4 the broadcast address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddressRange {
    subnet: IpNet,
    bounds: Option<Bounds>,
    excluded: Vec<IpNet>,
}

impl AddressRange {
    /// All addresses of a subnet that pods may have; none in subnets that are too small.
    pub fn of(subnet: IpNet) -> Self {
        let subnet = subnet.trunc();
        let first = number(tunnel_address(&subnet)).saturating_add(1);
        let last = match subnet {
            IpNet::V4(_) => number(subnet.broadcast()).saturating_sub(1),
            IpNet::V6(_) => number(subnet.broadcast()),
        };
        let ipv6 = subnet.addr().is_ipv6();
        let bounds = address(first, ipv6)
            .zip(address(last, ipv6))
            .filter(|_| first <= last)
            .map(|(first, last)| Bounds { first, last });
        Self {
            subnet,
            bounds,
            excluded: Vec::new(),
        }
    }

    /// Narrows the range to start with `first` and to end with `last`, both included.
    ///
    /// # Errors
    /// [`RangeError`]: outside the subnet, in the wrong order, or nothing is left.
    pub fn within(
        mut self,
        first: Option<IpAddr>,
        last: Option<IpAddr>,
    ) -> Result<Self, RangeError> {
        let subnet = self.subnet;
        for (what, bound) in [("rangeStart", first), ("rangeEnd", last)] {
            if let Some(bound) = bound.filter(|bound| !subnet.contains(bound)) {
                let value = bound.to_string();
                return Err(RangeError::Outside {
                    what,
                    value,
                    subnet,
                });
            }
        }
        let whole = self.bounds.ok_or(RangeError::Empty { subnet })?;
        if let (Some(first), Some(last)) = (first, last)
            && last < first
        {
            return Err(RangeError::Reversed {
                subnet,
                first,
                last,
            });
        }
        let first = first.map_or(whole.first, |first| first.max(whole.first));
        let last = last.map_or(whole.last, |last| last.min(whole.last));
        if last < first {
            return Err(RangeError::Empty { subnet });
        }
        self.bounds = Some(Bounds { first, last });
        Ok(self)
    }

    /// Leaves addresses out.
    ///
    /// # Errors
    /// [`RangeError::Outside`].
    pub fn without(mut self, excluded: IpNet) -> Result<Self, RangeError> {
        let subnet = self.subnet;
        if !subnet.contains(&excluded) {
            return Err(RangeError::Outside {
                what: "exclusion",
                value: excluded.to_string(),
                subnet,
            });
        }
        self.excluded.push(excluded.trunc());
        Ok(self)
    }

    /// The subnet.
    pub fn subnet(&self) -> IpNet {
        self.subnet
    }

    /// Whether the range is one of IPv6.
    pub fn is_ipv6(&self) -> bool {
        self.subnet.addr().is_ipv6()
    }

    /// Whether a pod may have this address.
    pub fn allows(&self, address: IpAddr) -> bool {
        self.bounds.is_some_and(|bounds| bounds.contains(address))
            && !self.excluded.iter().any(|net| net.contains(&address))
    }

    /// What the range's progress is kept under: none when there is no address in it.
    pub(super) fn bounds(&self) -> Option<Bounds> {
        self.bounds
    }

    /// The exclusion that an address is in, the largest first.
    pub(super) fn excluded_by(&self, address: IpAddr) -> Option<IpNet> {
        let within = self.excluded.iter().filter(|net| net.contains(&address));
        within.min_by_key(|net| net.prefix_len()).copied()
    }
}

impl fmt::Display for AddressRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.subnet)?;
        if let Some(bounds) = self.bounds.filter(|_| *self != Self::of(self.subnet)) {
            write!(f, " ({bounds}")?;
            for net in &self.excluded {
                write!(f, " without {net}")?;
            }
            write!(f, ")")?;
        }
        Ok(())
    }
}

/// Checks that no two ranges share addresses.
///
/// # Errors
/// [`RangeError::Overlap`].
pub fn check_disjoint(ranges: &[AddressRange]) -> Result<(), RangeError> {
    for (i, one) in ranges.iter().enumerate() {
        for other in &ranges[i + 1..] {
            let (Some(a), Some(b)) = (one.bounds, other.bounds) else {
                continue;
            };
            let same_family = one.is_ipv6() == other.is_ipv6();
            if same_family && a.first <= b.last && b.first <= a.last {
                return Err(RangeError::Overlap {
                    first: one.subnet,
                    second: other.subnet,
                });
            }
        }
    }
    Ok(())
}

/// The ranges that this network's pods get addresses from: those of the configuration, else the
/// node's podCIDRs. The gateways that the configuration names are left out.
///
/// # Errors
/// [`RangeError`].
pub fn ranges(conf: &PodConf, node: &NodeFile) -> Result<Vec<AddressRange>, RangeError> {
    if conf.ranges.is_empty() {
        let cidrs = node.pod_cidrs.iter();
        return Ok(cidrs.map(|cidr| AddressRange::of(*cidr)).collect());
    }
    let mut all = Vec::new();
    for range in &conf.ranges {
        if !node
            .pod_cidrs
            .iter()
            .any(|cidr| cidr.contains(&range.subnet))
        {
            return Err(RangeError::Foreign {
                subnet: range.subnet,
                pod_cidrs: node.pod_cidrs.iter().copied().collect(),
            });
        }
        let gateway = range.gateway.map(IpNet::from);
        let gateway = gateway.filter(|gateway| range.subnet.contains(gateway));
        let mut narrowed = AddressRange::of(range.subnet).within(range.first, range.last)?;
        for excluded in range.exclude.iter().copied().chain(gateway) {
            narrowed = narrowed.without(excluded)?;
        }
        all.push(narrowed);
    }
    check_disjoint(&all)?;
    Ok(all)
}

/// The first and the last address of a range; stored as `first-last`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(super) struct Bounds {
    first: IpAddr,
    last: IpAddr,
}

impl Bounds {
    pub(super) fn first(&self) -> IpAddr {
        self.first
    }

    pub(super) fn contains(&self, address: IpAddr) -> bool {
        address.is_ipv6() == self.first.is_ipv6() && self.first <= address && address <= self.last
    }

    /// The address behind this one, if it is in the range.
    pub(super) fn after(&self, after: IpAddr) -> Option<IpAddr> {
        let next = address(number(after).checked_add(1)?, after.is_ipv6())?;
        self.contains(next).then_some(next)
    }

    /// How many addresses the range has, at most `u64::MAX`.
    pub(super) fn len(&self) -> u64 {
        let span = number(self.last).saturating_sub(number(self.first));
        u64::try_from(span).unwrap_or(u64::MAX).saturating_add(1)
    }
}

impl fmt::Display for Bounds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

impl From<Bounds> for String {
    fn from(bounds: Bounds) -> Self {
        bounds.to_string()
    }
}

impl FromStr for Bounds {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no range of addresses (first-last)");
        let (first, last) = text.split_once('-').ok_or_else(wrong)?;
        let first: IpAddr = first.parse().map_err(|_| wrong())?;
        let last: IpAddr = last.parse().map_err(|_| wrong())?;
        if first.is_ipv6() != last.is_ipv6() || last < first {
            return Err(wrong());
        }
        Ok(Self { first, last })
    }
}

impl TryFrom<String> for Bounds {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u32::from(address).into(),
        IpAddr::V6(address) => address.into(),
    }
}

fn address(number: u128, ipv6: bool) -> Option<IpAddr> {
    if ipv6 {
        return Some(IpAddr::V6(number.into()));
    }
    u32::try_from(number).ok().map(|n| IpAddr::V4(n.into()))
}
