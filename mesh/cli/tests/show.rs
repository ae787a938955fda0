//! `warren show`, by its texts.
#![allow(clippy::unwrap_used)]

mod common;

use std::os::unix::net::UnixListener;

use common::{NOW, PLAIN, Sockets, bare_peer, full_device, good_status, public_key};
use warren_cli::Environment;
use warren_cli::args::Field;
use warren_cli::show::{NodeNames, ShownDevice, fields, human, json};
use warren_cli::text::{self, Style};
use warren_core::uapi::Device;

const COLOURED: Environment = Environment {
    style: Style::COLOURED,
    ..PLAIN
};

#[test]
fn empty_device_is_its_name_alone() {
    let text = human("wg0", &ShownDevice::default(), &NodeNames::new(), &PLAIN);
    assert_eq!(text, "interface: wg0\n");
}

#[test]
fn peers_stand_newest_handshake_first_and_zero_fields_are_left_out() {
    let names = NodeNames::from([(public_key(0x22), "node2".to_owned())]);
    assert_eq!(
        human("warren0", &full_device().into(), &names, &PLAIN),
        "interface: warren0
  public key: OKtmS9hvd9fma92a4HkpE6lP2LM6EmACfktGwfSITGc=
  private key: (hidden)
  listening port: 51871
  fwmark: 0xca6c

peer: MzMzMzMzMzMzMzMzMzMzMzMzMzMzMzMzMzMzMzMzMzM=
  preshared key: (hidden)
  allowed ips: (none)
  latest handshake: 1 minute, 5 seconds ago
  transfer: 5.00 GiB received, 0 B sent
  persistent keepalive: every 25 seconds

peer: IiIiIiIiIiIiIiIiIiIiIiIiIiIiIiIiIiIiIiIiIiI=  (node2)
  endpoint: [2001:db8::2]:51871
  allowed ips: 10.244.2.0/24, fd00:2::/64, 2001:db8::2/128
  latest handshake: 1 hour, 1 minute, 5 seconds ago
  transfer: 1023 B received, 1.00 KiB sent

peer: ERERERERERERERERERERERERERERERERERERERERERE=
  endpoint: 192.0.2.1:51871
  allowed ips: 10.244.1.0/24
"
    );
}

#[test]
fn peers_of_one_time_keep_the_devices_order() {
    let device = Device {
        peers: vec![bare_peer(0x22), bare_peer(0x11)],
        ..Device::default()
    };
    let text = human("wg0", &device.into(), &NodeNames::new(), &PLAIN);
    assert!(text.find("IiIi").unwrap() < text.find("ERER").unwrap());
}

#[test]
fn secret_keys_are_shown_to_who_asks_for_it() {
    let shown = Environment {
        hide_keys: false,
        ..PLAIN
    };
    let text = human("wg0", &full_device().into(), &NodeNames::new(), &shown);
    assert!(text.contains("  private key: UFVVVVVVVVVVVVVVVVVVVVVVVVVVVVVVVVVVVVVVVVU=\n"));
    assert!(text.contains("  preshared key: REREREREREREREREREREREREREREREREREREREREREQ=\n"));
}

#[test]
fn colours_are_those_of_wg() {
    let mut peer = bare_peer(0x11);
    peer.allowed_ips = vec!["10.0.0.0/8".parse().unwrap()];
    let device = Device {
        listen_port: 1,
        peers: vec![peer],
        ..Device::default()
    };
    assert_eq!(
        human("wg0", &device.into(), &NodeNames::new(), &COLOURED),
        "\x1b[0m\x1b[32m\x1b[1minterface\x1b[0m: \x1b[32mwg0\x1b[0m\n  \
         \x1b[1mlistening port\x1b[0m: 1\n\n\
         \x1b[33m\x1b[1mpeer\x1b[0m: \x1b[33mERERERERERERERERERERERERERERERERERERERERERE=\x1b[0m\n  \
         \x1b[1mallowed ips\x1b[0m: 10.0.0.0\x1b[36m/\x1b[0m8\n"
    );
}

#[test]
fn every_field_has_the_form_for_scripts() {
    let device = ShownDevice::from(full_device());
    let (a, b, c) = (
        "ERERERERERERERERERERERERERERERERERERERERERE=",
        "IiIiIiIiIiIiIiIiIiIiIiIiIiIiIiIiIiIiIiIiIiI=",
        "MzMzMzMzMzMzMzMzMzMzMzMzMzMzMzMzMzMzMzMzMzM=",
    );
    let private = "UFVVVVVVVVVVVVVVVVVVVVVVVVVVVVVVVVVVVVVVVVU=";
    let public = "OKtmS9hvd9fma92a4HkpE6lP2LM6EmACfktGwfSITGc=";
    let psk = "REREREREREREREREREREREREREREREREREREREREREQ=";
    let (old, new) = (NOW - 3665, NOW - 65);
    let expected = [
        (Field::PublicKey, format!("{public}\n")),
        (Field::PrivateKey, format!("{private}\n")),
        (Field::ListenPort, "51871\n".to_owned()),
        (Field::Fwmark, "0xca6c\n".to_owned()),
        (Field::Peers, format!("{a}\n{b}\n{c}\n")),
        (
            Field::PresharedKeys,
            format!("{a}\t(none)\n{b}\t(none)\n{c}\t{psk}\n"),
        ),
        (
            Field::Endpoints,
            format!("{a}\t192.0.2.1:51871\n{b}\t[2001:db8::2]:51871\n{c}\t(none)\n"),
        ),
        (
            Field::AllowedIps,
            format!(
                "{a}\t10.244.1.0/24\n{b}\t10.244.2.0/24 fd00:2::/64 2001:db8::2/128\n{c}\t(none)\n"
            ),
        ),
        (
            Field::LatestHandshakes,
            format!("{a}\t0\n{b}\t{old}\n{c}\t{new}\n"),
        ),
        (
            Field::PersistentKeepalive,
            format!("{a}\toff\n{b}\toff\n{c}\t25\n"),
        ),
        (
            Field::Transfer,
            format!("{a}\t0\t0\n{b}\t1023\t1024\n{c}\t5368709120\t0\n"),
        ),
        (
            Field::Dump,
            format!(
                "{private}\t{public}\t51871\t0xca6c\n\
                 {a}\t(none)\t192.0.2.1:51871\t10.244.1.0/24\t0\t0\t0\toff\n\
                 {b}\t(none)\t[2001:db8::2]:51871\t10.244.2.0/24,fd00:2::/64,2001:db8::2/128\t{old}\t1023\t1024\toff\n\
                 {c}\t{psk}\t(none)\t(none)\t{new}\t5368709120\t0\t25\n"
            ),
        ),
    ];
    for (field, text) in expected {
        assert_eq!(fields("wg0", &device, field, false), text, "{field:?}");
        let with_interface: String = text.lines().map(|line| format!("wg0\t{line}\n")).collect();
        assert_eq!(
            fields("wg0", &device, field, true),
            with_interface,
            "{field:?}"
        );
    }
}

#[test]
fn empty_device_has_none_and_off_in_the_forms_for_scripts() {
    let device = ShownDevice::default();
    let expected = [
        (Field::Dump, "(none)\t(none)\t0\toff\n"),
        (Field::PublicKey, "(none)\n"),
        (Field::PrivateKey, "(none)\n"),
        (Field::ListenPort, "0\n"),
        (Field::Fwmark, "off\n"),
        (Field::Peers, ""),
        (Field::Transfer, ""),
    ];
    for (field, text) in expected {
        assert_eq!(fields("wg0", &device, field, false), text, "{field:?}");
    }
}

/// The kernel's device: its private key is not told, its public key is.
#[test]
fn a_key_that_is_not_told_is_hidden_in_every_form_and_its_public_half_is_shown() {
    let device = ShownDevice {
        device: Device {
            listen_port: 51871,
            ..Device::default()
        },
        hidden_key: Some(public_key(0x22)),
    };
    let public = "IiIiIiIiIiIiIiIiIiIiIiIiIiIiIiIiIiIiIiIiIiI=";
    let shown = Environment {
        hide_keys: false,
        ..PLAIN
    };
    for environment in [PLAIN, shown] {
        let text = human("warren0", &device, &NodeNames::new(), &environment);
        assert_eq!(
            text,
            format!(
                "interface: warren0\n  public key: {public}\n  private key: (hidden)\n  listening port: 51871\n"
            )
        );
        let named = [("warren0".to_owned(), device.clone())];
        let text = json(&named, &NodeNames::new(), &environment);
        assert!(
            text.contains(&format!("\"publicKey\": \"{public}\"")),
            "{text}"
        );
        assert!(text.contains("\"privateKey\": \"(hidden)\""), "{text}");
    }
    let expected = [
        (Field::Dump, format!("(hidden)\t{public}\t51871\toff\n")),
        (Field::PublicKey, format!("{public}\n")),
        (Field::PrivateKey, "(hidden)\n".to_owned()),
    ];
    for (field, text) in expected {
        assert_eq!(fields("warren0", &device, field, false), text, "{field:?}");
    }
}

#[test]
fn sizes_change_their_unit_at_each_power_of_1024() {
    let sizes = [
        (0, "0 B"),
        (1, "1 B"),
        (1023, "1023 B"),
        (1024, "1.00 KiB"),
        (1024 + 128, "1.12 KiB"),
        (1536, "1.50 KiB"),
        ((1 << 20) - 1, "1024.00 KiB"),
        (1 << 20, "1.00 MiB"),
        ((1 << 30) - 1, "1024.00 MiB"),
        (1 << 30, "1.00 GiB"),
        ((1 << 40) - 1, "1024.00 GiB"),
        (1 << 40, "1.00 TiB"),
        (1 << 50, "1024.00 TiB"),
        (u64::MAX, "16777216.00 TiB"),
    ];
    for (count, text) in sizes {
        assert_eq!(text::bytes(count, Style::PLAIN), text);
    }
}

#[test]
fn times_leave_out_units_that_are_zero() {
    const DAY: u64 = 86400;
    let times = [
        (0, "Now"),
        (1, "1 second ago"),
        (59, "59 seconds ago"),
        (60, "1 minute ago"),
        (61, "1 minute, 1 second ago"),
        (3600, "1 hour ago"),
        (3601, "1 hour, 1 second ago"),
        (2 * 3600 + 120, "2 hours, 2 minutes ago"),
        (DAY, "1 day ago"),
        (
            365 * DAY - 1,
            "364 days, 23 hours, 59 minutes, 59 seconds ago",
        ),
        (365 * DAY, "1 year ago"),
        (
            2 * 365 * DAY + DAY + 3661,
            "2 years, 1 day, 1 hour, 1 minute, 1 second ago",
        ),
    ];
    for (age, text) in times {
        assert_eq!(text::ago(NOW - age, NOW, Style::PLAIN), text);
    }
    assert_eq!(
        text::ago(NOW + 1, NOW, Style::PLAIN),
        "(System clock wound backward; connection problems may ensue.)"
    );
}

#[test]
fn all_interfaces_stand_by_name_with_the_agents_names() {
    let sockets = Sockets::new();
    let _b = sockets.device("wg1", &Device::default());
    let _a = sockets.device("warren0", &full_device());
    let agent = sockets.agent(serde_json::to_vec(&good_status()).unwrap());

    let shown = sockets.warren(&["show"]);
    assert_eq!((shown.code, shown.stderr.as_str()), (0, ""));
    assert!(shown.stdout.starts_with("interface: warren0\n"));
    assert!(shown.stdout.ends_with("\n\ninterface: wg1\n"));
    assert!(
        shown
            .stdout
            .contains("peer: IiIiIiIiIiIiIiIiIiIiIiIiIiIiIiIiIiIiIiIiIiI=  (node2)\n")
    );
    assert!(shown == sockets.warren(&["show", "all"]));

    drop(agent);
    let nameless = sockets.warren(&["show"]);
    assert_eq!(
        nameless.stdout,
        shown
            .stdout
            .replace("  (node2)", "")
            .replace("  (node3)", "")
    );

    assert_eq!(
        sockets.warren(&["show", "interfaces"]).stdout,
        "warren0 wg1\n"
    );
    assert_eq!(
        sockets.warren(&["show", "all", "listen-port"]).stdout,
        "warren0\t51871\nwg1\t0\n"
    );
    assert_eq!(
        sockets.warren(&["show", "warren0", "listen-port"]).stdout,
        "51871\n"
    );
}

#[test]
fn hostile_names_cannot_steer_the_terminal() {
    let names = NodeNames::from([(public_key(0x22), "no\x1b[2Jde\u{202e}\u{9b}".to_owned())]);
    let text = human("wg0", &full_device().into(), &names, &PLAIN);
    assert!(
        text.contains("  (no\\u{1b}[2Jde\\u{202e}\\u{9b})\n"),
        "{text}"
    );
}

#[test]
fn json_hides_secret_keys_and_names_nodes() {
    let sockets = Sockets::new();
    let _device = sockets.device("warren0", &full_device());
    let _agent = sockets.agent(serde_json::to_vec(&good_status()).unwrap());
    let shown = sockets.warren(&["show", "warren0", "--json"]);
    assert_eq!((shown.code, shown.stderr.as_str()), (0, ""));
    assert_eq!(
        shown.stdout,
        r#"{
  "warren0": {
    "privateKey": "(hidden)",
    "publicKey": "OKtmS9hvd9fma92a4HkpE6lP2LM6EmACfktGwfSITGc=",
    "listenPort": 51871,
    "fwmark": 51820,
    "peers": {
      "ERERERERERERERERERERERERERERERERERERERERERE=": {
        "endpoint": "192.0.2.1:51871",
        "allowedIps": [
          "10.244.1.0/24"
        ]
      },
      "IiIiIiIiIiIiIiIiIiIiIiIiIiIiIiIiIiIiIiIiIiI=": {
        "node": "node2",
        "endpoint": "[2001:db8::2]:51871",
        "latestHandshake": 1799996335,
        "transferRx": 1023,
        "transferTx": 1024,
        "allowedIps": [
          "10.244.2.0/24",
          "fd00:2::/64",
          "2001:db8::2/128"
        ]
      },
      "MzMzMzMzMzMzMzMzMzMzMzMzMzMzMzMzMzMzMzMzMzM=": {
        "node": "node3",
        "presharedKey": "(hidden)",
        "latestHandshake": 1799999935,
        "transferRx": 5368709120,
        "persistentKeepalive": 25,
        "allowedIps": []
      }
    }
  }
}
"#
    );
    assert_eq!(
        sockets.warren(&["show", "--json", "interfaces"]).stdout,
        "[\"warren0\"]\n"
    );
}

#[test]
fn failures_name_the_socket_and_the_cause() {
    let sockets = Sockets::new();
    let empty = sockets.warren(&["show"]);
    assert_eq!((empty.code, empty.stdout.as_str()), (0, ""));
    assert!(
        empty.stderr.contains("is warren-tunnel running?"),
        "{}",
        empty.stderr
    );
    assert_eq!(sockets.warren(&["show", "interfaces"]).stdout, "");
    assert_eq!(sockets.warren(&["show", "--json"]).stdout, "{}\n");

    let absent = sockets.warren(&["show", "wg9"]);
    assert_eq!((absent.code, absent.stdout.as_str()), (1, ""));
    assert!(
        absent.stderr.contains("wireguard/wg9.sock"),
        "{}",
        absent.stderr
    );
    assert!(absent.stderr.contains("No such file"), "{}", absent.stderr);

    let traversal = sockets.warren(&["show", "../warren/agent"]);
    assert_eq!(traversal.code, 1);
    assert!(
        traversal.stderr.contains("no such name is possible"),
        "{}",
        traversal.stderr
    );

    assert_eq!(sockets.warren(&["show", "interfaces", "dump"]).code, 2);
}

#[test]
fn dead_sockets_and_plain_files_are_no_interfaces_and_are_left_alone() {
    let sockets = Sockets::new();
    let dead = sockets.path("wireguard/dead.sock");
    drop(UnixListener::bind(&dead).unwrap());
    std::fs::write(sockets.path("wireguard/file.sock"), "").unwrap();
    let _alive = sockets.device("wg0", &Device::default());
    assert_eq!(sockets.warren(&["show", "interfaces"]).stdout, "wg0\n");
    assert!(dead.exists());
}

#[test]
fn one_broken_interface_does_not_hide_the_others() {
    let sockets = Sockets::new();
    let path = sockets.path("wireguard/broken.sock");
    let _broken = common::Server::start(&path, common::Manner::Answer, "errno=-5\n\n");
    let _whole = sockets.device("wg0", &Device::default());
    let shown = sockets.warren(&["show"]);
    assert_eq!((shown.code, shown.stdout.as_str()), (0, "interface: wg0\n"));
    assert!(
        shown.stderr.contains("read interface broken: "),
        "{}",
        shown.stderr
    );
    assert!(shown.stderr.contains("errno=-5"), "{}", shown.stderr);
}
