//! A second filter that others cannot flush: a small nftables table owned by this process.
//!
//! ```text
//! nft flush ruleset        every table goes, but not one that another process owns
//! end of this process      the kernel takes the owned table away
//! ```
//!
//! It says again what the main table drops: pod addresses on other devices, pods that forge or reach
//! for the node's own services, and what pods send to peers' own addresses beside the tunnel. It
//! stands right after the main table: its counters stay at 0 while that is there.

mod rules;

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use netlink_packet_core::{
    ErrorBuffer, NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_REQUEST, NLMSG_ERROR,
};
use nix::sys::socket::{SockFlag, SockProtocol, setsockopt, sockopt};
use nix::sys::time::TimeVal;

use self::rules::rules;
use crate::NetlinkError;
use crate::nfnetlink::Message;
use crate::socket::{Datagram, Socket, messages};

// linux/netfilter/nfnetlink.h
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const SUBSYSTEM: u16 = 10;
// linux/netfilter/nf_tables.h
const NEWTABLE: u16 = SUBSYSTEM << 8;
const NEWCHAIN: u16 = (SUBSYSTEM << 8) | 3;
const NEWRULE: u16 = (SUBSYSTEM << 8) | 6;
const NEWSET: u16 = (SUBSYSTEM << 8) | 9;
const NEWSETELEM: u16 = (SUBSYSTEM << 8) | 12;
const DELSETELEM: u16 = (SUBSYSTEM << 8) | 14;
/// `NFT_TABLE_F_OWNER`: since Linux 5.12.
const TABLE_OWNER: u32 = 2;
// linux/netfilter.h
const INET: u8 = 1;
const PREROUTING: u32 = 0;
const FORWARD: u32 = 2;
const POSTROUTING: u32 = 4;
const ACCEPT: u32 = 1;
/// Right after the main table's chains: raw (-300), filter (0) and 300.
const INGRESS_PRIORITY: i32 = -299;
const FORWARD_PRIORITY: i32 = 1;
const EGRESS_PRIORITY: i32 = 301;

/// How many addresses one message takes: an attribute has at most 64 KiB.
const ELEMENTS: usize = 1000;

const OPERATION: &str = "change nftables table";
/// The kernel answers at once; this only keeps a caller from hanging for ever.
const PATIENCE: Duration = Duration::from_secs(5);

/// What the table is made from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuardSpec {
    /// The table's name, in family `inet`.
    pub table: String,
    /// How each rule's comment starts.
    pub comment_prefix: String,
    /// The tunnel's interface.
    pub tunnel: String,
    /// How the names of the pods' veths start.
    pub veth_prefix: String,
    /// Packets from and to these pass no other device but `lo`.
    pub pod_ranges: Vec<IpNet>,
    /// The peers' own addresses: what pods send there passes only the tunnel.
    pub peers: BTreeSet<IpAddr>,
}

/// The table, there as long as this is, in the network namespace that it was made in.
pub struct Guard {
    /// The table's owner.
    socket: Socket,
    spec: GuardSpec,
}

impl std::fmt::Debug for Guard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Guard")
    }
}

impl Guard {
    /// Loads the table in the calling thread's network namespace. It blocks for about a millisecond.
    ///
    /// # Errors
    /// [`NetlinkError::Kernel`]: EPERM without CAP_NET_ADMIN or when another process owns a table
    /// of that name; EOPNOTSUPP or EINVAL by kernels before 5.12; ENOENT without nftables.
    pub fn load(spec: &GuardSpec) -> Result<Self, NetlinkError> {
        let mut guard = Self {
            socket: open().map_err(socket_error)?,
            spec: spec.clone(),
        };
        guard.transact(table(spec))?;
        Ok(guard)
    }

    /// What it was made from.
    pub fn spec(&self) -> &GuardSpec {
        &self.spec
    }

    /// Takes other peers in the place of those that it has, in one transaction.
    ///
    /// # Errors
    /// As [`Guard::load`]; the table is as it was, and this value is not to be used any more but to
    /// be loaded anew.
    pub fn set_peers(&mut self, peers: &BTreeSet<IpAddr>) -> Result<(), NetlinkError> {
        let mut batch = Batch::default();
        for ipv6 in [false, true] {
            // Without an element it is all of them.
            batch.part(DELSETELEM, 0, |message| {
                message.text(1, &self.spec.table);
                message.text(2, peer_set(ipv6).0);
            });
        }
        elements(&mut batch, NEWSETELEM, &self.spec.table, peers);
        self.transact(batch)?;
        self.spec.peers.clone_from(peers);
        Ok(())
    }

    /// Takes single peers more and less, in one transaction whose work is theirs alone.
    ///
    /// # Errors
    /// As [`Guard::set_peers`]; ENOENT when one of `remove` is not among its peers.
    pub fn change_peers(
        &mut self,
        add: &BTreeSet<IpAddr>,
        remove: &BTreeSet<IpAddr>,
    ) -> Result<(), NetlinkError> {
        self.transact(peer_changes(&self.spec.table, add, remove))?;
        self.spec.peers.retain(|peer| !remove.contains(peer));
        self.spec.peers.extend(add);
        Ok(())
    }

    fn transact(&mut self, batch: Batch) -> Result<(), NetlinkError> {
        transact(&mut self.socket, &self.spec.table, batch)
    }
}

/// Takes single addresses into, and out of, the sets `peer_v4` and `peer_v6` of a table of family
/// `inet`, in one transaction, in the calling thread's network namespace. The sets hold addresses and
/// no intervals.
///
/// # Errors
/// [`NetlinkError::Kernel`]: ENOENT when there is no such table or set, or one of `remove` is not in it;
/// EPERM without CAP_NET_ADMIN or when another process owns the table. Nothing has changed then.
pub fn change_peer_sets(
    table: &str,
    add: &BTreeSet<IpAddr>,
    remove: &BTreeSet<IpAddr>,
) -> Result<(), NetlinkError> {
    let mut socket = open().map_err(socket_error)?;
    transact(&mut socket, table, peer_changes(table, add, remove))
}

fn open() -> io::Result<Socket> {
    let socket = Socket::open(SockProtocol::NetlinkNetFilter, SockFlag::empty(), 0)?;
    let patience = TimeVal::new(PATIENCE.as_secs().cast_signed(), 0);
    setsockopt(&socket, sockopt::ReceiveTimeout, &patience)?;
    Ok(socket)
}

fn transact(socket: &mut Socket, table: &str, batch: Batch) -> Result<(), NetlinkError> {
    let mut waiting = batch.parts.len();
    let bytes = batch.finish();
    socket
        .set_send_buffer(bytes.len())
        .and_then(|()| socket.send(&bytes))
        .map_err(socket_error)?;
    // Each message is acknowledged, or refused and with it the whole batch.
    while waiting > 0 {
        let Datagram::Messages(datagram) = socket.receive().map_err(socket_error)? else {
            continue;
        };
        for message in messages(datagram) {
            if message.message_type() != NLMSG_ERROR {
                continue;
            }
            waiting = waiting.saturating_sub(1);
            let error = ErrorBuffer::new_checked(message.payload());
            if let Some(code) = error.ok().and_then(|error| error.code()) {
                return Err(NetlinkError::Kernel {
                    operation: OPERATION,
                    subject: table.to_owned(),
                    errno: code.get().saturating_abs(),
                    detail: None,
                });
            }
        }
    }
    Ok(())
}

/// A transaction: its messages, all of which ask to be acknowledged.
#[derive(Default)]
struct Batch {
    parts: Vec<Vec<u8>>,
}

impl Batch {
    fn part(&mut self, kind: u16, flags: u16, write: impl FnOnce(&mut Message)) {
        let sequence = u32::try_from(self.parts.len()).unwrap_or(u32::MAX);
        let flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        let mut message = Message::new(kind, flags, sequence, INET);
        write(&mut message);
        self.parts.push(message.finish());
    }

    fn finish(self) -> Vec<u8> {
        let edge = |kind| Message::with_resource(kind, NLM_F_REQUEST, 0, (0, SUBSYSTEM)).finish();
        let parts = self.parts.concat();
        [edge(BATCH_BEGIN), parts, edge(BATCH_END)].concat()
    }
}

/// The whole table.
fn table(spec: &GuardSpec) -> Batch {
    let mut batch = Batch::default();
    batch.part(NEWTABLE, NLM_F_CREATE, |message| {
        message.text(1, &spec.table);
        message.number(2, TABLE_OWNER);
    });
    for ipv6 in [false, true] {
        let (name, kind, length) = peer_set(ipv6);
        batch.part(NEWSET, NLM_F_CREATE, |message| {
            message.text(1, &spec.table);
            message.text(2, name);
            message.number(4, kind);
            message.number(5, length);
            // A number within the transaction, which the kernel insists on.
            message.number(10, 1 + u32::from(ipv6));
        });
    }
    elements(&mut batch, NEWSETELEM, &spec.table, &spec.peers);
    let chains = [
        ("ingress", PREROUTING, INGRESS_PRIORITY),
        ("pod-to-node", FORWARD, FORWARD_PRIORITY),
        ("egress", POSTROUTING, EGRESS_PRIORITY),
    ];
    for (name, hook, priority) in chains {
        batch.part(NEWCHAIN, NLM_F_CREATE, |message| {
            message.text(1, &spec.table);
            message.text(3, name);
            message.nested(4, |hooks| {
                hooks.number(1, hook);
                hooks.number(2, priority.cast_unsigned());
            });
            message.number(5, ACCEPT);
            message.text(7, "filter");
        });
    }
    for rule in rules(spec) {
        batch.part(NEWRULE, NLM_F_CREATE | NLM_F_APPEND, |message| {
            message.text(1, &spec.table);
            message.text(2, rule.chain);
            message.nested(4, |list| {
                for expression in &rule.expressions {
                    expression.write(list);
                }
            });
            let comment = format!("{}{}", spec.comment_prefix, rule.comment);
            message.raw(7, &user_data(&comment));
        });
    }
    batch
}

/// The set of peers' addresses of a family: its name, nft's number for the type, and the length.
fn peer_set(ipv6: bool) -> (&'static str, u32, u32) {
    if ipv6 {
        ("peer_v6", 8, 16)
    } else {
        ("peer_v4", 7, 4)
    }
}

fn peer_changes(table: &str, add: &BTreeSet<IpAddr>, remove: &BTreeSet<IpAddr>) -> Batch {
    let mut batch = Batch::default();
    elements(&mut batch, DELSETELEM, table, remove);
    elements(&mut batch, NEWSETELEM, table, add);
    batch
}

fn elements(batch: &mut Batch, kind: u16, table: &str, peers: &BTreeSet<IpAddr>) {
    let flags = if kind == NEWSETELEM { NLM_F_CREATE } else { 0 };
    for ipv6 in [false, true] {
        let of_family = peers.iter().filter(|address| address.is_ipv6() == ipv6);
        let keys: Vec<Vec<u8>> = of_family
            .map(|address| match address {
                IpAddr::V4(address) => address.octets().to_vec(),
                IpAddr::V6(address) => address.octets().to_vec(),
            })
            .collect();
        for keys in keys.chunks(ELEMENTS) {
            batch.part(kind, flags, |message| {
                message.text(1, table);
                message.text(2, peer_set(ipv6).0);
                message.nested(3, |list| {
                    for key in keys {
                        list.nested(1, |element| element.nested(1, |data| data.raw(1, key)));
                    }
                });
            });
        }
    }
}

/// A comment as `nft` stores it: type 0, length, text with its zero.
fn user_data(comment: &str) -> Vec<u8> {
    let text = comment.as_bytes();
    let length = u8::try_from(text.len() + 1).unwrap_or(u8::MAX);
    [&[0, length], text, &[0]].concat()
}

fn socket_error(source: io::Error) -> NetlinkError {
    NetlinkError::Socket {
        operation: OPERATION,
        source,
    }
}
