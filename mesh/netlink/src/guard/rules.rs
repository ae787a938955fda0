//! The rules of the owned table, and the kernel's expressions that they are made of.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{GuardSpec, peer_set};
use crate::nfnetlink::Message;

// linux/netfilter/nf_tables.h
const REGISTER: u32 = 1;
const REGISTER_VERDICT: u32 = 0;
const COMPARE_EQUAL: u32 = 0;
const COMPARE_OTHER: u32 = 1;
// enum nft_meta_keys
const IIFNAME: u32 = 6;
const OIFNAME: u32 = 7;
const NFPROTO: u32 = 15;
const L4PROTO: u32 = 16;
// enum nft_payload_bases
const NETWORK_HEADER: u32 = 1;
const TRANSPORT_HEADER: u32 = 2;
// linux/netfilter.h
const IPV4: u8 = 2;
const IPV6: u8 = 10;
const DROP: u32 = 0;
const ACCEPT: u32 = 1;
// linux/in.h
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
/// Types of ICMP messages that quote a packet (RFC 792): destination unreachable, redirect, time exceeded,
/// parameter problem.
const ICMP_ERRORS: [u8; 4] = [3, 5, 11, 12];
/// Types of ICMPv6 messages that quote a packet (RFC 4443): destination unreachable, packet too big, time
/// exceeded, parameter problem.
const ICMPV6_ERRORS: [u8; 4] = [1, 2, 3, 4];
/// Length of an ICMP error's own header; the quoted packet comes behind it.
const ICMP_HEADER: u32 = 8;
/// Length of an interface's name with its zero (`IFNAMSIZ`).
const NAME_LENGTH: usize = 16;

/// A rule of the table.
pub(super) struct Rule {
    pub(super) chain: &'static str,
    pub(super) comment: String,
    pub(super) expressions: Vec<Expression>,
}

/// All rules in their order.
pub(super) fn rules(spec: &GuardSpec) -> Vec<Rule> {
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
    use Expression::{
        Address, Device, Family, IcmpError, OtherDevice, OwnDestination, PeerDestination,
        QuotedDestination, StraySource,
    };
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
        (
            "guard-pod-mapped",
            address("::ffff:0.0.0.0/96", false),
            IPV6,
        ),
        (
            "guard-pod-to-link-local-v6",
            address("fe80::/10", false),
            IPV6,
        ),
    ];
    for (comment, found, family) in pods {
        let matches = [Some(veth()), Some(Family(family)), found];
        let matches = matches.into_iter().flatten().collect();
        rule("ingress", comment.into(), matches, DROP);
    }
    let own_link_local = [
        Some(veth()),
        Some(Family(IPV4)),
        address("169.254.0.0/16", false),
        Some(OwnDestination),
    ];
    rule(
        "ingress",
        "guard-pod-to-link-local-v4".into(),
        own_link_local.into_iter().flatten().collect(),
        DROP,
    );
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
            if incoming {
                continue;
            }
            // With the first bytes of what was sent to a pod, from and to the nodes' own addresses.
            let (protocol, kinds) = match net {
                IpNet::V4(_) => (ICMP, ICMP_ERRORS),
                IpNet::V6(_) => (ICMPV6, ICMPV6_ERRORS),
            };
            for kind in kinds {
                let error = IcmpError { protocol, kind };
                let matches = vec![Family(family), error, QuotedDestination(*net)];
                rule(chain, format!("guard-egress-quote-{number}"), matches, DROP);
            }
        }
    }
    // After destination NAT and before source NAT: the peer's address and the pod's veth are both
    // known there.
    for (family, ipv6, number) in [(IPV4, false, "v4"), (IPV6, true, "v6")] {
        let elsewhere = OtherDevice(spec.tunnel.clone());
        let matches = vec![veth(), elsewhere, Family(family), PeerDestination { ipv6 }];
        rule(
            "pod-to-node",
            format!("guard-pod-to-node-{number}"),
            matches,
            DROP,
        );
    }
    out
}

/// A part of a rule.
pub(super) enum Expression {
    /// The device's name, or how it starts.
    Device {
        incoming: bool,
        name: String,
        prefix: bool,
    },
    /// The packet leaves by any other device than this.
    OtherDevice(String),
    Family(u8),
    /// The destination is a peer's own address; only behind a `Family`.
    PeerDestination {
        ipv6: bool,
    },
    /// The source or destination lies in a prefix; only behind a `Family`.
    Address {
        net: IpNet,
        source: bool,
    },
    /// An ICMP message of this type; only behind a `Family`.
    IcmpError {
        protocol: u8,
        kind: u8,
    },
    /// The packet that an ICMP error quotes was for a prefix; only behind an `IcmpError`.
    QuotedDestination(IpNet),
    /// The destination is an address of the node itself.
    OwnDestination,
    /// The source does not route back to the device that the packet came in by.
    StraySource,
    Counter,
    Verdict(u32),
}

impl Expression {
    /// Writes it as an element of a rule's list.
    pub(super) fn write(&self, list: &mut Message) {
        match self {
            Self::Device {
                incoming,
                name,
                prefix,
            } => {
                meta(list, if *incoming { IIFNAME } else { OIFNAME });
                let mut value = name.clone().into_bytes();
                if !prefix {
                    value.resize(NAME_LENGTH, 0);
                }
                compare(list, &value);
            }
            Self::OtherDevice(name) => {
                meta(list, OIFNAME);
                let mut value = name.clone().into_bytes();
                value.resize(NAME_LENGTH, 0);
                compare_by(list, COMPARE_OTHER, &value);
            }
            Self::Family(family) => {
                meta(list, NFPROTO);
                compare(list, &[*family]);
            }
            Self::PeerDestination { ipv6 } => {
                let (offset, length) = if *ipv6 { (24, 16) } else { (16, 4) };
                load(list, NETWORK_HEADER, offset, length);
                expression(list, "lookup", |data| {
                    data.text(1, peer_set(*ipv6).0);
                    data.number(2, REGISTER);
                });
            }
            Self::Address { net, source } => {
                let offset = address_offset(net, *source);
                prefix(list, NETWORK_HEADER, offset, net);
            }
            Self::IcmpError { protocol, kind } => {
                meta(list, L4PROTO);
                compare(list, &[*protocol]);
                load(list, TRANSPORT_HEADER, 0, 1);
                compare(list, &[*kind]);
            }
            Self::QuotedDestination(net) => {
                let offset = ICMP_HEADER + address_offset(net, false);
                prefix(list, TRANSPORT_HEADER, offset, net);
            }
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
            Self::OwnDestination => {
                expression(list, "fib", |data| {
                    data.number(1, REGISTER);
                    // NFT_FIB_RESULT_ADDRTYPE
                    data.number(2, 3);
                    // NFTA_FIB_F_DADDR
                    data.number(3, 1 << 1);
                });
                // RTN_LOCAL
                compare(list, &2u32.to_ne_bytes());
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

/// Where an IP header has its source or destination, in bytes.
fn address_offset(net: &IpNet, source: bool) -> u32 {
    match (net, source) {
        (IpNet::V4(_), true) => 12,
        (IpNet::V4(_), false) => 16,
        (IpNet::V6(_), true) => 8,
        (IpNet::V6(_), false) => 24,
    }
}

/// The address there, masked, compared with the prefix.
fn prefix(list: &mut Message, header: u32, offset: u32, net: &IpNet) {
    let octets = |ip| match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let (bytes, mask) = (octets(net.network()), octets(net.netmask()));
    let length = u32::try_from(bytes.len()).unwrap_or_default();
    load(list, header, offset, length);
    expression(list, "bitwise", |data| {
        data.number(1, REGISTER);
        data.number(2, REGISTER);
        data.number(3, length);
        data.nested(4, |value| value.raw(1, &mask));
        data.nested(5, |value| value.raw(1, &vec![0; bytes.len()]));
    });
    compare(list, &bytes);
}

/// So many bytes of a header.
fn load(list: &mut Message, header: u32, offset: u32, length: u32) {
    expression(list, "payload", |data| {
        data.number(1, REGISTER);
        data.number(2, header);
        data.number(3, offset);
        data.number(4, length);
    });
}

fn meta(list: &mut Message, key: u32) {
    expression(list, "meta", |data| {
        data.number(1, REGISTER);
        data.number(2, key);
    });
}

fn compare(list: &mut Message, value: &[u8]) {
    compare_by(list, COMPARE_EQUAL, value);
}

fn compare_by(list: &mut Message, operation: u32, value: &[u8]) {
    expression(list, "cmp", |data| {
        data.number(1, REGISTER);
        data.number(2, operation);
        data.nested(3, |data| data.raw(1, value));
    });
}

fn expression(list: &mut Message, name: &str, write: impl FnOnce(&mut Message)) {
    list.nested(1, |element| {
        element.text(1, name);
        element.nested(2, write);
    });
}
