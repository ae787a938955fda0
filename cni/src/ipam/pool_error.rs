//! Why the pool gives no address.

use std::net::IpAddr;

use thiserror::Error;

use super::pool::COOL_DOWN;
use super::range::AddressRange;

/// Why no address was given.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PoolError {
    /// No address of a family is free. CNI error code 11.
    #[error(
        "no free address in {}: {taken} taken by pods, {cooling} freed less than {} s ago; \
         `warren pods` lists who has them", list(ranges), COOL_DOWN.as_secs()
    )]
    UsedUp {
        /// The ranges that were tried.
        ranges: Vec<AddressRange>,
        /// How many of their addresses pods have.
        taken: usize,
        /// How many are free and cool down.
        cooling: usize,
    },
    /// The node has no podCIDR, so that there is nothing to give. CNI error code 11.
    #[error("this node has no podCIDR yet")]
    NoRange,
    /// An address that was asked for belongs to another attachment. CNI error code 11.
    #[error(
        "the requested address {address} is taken by {by}; `warren pods` lists who has which \
         address"
    )]
    Taken {
        /// The address.
        address: IpAddr,
        /// Who has it.
        by: String,
    },
    /// An address that was asked for is none that pods may have here. CNI error code 7.
    #[error(
        "the requested address {address} is none that pods may have on this node: want one of {}",
        list(ranges)
    )]
    NotAllowed {
        /// The address.
        address: IpAddr,
        /// The ranges.
        ranges: Vec<AddressRange>,
    },
    /// Two addresses of one family were asked for. CNI error code 7.
    #[error("addresses {first} and {second} were requested: a pod gets one of each family")]
    TwoOfAFamily {
        /// One.
        first: IpAddr,
        /// The other.
        second: IpAddr,
    },
}

fn list(ranges: &[AddressRange]) -> String {
    let texts: Vec<_> = ranges.iter().map(ToString::to_string).collect();
    texts.join(", ")
}
