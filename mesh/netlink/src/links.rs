//! Network interfaces.

use std::os::fd::AsRawFd;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo, LinkMessage,
    State,
};

use crate::{Netlink, NetlinkError, Netns};

/// A network interface as the kernel has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its index, unique in the namespace; a link made anew gets a new one.
    pub index: u32,
    /// Its name, 1 to 15 bytes.
    pub name: String,
    /// Whether it is switched on (`IFF_UP`).
    pub up: bool,
    /// Whether it can carry packets (`IFF_LOWER_UP`): for a veth, both ends are up.
    pub carrier: bool,
    /// Whether the kernel passes packets to it: it has its carrier, and its queues are at work.
    pub operational: bool,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Its hardware address; none on a TUN device.
    pub mac: Option<[u8; 6]>,
    /// Its alias (ip-link(8)), at most 255 bytes.
    pub alias: Option<String>,
    /// Its group (ip-link(8)); 0 by default.
    pub group: u32,
    /// Its driver's name in rtnetlink, such as `veth` or `tun`; none on hardware.
    pub kind: Option<String>,
    /// The index of the link below it; for a veth its peer, in the peer's namespace.
    pub lower: Option<u32>,
}

/// A veth pair to be made.
#[derive(Clone, Debug)]
pub struct VethSpec<'a> {
    /// Name of the end in this namespace, 1 to 15 bytes.
    pub name: &'a str,
    /// Alias of that end.
    pub alias: Option<&'a str>,
    /// Group of that end; 0 is the kernel's default.
    pub group: u32,
    /// MTU of that end in bytes.
    pub mtu: u32,
    /// Hardware address of that end; by default the kernel's choice.
    pub mac: Option<[u8; 6]>,
    /// The other end.
    pub peer: VethPeer<'a>,
}

/// The far end of a veth pair, made straight in its namespace: moving it there is slow.
#[derive(Clone, Debug)]
pub struct VethPeer<'a> {
    /// Its name in its namespace, 1 to 15 bytes.
    pub name: &'a str,
    /// Its namespace.
    pub netns: &'a Netns,
    /// Its hardware address; by default the kernel's choice.
    pub mac: Option<[u8; 6]>,
    /// Its MTU in bytes.
    pub mtu: u32,
}

impl Netlink {
    /// Finds a link by its name.
    ///
    /// # Errors
    /// [`NetlinkError::Kernel`], also (ERANGE) for a name longer than 15 bytes.
    pub async fn link_by_name(&self, name: &str) -> Result<Option<Link>, NetlinkError> {
        let mut message = LinkMessage::default();
        message.attributes = vec![LinkAttribute::IfName(name.to_owned()), no_statistics()];
        self.link(&name, message).await
    }

    /// Finds a link by its index.
    ///
    /// # Errors
    /// [`NetlinkError::Kernel`].
    pub async fn link_by_index(&self, index: u32) -> Result<Option<Link>, NetlinkError> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.attributes = vec![no_statistics()];
        self.link(&index, message).await
    }

    async fn link(
        &self,
        subject: &(dyn std::fmt::Display + Sync),
        message: LinkMessage,
    ) -> Result<Option<Link>, NetlinkError> {
        match self
            .get("get link", subject, RouteNetlinkMessage::GetLink(message))
            .await
        {
            Ok(answer) => Ok(link_of(answer)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Lists all links.
    ///
    /// # Errors
    /// [`NetlinkError::Kernel`], [`NetlinkError::Interrupted`].
    pub async fn links(&self) -> Result<Vec<Link>, NetlinkError> {
        let mut message = LinkMessage::default();
        message.attributes = vec![no_statistics()];
        let answers = self
            .dump("list links", RouteNetlinkMessage::GetLink(message))
            .await?;
        Ok(answers.into_iter().filter_map(link_of).collect())
    }

    /// Makes a veth pair, the far end straight in its namespace. Both ends are down.
    ///
    /// Nothing is left behind on an error.
    ///
    /// # Errors
    /// [`NetlinkError::Kernel`]; `is_exists` when either name is taken.
    pub async fn add_veth(&self, spec: &VethSpec<'_>) -> Result<(), NetlinkError> {
        let message = veth_message(spec);
        let subject = format!("{} with peer {}", spec.name, spec.peer.name);
        let message = RouteNetlinkMessage::NewLink(message);
        self.change("add veth", &subject, message, NLM_F_CREATE | NLM_F_EXCL)
            .await?;

        let Some(alias) = spec.alias else {
            return Ok(());
        };
        let mut message = LinkMessage::default();
        message.attributes = vec![
            LinkAttribute::IfName(spec.name.to_owned()),
            LinkAttribute::IfAlias(alias.to_owned()),
        ];
        let set = self
            .set_link("set alias of link", &spec.name, message)
            .await;
        if set.is_err() {
            let mut message = LinkMessage::default();
            message.attributes = vec![LinkAttribute::IfName(spec.name.to_owned())];
            let message = RouteNetlinkMessage::DelLink(message);
            // The first error is the one to report.
            let _ = self.change("delete link", &spec.name, message, 0).await;
        }
        set
    }

    /// Makes a link of the kernel's WireGuard: down, without key, port and peers.
    ///
    /// # Errors
    /// [`NetlinkError::Kernel`]; `is_exists` when the name is taken, EOPNOTSUPP when this kernel has
    /// no WireGuard.
    pub async fn add_wireguard(&self, name: &str, mtu: u32) -> Result<(), NetlinkError> {
        let mut message = LinkMessage::default();
        message.attributes = end_attributes(name, mtu, None);
        message
            .attributes
            .push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(
                InfoKind::Wireguard,
            )]));
        let message = RouteNetlinkMessage::NewLink(message);
        self.change(
            "add WireGuard link",
            &name,
            message,
            NLM_F_CREATE | NLM_F_EXCL,
        )
        .await
    }

    /// Deletes a link; a veth takes its peer along.
    ///
    /// # Errors
    /// [`NetlinkError::Kernel`]; `is_not_found` when there is none.
    pub async fn delete_link(&self, index: u32) -> Result<(), NetlinkError> {
        let message = RouteNetlinkMessage::DelLink(message_of(index));
        self.change("delete link", &index, message, 0).await
    }

    /// Switches a link on.
    ///
    /// # Errors
    /// [`NetlinkError::Kernel`]; `is_not_found` when there is none.
    pub async fn set_up(&self, index: u32) -> Result<(), NetlinkError> {
        let mut message = message_of(index);
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        self.set_link("set up link", &index, message).await
    }

    /// Switches a link off; its routes go, and its IPv6 addresses too.
    ///
    /// # Errors
    /// [`NetlinkError::Kernel`]; `is_not_found` when there is none.
    pub async fn set_down(&self, index: u32) -> Result<(), NetlinkError> {
        let mut message = message_of(index);
        message.header.change_mask = LinkFlags::Up;
        self.set_link("set down link", &index, message).await
    }

    /// Sets a link's MTU in bytes. Under 1280 the kernel drops its IPv6 addresses and routes.
    ///
    /// # Errors
    /// [`NetlinkError::Kernel`]; `is_not_found` when there is none.
    pub async fn set_mtu(&self, index: u32, mtu: u32) -> Result<(), NetlinkError> {
        let mut message = message_of(index);
        message.attributes = vec![LinkAttribute::Mtu(mtu)];
        self.set_link("set MTU of link", &index, message).await
    }

    /// Sets a link's alias, at most 255 bytes; an empty one removes it.
    ///
    /// # Errors
    /// [`NetlinkError::Kernel`]; `is_not_found` when there is none.
    pub async fn set_alias(&self, index: u32, alias: &str) -> Result<(), NetlinkError> {
        let mut message = message_of(index);
        message.attributes = vec![LinkAttribute::IfAlias(alias.to_owned())];
        self.set_link("set alias of link", &index, message).await
    }

    async fn set_link(
        &self,
        operation: &'static str,
        subject: &(dyn std::fmt::Display + Sync),
        message: LinkMessage,
    ) -> Result<(), NetlinkError> {
        self.change(operation, subject, RouteNetlinkMessage::SetLink(message), 0)
            .await
    }
}

pub(crate) fn message_of(index: u32) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message
}

/// Counters are most of a link's answer, and nobody here reads them.
pub(crate) fn no_statistics() -> LinkAttribute {
    LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats])
}

/// A pair to be made, without the alias: the kernel ignores it while it makes a link.
pub(crate) fn veth_message(spec: &VethSpec<'_>) -> LinkMessage {
    let mut peer = LinkMessage::default();
    peer.attributes = end_attributes(spec.peer.name, spec.peer.mtu, spec.peer.mac);
    peer.attributes
        .push(LinkAttribute::NetNsFd(spec.peer.netns.as_fd().as_raw_fd()));

    let mut message = LinkMessage::default();
    message.attributes = end_attributes(spec.name, spec.mtu, spec.mac);
    message.attributes.push(LinkAttribute::Group(spec.group));
    message.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Veth),
        LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
    ]));
    message
}

fn end_attributes(name: &str, mtu: u32, mac: Option<[u8; 6]>) -> Vec<LinkAttribute> {
    let mut attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::Mtu(mtu),
    ];
    attributes.extend(mac.map(|mac| LinkAttribute::Address(mac.to_vec())));
    attributes
}

pub(crate) fn link_of(message: RouteNetlinkMessage) -> Option<Link> {
    let RouteNetlinkMessage::NewLink(message) = message else {
        return None;
    };
    let flags = message.header.flags;
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        up: flags.contains(LinkFlags::Up),
        carrier: flags.contains(LinkFlags::LowerUp),
        operational: false,
        mtu: 0,
        mac: None,
        alias: None,
        group: 0,
        kind: None,
        lower: None,
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::Mtu(mtu) => link.mtu = mtu,
            // Drivers that know nothing of it say unknown, as `lo` does.
            LinkAttribute::OperState(state) => {
                link.operational = matches!(state, State::Up | State::Unknown);
            }
            LinkAttribute::Address(bytes) => link.mac = bytes.try_into().ok(),
            LinkAttribute::IfAlias(alias) => link.alias = Some(alias),
            LinkAttribute::Group(group) => link.group = group,
            LinkAttribute::Link(index) => link.lower = Some(index),
            LinkAttribute::LinkInfo(infos) => {
                link.kind = infos.into_iter().find_map(|info| match info {
                    LinkInfo::Kind(kind) => Some(kind.to_string()),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    Some(link)
}
