//! Neighbour entries: which hardware address an IP address has on a link.

use std::net::IpAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};

use crate::routes::family_of;
use crate::{Netlink, NetlinkError};

/// A neighbour entry as the kernel has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Neighbour {
    /// The link's index.
    pub index: u32,
    /// The neighbour's IP address.
    pub address: IpAddr,
    /// Its hardware address; none while it is being looked for.
    pub mac: Option<[u8; 6]>,
    /// Whether the entry was set by hand and is never looked for (`NUD_PERMANENT`).
    pub permanent: bool,
}

impl Netlink {
    /// Sets a permanent neighbour entry, replacing any other of that address.
    ///
    /// # Errors
    /// [`NetlinkError::Kernel`]; `is_not_found` when there is no such link.
    pub async fn add_neighbour(
        &self,
        index: u32,
        address: IpAddr,
        mac: [u8; 6],
    ) -> Result<(), NetlinkError> {
        let message = permanent(index, address, mac);
        let subject = format!("{address} on link {index}");
        let message = RouteNetlinkMessage::NewNeighbour(message);
        self.change(
            "set neighbour",
            &subject,
            message,
            NLM_F_CREATE | NLM_F_REPLACE,
        )
        .await
    }

    /// Lists the neighbour entries of a link, both families.
    ///
    /// # Errors
    /// [`NetlinkError::Kernel`], [`NetlinkError::Interrupted`].
    pub async fn neighbours(&self, index: u32) -> Result<Vec<Neighbour>, NetlinkError> {
        let mut message = NeighbourMessage::default();
        // Strict checking wants the filter as an attribute, not in the header.
        message.attributes = vec![NeighbourAttribute::IfIndex(index)];
        let answers = self
            .dump(
                "list neighbours",
                RouteNetlinkMessage::GetNeighbour(message),
            )
            .await?;
        let wanted = |neighbour: &Neighbour| neighbour.index == index;
        Ok(answers
            .into_iter()
            .filter_map(neighbour_of)
            .filter(wanted)
            .collect())
    }
}

/// A permanent entry.
pub(crate) fn permanent(index: u32, address: IpAddr, mac: [u8; 6]) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family_of(address);
    message.header.ifindex = index;
    message.header.state = NeighbourState::Permanent;
    message.attributes = vec![
        NeighbourAttribute::Destination(match address {
            IpAddr::V4(ip) => NeighbourAddress::Inet(ip),
            IpAddr::V6(ip) => NeighbourAddress::Inet6(ip),
        }),
        NeighbourAttribute::LinkLayerAddress(mac.to_vec()),
    ];
    message
}

fn neighbour_of(message: RouteNetlinkMessage) -> Option<Neighbour> {
    let RouteNetlinkMessage::NewNeighbour(message) = message else {
        return None;
    };
    let (mut address, mut mac) = (None, None);
    for attribute in message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => {
                address = Some(ip.into())
            }
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)) => {
                address = Some(ip.into());
            }
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = bytes.try_into().ok(),
            _ => {}
        }
    }
    Some(Neighbour {
        index: message.header.ifindex,
        address: address?,
        mac,
        permanent: message.header.state == NeighbourState::Permanent,
    })
}
