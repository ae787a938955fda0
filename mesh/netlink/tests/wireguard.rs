//! The messages for the kernel's WireGuard, byte by byte.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use netlink_packet_core::Emitable;
use warren_core::uapi::{AllowedIpUpdate, PeerUpdate, SetRequest};
use warren_keyring::{PrivateKey, PublicKey};
use warren_netlink::wireguard::{Removal, SetMessage, set_messages};

/// The attributes as the kernel gets them.
fn bytes(message: &SetMessage) -> Vec<u8> {
    let message = message.message();
    let mut bytes = vec![0; message.buffer_len()];
    message.emit(&mut bytes);
    bytes
}

fn key(byte: u8) -> PublicKey {
    PublicKey::from_bytes([byte; 32]).unwrap()
}

/// `struct nlattr` and a value, padded.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    out.extend(u16::try_from(4 + value.len()).unwrap().to_ne_bytes());
    out.extend(kind.to_ne_bytes());
    out.extend(value);
    out.resize(out.len().next_multiple_of(4), 0);
    out
}

fn nested(kind: u16, parts: &[Vec<u8>]) -> Vec<u8> {
    attribute(kind | (1 << 15), &parts.concat())
}

/// A request with all that Warren asks for, as linux/wireguard.h lays it out.
#[test]
fn a_request_is_laid_out_as_linux_wireguard_h_says() {
    let private = PrivateKey::from_bytes([0x48; 32]).unwrap();
    let mut peer = PeerUpdate::new(key(9));
    peer.endpoint = Some("192.0.2.2:51871".parse().unwrap());
    peer.persistent_keepalive = Some(25);
    peer.allowed_ips = vec![
        AllowedIpUpdate::Remove("10.244.9.0/24".parse().unwrap()),
        AllowedIpUpdate::Add("fd00:244:0:2::/64".parse().unwrap()),
    ];
    let mut gone = PeerUpdate::new(key(8));
    gone.update_only = true;
    gone.remove = true;
    let request = SetRequest {
        private_key: Some(Some(private.clone())),
        listen_port: Some(51871),
        peers: vec![peer, gone],
        ..SetRequest::default()
    };
    let (v4, v6) = (2u16.to_ne_bytes(), 10u16.to_ne_bytes());
    let flag = |bit: u32| bit.to_ne_bytes();
    let endpoint = [&v4[..], &51871u16.to_be_bytes(), &[192, 0, 2, 2], &[0; 8]].concat();
    let removed = nested(
        0,
        &[
            attribute(1, &v4),
            attribute(2, &[10, 244, 9, 0]),
            attribute(3, &[24]),
            attribute(4, &flag(1)),
        ],
    );
    let mut address = [0; 16];
    address[..8].copy_from_slice(&[0xfd, 0, 2, 0x44, 0, 0, 0, 2]);
    let added = nested(
        0,
        &[
            attribute(1, &v6),
            attribute(2, &address),
            attribute(3, &[64]),
        ],
    );
    let again = |prefix: Vec<u8>| {
        nested(
            0,
            &[
                attribute(1, &[9; 32]),
                attribute(3, &flag(4)),
                nested(9, &[prefix]),
            ],
        )
    };
    let peers = [
        nested(
            0,
            &[
                attribute(1, &[9; 32]),
                attribute(4, &endpoint),
                attribute(5, &25u16.to_ne_bytes()),
            ],
        ),
        again(removed),
        again(added),
        nested(0, &[attribute(1, &[8; 32]), attribute(3, &flag(1 | 4))]),
    ];
    let wanted = [
        attribute(2, b"warren0\0"),
        attribute(3, private.as_bytes()),
        attribute(6, &51871u16.to_ne_bytes()),
        nested(8, &peers),
    ];
    let messages = set_messages("warren0", &request, Removal::Flagged);
    assert_eq!(messages.len(), 1);
    assert!(messages[0].has_flagged_removals());
    assert_eq!(bytes(&messages[0]), wanted.concat());
}

#[test]
fn on_old_kernels_a_prefix_goes_with_a_peer_that_nobody_has_in_one_message() {
    let mut peer = PeerUpdate::new(key(9));
    peer.update_only = true;
    peer.allowed_ips = vec![AllowedIpUpdate::Remove("10.244.9.0/24".parse().unwrap())];
    let request = SetRequest {
        peers: vec![peer],
        ..SetRequest::default()
    };
    let messages = set_messages("warren0", &request, Removal::ThrowAway(key(7)));
    let prefix = nested(
        0,
        &[
            attribute(1, &2u16.to_ne_bytes()),
            attribute(2, &[10, 244, 9, 0]),
            attribute(3, &[24]),
        ],
    );
    let peers = [
        nested(
            0,
            &[attribute(1, &[9; 32]), attribute(3, &4u32.to_ne_bytes())],
        ),
        nested(0, &[attribute(1, &[7; 32]), nested(9, &[prefix])]),
        nested(
            0,
            &[attribute(1, &[7; 32]), attribute(3, &1u32.to_ne_bytes())],
        ),
    ];
    let wanted = [attribute(2, b"warren0\0"), nested(8, &peers)];
    assert_eq!(messages.len(), 1);
    assert!(!messages[0].has_flagged_removals());
    assert_eq!(bytes(&messages[0]), wanted.concat());
}

#[test]
fn nothing_to_change_is_no_message() {
    let messages = set_messages("warren0", &SetRequest::default(), Removal::Flagged);
    assert!(messages.is_empty());
}
