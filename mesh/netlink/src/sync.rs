//! rtnetlink without a runtime: for a program that lives for some milliseconds.

use std::io;
use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST,
    NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoKind, LinkAttribute, LinkFlags, LinkInfo,
    LinkMessage,
};
use netlink_packet_route::route::{RouteAttribute, RouteMessage};
use rtnetlink::sys::{Socket, protocols::NETLINK_ROUTE};

use crate::connection::kernel_error;
use crate::{Family, Link, NetlinkError, Netns, Route, RouteKind, VethSpec};
use crate::{addresses, links, neighbours, routes};

/// How often a dump is repeated that the kernel reports as inconsistent.
const DUMP_ATTEMPTS: usize = 20;
/// What the kernel says of an address that no route delivers.
const UNROUTED: [i32; 4] = [
    libc::ENETUNREACH,
    libc::EHOSTUNREACH,
    libc::EACCES,
    libc::EINVAL,
];
/// The kernel's datagrams are at most 32 KiB.
const DATAGRAM: usize = 32 * 1024;

/// One rtnetlink socket, bound to the network namespace it was opened in. Each call blocks until
/// the kernel has answered.
///
/// Several changes go to the kernel in one datagram ([`Batch`]), which a burst of pods notices:
/// each separate one queues for the kernel's lock.
pub struct SyncNetlink {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

/// Changes to be sent at once. The kernel carries out all of them in order, also behind one that
/// fails.
#[derive(Debug, Default)]
pub struct Batch {
    changes: Vec<Change>,
}

#[derive(Debug)]
struct Change {
    operation: &'static str,
    subject: String,
    message: RouteNetlinkMessage,
    flags: u16,
}

impl SyncNetlink {
    /// Opens a socket in the calling thread's network namespace.
    ///
    /// # Errors
    /// [`NetlinkError::Socket`] when there is no descriptor left.
    pub fn open() -> Result<Self, NetlinkError> {
        let operation = "open an rtnetlink socket";
        Self::open_here().map_err(|source| NetlinkError::Socket { operation, source })
    }

    /// Opens a socket inside `ns`, to be used from here.
    ///
    /// # Errors
    /// As [`SyncNetlink::open`], and those of [`Netns::run`].
    pub fn open_in(ns: &Netns) -> Result<Self, NetlinkError> {
        let operation = "open an rtnetlink socket in another network namespace";
        ns.run(Self::open_here)
            .and_then(|opened| opened)
            .map_err(|source| NetlinkError::Socket { operation, source })
    }

    fn open_here() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.set_cap_ack(true)?;
        socket.set_ext_ack(true)?;
        socket.set_netlink_get_strict_chk(true)?;
        Ok(Self {
            socket,
            sequence: 0,
            buffer: Vec::with_capacity(DATAGRAM),
        })
    }

    /// Makes a veth pair without an alias, the far end straight in its namespace. Both ends are
    /// down, and nothing is left behind on an error.
    ///
    /// # Errors
    /// [`NetlinkError::Kernel`]; `is_exists` when either name is taken.
    pub fn add_veth(&mut self, spec: &VethSpec<'_>) -> Result<(), NetlinkError> {
        let mut batch = Batch::default();
        let subject = format!("{} with peer {}", spec.name, spec.peer.name);
        let message = RouteNetlinkMessage::NewLink(links::veth_message(spec));
        batch.push("add veth", subject, message, NLM_F_CREATE | NLM_F_EXCL);
        self.run(&batch)
    }

    /// Finds a link by its name.
    ///
    /// # Errors
    /// [`NetlinkError::Kernel`].
    pub fn link_by_name(&mut self, name: &str) -> Result<Option<Link>, NetlinkError> {
        let mut message = LinkMessage::default();
        message.attributes = vec![
            LinkAttribute::IfName(name.to_owned()),
            links::no_statistics(),
        ];
        let message = RouteNetlinkMessage::GetLink(message);
        match self.request("get link", &name, message, NLM_F_ACK) {
            Ok(answers) => Ok(answers.messages.into_iter().find_map(links::link_of)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Lists the veths of this namespace.
    ///
    /// # Errors
    /// [`NetlinkError::Kernel`], [`NetlinkError::Interrupted`].
    pub fn veths(&mut self) -> Result<Vec<Link>, NetlinkError> {
        let mut message = LinkMessage::default();
        message.attributes = vec![
            LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Veth)]),
            links::no_statistics(),
        ];
        let answers = self.dump("list veths", &RouteNetlinkMessage::GetLink(message))?;
        let links = answers.into_iter().filter_map(links::link_of);
        Ok(links
            .filter(|link| link.kind.as_deref() == Some("veth"))
            .collect())
    }

    /// Lists the routes of one table and kind, both families, and of one maker if told. The kernel
    /// passes the others over.
    ///
    /// # Errors
    /// [`NetlinkError::Kernel`], [`NetlinkError::Interrupted`].
    pub fn routes_of(
        &mut self,
        table: u32,
        kind: RouteKind,
        protocol: Option<u8>,
    ) -> Result<Vec<Route>, NetlinkError> {
        let mut all = Vec::new();
        for family in [Family::V4, Family::V6] {
            let mut message = RouteMessage::default();
            message.header.address_family = family.into();
            message.header.kind = kind.into();
            message.header.protocol = protocol.unwrap_or(0).into();
            message.attributes.push(RouteAttribute::Table(table));
            let answers = match self.dump("list routes", &RouteNetlinkMessage::GetRoute(message)) {
                Ok(answers) => answers,
                // No such table, or no IPv6 at all: no routes.
                Err(error) if error.is_not_found() => continue,
                Err(error) if error.errno() == Some(libc::EAFNOSUPPORT) => continue,
                Err(error) => return Err(error),
            };
            // A kernel that knows no such filter tells all.
            let wanted = |route: &Route| {
                route.table == table
                    && route.kind == kind
                    && protocol.is_none_or(|protocol| route.protocol == protocol)
                    && Family::of(route.dst.addr()) == family
            };
            all.extend(
                answers
                    .into_iter()
                    .filter_map(routes::route_of)
                    .filter(wanted),
            );
        }
        Ok(all)
    }

    /// Whether packets to this address are delivered here.
    ///
    /// # Errors
    /// [`NetlinkError::Kernel`].
    pub fn is_local(&mut self, address: IpAddr) -> Result<bool, NetlinkError> {
        let mut message = RouteMessage::default();
        message.header.address_family = routes::family_of(address);
        message.header.destination_prefix_length = IpNet::from(address).prefix_len();
        message
            .attributes
            .push(RouteAttribute::Destination(address.into()));
        let message = RouteNetlinkMessage::GetRoute(message);
        match self.request("look up route to", &address, message, NLM_F_ACK) {
            Ok(answers) => {
                let mut routes = answers.messages.into_iter().filter_map(routes::route_of);
                Ok(routes.any(|route| route.kind == RouteKind::Local))
            }
            // Nothing leads there, or what leads there refuses.
            Err(error) if error.errno().is_some_and(|e| UNROUTED.contains(&e)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Deletes a link; a veth takes its peer along.
    ///
    /// # Errors
    /// [`NetlinkError::Kernel`]; `is_not_found` when there is none.
    pub fn delete_link(&mut self, index: u32) -> Result<(), NetlinkError> {
        let message = RouteNetlinkMessage::DelLink(links::message_of(index));
        self.request("delete link", &index, message, NLM_F_ACK)
            .map(drop)
    }

    /// Carries out all changes.
    ///
    /// # Errors
    /// [`NetlinkError::Kernel`], of the first change that failed; those behind it may have been
    /// carried out.
    pub fn run(&mut self, batch: &Batch) -> Result<(), NetlinkError> {
        let Some(first) = batch.changes.first() else {
            return Ok(());
        };
        let mut bytes = Vec::with_capacity(128 * batch.changes.len());
        let start = self.sequence.wrapping_add(1);
        for change in &batch.changes {
            let flags = change.flags | NLM_F_ACK;
            bytes.extend(self.encode(change.message.clone(), flags));
        }
        self.send(first.operation, &bytes)?;
        let mut outcome = Ok(());
        for (i, change) in batch.changes.iter().enumerate() {
            let sequence = start.wrapping_add(u32::try_from(i).unwrap_or_default());
            let answers = self.receive(change.operation, &change.subject, sequence);
            // All answers are read, so that the next request finds its own.
            outcome = outcome.and(answers.map(drop));
        }
        outcome
    }

    fn dump(
        &mut self,
        operation: &'static str,
        message: &RouteNetlinkMessage,
    ) -> Result<Vec<RouteNetlinkMessage>, NetlinkError> {
        for _ in 0..DUMP_ATTEMPTS {
            let answers = self.request(operation, &"", message.clone(), NLM_F_DUMP)?;
            if answers.consistent {
                return Ok(answers.messages);
            }
        }
        Err(NetlinkError::Interrupted { operation })
    }

    fn request(
        &mut self,
        operation: &'static str,
        subject: &dyn std::fmt::Display,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<Answers, NetlinkError> {
        let bytes = self.encode(message, flags);
        self.send(operation, &bytes)?;
        self.receive(operation, subject, self.sequence)
    }

    fn encode(&mut self, message: RouteNetlinkMessage, flags: u16) -> Vec<u8> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut message = NetlinkMessage::from(message);
        message.header.flags = NLM_F_REQUEST | flags;
        message.header.sequence_number = self.sequence;
        message.finalize();
        let mut bytes = vec![0; message.buffer_len().next_multiple_of(4)];
        message.serialize(&mut bytes);
        bytes
    }

    fn send(&self, operation: &'static str, bytes: &[u8]) -> Result<(), NetlinkError> {
        let sent = self.socket.send(bytes, 0);
        sent.map(drop)
            .map_err(|source| NetlinkError::Socket { operation, source })
    }

    /// Reads until the answer to one request is complete.
    fn receive(
        &mut self,
        operation: &'static str,
        subject: &dyn std::fmt::Display,
        sequence: u32,
    ) -> Result<Answers, NetlinkError> {
        let mut answers = Answers {
            messages: Vec::new(),
            consistent: true,
        };
        loop {
            self.buffer.clear();
            let (length, sender) = loop {
                match self.socket.recv_from(&mut self.buffer, libc::MSG_TRUNC) {
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    other => {
                        break other
                            .map_err(|source| NetlinkError::Socket { operation, source })?;
                    }
                }
            };
            // Any process may send to a netlink socket whose port it guesses.
            if sender.port_number() != 0 {
                continue;
            }
            let unreadable = |reason| NetlinkError::Answer {
                operation,
                subject: subject.to_string(),
                reason,
            };
            if length > self.buffer.len() {
                return Err(unreadable("it is longer than any datagram of the kernel"));
            }
            let mut rest = &self.buffer[..];
            while !rest.is_empty() {
                let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest)
                    .map_err(|_| unreadable("it is malformed"))?;
                let length = (message.header.length as usize).next_multiple_of(4);
                rest = rest.get(length..).unwrap_or_default();
                if message.header.sequence_number != sequence {
                    continue;
                }
                answers.consistent &= message.header.flags & NLM_F_DUMP_INTR == 0;
                match message.payload {
                    NetlinkPayload::InnerMessage(inner) => answers.messages.push(inner),
                    NetlinkPayload::Done(done) if done.code == 0 => return Ok(answers),
                    NetlinkPayload::Done(done) => {
                        let words = &done.extended_ack;
                        return Err(kernel_error(operation, &subject, done.code, words));
                    }
                    NetlinkPayload::Error(error) if error.code.is_none() => return Ok(answers),
                    NetlinkPayload::Error(error) => {
                        let words = error.header.get(NLMSG_HEADER..).unwrap_or_default();
                        return Err(kernel_error(operation, &subject, error.raw_code(), words));
                    }
                    _ => {}
                }
            }
        }
    }
}

impl Batch {
    /// Sets a link's alias, at most 255 bytes.
    pub fn set_alias(&mut self, index: u32, alias: &str) {
        let mut message = links::message_of(index);
        message.attributes = vec![LinkAttribute::IfAlias(alias.to_owned())];
        self.push_link("set alias of link", index, message);
    }

    /// Lets the kernel make no link-local address for a link.
    pub fn no_link_local(&mut self, index: u32) {
        let mut message = links::message_of(index);
        let mode = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
        message.attributes = vec![LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(
            vec![mode],
        )])];
        self.push_link("set address generation of link", index, message);
    }

    /// Switches a link on.
    pub fn set_up(&mut self, index: u32) {
        let mut message = links::message_of(index);
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        self.push_link("set up link", index, message);
    }

    /// Adds an address to a link; an IPv6 one is usable at once and brings no prefix route.
    pub fn add_address(&mut self, index: u32, net: IpNet) {
        let message = RouteNetlinkMessage::NewAddress(addresses::message_to_add(index, net));
        let subject = format!("{net} to link {index}");
        self.push("add address", subject, message, NLM_F_CREATE | NLM_F_EXCL);
    }

    /// Sets a permanent neighbour entry.
    pub fn add_neighbour(&mut self, index: u32, address: IpAddr, mac: [u8; 6]) {
        let message = neighbours::permanent(index, address, mac);
        let message = RouteNetlinkMessage::NewNeighbour(message);
        let subject = format!("{address} on link {index}");
        self.push(
            "set neighbour",
            subject,
            message,
            NLM_F_CREATE | NLM_F_REPLACE,
        );
    }

    /// Adds a route, which must not be there.
    pub fn add_route(&mut self, route: &Route) {
        let message = RouteNetlinkMessage::NewRoute(routes::message_of(&route.as_reported()));
        let subject = route.to_string();
        self.push("add route", subject, message, NLM_F_CREATE | NLM_F_EXCL);
    }

    fn push_link(&mut self, operation: &'static str, index: u32, message: LinkMessage) {
        let message = RouteNetlinkMessage::SetLink(message);
        self.push(operation, index.to_string(), message, 0);
    }

    fn push(
        &mut self,
        operation: &'static str,
        subject: String,
        message: RouteNetlinkMessage,
        flags: u16,
    ) {
        self.changes.push(Change {
            operation,
            subject,
            message,
            flags,
        });
    }
}

struct Answers {
    messages: Vec<RouteNetlinkMessage>,
    consistent: bool,
}

/// Length of `struct nlmsghdr` (linux/netlink.h).
const NLMSG_HEADER: usize = 16;
