//! Addresses of links.

use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};

use crate::routes::family_of;
use crate::{Netlink, NetlinkError};

/// An address of a link as the kernel has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address {
    /// The link's index.
    pub index: u32,
    /// The address itself and the length of its prefix.
    pub net: IpNet,
    /// Its scope (`RT_SCOPE_*`, linux/rtnetlink.h): 0 global, 253 link, 254 host.
    pub scope: u8,
    /// Whether duplicate address detection still runs: it cannot be used yet.
    pub tentative: bool,
    /// Whether duplicate address detection found a duplicate: it will not be used.
    pub dad_failed: bool,
}

impl Netlink {
    /// Lists addresses of both families: of one link, or of all.
    ///
    /// # Errors
    /// [`NetlinkError::Kernel`]; `is_not_found` when the link does not exist;
    /// [`NetlinkError::Interrupted`].
    pub async fn addresses(&self, index: Option<u32>) -> Result<Vec<Address>, NetlinkError> {
        let mut message = AddressMessage::default();
        message.header.index = index.unwrap_or(0);
        let answers = self
            .dump("list addresses", RouteNetlinkMessage::GetAddress(message))
            .await?;
        let wanted = |address: &Address| index.is_none_or(|index| address.index == index);
        Ok(answers
            .into_iter()
            .filter_map(address_of)
            .filter(wanted)
            .collect())
    }

    /// Adds an address to a link; returns false if the link has it already.
    ///
    /// An IPv6 address is usable at once (no duplicate address detection) and brings no prefix
    /// route; an IPv4 address with a prefix shorter than 32 brings one.
    ///
    /// # Errors
    /// [`NetlinkError::Kernel`]; `is_not_found` when there is no such link.
    pub async fn add_address(&self, index: u32, net: IpNet) -> Result<bool, NetlinkError> {
        let message = message_to_add(index, net);
        let subject = format!("{net} to link {index}");
        let message = RouteNetlinkMessage::NewAddress(message);
        match self
            .change("add address", &subject, message, NLM_F_CREATE | NLM_F_EXCL)
            .await
        {
            Ok(()) => Ok(true),
            Err(error) if error.is_exists() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Deletes an address from a link.
    ///
    /// # Errors
    /// [`NetlinkError::Kernel`]; `is_not_found` when the link or the address does not exist.
    pub async fn delete_address(&self, index: u32, net: IpNet) -> Result<(), NetlinkError> {
        let subject = format!("{net} from link {index}");
        let message = RouteNetlinkMessage::DelAddress(message_of(index, net));
        self.change("delete address", &subject, message, 0).await
    }
}

/// An address to be added; an IPv6 one without duplicate address detection and prefix route.
pub(crate) fn message_to_add(index: u32, net: IpNet) -> AddressMessage {
    let mut message = message_of(index, net);
    if net.addr().is_ipv6() {
        let flags = AddressFlags::Nodad | AddressFlags::Noprefixroute;
        message.attributes.push(AddressAttribute::Flags(flags));
    }
    message
}

fn message_of(index: u32, net: IpNet) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family_of(net.addr());
    message.header.index = index;
    message.header.prefix_len = net.prefix_len();
    message.attributes = vec![
        AddressAttribute::Local(net.addr()),
        AddressAttribute::Address(net.addr()),
    ];
    message
}

fn address_of(message: RouteNetlinkMessage) -> Option<Address> {
    let RouteNetlinkMessage::NewAddress(message) = message else {
        return None;
    };
    let mut flags = AddressFlags::from_bits_retain(message.header.flags.bits().into());
    let (mut local, mut address) = (None::<IpAddr>, None);
    for attribute in message.attributes {
        match attribute {
            AddressAttribute::Local(ip) => local = Some(ip),
            AddressAttribute::Address(ip) => address = Some(ip),
            AddressAttribute::Flags(all) => flags = all,
            _ => {}
        }
    }
    Some(Address {
        index: message.header.index,
        // On a point-to-point IPv4 link "address" is the peer's; IPv6 has no "local" without one.
        net: IpNet::new(local.or(address)?, message.header.prefix_len).ok()?,
        scope: message.header.scope.into(),
        tentative: flags.contains(AddressFlags::Tentative),
        dad_failed: flags.contains(AddressFlags::Dadfailed),
    })
}
