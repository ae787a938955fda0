//! Properties of the text of UAPI: what is written is read again, secrets are written in one
//! place, and no text makes a parser panic.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::time::Duration;

use ipnet::IpNet;
use proptest::prelude::*;
use warren_core::uapi::{
    AllowedIpUpdate, Device, Peer, PeerUpdate, Request, SetRequest, answer_errno,
};
use warren_keyring::{PresharedKey, PrivateKey, PublicKey};

const KEY: &str = "b85996fecc9c7f1fc6d2572a76eda11d59bcd20be8e543b15ce4bd85a8e75a33";

/// The room that is taken for a text: per device, per peer and per prefix.
const fn room(peers: usize, prefixes: usize) -> usize {
    192 + 480 * peers + 64 * prefixes
}

proptest! {
    #[test]
    fn a_written_request_is_read_again(request in set_request()) {
        let text = request.to_text();
        prop_assert_eq!(Request::parse(&text).unwrap(), Request::Set(request));
    }

    #[test]
    fn a_written_state_is_read_again(device in device()) {
        let text = format!("{}{}", *device.to_text(), answer_errno(0));
        prop_assert_eq!(Device::parse(&text).unwrap(), device);
    }

    /// A text that outgrew its room would have left copies of its secrets behind.
    #[test]
    fn secrets_are_written_in_one_place(request in set_request(), device in device()) {
        let prefixes = request.peers.iter().map(|peer| peer.allowed_ips.len()).sum();
        prop_assert_eq!(request.to_text().capacity(), room(request.peers.len(), prefixes));
        let prefixes = device.peers.iter().map(|peer| peer.allowed_ips.len()).sum();
        prop_assert_eq!(device.to_text().capacity(), room(device.peers.len(), prefixes));
    }

    #[test]
    fn no_text_makes_a_parser_panic(text in prop_oneof![likely_text(), "(?s).{0,200}"]) {
        let _ = SetRequest::parse(&text);
        let _ = Device::parse(&text);
        let _ = Device::parse(&format!("{text}\nerrno=0\n\n"));
        // What is taken is written in a form that means the same.
        if let Ok(Request::Set(set)) = Request::parse(&text) {
            prop_assert_eq!(Request::parse(&set.to_text()).unwrap(), Request::Set(set));
        }
    }
}

#[test]
fn the_longest_possible_texts_fit_their_room() {
    let longest_v6: IpNet = "1111:1111:1111:1111:1111:1111:1111:1111/128"
        .parse()
        .unwrap();
    let address = "1111:1111:1111:1111:1111:1111:1111:1111".parse().unwrap();
    let endpoint = Some(SocketAddrV6::new(address, u16::MAX, 0, u32::MAX).into());
    let private_key = PrivateKey::generate().unwrap();
    let public_key = private_key.public_key();
    let preshared_key = Some(PresharedKey::generate().unwrap());
    let update = PeerUpdate {
        public_key,
        remove: true,
        update_only: true,
        preshared_key: preshared_key.clone(),
        endpoint,
        persistent_keepalive: Some(u16::MAX),
        path_probes: Some(false),
        replace_allowed_ips: true,
        allowed_ips: vec![AllowedIpUpdate::Remove(longest_v6); 50],
    };
    let request = SetRequest {
        private_key: Some(Some(private_key.clone())),
        listen_port: Some(u16::MAX),
        fwmark: Some(u32::MAX),
        replace_peers: true,
        peers: vec![update; 50],
    };
    assert_eq!(request.to_text().capacity(), room(50, 2500));
    let peer = Peer {
        public_key,
        preshared_key,
        endpoint,
        last_handshake: Some(Duration::new(u64::MAX, 999_999_999)),
        rx_bytes: u64::MAX,
        tx_bytes: u64::MAX,
        persistent_keepalive: u16::MAX,
        path_probes: true,
        allowed_ips: vec![longest_v6; 50],
    };
    let device = Device {
        private_key: Some(private_key),
        listen_port: u16::MAX,
        fwmark: u32::MAX,
        peers: vec![peer; 50],
    };
    assert_eq!(device.to_text().capacity(), room(50, 2500));
}

fn private_key() -> impl Strategy<Value = PrivateKey> {
    any::<[u8; 32]>().prop_filter_map("not zero", |bytes| PrivateKey::from_bytes(bytes).ok())
}

fn public_key() -> impl Strategy<Value = PublicKey> {
    any::<[u8; 32]>().prop_filter_map("low order", |bytes| PublicKey::from_bytes(bytes).ok())
}

fn preshared_key() -> impl Strategy<Value = PresharedKey> {
    prop_oneof![Just([0; 32]), any::<[u8; 32]>()].prop_map(PresharedKey::from_bytes)
}

fn prefix() -> impl Strategy<Value = IpNet> {
    prop_oneof![
        (any::<[u8; 4]>(), 0u8..=32).prop_map(|(ip, len)| (IpAddr::from(ip), len)),
        (any::<[u8; 16]>(), 0u8..=128).prop_map(|(ip, len)| (IpAddr::from(ip), len)),
        // IPv4-mapped and IPv4-compatible ones have text forms of their own.
        (any::<[u8; 4]>(), 96u8..=128, any::<bool>()).prop_map(|(ip, len, mapped)| {
            let ip = std::net::Ipv4Addr::from(ip);
            let v6 = if mapped {
                ip.to_ipv6_mapped()
            } else {
                ip.to_ipv6_compatible()
            };
            (IpAddr::from(v6), len)
        }),
    ]
    .prop_map(|(ip, len)| IpNet::new_assert(ip, len).trunc())
}

fn endpoint() -> impl Strategy<Value = SocketAddr> {
    prop_oneof![
        (any::<[u8; 4]>(), any::<u16>()).prop_map(SocketAddr::from),
        (
            any::<[u8; 16]>(),
            any::<u16>(),
            prop_oneof![Just(0u32), any::<u32>()]
        )
            .prop_map(|(ip, port, scope)| SocketAddrV6::new(
                Ipv6Addr::from(ip),
                port,
                0,
                scope
            )
            .into()),
    ]
}

fn allowed_ip_update() -> impl Strategy<Value = AllowedIpUpdate> {
    (prefix(), any::<bool>()).prop_map(|(prefix, add)| {
        if add {
            AllowedIpUpdate::Add(prefix)
        } else {
            AllowedIpUpdate::Remove(prefix)
        }
    })
}

fn peer_update() -> impl Strategy<Value = PeerUpdate> {
    (
        public_key(),
        any::<[bool; 3]>(),
        any::<Option<bool>>(),
        prop::option::of(preshared_key()),
        prop::option::of(endpoint()),
        prop::option::of(any::<u16>()),
        prop::collection::vec(allowed_ip_update(), 0..4),
    )
        .prop_map(
            |(public_key, flags, path_probes, preshared_key, endpoint, keepalive, allowed_ips)| {
                PeerUpdate {
                    public_key,
                    remove: flags[0],
                    update_only: flags[1],
                    preshared_key,
                    endpoint,
                    persistent_keepalive: keepalive,
                    path_probes,
                    replace_allowed_ips: flags[2],
                    allowed_ips,
                }
            },
        )
}

fn set_request() -> impl Strategy<Value = SetRequest> {
    (
        prop::option::of(prop::option::of(private_key())),
        prop::option::of(any::<u16>()),
        prop::option::of(any::<u32>()),
        any::<bool>(),
        prop::collection::vec(peer_update(), 0..4),
    )
        .prop_map(
            |(private_key, listen_port, fwmark, replace_peers, peers)| SetRequest {
                private_key,
                listen_port,
                fwmark,
                replace_peers,
                peers,
            },
        )
}

fn peer_state() -> impl Strategy<Value = Peer> {
    (
        public_key(),
        prop::option::of(preshared_key().prop_filter("the zero key is none", |psk| !psk.is_zero())),
        prop::option::of(endpoint()),
        prop::option::of((any::<u64>(), 1u32..1_000_000_000)),
        any::<(u64, u64)>(),
        any::<(u16, bool)>(),
        prop::collection::vec(prefix(), 0..4),
    )
        .prop_map(
            |(public_key, preshared_key, endpoint, handshake, bytes, keepalive, ips)| Peer {
                public_key,
                preshared_key,
                endpoint,
                last_handshake: handshake.map(|(secs, nanos)| Duration::new(secs, nanos)),
                rx_bytes: bytes.0,
                tx_bytes: bytes.1,
                persistent_keepalive: keepalive.0,
                path_probes: keepalive.1,
                allowed_ips: ips,
            },
        )
}

fn device() -> impl Strategy<Value = Device> {
    (
        prop::option::of(private_key()),
        any::<u16>(),
        any::<u32>(),
        prop::collection::vec(peer_state(), 0..4),
    )
        .prop_map(|(private_key, listen_port, fwmark, peers)| Device {
            private_key,
            listen_port,
            fwmark,
            peers,
        })
}

/// Texts that get past the first checks: real keys, with values near what they allow.
fn likely_text() -> impl Strategy<Value = String> {
    let line = prop_oneof![
        Just("get=1".to_owned()),
        Just("set=1".to_owned()),
        Just(format!("public_key={KEY}")),
        Just(String::new()),
        "(private_key|public_key|preshared_key)=[0-9a-fA-F]{62,66}",
        "(listen_port|fwmark|errno|rx_bytes|persistent_keepalive_interval)=[-+0-9]{0,22}",
        "last_handshake_time_n?sec=[0-9]{0,20}",
        "endpoint=[0-9a-f:.%\\[\\]]{0,20}",
        "allowed_ip=-?[0-9a-f:.]{0,20}/?[0-9]{0,4}",
        "(remove|update_only|replace_peers|replace_allowed_ips|x)=(true|false|)",
        ".{0,20}",
    ];
    prop::collection::vec(line, 0..12).prop_map(|lines| lines.join("\n"))
}
