//! The text of UAPI: what is taken, what is refused, and what is written.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::SocketAddrV6;
use std::time::Duration;

use ipnet::IpNet;
use warren_core::uapi::{
    AllowedIpUpdate, Device, Peer, PeerUpdate, Request, SetRequest, UapiError, answer_errno, errno,
    parse_set_answer,
};
use warren_keyring::{KeyError, PresharedKey, PrivateKey, PublicKey};

/// The example of <https://www.wireguard.com/xplatform/>, its keys and addresses as published.
const PUBLISHED_SET: &str = "\
private_key=e84b5a6d2717c1003a13b431570353dbaca9146cf150c5f8575680feba52027a
fwmark=0
listen_port=12912
replace_peers=true
public_key=b85996fecc9c7f1fc6d2572a76eda11d59bcd20be8e543b15ce4bd85a8e75a33
preshared_key=188515093e952f5f22e865cef3012e72f8b5f0b598ac0309d5dacce3b70fcf52
replace_allowed_ips=true
allowed_ip=192.168.4.4/32
endpoint=[abcd:23::33%2]:51820
public_key=58402e695ba1772b1cc9309755f043251ea77fdcf10fbe63989ceb7e19321376
replace_allowed_ips=true
allowed_ip=192.168.4.6/32
persistent_keepalive_interval=111
endpoint=182.122.22.19:3233
public_key=662e14fd594556f522604703340351258903b64f35553763f19426ab2a515c58
endpoint=5.152.198.39:51820
replace_allowed_ips=true
allowed_ip=192.168.4.10/32
allowed_ip=192.168.4.11/32
public_key=e818b58db5274087fcc1be5dc728cf53d3b5726b4cef6b9bab8f8f8c2452c25c
remove=true

";

const KEY: &str = "b85996fecc9c7f1fc6d2572a76eda11d59bcd20be8e543b15ce4bd85a8e75a33";

fn key() -> PublicKey {
    PublicKey::from_hex(KEY).unwrap()
}

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

/// Parses lines that follow the public key of a peer.
fn peer(lines: &str) -> Result<PeerUpdate, UapiError> {
    let request = SetRequest::parse(&format!("public_key={KEY}\n{lines}\n"))?;
    assert_eq!(request.peers.len(), 1);
    Ok(request.peers.into_iter().next().unwrap())
}

#[test]
fn the_published_example_is_understood() {
    let request = SetRequest::parse(PUBLISHED_SET).unwrap();
    assert!(matches!(&request.private_key, Some(Some(private_key))
        if private_key.to_hex().starts_with("e84b5a6d2717")));
    assert_eq!(
        (request.fwmark, request.listen_port),
        (Some(0), Some(12912))
    );
    assert!(request.replace_peers);
    assert_eq!(request.peers.len(), 4);
    let first = &request.peers[0];
    assert_eq!(first.public_key, key());
    assert!(first.replace_allowed_ips && !first.remove && !first.update_only);
    assert!(
        first
            .preshared_key
            .as_ref()
            .is_some_and(|psk| !psk.is_zero())
    );
    assert_eq!(
        first.allowed_ips,
        [AllowedIpUpdate::Add(net("192.168.4.4/32"))]
    );
    let scoped = SocketAddrV6::new("abcd:23::33".parse().unwrap(), 51820, 0, 2);
    assert_eq!(first.endpoint, Some(scoped.into()));
    assert_eq!(request.peers[1].persistent_keepalive, Some(111));
    assert_eq!(request.peers[2].allowed_ips.len(), 2);
    assert!(request.peers[3].remove);
}

#[test]
fn what_is_not_said_stays_as_it_is() {
    assert_eq!(SetRequest::parse("").unwrap(), SetRequest::default());
    assert_eq!(SetRequest::parse("\n").unwrap(), SetRequest::default());
    assert_eq!(peer("").unwrap(), PeerUpdate::new(key()));
}

#[test]
fn zero_keys_clear() {
    let zero = "0".repeat(64);
    let request = SetRequest::parse(&format!("private_key={zero}\n\n")).unwrap();
    assert_eq!(request.private_key, Some(None));
    assert_eq!(*request.to_text(), format!("set=1\nprivate_key={zero}\n\n"));
    let update = peer(&format!("preshared_key={zero}\n")).unwrap();
    assert_eq!(update.preshared_key, Some(PresharedKey::ZERO));
}

#[test]
fn prefixes_lose_their_host_bits_and_can_be_removed() {
    let update = peer("allowed_ip=10.244.1.9/24\nallowed_ip=-fd00:1::9/64\n").unwrap();
    assert_eq!(
        update.allowed_ips,
        [
            AllowedIpUpdate::Add(net("10.244.1.0/24")),
            AllowedIpUpdate::Remove(net("fd00:1::/64"))
        ]
    );
}

#[test]
fn replacing_allowed_ips_forgets_the_prefixes_said_before() {
    let update =
        peer("allowed_ip=10.0.0.0/8\nreplace_allowed_ips=true\nallowed_ip=10.1.0.0/16\n").unwrap();
    assert!(update.replace_allowed_ips);
    assert_eq!(
        update.allowed_ips,
        [AllowedIpUpdate::Add(net("10.1.0.0/16"))]
    );
}

#[test]
fn a_peer_may_come_several_times_and_the_order_is_kept() {
    let text = format!("public_key={KEY}\nremove=true\npublic_key={KEY}\nprotocol_version=1\n\n");
    let request = SetRequest::parse(&text).unwrap();
    let removed = PeerUpdate {
        remove: true,
        ..PeerUpdate::new(key())
    };
    assert_eq!(request.peers, [removed, PeerUpdate::new(key())]);
}

#[test]
fn values_that_the_reference_takes_are_taken() {
    let request = SetRequest::parse("listen_port=00080\nfwmark=4294967295\n").unwrap();
    assert_eq!(
        (request.listen_port, request.fwmark),
        (Some(80), Some(u32::MAX))
    );
    for prefix in [
        "0.0.0.0/0",
        "::/0",
        "255.255.255.255/32",
        "::1/128",
        "::ffff:10.0.0.0/104",
    ] {
        let update = peer(&format!("allowed_ip={prefix}\n")).unwrap();
        assert_eq!(update.allowed_ips, [AllowedIpUpdate::Add(net(prefix))]);
    }
    for endpoint in ["1.2.3.4:0", "1.2.3.4:65535", "[::1]:1", "[fe80::1%7]:1"] {
        assert!(
            peer(&format!("endpoint={endpoint}\n"))
                .unwrap()
                .endpoint
                .is_some(),
            "{endpoint}"
        );
    }
    let upper = KEY.to_uppercase();
    assert!(SetRequest::parse(&format!("public_key={upper}\n")).is_ok());
}

#[test]
fn device_values_that_the_reference_refuses_are_refused() {
    for line in [
        "listen_port=65536",
        "listen_port=-1",
        "listen_port=+1",
        "listen_port= 1",
        "listen_port=1 ",
        "listen_port=",
        "listen_port=0x10",
        "fwmark=0x10",
        "fwmark=4294967296",
        "fwmark=1_0",
        "replace_peers=false",
        "replace_peers=1",
        "replace_peers=",
        "listen_port=1=2",
        "listen_port=1\r",
    ] {
        let error = SetRequest::parse(&format!("{line}\n\n")).unwrap_err();
        let (key, value) = line.split_once('=').unwrap();
        assert!(matches!(error, UapiError::Value { .. }), "{line}: {error}");
        assert!(
            error.to_string().contains(&format!("{key}={value:?}")),
            "{error}"
        );
        assert_eq!(error.errno(), errno::EINVAL);
    }
}

#[test]
fn peer_values_that_the_reference_refuses_are_refused() {
    for line in [
        "remove=false",
        "update_only=yes",
        "replace_allowed_ips=false",
        "persistent_keepalive_interval=65536",
        "persistent_keepalive_interval=off",
        "path_probes=yes",
        "path_probes=",
        "protocol_version=2",
        "protocol_version=",
        "endpoint=::1:51820",
        "endpoint=[::1]",
        "endpoint=1.2.3.4",
        "endpoint=1.2.3.4:65536",
        "endpoint=node2:51820",
        "endpoint=[fe80::1%eth0]:1",
        "endpoint=",
        "allowed_ip=10.0.0.0",
        "allowed_ip=10.0.0.0/33",
        "allowed_ip=10.0.0.0/08",
        "allowed_ip=10.0.0.0/+8",
        "allowed_ip=10.0.0.0/",
        "allowed_ip=010.0.0.0/8",
        "allowed_ip=10.0.0/8",
        "allowed_ip=::/129",
        "allowed_ip=fe80::1%eth0/64",
        "allowed_ip=10.0.0.0/255.0.0.0",
        "allowed_ip=--10.0.0.0/8",
        "allowed_ip=",
        "allowed_ip=-",
        "allowed_ip=/",
    ] {
        let error = peer(&format!("{line}\n")).unwrap_err();
        assert!(matches!(error, UapiError::Value { .. }), "{line}: {error}");
        assert!(
            error.to_string().contains(line.split_once('=').unwrap().0),
            "{error}"
        );
        assert_eq!(error.errno(), errno::EINVAL);
    }
}

#[test]
fn keys_out_of_place_and_unknown_keys_are_refused() {
    for line in [
        "endpoint=1.2.3.4:5",
        "allowed_ip=10.0.0.0/8",
        "protocol_version=1",
        "errno=0",
    ] {
        let error = SetRequest::parse(&format!("{line}\n\n")).unwrap_err();
        assert_eq!(error.errno(), errno::EINVAL);
        let message = error.to_string();
        assert!(
            message.contains(line.split_once('=').unwrap().0),
            "{message}"
        );
        assert!(message.contains("come after its public_key"), "{message}");
    }
    for line in [
        "listen_port=1",
        "private_key=",
        "replace_peers=true",
        "rx_bytes=1",
        "=",
        "jc=1",
    ] {
        let error = peer(&format!("{line}\n")).unwrap_err();
        assert!(matches!(error, UapiError::UnknownKey { .. }), "{error}");
        assert!(
            error.to_string().contains("before the first public_key"),
            "{error}"
        );
        assert_eq!(error.errno(), errno::EINVAL);
    }
}

#[test]
fn public_keys_of_low_order_are_refused() {
    let one = format!("01{}", "0".repeat(62));
    for public_key in ["0".repeat(64), one] {
        let error = SetRequest::parse(&format!("public_key={public_key}\n\n")).unwrap_err();
        assert_eq!(
            error,
            UapiError::Key {
                key: "public_key",
                source: KeyError::LowOrder
            }
        );
        assert_eq!(error.errno(), errno::EINVAL);
    }
}

#[test]
fn lines_without_a_value_and_text_after_the_end_are_refused() {
    let error = SetRequest::parse("listen_port=1\nfwmark\n\n").unwrap_err();
    assert_eq!(error, UapiError::NotKeyValue { line: 2 });
    assert_eq!(error.errno(), errno::EPROTO);
    for rest in ["listen_port=1\n", "\n", "x", "get=1\n\n"] {
        let error = SetRequest::parse(&format!("listen_port=1\n\n{rest}")).unwrap_err();
        assert_eq!(error, UapiError::Trailing);
    }
}

#[test]
fn no_message_shows_a_secret() {
    let private = PrivateKey::generate().unwrap();
    let (hex, base64) = (private.to_hex(), private.to_base64());
    for text in [
        // A digit too few, a wrong digit, the wrong text form.
        format!("private_key={}\n", &hex[1..]),
        format!("private_key={}g\n", &hex[1..]),
        format!("private_key={}\n", *base64),
        format!("public_key={KEY}\npreshared_key={}\n", &hex[1..]),
        format!("public_key={}\n", &hex[1..]),
        // Lines that are nothing but a secret: base64 ends in `=`, as if it were a key's name.
        format!("{}\n", *hex),
        format!("{}\n", *base64),
        format!("{}=1\n", *hex),
        format!("public_key={KEY}\n{}\n", *base64),
    ] {
        let error = SetRequest::parse(&text).unwrap_err();
        let message = format!("{error} {error:?}");
        for piece in [&hex[8..16], &base64[8..16]] {
            assert!(!message.contains(piece), "{message}");
        }
        let answer = format!("{text}errno=0\n\n");
        if let Err(error) = Device::parse(&answer) {
            assert!(!format!("{error} {error:?}").contains(&hex[8..16]));
        }
    }
    let request = SetRequest {
        private_key: Some(Some(private)),
        ..SetRequest::default()
    };
    assert!(!format!("{request:?}").contains(&hex[8..16]));
}

#[test]
fn messages_stay_short_whatever_was_sent() {
    let error = peer(&format!("endpoint={}\n", "x".repeat(100_000))).unwrap_err();
    assert!(error.to_string().len() < 200, "{error}");
    let error = peer(&format!("{}=1\n", "x".repeat(100_000))).unwrap_err();
    assert!(error.to_string().len() < 200, "{error}");
}

#[test]
fn operations_are_told_apart() {
    assert_eq!(Request::parse("get=1\n\n").unwrap(), Request::Get);
    assert_eq!(
        Request::parse(warren_core::uapi::GET).unwrap(),
        Request::Get
    );
    let set = SetRequest {
        listen_port: Some(1),
        ..SetRequest::default()
    };
    assert_eq!(
        Request::parse("set=1\nlisten_port=1\n\n").unwrap(),
        Request::Set(set)
    );
    for text in [
        "",
        "\n",
        "get=2\n\n",
        "get\n\n",
        "GET=1\n\n",
        " get=1\n\n",
        "set=0\n\n",
    ] {
        let error = Request::parse(text).unwrap_err();
        assert_eq!(
            (&error, error.errno()),
            (&UapiError::Operation, errno::EPROTO),
            "{text:?}"
        );
    }
    assert_eq!(Request::parse("get=1\nx=1\n\n"), Err(UapiError::Trailing));
}

#[test]
fn an_answer_is_written_like_wireguard_go_does() {
    let private_key = PrivateKey::from_hex(&"77".repeat(32)).unwrap();
    let device = Device {
        private_key: Some(private_key.clone()),
        listen_port: 51871,
        fwmark: 255,
        peers: vec![
            Peer {
                endpoint: Some("[2001:db8::2]:51871".parse().unwrap()),
                last_handshake: Some(Duration::new(1_700_000_000, 42)),
                rx_bytes: 7,
                tx_bytes: 8,
                persistent_keepalive: 25,
                allowed_ips: vec![net("10.244.2.0/24"), net("fd00:2::/64")],
                preshared_key: Some(PresharedKey::from_bytes([0xab; 32])),
                ..Peer::new(key())
            },
            Peer::new(private_key.public_key()),
        ],
    };
    let expected = format!(
        "private_key={}\n\
         listen_port=51871\n\
         fwmark=255\n\
         public_key={KEY}\n\
         preshared_key={}\n\
         protocol_version=1\n\
         endpoint=[2001:db8::2]:51871\n\
         last_handshake_time_sec=1700000000\n\
         last_handshake_time_nsec=42\n\
         tx_bytes=8\n\
         rx_bytes=7\n\
         persistent_keepalive_interval=25\n\
         allowed_ip=10.244.2.0/24\n\
         allowed_ip=fd00:2::/64\n\
         public_key={}\n\
         preshared_key={}\n\
         protocol_version=1\n\
         last_handshake_time_sec=0\n\
         last_handshake_time_nsec=0\n\
         tx_bytes=0\n\
         rx_bytes=0\n\
         persistent_keepalive_interval=0\n",
        *private_key.to_hex(),
        "ab".repeat(32),
        private_key.public_key().to_hex(),
        "0".repeat(64),
    );
    assert_eq!(*device.to_text(), expected);
    assert_eq!(*Device::default().to_text(), "");
}

#[test]
fn an_answer_needs_its_errno() {
    let empty = Device::parse(&answer_errno(0)).unwrap();
    assert_eq!(empty, Device::default());
    for text in ["", "\n", "listen_port=1\n", "listen_port=1\n\nerrno=0\n\n"] {
        let error = Device::parse(text).unwrap_err();
        assert_eq!(
            (&error, error.errno()),
            (&UapiError::Incomplete, errno::EPROTO),
            "{text:?}"
        );
    }
    for text in [
        "errno=0\n\nx",
        "errno=0\nlisten_port=1\n\n",
        "errno=0\n\n\n",
    ] {
        assert_eq!(Device::parse(text), Err(UapiError::Trailing), "{text:?}");
    }
}

#[test]
fn a_refusal_has_the_errno_of_either_sign() {
    assert_eq!(answer_errno(errno::EINVAL), "errno=-22\n\n");
    assert_eq!(parse_set_answer("errno=0\n\n"), Ok(()));
    for text in ["errno=-98\n\n", "errno=98\n\n"] {
        let error = parse_set_answer(text).unwrap_err();
        assert_eq!(
            error,
            UapiError::Refused {
                errno: errno::EADDRINUSE
            }
        );
        assert_eq!(error.errno(), errno::EADDRINUSE);
    }
    for text in [
        "errno=x\n\n",
        "errno=\n\n",
        "errno=--1\n\n",
        "errno=99999999999\n\n",
    ] {
        assert!(
            matches!(parse_set_answer(text), Err(UapiError::Value { .. })),
            "{text}"
        );
    }
}

#[test]
fn an_answer_of_a_newer_device_is_understood() {
    let text = format!("jc=4\npublic_key={KEY}\nflavour=mint\nrx_bytes=5\nerrno=0\n\n");
    let device = Device::parse(&text).unwrap();
    assert_eq!(
        device.peers,
        [Peer {
            rx_bytes: 5,
            ..Peer::new(key())
        }]
    );
}

#[test]
fn an_answer_with_impossible_values_is_refused() {
    for line in [
        "last_handshake_time_sec=-1",
        "last_handshake_time_nsec=1000000000",
        "rx_bytes=18446744073709551616",
        "tx_bytes=1.5",
        "endpoint=x",
        "allowed_ip=-10.0.0.0/8",
    ] {
        let error = Device::parse(&format!("public_key={KEY}\n{line}\nerrno=0\n\n")).unwrap_err();
        assert!(matches!(error, UapiError::Value { .. }), "{line}: {error}");
    }
}
