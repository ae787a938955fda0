//! The UAPI socket of the running program, and clients of every kind.

#![allow(clippy::unwrap_used)] // helpers of tests

mod uapi_device;

use std::cell::Cell;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::Instant;

use proptest::prelude::*;
use proptest::test_runner::{TestCaseError, TestRunner};
use uapi_device::{PATIENCE, private_key, public_key, read_all, request, start};
use warren_lab::{Lab, Result, require};

#[test]
fn a_request_that_is_not_granted_changes_nothing() -> Result<()> {
    require!();
    let lab = Lab::new("uapifuzz")?;
    let (tunnel, socket) = start(&lab.host("node")?, "wg0")?;
    socket.set(&base());
    let mut runner = TestRunner::new(ProptestConfig {
        cases: 1000,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let (granted, refused) = (Cell::new(0), Cell::new(0));
    let outcome = runner.run(&spoiled_request(), |spoiled| {
        let before = socket.configuration();
        let answer = socket.say(&spoiled);
        let after = socket.configuration();
        let well_formed = answer.is_empty() || answer.ends_with("\n\n");
        prop_assert!(well_formed, "{answer}");
        if answer.contains("errno=0\n") {
            granted.set(granted.get() + 1);
            socket.set(&format!("replace_peers=true\n{}", base()));
            return Ok(());
        }
        refused.set(refused.get() + 1);
        prop_assert_eq!(before, after, "answer {}", answer);
        if !tunnel.is_running() {
            return Err(TestCaseError::fail(tunnel.describe()));
        }
        Ok(())
    });
    outcome.unwrap_or_else(|error| panic!("{error}"));
    let (granted, refused) = (granted.get(), refused.get());
    println!("{granted} requests granted, {refused} not");
    assert!(granted > 20 && refused > 100, "both sides of the rule");
    assert!(!tunnel.log().contains("panicked"), "{}", tunnel.describe());
    Ok(())
}

#[test]
fn each_error_has_the_number_of_the_reference_and_is_answered_at_once() -> Result<()> {
    require!();
    let lab = Lab::new("uapierrors")?;
    let (_tunnel, socket) = start(&lab.host("node")?, "wg0")?;
    socket.set(&base());
    let before = socket.configuration();
    let peer = public_key(1);
    let cases = [
        ("set=1\nlisten_port=65536\n".into(), -22),
        ("set=1\nlisten_port=+1\n".into(), -22),
        ("set=1\nlisten_port=\n".into(), -22),
        ("set=1\nfwmark=0x10\n".into(), -22),
        ("set=1\nreplace_peers=false\n".into(), -22),
        ("set=1\nprivate_key=00\n".into(), -22),
        ("set=1\nallowed_ip=10.0.0.0/8\n".into(), -22),
        ("set=1\nnonsense=1\n".into(), -22),
        ("set=1\n=1\n".into(), -22),
        ("set=1\nnonsense\n".into(), -71),
        (format!("set=1\npublic_key={peer}\nlisten_port=1\n"), -22),
        (
            format!("set=1\npublic_key={peer}\nallowed_ip=10.0.0.0/33\n"),
            -22,
        ),
        (
            format!("set=1\npublic_key={peer}\nallowed_ip=10.0.0.0\n"),
            -22,
        ),
        (
            format!("set=1\npublic_key={peer}\nallowed_ip=--1.0.0.0/8\n"),
            -22,
        ),
        (format!("set=1\npublic_key={peer}\nendpoint=host:1\n"), -22),
        (format!("set=1\npublic_key={peer}\nendpoint=1.2.3.4\n"), -22),
        (format!("set=1\npublic_key={peer}\npreshared_key=1\n"), -22),
        (
            format!("set=1\npublic_key={peer}\nprotocol_version=2\n"),
            -22,
        ),
        (format!("set=1\npublic_key={peer}\nremove=1\n"), -22),
        (format!("set=1\npublic_key={}\n", &peer[1..]), -22),
        (format!("set=1\nfwmark={}\n", "1".repeat(70_000)), -5),
        ("get=1\nx\n".into(), -22),
        ("hello\n".into(), -71),
    ];
    for (text, errno) in cases {
        let mut client = socket.connect();
        client.write_all(text.as_bytes()).unwrap();
        let expected = format!("errno={errno}\n\n");
        let mut answer = vec![0; expected.len()];
        // Neither the empty line nor the end of the stream has come.
        client.read_exact(&mut answer).unwrap();
        assert_eq!(String::from_utf8_lossy(&answer), expected, "{text:.80}");
    }
    assert_eq!(socket.configuration(), before);
    // The rest of a refused request is passed over, and the next request is a new one.
    let answer = socket.say(b"set=1\nfwmark=x\nlisten_port=9\n\nset=1\nfwmark=5\n\nget=1\n\n");
    assert!(answer.starts_with("errno=-22\n\nerrno=0\n\n"), "{answer}");
    assert!(answer.contains("\nfwmark=5\n") && !answer.contains("listen_port=9\n"));
    // Bytes that are no text are a wrong value, and carriage returns none.
    assert_eq!(socket.say(b"set=1\nfwmark=\xff\n\n"), "errno=-22\n\n");
    assert_eq!(socket.say(b"set=1\r\nfwmark=6\r\n\r\n"), "errno=-71\n\n");
    assert_eq!(socket.say(b"set=1\nfwmark=6\r\n\r\n"), "errno=0\n\n");
    Ok(())
}

#[test]
fn clients_that_stop_flood_or_sit_there_keep_nobody_out() -> Result<()> {
    require!();
    let lab = Lab::new("uapiclients")?;
    let host = lab.host("node")?;
    let (tunnel, socket) = start(&host, "wg0")?;
    socket.set(&base());
    let before = socket.configuration();
    let mode = std::fs::metadata(&socket.0).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    for _ in 0..200 {
        drop(socket.connect());
    }
    let whole = request(&format!("replace_peers=true\n{}", base()));
    for len in (0..whole.len()).step_by(7) {
        assert_eq!(socket.say(&whole.as_bytes()[..len]), "", "half a request");
    }
    assert_eq!(socket.configuration(), before);

    // 100 MB without a line feed, as an operation and as a line.
    let rss_before = resident_kb(tunnel.pid());
    for (begin, expected) in [("", "errno=-71\n\n"), ("set=1\nfwmark=", "errno=-5\n\n")] {
        let mut client = socket.connect();
        let flood = vec![b'1'; 1 << 20];
        let _ = client.write_all(begin.as_bytes());
        for _ in 0..100 {
            if client.write_all(&flood).is_err() {
                break;
            }
        }
        assert_eq!(read_all(&mut client), expected);
    }
    // 100 MB of good lines without an end.
    let mut client = socket.connect();
    let lines = "fwmark=7\n".repeat(100_000);
    let _ = client.write_all(b"set=1\n");
    while client.write_all(lines.as_bytes()).is_ok() {}
    assert_eq!(read_all(&mut client), "errno=-90\n\n");
    let grown = resident_kb(tunnel.pid()).saturating_sub(rss_before);
    assert!(grown < 8 << 10, "{grown} KiB more");

    // A thousand that say nothing, or half of something.
    let started = Instant::now();
    let sitting: Vec<_> = (0..1000)
        .map(|n| {
            let mut client = socket.connect();
            if n % 2 == 0 {
                // It may have been turned out already.
                let _ = client.write_all(b"set=1\nfwmark=");
            }
            client
        })
        .collect();
    assert_eq!(socket.configuration(), before);
    println!("1,000 silent clients, then a get: {:?}", started.elapsed());
    assert!(started.elapsed() < PATIENCE);
    drop(sitting);
    // A thousand at a time that want something get it: 20 threads, 50 connections each.
    std::thread::scope(|scope| {
        for _ in 0..20 {
            scope.spawn(|| (0..50).for_each(|_| assert_eq!(socket.configuration(), before)));
        }
    });
    assert!(!tunnel.log().contains("panicked"), "{}", tunnel.describe());
    Ok(())
}

#[test]
fn a_prefix_is_taken_away_by_its_owner_alone() -> Result<()> {
    require!();
    let lab = Lab::new("uapiminus")?;
    let (_tunnel, socket) = start(&lab.host("node")?, "wg0")?;
    let (one, two) = (public_key(1), public_key(2));
    socket.set(&format!(
        "public_key={one}\nallowed_ip=10.1.0.0/24\nallowed_ip=10.2.0.0/24\nallowed_ip=fd01::/64\n\
         public_key={two}\n"
    ));
    let owned = |peer: &str| -> Vec<String> {
        let state = socket.get();
        let block = state
            .split("public_key=")
            .find(|block| block.starts_with(peer));
        let lines = block.unwrap().lines();
        lines
            .filter_map(|line| Some(line.strip_prefix("allowed_ip=")?.to_owned()))
            .collect()
    };
    socket.set(&format!("public_key={two}\nallowed_ip=-10.1.0.0/24\n"));
    assert_eq!(owned(&one).len(), 3, "another's prefix stays");
    socket.set(&format!("public_key={one}\nallowed_ip=-10.1.0.0/25\n"));
    assert_eq!(owned(&one).len(), 3, "a part of a prefix is another prefix");
    socket.set(&format!(
        "public_key={one}\nallowed_ip=-10.1.0.9/24\nallowed_ip=-fd01::/64\n"
    ));
    assert_eq!(owned(&one), ["10.2.0.0/24"]);
    socket.set(&format!("public_key={two}\nallowed_ip=10.2.0.0/24\n"));
    assert_eq!(
        (owned(&one), owned(&two)),
        (vec![], vec!["10.2.0.0/24".into()])
    );
    Ok(())
}

#[test]
fn the_stock_wg_passes_over_the_key_that_is_ours() -> Result<()> {
    require!();
    let lab = Lab::new("uapiours")?;
    let host = lab.host("node")?;
    // Where the stock wg looks.
    let tunnel =
        host.spawn(Command::new(uapi_device::TUNNEL).args(["-f", "wg0", "--log", "info"]))?;
    tunnel.wait_log("the tunnel is up", PATIENCE)?;
    let say = |lines: &str| {
        let said = format!("printf '{lines}' | socat - UNIX-CONNECT:/var/run/wireguard/wg0.sock");
        host.sh(&said).map(|output| output.stdout)
    };
    let set = |lines: &str| say(&request(lines).replace('\n', "\\n"));
    let get = || say("get=1\\n\\n");
    assert_eq!(set(&base())?.trim(), "errno=0");
    let commands = [
        ["wg", "show", "wg0"].as_slice(),
        &["wg", "show", "wg0", "dump"],
        &["wg", "showconf", "wg0"],
    ];
    let shown = || commands.map(|argv| host.run(argv).unwrap().stdout);
    let before = shown();
    let peer = public_key(1);
    set(&format!("public_key={peer}\npath_probes=true\n"))?;
    assert!(get()?.contains("\npath_probes=true\n"));
    assert_eq!(shown(), before);
    set(&format!("public_key={peer}\npath_probes=false\n"))?;
    assert!(!get()?.contains("path_probes"));
    Ok(())
}

/// A device with a key and three peers.
fn base() -> String {
    let key = private_key(9).to_hex();
    let mut text = format!("private_key={}\nlisten_port=51900\nfwmark=7\n", *key);
    for n in 1..4 {
        text.push_str(&format!(
            "public_key={}\npreshared_key={}\nendpoint=192.0.2.{n}:51820\n\
             persistent_keepalive_interval={n}\nreplace_allowed_ips=true\n\
             allowed_ip=10.{n}.0.0/24\nallowed_ip=fd0{n}::/64\n",
            public_key(n),
            "ab".repeat(32),
        ));
    }
    text
}

/// Good requests, with a few things done to them.
fn spoiled_request() -> impl Strategy<Value = Vec<u8>> {
    let n = || any::<prop::sample::Index>();
    let edit = prop_oneof![
        (n(), any::<u8>()).prop_map(|(at, byte)| Edit::Byte(at, byte)),
        (n(), n()).prop_map(|(from, to)| Edit::Swap(from, to)),
        n().prop_map(Edit::Cut),
        n().prop_map(Edit::Drop),
        (n(), "[a-z_]{0,12}=?[ -~]{0,12}").prop_map(|(at, line)| Edit::Insert(at, line)),
        (n(), wrong_line()).prop_map(|(at, line)| Edit::Insert(at, line)),
    ];
    let whole = (0u8..3).prop_map(|kind| {
        let other = format!(
            "replace_peers=true\nlisten_port=51901\npublic_key={}\nupdate_only=true\n\
             allowed_ip=10.2.0.0/24\nallowed_ip=-10.1.0.0/24\npublic_key={}\nremove=true\n",
            public_key(1),
            public_key(2),
        );
        match kind {
            0 => request(&base()),
            1 => request(&other),
            _ => request("fwmark=8\nreplace_peers=true\n"),
        }
    });
    let spoiled = (whole, prop::collection::vec(edit, 1..5)).prop_map(|(text, edits)| {
        let mut lines: Vec<Vec<u8>> = text.split_inclusive('\n').map(Into::into).collect();
        for edit in edits {
            edit.apply(&mut lines);
        }
        lines.concat()
    });
    prop_oneof![
        8 => spoiled,
        1 => prop::collection::vec(any::<u8>(), 0..300),
        1 => "(set|get)=1\n[ -~\n]{0,200}".prop_map(String::into_bytes),
    ]
}

/// Lines of which none is allowed, wherever it stands.
fn wrong_line() -> impl Strategy<Value = String> {
    prop::sample::select(vec![
        "listen_port=70000",
        "fwmark=-1",
        "replace_peers=1",
        "allowed_ip=1.2.3.4/40",
        "endpoint=[::1:5",
        "public_key=zz",
        "private_key=",
        "=",
        "no value",
    ])
    .prop_map(str::to_owned)
}

#[derive(Clone, Debug)]
enum Edit {
    Byte(prop::sample::Index, u8),
    Swap(prop::sample::Index, prop::sample::Index),
    Cut(prop::sample::Index),
    Drop(prop::sample::Index),
    Insert(prop::sample::Index, String),
}

impl Edit {
    fn apply(&self, lines: &mut Vec<Vec<u8>>) {
        let count = lines.len();
        match self {
            _ if lines.is_empty() => {}
            Self::Byte(at, byte) => {
                let line = at.get_mut(lines);
                if !line.is_empty() {
                    *at.get_mut(line) = *byte;
                }
            }
            Self::Swap(from, to) => lines.swap(from.index(count), to.index(count)),
            Self::Cut(at) => lines.truncate(at.index(count)),
            Self::Drop(at) => drop(lines.remove(at.index(count))),
            Self::Insert(at, line) => {
                lines.insert(at.index(count), format!("{line}\n").into_bytes());
            }
        }
    }
}

fn resident_kb(pid: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kb = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    kb.unwrap_or_else(|| panic!("VmRSS in {status}"))
}
