//! A second filter that others cannot flush: a small nftables table owned by this process.
//!
//! ```text
//! nft flush ruleset        every table goes, but not one that another process owns
//! end of this process      the kernel takes the owned table away
//! ```
//!
//! It says again what the main table says about pod addresses on other devices and about pods that
//! forge, and stands right after it: its counters stay at 0 while the main table is there.

use std::io;
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use netlink_packet_core::{
    ErrorBuffer, NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_REQUEST, NLMSG_ERROR,
};
use nix::sys::socket::{SockFlag, SockProtocol, setsockopt, sockopt};
use nix::sys::time::TimeVal;

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
/// `NFT_TABLE_F_OWNER`: since Linux 5.12.
const TABLE_OWNER: u32 = 2;
const REGISTER: u32 = 1;
const REGISTER_VERDICT: u32 = 0;
const COMPARE_EQUAL: u32 = 0;
// linux/netfilter.h
const INET: u8 = 1;
const IPV4: u8 = 2;
const IPV6: u8 = 10;
const PREROUTING: u32 = 0;
const POSTROUTING: u32 = 4;
const DROP: u32 = 0;
const ACCEPT: u32 = 1;
/// Length of an interface's name with its zero (`IFNAMSIZ`).
const NAME_LENGTH: usize = 16;
/// Right after the main table's chains: raw (-300) and 300.
const INGRESS_PRIORITY: i32 = -299;
const EGRESS_PRIORITY: i32 = 301;

const OPERATION: &str = "load the owned nftables table";
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
}

/// The table, there as long as this is, in the network namespace that it was made in.
pub struct Guard {
    // The table's owner.
    _socket: Socket,
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
        let open = || {
            let socket = Socket::open(SockProtocol::NetlinkNetFilter, SockFlag::empty(), 0)?;
            let patience = TimeVal::new(PATIENCE.as_secs().cast_signed(), 0);
            setsockopt(&socket, sockopt::ReceiveTimeout, &patience)?;
            Ok(socket)
        };
        let mut socket = open().map_err(socket_error)?;
        let batch = batch(spec);
        socket.send(&batch.bytes).map_err(socket_error)?;
        let refused = |code: i32| NetlinkError::Kernel {
            operation: OPERATION,
            subject: spec.table.clone(),
            errno: code.saturating_abs(),
            detail: None,
        };
        // Each message is acknowledged, or refused and with it the whole batch.
        let mut waiting = batch.messages;
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
                    return Err(refused(code.get()));
                }
            }
        }
        Ok(Self { _socket: socket })
    }
}

struct Batch {
    bytes: Vec<u8>,
    /// How many of its messages are acknowledged.
    messages: usize,
}

fn batch(spec: &GuardSpec) -> Batch {
    let edge = |kind| Message::with_resource(kind, NLM_F_REQUEST, 0, (0, SUBSYSTEM)).finish();
    let mut parts = Vec::new();
    let flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE;
    let mut part = |kind, flags, write: &dyn Fn(&mut Message)| {
        let sequence = u32::try_from(parts.len()).unwrap_or(u32::MAX);
        let mut message = Message::new(kind, flags, sequence, INET);
        write(&mut message);
        parts.push(message.finish());
    };
    part(NEWTABLE, flags, &|message| {
        message.text(1, &spec.table);
        message.number(2, TABLE_OWNER);
    });
    let chains = [
        ("ingress", PREROUTING, INGRESS_PRIORITY),
        ("egress", POSTROUTING, EGRESS_PRIORITY),
    ];
    for (name, hook, priority) in chains {
        part(NEWCHAIN, flags, &|message| {
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
        part(NEWRULE, flags | NLM_F_APPEND, &|message| {
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
    let messages = parts.len();
    let bytes = [vec![edge(BATCH_BEGIN)], parts, vec![edge(BATCH_END)]]
        .concat()
        .concat();
    Batch { bytes, messages }
}

struct Rule {
    chain: &'static str,
    comment: String,
    expressions: Vec<Expression>,
}

fn rules(spec: &GuardSpec) -> Vec<Rule> {
    let mut out = Vec::new();
    let mut rule = |chain, comment: String, matches: Vec<Expression>, verdict| {
        let mut expressions = matches;
        if verdict == DROP {
            expressions.push(Expression::Counter);
        }
        expressions.push(Expression::Verdict(verdict));
        out.push(Rule {
            chain,
            comment,
            expressions,
        });
    };
    use Expression::{Address, Device, Family, StraySource};
    let veth = || Device {
        incoming: true,
        name: spec.veth_prefix.clone(),
        prefix: true,
    };
    let address = |net: &str, source| {
        let net: Option<IpNet> = net.parse().ok();
        net.map(|net| Address { net, source })
    };
    let forged = vec![veth(), StraySource];
    rule("ingress", "guard-antispoof".into(), forged, DROP);
    let pods = [
        ("guard-pod-link-local", address("fe80::/10", true), IPV6),
        ("guard-pod-loopback", address("127.0.0.0/8", false), IPV4),
    ];
    for (comment, found, family) in pods {
        let matches = [Some(veth()), Some(Family(family)), found];
        let matches = matches.into_iter().flatten().collect();
        rule("ingress", comment.into(), matches, DROP);
    }
    for (chain, incoming) in [("ingress", true), ("egress", false)] {
        let devices = [
            ("lo", "lo", false),
            ("tunnel", spec.tunnel.as_str(), false),
            ("pod", spec.veth_prefix.as_str(), true),
        ];
        for (what, name, prefix) in devices {
            let device = Device {
                incoming,
                name: name.into(),
                prefix,
            };
            rule(chain, format!("guard-{chain}-{what}"), vec![device], ACCEPT);
        }
        for net in &spec.pod_ranges {
            let (family, number) = match net {
                IpNet::V4(_) => (IPV4, "v4"),
                IpNet::V6(_) => (IPV6, "v6"),
            };
            for (end, source) in [("src", true), ("dst", false)] {
                let matches = vec![Family(family), Address { net: *net, source }];
                rule(
                    chain,
                    format!("guard-{chain}-{end}-{number}"),
                    matches,
                    DROP,
                );
            }
        }
    }
    out
}

enum Expression {
    /// The device's name, or how it starts.
    Device {
        incoming: bool,
        name: String,
        prefix: bool,
    },
    Family(u8),
    /// The source or destination lies in a prefix; only behind a `Family`.
    Address {
        net: IpNet,
        source: bool,
    },
    /// The source does not route back to the device that the packet came in by.
    StraySource,
    Counter,
    Verdict(u32),
}

impl Expression {
    fn write(&self, list: &mut Message) {
        match self {
            Self::Device {
                incoming,
                name,
                prefix,
            } => {
                // NFT_META_IIFNAME, NFT_META_OIFNAME
                meta(list, if *incoming { 6 } else { 7 });
                let mut value = name.clone().into_bytes();
                if !prefix {
                    value.resize(NAME_LENGTH, 0);
                }
                compare(list, &value);
            }
            Self::Family(family) => {
                // NFT_META_NFPROTO
                meta(list, 15);
                compare(list, &[*family]);
            }
            Self::Address { net, source } => address(list, net, *source),
            Self::StraySource => {
                expression(list, "fib", |data| {
                    data.number(1, REGISTER);
                    // NFT_FIB_RESULT_OIF
                    data.number(2, 1);
                    // NFTA_FIB_F_SADDR, _IIF, _PRESENT
                    data.number(3, (1 << 0) | (1 << 3) | (1 << 5));
                });
                compare(list, &0u32.to_ne_bytes());
            }
            Self::Counter => expression(list, "counter", |data| {
                data.raw(1, &0u64.to_be_bytes());
                data.raw(2, &0u64.to_be_bytes());
            }),
            Self::Verdict(verdict) => expression(list, "immediate", |data| {
                data.number(1, REGISTER_VERDICT);
                data.nested(2, |value| {
                    value.nested(2, |code| code.number(1, *verdict));
                });
            }),
        }
    }
}

/// The network header's address, masked, compared with the prefix.
fn address(list: &mut Message, net: &IpNet, source: bool) {
    let (offset, bytes, mask) = match (net.network(), net.netmask()) {
        (IpAddr::V4(ip), IpAddr::V4(mask)) => (
            if source { 12 } else { 16 },
            ip.octets().to_vec(),
            mask.octets().to_vec(),
        ),
        (ip, mask) => {
            let octets = |ip| match ip {
                IpAddr::V6(ip) => ip.octets().to_vec(),
                IpAddr::V4(ip) => ip.octets().to_vec(),
            };
            (if source { 8 } else { 24 }, octets(ip), octets(mask))
        }
    };
    let length = u32::try_from(bytes.len()).unwrap_or_default();
    expression(list, "payload", |data| {
        data.number(1, REGISTER);
        // NFT_PAYLOAD_NETWORK_HEADER
        data.number(2, 1);
        data.number(3, offset);
        data.number(4, length);
    });
    expression(list, "bitwise", |data| {
        data.number(1, REGISTER);
        data.number(2, REGISTER);
        data.number(3, length);
        data.nested(4, |value| value.raw(1, &mask));
        data.nested(5, |value| value.raw(1, &vec![0; bytes.len()]));
    });
    compare(list, &bytes);
}

fn meta(list: &mut Message, key: u32) {
    expression(list, "meta", |data| {
        data.number(1, REGISTER);
        data.number(2, key);
    });
}

fn compare(list: &mut Message, value: &[u8]) {
    expression(list, "cmp", |data| {
        data.number(1, REGISTER);
        data.number(2, COMPARE_EQUAL);
        data.nested(3, |data| data.raw(1, value));
    });
}

fn expression(list: &mut Message, name: &str, write: impl FnOnce(&mut Message)) {
    list.nested(1, |element| {
        element.text(1, name);
        element.nested(2, write);
    });
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
