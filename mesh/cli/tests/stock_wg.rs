//! `warren show` beside the stock `wg show`, on the same sockets.
//!
//! `wg` looks in /var/run/wireguard alone, so the test has a mount namespace of its own with an
//! empty /run, which vanishes with the test's thread.
//!
//! ```text
//!                +--> wg show ... ------+
//!  fake device --|                      |--> equal?
//!  (its thread)  +--> warren show ... --+
//! ```
#![allow(clippy::unwrap_used)]

mod common;

use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use common::{Manner, Server, bare_peer, full_device, uapi_answer};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use warren_core::uapi::{Device, Peer};
use warren_keyring::PresharedKey;

const FIELDS: [&str; 12] = [
    "public-key",
    "private-key",
    "listen-port",
    "fwmark",
    "peers",
    "preshared-keys",
    "endpoints",
    "allowed-ips",
    "latest-handshakes",
    "persistent-keepalive",
    "transfer",
    "dump",
];

#[test]
fn output_is_that_of_the_stock_wg() {
    // Threads and programs that are started from here on share this thread's namespace.
    if let Err(reason) = enter_private_run() {
        assert!(
            std::env::var_os("CI").is_none(),
            "nothing may be skipped in CI: {reason}"
        );
        println!("skipped: comparison with the stock wg: {reason}");
        return;
    }
    let devices = [
        Device::default(),
        full_device(),
        device_of_sizes(),
        device_of_times(),
        device_of_addresses(),
    ];
    for device in &devices {
        let _server = serve("warren0", device);
        compare(&["show"]);
        compare(&["show", "all"]);
        compare(&["show", "warren0"]);
        compare(&["show", "interfaces"]);
        for field in FIELDS {
            compare(&["show", "warren0", field]);
            compare(&["show", "all", field]);
        }
    }
    // No interface at all.
    compare(&["show"]);
    compare(&["show", "interfaces"]);
    compare(&["show", "all", "dump"]);

    // `wg` takes several interfaces in the order of the directory, which is not fixed.
    let _a = serve("warren0", &full_device());
    let _b = serve("wg7", &device_of_addresses());
    let (stock, ours) = (
        run("wg", &["show", "all", "dump"], "never"),
        warren(&["show", "all", "dump"], "never"),
    );
    assert_eq!(sorted_lines(&ours), sorted_lines(&stock));
    assert_eq!(
        sorted_lines(&ours).len(),
        2 + 3 + device_of_addresses().peers.len()
    );
}

/// Runs both, plain and coloured, with hidden and shown keys, within one second of the clock.
///
/// `wg show all endpoints` of wireguard-tools 1.0.20210914 begins the first line alone with the
/// interface's name, unlike all its other fields; a `wg` without that flaw passes too.
fn compare(arguments: &[&str]) {
    for colour in ["never", "always"] {
        let (stock, ours) = loop {
            let before = now();
            let outputs = (run("wg", arguments, colour), warren(arguments, colour));
            if now() == before {
                break outputs;
            }
        };
        let ours_text = String::from_utf8_lossy(&ours.stdout);
        let stock_text = String::from_utf8_lossy(&stock.stdout);
        let is_old_form = arguments == ["show", "all", "endpoints"]
            && stock_text == format!("warren0\t{}", ours_text.replace("warren0\t", ""));
        if !is_old_form {
            assert_eq!(ours_text, stock_text, "{arguments:?}, colour {colour}");
        }
        assert!(ours.status.success() && stock.status.success());
    }
}

fn device_of_sizes() -> Device {
    let sizes = (0..=6).flat_map(|power| {
        let unit = 1_u64 << (10 * power);
        [
            unit - 1,
            unit,
            unit + unit / 8,
            unit + unit / 2,
            unit.saturating_mul(1000),
        ]
    });
    let peers = (1_u8..).zip(sizes).map(|(fill, size)| Peer {
        rx_bytes: size,
        tx_bytes: size / 3,
        ..bare_peer(fill * 2)
    });
    Device {
        peers: peers.collect(),
        ..Device::default()
    }
}

fn device_of_times() -> Device {
    let ages = [
        1, 59, 60, 61, 3599, 3600, 3601, 86_399, 86_400, 90_061, 31_536_000, 63_163_661,
    ];
    let mut peers: Vec<Peer> = (1_u8..)
        .zip(ages)
        .map(|(fill, age)| Peer {
            last_handshake: Some(Duration::new(now() - age, u32::from(fill))),
            persistent_keepalive: u16::try_from(age).unwrap_or(u16::MAX),
            ..bare_peer(fill * 2)
        })
        .collect();
    peers.push(Peer {
        last_handshake: Some(Duration::from_secs(now() + 1000)),
        preshared_key: Some(PresharedKey::from_bytes([9; 32])),
        ..bare_peer(0x70)
    });
    // Sorted by nanoseconds, and the same time twice.
    for (fill, nanoseconds) in [(0x71, 1), (0x73, 2), (0x75, 2)] {
        peers.push(Peer {
            last_handshake: Some(Duration::new(now() - 500, nanoseconds)),
            ..bare_peer(fill)
        });
    }
    peers.push(bare_peer(0x77));
    Device {
        fwmark: u32::MAX,
        peers,
        ..Device::default()
    }
}

fn device_of_addresses() -> Device {
    let endpoints = [
        "192.0.2.1:1",
        "[2001:db8::1]:65535",
        "[::ffff:192.0.2.1]:7",
        "[::192.0.2.1]:7",
        "[2001:db8:0:1:0:0:1:0]:7",
        "[2001:0:0:1:0:0:0:1]:7",
        "[::1]:7",
    ];
    let prefixes = [
        "0.0.0.0/0",
        "::/0",
        "::1/128",
        "::1:0/128",
        "::192.0.2.1/128",
        "::ffff:192.0.2.0/120",
        "::ffff:0:0/96",
        "2001:db8:0:1:1:1:1:1/128",
        "2001:db8::/32",
        "fe80::1/128",
        "10.244.0.0/16",
    ];
    let peers = (1_u8..).zip(endpoints).map(|(fill, endpoint)| Peer {
        endpoint: Some(endpoint.parse().unwrap()),
        allowed_ips: prefixes.map(|prefix| prefix.parse().unwrap()).to_vec(),
        ..bare_peer(fill * 2)
    });
    Device {
        listen_port: 1,
        peers: peers.collect(),
        ..full_device()
    }
}

fn enter_private_run() -> Result<(), String> {
    if !nix::unistd::geteuid().is_root() {
        return Err("it needs root".to_owned());
    }
    if Command::new("wg").arg("--version").output().is_err() {
        return Err("wg is not installed (Debian: wireguard-tools)".to_owned());
    }
    let nothing: Option<&str> = None;
    unshare(CloneFlags::CLONE_NEWNS).map_err(|error| format!("unshare mounts: {error}"))?;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(nothing, "/", nothing, private, nothing)
        .map_err(|error| format!("make mounts private: {error}"))?;
    mount(
        Some("tmpfs"),
        "/run",
        Some("tmpfs"),
        MsFlags::empty(),
        nothing,
    )
    .map_err(|error| format!("mount a tmpfs on /run: {error}"))?;
    std::fs::create_dir("/run/wireguard").map_err(|error| error.to_string())?;
    // /var/run is a link to /run on Debian; elsewhere the test would touch the real directory.
    if std::fs::canonicalize("/var/run/wireguard").ok().as_deref()
        != Some(Path::new("/run/wireguard"))
    {
        return Err("/var/run is no link to /run".to_owned());
    }
    Ok(())
}

fn serve(name: &str, device: &Device) -> Server {
    let path = format!("/run/wireguard/{name}.sock");
    Server::start(Path::new(&path), Manner::Answer, uapi_answer(device))
}

fn warren(arguments: &[&str], colour: &str) -> Output {
    run(env!("CARGO_BIN_EXE_warren"), arguments, colour)
}

fn run(program: &str, arguments: &[&str], colour: &str) -> Output {
    // Coloured runs show the keys too, so that both settings are compared.
    let hide_keys = if colour == "always" {
        "never"
    } else {
        "always"
    };
    Command::new(program)
        .args(arguments)
        .env("WG_COLOR_MODE", colour)
        .env("WG_HIDE_KEYS", hide_keys)
        .env_remove("WARREN_UAPI_DIR")
        .env_remove("WARREN_RUN_DIR")
        .output()
        .unwrap()
}

fn sorted_lines(output: &Output) -> Vec<String> {
    let text = String::from_utf8_lossy(&output.stdout);
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs()
}
