//! The same configurations given to this program and to wireguard-go, and all that `wg` and raw
//! UAPI say of either compared field by field.

#![allow(clippy::unwrap_used)] // helpers of tests

mod uapi_device;

use std::process::Command;

use uapi_device::{PATIENCE, TUNNEL, private_key, public_key};
use warren_lab::{Host, Lab, Proc, Result, poll_until, require};

/// One of the two implementations, on a host of its own.
struct Side {
    name: &'static str,
    host: Host,
    _process: Proc,
}

#[test]
fn every_configuration_looks_as_in_the_reference() -> Result<()> {
    require!();
    let Some(reference) = reference() else {
        return Ok(());
    };
    let lab = Lab::new("wgreference")?;
    let ours = Side::start(&lab, "ours", TUNNEL)?;
    let theirs = Side::start(&lab, "theirs", &reference)?;
    let steps = steps();
    for (number, step) in steps.iter().enumerate() {
        let (our_answer, their_answer) = (ours.take(step)?, theirs.take(step)?);
        assert_eq!(
            our_answer, their_answer,
            "answer to step {number}, {step:?}"
        );
        let after = format!("after step {number}, {step:?}");
        assert_eq!(ours.state()?, theirs.state()?, "{after}");
        assert_eq!(ours.dump()?, theirs.dump()?, "{after}");
        assert_eq!(ours.showconf()?, theirs.showconf()?, "{after}");
    }
    println!("{} configurations look alike", steps.len());

    let fields = [
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
    ];
    for interface in ["wg0", "all"] {
        for field in fields {
            let show = |side: &Side| side.sorted(&format!("wg show {interface} {field}"));
            let (our_lines, their_lines) = (show(&ours)?, show(&theirs)?);
            assert_eq!(our_lines, their_lines, "wg show {interface} {field}");
            assert!(!our_lines.is_empty(), "wg show {interface} {field}");
        }
    }
    for command in ["wg", "wg show", "wg show interfaces", "wg show wg0"] {
        assert_eq!(ours.sorted(command)?, theirs.sorted(command)?, "{command}");
    }
    Ok(())
}

#[test]
fn a_wrong_request_gets_the_number_of_the_reference() -> Result<()> {
    require!();
    let Some(reference) = reference() else {
        return Ok(());
    };
    let lab = Lab::new("wgerrors")?;
    let ours = Side::start(&lab, "ours", TUNNEL)?;
    let theirs = Side::start(&lab, "theirs", &reference)?;
    let peer = format!("public_key={}\n", public_key(1));
    let device = [
        "listen_port=65536",
        "listen_port=-1",
        "listen_port=+1",
        "listen_port=1_0",
        "listen_port=",
        "listen_port= 1",
        "listen_port=000051820",
        "fwmark=4294967296",
        "fwmark=0x1",
        "fwmark=off",
        "replace_peers=1",
        "replace_peers=TRUE",
        "replace_peers=",
        "private_key=0",
        "private_key=",
        "unknown=1",
        "=1",
        "=",
        "words",
        "allowed_ip=10.0.0.0/8",
        "endpoint=1.2.3.4:5",
        "public_key=",
        "public_key=00",
        "protocol_version=1",
        "errno=0",
        "get=1",
        "fwmark=5\r",
        "fwmark=5=5",
        " fwmark=5",
    ];
    let of_peer = [
        "allowed_ip=10.0.0.0",
        "allowed_ip=10.0.0.0/",
        "allowed_ip=10.0.0.0/33",
        "allowed_ip=10.0.0.0/08",
        "allowed_ip=10.0.0/8",
        "allowed_ip=010.0.0.0/8",
        "allowed_ip=::/129",
        "allowed_ip=::1::/64",
        "allowed_ip=fe80::1%eth0/64",
        "allowed_ip=/8",
        "allowed_ip=--1.0.0.0/8",
        "allowed_ip=-",
        "allowed_ip=",
        "allowed_ip=1.2.3.4/+8",
        "allowed_ip=-1.2.3.4",
        "allowed_ip=1:2:3:4:5:6:7:8:9/8",
        "allowed_ip=::ffff:1.2.3.4/128",
        "endpoint=1.2.3.4",
        "endpoint=1.2.3.4:",
        "endpoint=1.2.3.4:65536",
        "endpoint=::1:5",
        "endpoint=[::1]",
        "endpoint=[1.2.3.4]:5",
        "endpoint=host:5",
        "endpoint=",
        "endpoint=:5",
        "endpoint=1.2.3.4:+5",
        "endpoint=1.2.3.4:00005",
        "endpoint=[fe80::1%1]:5",
        "endpoint=[fe80::1%lo]:5",
        "preshared_key=",
        "preshared_key=00",
        "persistent_keepalive_interval=65536",
        "persistent_keepalive_interval=off",
        "persistent_keepalive_interval=-1",
        "protocol_version=",
        "protocol_version=2",
        "protocol_version=01",
        "remove=false",
        "remove=",
        "update_only=1",
        "replace_allowed_ips=yes",
        "listen_port=1",
        "private_key=00",
        "fwmark=1",
        "replace_peers=true",
        "unknown=1",
        "words",
        "last_handshake_time_sec=1",
    ];
    let mut requests: Vec<String> = device
        .iter()
        .map(|line| format!("set=1\n{line}\n\n"))
        .collect();
    requests.extend(
        of_peer
            .iter()
            .map(|line| format!("set=1\n{peer}{line}\n\n")),
    );
    requests.push(format!("set=1\nfwmark={}\n\n", "1".repeat(70_000)));
    requests.push("get=1\nx\n\n".into());
    requests.push(String::new());
    for request in &requests {
        let shown = request.chars().take(100).collect::<String>();
        let (our_answer, their_answer) = (ours.raw(request)?, theirs.raw(request)?);
        assert_eq!(our_answer, their_answer, "{shown:?}");
    }
    println!("{} requests have the reference's numbers", requests.len());

    // A taken port: the number is the same. The reference then has no port, ours has its old one.
    for side in [&ours, &theirs] {
        assert_eq!(side.raw("set=1\nlisten_port=51999\n\n")?, "errno=0\n\n");
        let taken = side
            .host
            .in_netns(|| std::net::UdpSocket::bind("0.0.0.0:52000"))?;
        assert_eq!(
            side.raw("set=1\nlisten_port=52000\n\n")?,
            "errno=-98\n\n",
            "{}",
            side.name
        );
        drop(taken);
    }
    assert!(ours.raw("get=1\n\n")?.contains("listen_port=51999\n"));
    Ok(())
}

#[derive(Debug)]
enum Step {
    /// A script, with the files of `prepare`.
    Shell(&'static str),
    /// A request, as text.
    Raw(String),
}

/// Forty configurations, each on top of the ones before.
fn steps() -> Vec<Step> {
    use Step::{Raw, Shell};
    let set = |lines: String| Raw(format!("set=1\n{lines}\n\n"));
    let peer = |n: u32, lines: &str| set(format!("public_key={}\n{lines}", public_key(n)));
    let key = |n: u32| format!("private_key={}", *private_key(n).to_hex());
    vec![
        set("listen_port=51820".into()),
        Shell("wg set wg0 private-key /run/key9"),
        Shell("wg set wg0 listen-port 51821 fwmark 0x51"),
        Shell("wg set wg0 fwmark 0"),
        Shell("wg set wg0 fwmark off listen-port 51822"),
        Shell("wg set wg0 peer $(cat /run/pub1)"),
        Shell("wg set wg0 peer $(cat /run/pub1) allowed-ips 10.1.0.0/24,fd01::/64"),
        Shell("wg set wg0 peer $(cat /run/pub1) endpoint 192.0.2.1:51820"),
        Shell("wg set wg0 peer $(cat /run/pub1) endpoint [2001:db8::1]:51820"),
        Shell("wg set wg0 peer $(cat /run/pub1) preshared-key /run/psk"),
        Shell("wg set wg0 peer $(cat /run/pub1) preshared-key /dev/null"),
        Shell("wg set wg0 peer $(cat /run/pub1) persistent-keepalive 25"),
        Shell("wg set wg0 peer $(cat /run/pub1) persistent-keepalive off"),
        Shell("wg set wg0 peer $(cat /run/pub1) persistent-keepalive 65535"),
        Shell("wg set wg0 peer $(cat /run/pub2) allowed-ips 10.1.0.0/24 peer $(cat /run/pub3)"),
        Shell("wg set wg0 peer $(cat /run/pub3) allowed-ips 0.0.0.0/0,::/0"),
        Shell("wg set wg0 peer $(cat /run/pub3) allowed-ips ''"),
        Shell("wg set wg0 peer $(cat /run/pub3) allowed-ips 10.3.3.3,fd03::3"),
        Shell("wg set wg0 peer $(cat /run/pub9) allowed-ips 10.9.0.0/24"),
        Shell("wg set wg0 peer $(cat /run/pub4) remove"),
        Shell("wg set wg0 peer $(cat /run/pub2) remove"),
        Shell("wg addconf wg0 /run/add.conf"),
        Shell("wg syncconf wg0 /run/sync.conf"),
        Shell("wg syncconf wg0 /run/sync.conf"),
        Shell("wg setconf wg0 /run/set.conf"),
        Shell("wg showconf wg0 > /run/shown.conf && wg setconf wg0 /run/shown.conf"),
        Shell("wg set wg0 peer nonsense"),
        Shell("wg set wg0 listen-port 99999"),
        peer(5, "update_only=true\nallowed_ip=10.5.0.0/16"),
        peer(
            5,
            "allowed_ip=10.5.1.2/16\nallowed_ip=fd05::1/32\nallowed_ip=10.5.0.0/16",
        ),
        peer(5, "allowed_ip=-10.5.0.0/16"),
        peer(5, "allowed_ip=-fd05:1::/32\nallowed_ip=-10.77.0.0/16"),
        peer(5, "allowed_ip=-fd05::/32\nallowed_ip=::ffff:10.0.0.0/104"),
        peer(
            6,
            "allowed_ip=10.6.0.0/16\nreplace_allowed_ips=true\nallowed_ip=10.66.0.0/16",
        ),
        peer(
            6,
            "endpoint=192.0.2.6:00006\nprotocol_version=1\nupdate_only=true",
        ),
        peer(
            7,
            "allowed_ip=10.66.0.0/16\npersistent_keepalive_interval=0007",
        ),
        peer(
            7,
            &format!("remove=true\npublic_key={}\nremove=true", public_key(6)),
        ),
        set(key(8)),
        set(key(5)),
        set("private_key=".to_owned() + &"0".repeat(64)),
        set(format!("{}\nfwmark=4294967295\nlisten_port=51823", key(9))),
        set("replace_peers=true".into()),
        set(format!(
            "replace_peers=true\npublic_key={}\nallowed_ip=10.1.0.0/16\nendpoint=[::1]:1\n\
             preshared_key={}\npublic_key={}\nallowed_ip=10.1.1.0/24",
            public_key(1),
            "AB".repeat(32),
            public_key(2),
        )),
        set("fwmark=81\r".into()),
    ]
}

impl Side {
    fn start(lab: &Lab, name: &'static str, program: &str) -> Result<Self> {
        let host = lab.host(name)?;
        let process = host.spawn(
            Command::new(program)
                .args(["-f", "wg0"])
                .env("WG_PROCESS_FOREGROUND", "1"),
        )?;
        poll_until(PATIENCE, "a socket", || {
            host.try_run(&["wg", "show", "wg0"])
                .is_ok_and(|shown| shown.success())
        })?;
        let side = Self {
            name,
            host,
            _process: process,
        };
        side.prepare()?;
        Ok(side)
    }

    /// Brings the interface up, for the reference has no port before, and writes the steps' files.
    fn prepare(&self) -> Result<()> {
        let mut script = "ip link set wg0 up\n".to_owned();
        for n in 1..10 {
            let (private, public) = (private_key(n), private_key(n).public_key());
            let (private, public) = (private.to_base64(), public.to_base64());
            script += &format!(
                "echo {} > /run/key{n}; echo {public} > /run/pub{n}\n",
                *private
            );
        }
        script += "cat /run/key3 > /run/psk
            interface() { echo '[Interface]'; echo \"PrivateKey = $(cat /run/key$1)\"; }
            peer() { echo '[Peer]'; echo \"PublicKey = $(cat /run/pub$1)\"; }
            { peer 4; echo 'AllowedIPs = 10.4.0.0/24, 10.44.0.0/24'; peer 2; } > /run/add.conf
            { interface 9; echo 'ListenPort = 51822'; peer 1; echo 'AllowedIPs = 10.1.0.0/25';
              peer 4; echo 'Endpoint = 192.0.2.4:4'; echo \"PresharedKey = $(cat /run/psk)\";
            } > /run/sync.conf
            { interface 8; echo 'FwMark = 0x99'; echo 'ListenPort = 51824'; peer 1; echo 'PersistentKeepalive = 9';
              peer 2; echo 'AllowedIPs = 10.2.0.0/16, fd02::/48'; } > /run/set.conf";
        self.host.sh(&script).map(drop)
    }

    fn take(&self, step: &Step) -> Result<String> {
        match step {
            Step::Raw(request) => self.raw(request),
            Step::Shell(script) => {
                let output = self.host.try_run(&["sh", "-ec", script])?;
                Ok(format!(
                    "{}{}{}",
                    output.success(),
                    output.stdout,
                    output.stderr
                ))
            }
        }
    }

    fn raw(&self, request: &str) -> Result<String> {
        let mut socat = Command::new("socat");
        socat.args(["-t5", "-", "UNIX-CONNECT:/var/run/wireguard/wg0.sock"]);
        let output = self
            .host
            .output_with_input(&mut socat, request.as_bytes(), PATIENCE)?;
        Ok(output.stdout)
    }

    /// The answer to `get`: the device, then each peer's lines, in an order of their own.
    fn state(&self) -> Result<Vec<Vec<String>>> {
        let text = self.raw("get=1\n\n")?;
        let mut blocks = vec![Vec::new()];
        for line in text.lines().filter(|line| !line.is_empty()) {
            if line.starts_with("public_key=") {
                blocks.push(Vec::new());
            }
            // Handshakes are tried by both, each at its own time.
            let line = if line.starts_with("tx_bytes=") {
                "tx_bytes="
            } else {
                line
            };
            if line.starts_with("errno=") {
                blocks[0].push(line.to_owned());
            } else {
                blocks.last_mut().unwrap().push(line.to_owned());
            }
        }
        // The order of peers and that of prefixes is not fixed by the protocol.
        for block in &mut blocks[1..] {
            let first = block
                .iter()
                .position(|line| line.starts_with("allowed_ip="));
            let first = first.unwrap_or(block.len());
            block[first..].sort();
        }
        blocks[1..].sort();
        Ok(blocks)
    }

    /// `wg show all dump`, without the bytes sent.
    fn dump(&self) -> Result<Vec<Vec<String>>> {
        let text = self.host.run(&["wg", "show", "all", "dump"])?.stdout;
        let mut lines: Vec<Vec<String>> = text
            .lines()
            .map(|line| {
                let mut fields: Vec<String> = line.split('\t').map(sorted_list).collect();
                if let Some(sent) = fields.get_mut(7) {
                    sent.clear();
                }
                fields
            })
            .collect();
        lines.sort();
        Ok(lines)
    }

    fn showconf(&self) -> Result<Vec<String>> {
        let text = self.host.run(&["wg", "showconf", "wg0"])?.stdout;
        let mut sections: Vec<String> = text
            .split("\n\n")
            .map(|section| {
                section
                    .trim()
                    .lines()
                    .map(sorted_list)
                    .collect::<Vec<_>>()
                    .join("\n")
            })
            .collect();
        sections.sort();
        Ok(sections)
    }

    /// The lines of a command's output, in an order of their own.
    fn sorted(&self, command: &str) -> Result<Vec<String>> {
        // `wg show all endpoints` names the interface before its first peer alone, and which peer
        // comes first is chance in the reference.
        let text = self.host.sh(command)?.stdout.replace("wg0\t", "");
        let sent = |line: &&str| !line.contains("transfer:");
        let mut lines: Vec<String> = text.lines().filter(sent).map(sorted_list).collect();
        lines.sort();
        Ok(lines)
    }
}

/// A line with the items of a list of prefixes in an order of their own.
fn sorted_list(line: &str) -> String {
    let mut items: Vec<&str> = line.split([' ', '\t', ',']).collect();
    items.sort_unstable();
    items.join(" ")
}

/// The reference's program, if it can be had.
fn reference() -> Option<String> {
    let script = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../tests/interop/wireguard-go"
    );
    let built = Command::new(script).output().unwrap();
    if built.status.success() {
        return Some(String::from_utf8(built.stdout).unwrap().trim().to_owned());
    }
    let why = String::from_utf8_lossy(&built.stderr).into_owned();
    println!("skipped: wireguard-go cannot be had: {}", why.trim());
    assert!(std::env::var_os("CI").is_none(), "CI must not skip: {why}");
    None
}
