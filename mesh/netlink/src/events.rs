//! Changes of the kernel's network configuration, as they happen.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::task::{Context, Poll};

use ipnet::IpNet;
use netlink_packet_core::{NlaBuffer, NlasIterator};
use nix::sys::socket::{SockFlag, SockProtocol};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::socket::{Datagram, Socket, messages};
use crate::{Netlink, NetlinkError};

/// A burst of ten thousand routes fits; the memory is used only while a reader lags.
const RECEIVE_BUFFER: usize = 8 * 1024 * 1024;
/// Bits of `RTNLGRP_LINK`, `IPV4_IFADDR`, `IPV4_ROUTE`, `IPV4_RULE`, `IPV6_IFADDR`, `IPV6_ROUTE`,
/// `IPV6_RULE`, `IPV4_NETCONF` and `IPV6_NETCONF` (linux/rtnetlink.h).
const ROUTE_GROUPS: u32 = (1 << 0)
    | (1 << 4)
    | (1 << 6)
    | (1 << 7)
    | (1 << 8)
    | (1 << 10)
    | (1 << 18)
    | (1 << 23)
    | (1 << 24);
/// The bit of `NFNLGRP_NFTABLES` (linux/netfilter/nfnetlink.h).
const FILTER_GROUPS: u32 = 1 << 6;

// linux/rtnetlink.h
const RTM_NEWNETCONF: u16 = 80;
// linux/netfilter/nf_tables.h, with nfnetlink's subsystem in the upper byte
const NFT_SUBSYSTEM: u16 = 10;
const NFT_MSG_NEWTABLE: u16 = 0;
const NFT_MSG_NEWGEN: u16 = 15;
const NFPROTO_INET: u8 = 1;

/// What was added, changed or removed. What it is now, a dump tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetEvent {
    /// A link, or its state.
    Link {
        /// Its index.
        index: u32,
        /// Its name, where the kernel told it.
        name: String,
    },
    /// An address.
    Address {
        /// Index of its link.
        index: u32,
        /// The address.
        address: Option<IpAddr>,
    },
    /// A route.
    Route {
        /// Its table.
        table: u32,
        /// Its destination.
        dst: IpNet,
        /// Who made it (`RTPROT_*`).
        protocol: u8,
    },
    /// A policy rule.
    Rule {
        /// Its priority.
        priority: u32,
    },
    /// A setting of a device, or of all, under `/proc/sys/net/ipv?/conf`.
    Setting {
        /// The device's index; none for `all` and `default`.
        index: Option<u32>,
        /// Whether it forwards now, if told.
        forwarding: Option<bool>,
        /// Its `rp_filter`, if told.
        rp_filter: Option<i32>,
    },
    /// An nftables table of family `inet`, or anything in it.
    Table {
        /// The table's name.
        name: String,
    },
    /// Events were lost: anything may have changed, so everything is to be dumped again.
    Overrun,
}

/// The changes of one network namespace, from the moment it was made.
///
/// Changes made through [`Netlink`] are among them. A dump that starts after the stream was made
/// misses nothing.
pub struct EventStream {
    route: AsyncFd<Socket>,
    /// None where the kernel has no nftables.
    filter: Option<AsyncFd<Socket>>,
    pending: VecDeque<NetEvent>,
}

impl Netlink {
    /// Watches the calling thread's network namespace.
    ///
    /// # Errors
    /// [`NetlinkError::Socket`] when there is no descriptor left, or outside a tokio runtime.
    ///
    /// # Panics
    /// In a runtime that was built without `enable_io`.
    pub fn watch() -> Result<EventStream, NetlinkError> {
        EventStream::open(RECEIVE_BUFFER).map_err(|source| NetlinkError::Socket {
            operation: "watch for changes of the network",
            source,
        })
    }
}

impl EventStream {
    fn open(receive_buffer: usize) -> io::Result<Self> {
        tokio::runtime::Handle::try_current().map_err(io::Error::other)?;
        let watch = |protocol, groups| -> io::Result<AsyncFd<Socket>> {
            let socket = Socket::open(protocol, SockFlag::SOCK_NONBLOCK, groups)?;
            socket.set_receive_buffer(receive_buffer)?;
            // SAFETY: `Socket` owns its descriptor, never replaces it, and closes it when dropped.
            let registered = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) };
            Ok(registered?)
        };
        Ok(Self {
            route: watch(SockProtocol::NetlinkRoute, ROUTE_GROUPS)?,
            filter: watch(SockProtocol::NetlinkNetFilter, FILTER_GROUPS).ok(),
            pending: VecDeque::new(),
        })
    }

    /// Whether changes of nftables are told too.
    pub fn sees_tables(&self) -> bool {
        self.filter.is_some()
    }

    /// Waits for the next change. Giving up waiting loses none.
    ///
    /// # Errors
    /// [`NetlinkError::Socket`] when the socket fails for good: make a new stream and dump again.
    pub async fn next(&mut self) -> Result<NetEvent, NetlinkError> {
        loop {
            if let Some(event) = self.pending.pop_front() {
                return Ok(event);
            }
            let filled = std::future::poll_fn(|context| self.poll_fill(context)).await;
            filled.map_err(|source| NetlinkError::Socket {
                operation: "wait for changes of the network",
                source,
            })?;
        }
    }

    /// Reads one datagram, from whichever socket has one.
    fn poll_fill(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self {
            route,
            filter,
            pending,
        } = self;
        for socket in [Some(route), filter.as_mut()].into_iter().flatten() {
            loop {
                let mut ready = match socket.poll_read_ready_mut(context) {
                    Poll::Pending => break,
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                    Poll::Ready(Ok(ready)) => ready,
                };
                match ready.try_io(|socket| read_into(socket.get_mut(), pending)) {
                    Ok(read) => return Poll::Ready(read),
                    // The readiness was stale; asking anew registers for the next one.
                    Err(_would_block) => {}
                }
            }
        }
        Poll::Pending
    }
}

fn read_into(socket: &mut Socket, pending: &mut VecDeque<NetEvent>) -> io::Result<()> {
    match socket.receive() {
        Ok(Datagram::Messages(datagram)) => {
            for message in messages(datagram) {
                pending.extend(event_of(message.message_type(), message.payload()));
            }
            Ok(())
        }
        Ok(Datagram::Truncated) => {
            pending.push_back(NetEvent::Overrun);
            Ok(())
        }
        Ok(Datagram::Foreign) => Ok(()),
        Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
            pending.push_back(NetEvent::Overrun);
            Ok(())
        }
        Err(error) => Err(error),
    }
}

/// Reads a notification; what is too short to be one, or is of no interest, is none.
fn event_of(message_type: u16, payload: &[u8]) -> Option<NetEvent> {
    if message_type >> 8 == NFT_SUBSYSTEM {
        return table_of(message_type & 0xff, payload);
    }
    match message_type {
        libc::RTM_NEWLINK | libc::RTM_DELLINK => link_of(payload),
        libc::RTM_NEWADDR | libc::RTM_DELADDR => address_of(payload),
        libc::RTM_NEWROUTE | libc::RTM_DELROUTE => route_of(payload),
        libc::RTM_NEWRULE | libc::RTM_DELRULE => rule_of(payload),
        RTM_NEWNETCONF => setting_of(payload),
        _ => None,
    }
}

/// The attributes behind a header of `header` bytes.
fn attributes(payload: &[u8], header: usize) -> impl Iterator<Item = (u16, &[u8])> {
    let attributes = NlasIterator::new(payload.get(header..).unwrap_or_default());
    attributes
        .map_while(Result::ok)
        // `NlaBuffer::value` would borrow from the buffer that the iterator yields.
        .map(|nla: NlaBuffer<&[u8]>| (nla.kind(), nla.value_length(), nla.into_inner()))
        .map(|(kind, length, rest)| (kind, rest.get(4..4 + length).unwrap_or_default()))
}

fn number(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?))
}

fn text(bytes: &[u8]) -> String {
    let text = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(text).into_owned()
}

fn ip(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Some(Ipv4Addr::from(v4).into());
    }
    let v6 = <[u8; 16]>::try_from(bytes.get(..16)?).ok()?;
    Some(Ipv6Addr::from(v6).into())
}

/// `struct ifinfomsg` and `IFLA_IFNAME` (linux/if_link.h).
fn link_of(payload: &[u8]) -> Option<NetEvent> {
    let index = number(payload.get(4..)?)?;
    let name = attributes(payload, 16).find(|(kind, _)| *kind == libc::IFLA_IFNAME);
    let name = name.map(|(_, value)| text(value)).unwrap_or_default();
    Some(NetEvent::Link { index, name })
}

/// `struct ifaddrmsg`, `IFA_LOCAL` and `IFA_ADDRESS` (linux/if_addr.h).
fn address_of(payload: &[u8]) -> Option<NetEvent> {
    let index = number(payload.get(4..)?)?;
    let find = |wanted: u16| {
        let found = attributes(payload, 8).find(|(kind, _)| *kind == wanted);
        found.and_then(|(_, value)| ip(value))
    };
    // On a point-to-point link `IFA_ADDRESS` is the other end's.
    let address = find(libc::IFA_LOCAL).or_else(|| find(libc::IFA_ADDRESS));
    Some(NetEvent::Address { index, address })
}

/// `struct rtmsg`, `RTA_DST` and `RTA_TABLE` (linux/rtnetlink.h).
fn route_of(payload: &[u8]) -> Option<NetEvent> {
    let [family, length, _, _, table, protocol, ..] = *payload else {
        return None;
    };
    let (mut table, mut address) = (u32::from(table), None);
    for (kind, value) in attributes(payload, 12) {
        match kind {
            libc::RTA_DST => address = ip(value),
            libc::RTA_TABLE => table = number(value)?,
            _ => {}
        }
    }
    // A default route has no destination.
    let address = address.or(match i32::from(family) {
        libc::AF_INET => Some(Ipv4Addr::UNSPECIFIED.into()),
        libc::AF_INET6 => Some(Ipv6Addr::UNSPECIFIED.into()),
        _ => None,
    })?;
    let dst = IpNet::new(address, length).ok()?;
    Some(NetEvent::Route {
        table,
        dst,
        protocol,
    })
}

/// `struct fib_rule_hdr` and `FRA_PRIORITY` (linux/fib_rules.h); the kernel leaves a 0 out.
fn rule_of(payload: &[u8]) -> Option<NetEvent> {
    const FRA_PRIORITY: u16 = 6;
    payload.get(..12)?;
    let priority = attributes(payload, 12).find(|(kind, _)| *kind == FRA_PRIORITY);
    let priority = priority
        .and_then(|(_, value)| number(value))
        .unwrap_or_default();
    Some(NetEvent::Rule { priority })
}

/// `struct netconfmsg` and `NETCONFA_*` (linux/netconf.h).
fn setting_of(payload: &[u8]) -> Option<NetEvent> {
    const HEADER: usize = 4;
    const IFINDEX: u16 = 1;
    const FORWARDING: u16 = 2;
    const RP_FILTER: u16 = 3;
    payload.get(..HEADER)?;
    let (mut index, mut forwarding, mut rp_filter) = (None, None, None);
    for (kind, value) in attributes(payload, HEADER) {
        let value = number(value).map(u32::cast_signed);
        match kind {
            // -1 and -2 are `all` and `default`.
            IFINDEX => index = value.and_then(|value| u32::try_from(value).ok()),
            FORWARDING => forwarding = value.map(|value| value != 0),
            RP_FILTER => rp_filter = value,
            _ => {}
        }
    }
    Some(NetEvent::Setting {
        index,
        forwarding,
        rp_filter,
    })
}

/// Every notification of nftables but the generation's begins with its table's name
/// (`NFTA_*_TABLE`, `NFTA_TABLE_NAME`: all 1).
fn table_of(message: u16, payload: &[u8]) -> Option<NetEvent> {
    let family = *payload.first()?;
    if family != NFPROTO_INET || !(NFT_MSG_NEWTABLE..NFT_MSG_NEWGEN).contains(&message) {
        // Flow tables and objects come after; nobody can make the filter weaker by them alone.
        return None;
    }
    let (_, name) = attributes(payload, 4).find(|(kind, _)| *kind == 1)?;
    Some(NetEvent::Table { name: text(name) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Address, Netns};
    use nix::sched::{CloneFlags, unshare};

    #[test]
    fn a_reader_that_lags_too_far_behind_is_told() {
        let make = || {
            unshare(CloneFlags::CLONE_NEWNET)
                .ok()
                .and_then(|()| Netns::current().ok())
        };
        let Some(ns) = std::thread::spawn(make).join().unwrap() else {
            assert!(
                std::env::var_os("CI").is_none(),
                "would be skipped: no network namespace"
            );
            println!("skipped: cannot make a network namespace");
            return;
        };
        ns.run(|| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let mut events = EventStream::open(4096).unwrap();
                let netlink = Netlink::open().unwrap();
                for host in 1..200 {
                    let net = format!("127.0.1.{host}/32").parse().unwrap();
                    assert!(netlink.add_address(1, net).await.unwrap());
                }
                sees(&mut events, |event| *event == NetEvent::Overrun).await;
                // It goes on working.
                let idle = std::time::Duration::from_millis(50);
                while tokio::time::timeout(idle, events.next()).await.is_ok() {}
                let all: Vec<Address> = netlink.addresses(Some(1)).await.unwrap();
                netlink.delete_address(1, all[0].net).await.unwrap();
                sees(&mut events, |event| {
                    matches!(event, NetEvent::Address { index: 1, .. })
                })
                .await;
            });
        })
        .unwrap();
    }

    async fn sees(events: &mut EventStream, wanted: impl Fn(&NetEvent) -> bool) {
        let wait = async { while !wanted(&events.next().await.unwrap()) {} };
        let seen = tokio::time::timeout(std::time::Duration::from_secs(30), wait).await;
        assert!(seen.is_ok(), "not seen within 30 s");
    }

    #[test]
    fn other_messages_and_cut_ones_are_no_events() {
        assert_eq!(event_of(libc::RTM_NEWNEIGH, &[0; 64]), None);
        assert_eq!(event_of(libc::NLMSG_DONE as u16, &[0; 64]), None);
        let generation = (NFT_SUBSYSTEM << 8) | NFT_MSG_NEWGEN;
        assert_eq!(event_of(generation, &[1; 64]), None);
        for kind in [
            libc::RTM_NEWLINK,
            libc::RTM_NEWADDR,
            libc::RTM_NEWROUTE,
            libc::RTM_NEWRULE,
            RTM_NEWNETCONF,
            NFT_SUBSYSTEM << 8,
        ] {
            assert_eq!(event_of(kind, &[2, 0]), None, "{kind}");
        }
    }
}
