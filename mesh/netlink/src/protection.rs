//! Reads back which of our nftables rules the kernel has loaded.
//!
//! It speaks nfnetlink itself, without the `nft` program: the CNI plugin asks for every pod, and a
//! process costs more than all the rest of its work.

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use netlink_packet_core::{
    ErrorBuffer, NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR,
    NlaBuffer, NlasIterator,
};
use nix::sys::socket::{SockFlag, SockProtocol, setsockopt, sockopt};
use nix::sys::time::TimeVal;

use crate::NetlinkError;
use crate::nfnetlink::{FAMILY_HEADER, Message};
use crate::socket::{Datagram, Socket, messages};

// linux/netfilter/nfnetlink.h and linux/netfilter/nf_tables.h
const NFNL_SUBSYS_NFTABLES: u16 = 10 << 8;
const NFT_MSG_NEWTABLE: u16 = NFNL_SUBSYS_NFTABLES;
const NFT_MSG_GETTABLE: u16 = NFNL_SUBSYS_NFTABLES | 1;
const NFT_MSG_NEWRULE: u16 = NFNL_SUBSYS_NFTABLES | 6;
const NFT_MSG_GETRULE: u16 = NFNL_SUBSYS_NFTABLES | 7;
const NFT_MSG_NEWGEN: u16 = NFNL_SUBSYS_NFTABLES | 15;
const NFT_MSG_GETGEN: u16 = NFNL_SUBSYS_NFTABLES | 16;
const NFTA_GEN_ID: u16 = 1;
const NFTA_TABLE_NAME: u16 = 1;
/// Longest name of a table (`NFT_TABLE_MAXNAMELEN`, without its zero).
const NAME_MAX: usize = 255;
const NFTA_RULE_TABLE: u16 = 1;
const NFTA_RULE_CHAIN: u16 = 2;
const NFTA_RULE_USERDATA: u16 = 7;
/// Type of a comment in a rule's user data (libnftnl's udata.h, `NFTNL_UDATA_RULE_COMMENT`).
const UDATA_COMMENT: u8 = 0;

/// How often a dump is repeated during which the rules changed.
const DUMP_ATTEMPTS: usize = 20;
/// The kernel answers at once; this only keeps a caller from hanging for ever.
const PATIENCE: Duration = Duration::from_secs(5);
const OPERATION: &str = "read the rules of nftables table";

/// Returns the comments of a table's rules, by chain and in the rules' order; none if there is no
/// such table in the calling thread's network namespace.
///
/// `family` is one of `inet`, `ip`, `ip6`, `arp`, `bridge`, `netdev`. Rules without a comment are
/// left out, chains without a rule too. It blocks for some hundred microseconds.
///
/// # Errors
/// [`NetlinkError::Kernel`] (EPERM without CAP_NET_ADMIN, EINVAL or EOPNOTSUPP without nftables in
/// the kernel); [`NetlinkError::Interrupted`]; [`NetlinkError::Invalid`] for an unknown
/// family or an impossible name.
pub fn rule_comments(
    family: &str,
    table: &str,
) -> Result<Option<BTreeMap<String, Vec<String>>>, NetlinkError> {
    let mut client = Client::open(family, table)?;
    for _ in 0..DUMP_ATTEMPTS {
        // The rules of a missing table are an empty list, so the table itself is asked for.
        if !client.table_exists()? {
            return Ok(None);
        }
        if let Some(comments) = client.comments()? {
            return Ok(Some(comments));
        }
    }
    Err(NetlinkError::Interrupted {
        operation: OPERATION,
    })
}

/// Tells whether there is such a table in the calling thread's network namespace.
///
/// # Errors
/// As [`rule_comments`].
pub fn table_exists(family: &str, table: &str) -> Result<bool, NetlinkError> {
    Client::open(family, table)?.table_exists()
}

/// Returns the number of the ruleset's generation: as long as it stays, nobody has changed any
/// table of the calling thread's network namespace. (That an owned table went with its owner does
/// not change it.)
///
/// # Errors
/// As [`rule_comments`].
pub fn generation() -> Result<u32, NetlinkError> {
    let mut client = Client::open("inet", "")?;
    let mut found = None;
    let mut note = |kind, attributes: &[u8]| {
        if kind == NFT_MSG_NEWGEN {
            found = NlasIterator::new(attributes)
                .map_while(Result::ok)
                .find(|nla: &NlaBuffer<&[u8]>| nla.kind() == NFTA_GEN_ID)
                .and_then(|nla| Some(u32::from_be_bytes(nla.value().try_into().ok()?)));
        }
    };
    client.request(NFT_MSG_GETGEN, NLM_F_ACK, None, &mut note)?;
    found.ok_or_else(|| NetlinkError::Answer {
        operation: "read the generation of",
        subject: "the nftables ruleset".to_owned(),
        reason: "there is no number in it",
    })
}

struct Client<'a> {
    socket: Socket,
    family: u8,
    table: &'a str,
    sequence: u32,
}

enum Outcome {
    Complete,
    /// The rules changed while they were listed.
    Inconsistent,
}

impl<'a> Client<'a> {
    fn open(family: &str, table: &'a str) -> Result<Self, NetlinkError> {
        let family = family_number(family).ok_or_else(|| NetlinkError::Invalid {
            operation: OPERATION,
            subject: format!("{family} {table}"),
            reason: "its family must be inet, ip, ip6, arp, bridge or netdev",
        })?;
        if table.len() > NAME_MAX || table.contains('\0') {
            return Err(NetlinkError::Invalid {
                operation: OPERATION,
                subject: format!("{table:?}"),
                reason: "its name must have at most 255 bytes, none of them zero",
            });
        }
        let open = || {
            let socket = Socket::open(SockProtocol::NetlinkNetFilter, SockFlag::empty(), 0)?;
            let patience = TimeVal::new(PATIENCE.as_secs().cast_signed(), 0);
            setsockopt(&socket, sockopt::ReceiveTimeout, &patience)?;
            Ok(socket)
        };
        let socket = open().map_err(socket_error)?;
        Ok(Self {
            socket,
            family,
            table,
            sequence: 0,
        })
    }

    fn table_exists(&mut self) -> Result<bool, NetlinkError> {
        let mut found = false;
        let mut note = |kind, _: &[u8]| found |= kind == NFT_MSG_NEWTABLE;
        let name = Some(NFTA_TABLE_NAME);
        match self.request(NFT_MSG_GETTABLE, NLM_F_ACK, name, &mut note) {
            Ok(_) => Ok(found),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Lists the comments once; none if the rules changed meanwhile.
    fn comments(&mut self) -> Result<Option<BTreeMap<String, Vec<String>>>, NetlinkError> {
        let mut comments = BTreeMap::<String, Vec<String>>::new();
        let table = self.table;
        let mut note = |kind, attributes: &[u8]| {
            if kind != NFT_MSG_NEWRULE {
                return;
            }
            let (chain, comment) = rule_of(attributes, table);
            if let Some(chain) = chain {
                comments.entry(chain).or_default().extend(comment);
            }
        };
        let name = Some(NFTA_RULE_TABLE);
        match self.request(NFT_MSG_GETRULE, NLM_F_DUMP, name, &mut note)? {
            Outcome::Complete => Ok(Some(comments)),
            Outcome::Inconsistent => Ok(None),
        }
    }

    /// Sends a request whose one attribute, if any, is the table's name; shows `note` each answer's
    /// type and attributes.
    fn request(
        &mut self,
        kind: u16,
        flags: u16,
        name_attribute: Option<u16>,
        note: &mut dyn FnMut(u16, &[u8]),
    ) -> Result<Outcome, NetlinkError> {
        self.sequence += 1;
        let sequence = self.sequence;
        let request = encode(
            kind,
            NLM_F_REQUEST | flags,
            sequence,
            self.family,
            name_attribute.map(|attribute| (attribute, self.table)),
        );
        self.socket.send(&request).map_err(socket_error)?;
        let kernel = |code: i32| NetlinkError::Kernel {
            operation: OPERATION,
            subject: self.table.to_owned(),
            errno: code.saturating_abs(),
            detail: None,
        };
        let mut outcome = Outcome::Complete;
        loop {
            let datagram = match self.socket.receive().map_err(socket_error)? {
                Datagram::Messages(datagram) => datagram,
                Datagram::Foreign => continue,
                Datagram::Truncated => {
                    return Err(NetlinkError::Answer {
                        operation: OPERATION,
                        subject: self.table.to_owned(),
                        reason: "it is larger than netlink allows",
                    });
                }
            };
            for message in messages(datagram) {
                if message.sequence_number() != sequence {
                    continue;
                }
                if message.flags() & NLM_F_DUMP_INTR != 0 {
                    outcome = Outcome::Inconsistent;
                }
                let payload = message.payload();
                match message.message_type() {
                    // Both begin with the error's number, 0 for none.
                    NLMSG_DONE | NLMSG_ERROR => {
                        let code = ErrorBuffer::new_checked(payload)
                            .ok()
                            .and_then(|e| e.code());
                        return code.map_or(Ok(outcome), |code| Err(kernel(code.get())));
                    }
                    other => note(other, payload.get(FAMILY_HEADER..).unwrap_or_default()),
                }
            }
        }
    }
}

/// A request: header, family header, and at most one attribute, which holds a string.
fn encode(
    kind: u16,
    flags: u16,
    sequence: u32,
    family: u8,
    attribute: Option<(u16, &str)>,
) -> Vec<u8> {
    let mut message = Message::new(kind, flags, sequence, family);
    if let Some((kind, text)) = attribute {
        message.text(kind, text);
    }
    message.finish()
}

/// The chain and the comment of a rule of `table`.
fn rule_of(attributes: &[u8], table: &str) -> (Option<String>, Option<String>) {
    let (mut chain, mut comment, mut ours) = (None, None, false);
    for attribute in NlasIterator::new(attributes).map_while(Result::ok) {
        let attribute: NlaBuffer<&[u8]> = attribute;
        let value = attribute.value();
        match attribute.kind() {
            NFTA_RULE_TABLE => ours = text(value) == table,
            NFTA_RULE_CHAIN => chain = Some(text(value)),
            NFTA_RULE_USERDATA => comment = comment_in(value),
            _ => {}
        }
    }
    if ours { (chain, comment) } else { (None, None) }
}

/// Finds the comment in a rule's user data, a list of type (1 byte), length (1 byte), value.
fn comment_in(mut user_data: &[u8]) -> Option<String> {
    while let [kind, length, rest @ ..] = user_data {
        let (value, next) = rest.split_at_checked(usize::from(*length))?;
        if *kind == UDATA_COMMENT {
            return Some(text(value));
        }
        user_data = next;
    }
    None
}

/// A string up to its terminating zero.
fn text(value: &[u8]) -> String {
    let text = value.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(text).into_owned()
}

/// `NFPROTO_*` (linux/netfilter.h).
fn family_number(family: &str) -> Option<u8> {
    match family {
        "inet" => Some(1),
        "ip" => Some(2),
        "arp" => Some(3),
        "netdev" => Some(5),
        "bridge" => Some(7),
        "ip6" => Some(10),
        _ => None,
    }
}

fn socket_error(source: io::Error) -> NetlinkError {
    NetlinkError::Socket {
        operation: OPERATION,
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comment_is_found_behind_other_user_data() {
        let data = [&[7, 2, 1, 2][..], &[0, 9], b"warren:x\0"].concat();
        assert_eq!(comment_in(&data).as_deref(), Some("warren:x"));
    }

    #[test]
    fn cut_user_data_holds_no_comment() {
        for data in [&[][..], &[0], &[0, 9, b'w'], &[7, 200, 1, 2]] {
            assert_eq!(comment_in(data), None, "{data:?}");
        }
    }

    #[test]
    fn cut_or_wrong_attributes_are_ignored() {
        let whole = encode(0, 0, 0, 0, Some((NFTA_RULE_CHAIN, "ingress")));
        let attributes = &whole[16 + FAMILY_HEADER..];
        for end in 0..attributes.len() {
            assert_eq!(rule_of(&attributes[..end], "warren"), (None, None));
        }
        assert_eq!(rule_of(&[0xff; 32], "warren"), (None, None));
        assert_eq!(rule_of(&[0; 32], "warren"), (None, None));
    }
}
