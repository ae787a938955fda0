//! The program itself, started anew with a wall clock that is behind what it has stamped.
//!
//! ```text
//!   node1 10.1.0.1 -- 192.0.2.1 ---- 192.0.2.2 -- node2 10.2.0.1
//! ```

#![allow(clippy::unwrap_used)] // helpers of tests

use std::process::Command;
use std::time::Duration;

use warren_lab::{Host, Lab, LabError, Proc, Signal, poll_until, require};

const TUNNEL: &str = env!("CARGO_BIN_EXE_warren-tunnel");
/// Long enough for a slow, shared machine.
const PATIENCE: Duration = Duration::from_secs(60);
const TEN_YEARS_SECONDS: u64 = 10 * 365 * 24 * 3600;

type Result<T = ()> = std::result::Result<T, LabError>;

fn start(host: &Host) -> Result<Proc> {
    let tunnel = host.spawn(
        Command::new(TUNNEL)
            .arg("--state-dir")
            .arg(host.dir().join("state")),
    )?;
    tunnel.wait_log("the tunnel is up", PATIENCE)?;
    Ok(tunnel)
}

fn add_peer(host: &Host, own: u8, other: u8, key: &str) -> Result {
    host.sh(&format!(
        "ip address add 10.{own}.0.1/32 dev warren0
         ip route add 10.{other}.0.0/24 dev warren0 src 10.{own}.0.1
         wg set warren0 peer {key} endpoint 192.0.2.{other}:51871 allowed-ips 10.{other}.0.0/24"
    ))?;
    Ok(())
}

fn key(host: &Host) -> Result<String> {
    let shown = host.run(&["wg", "show", "warren0", "public-key"])?;
    Ok(shown.stdout.trim().to_owned())
}

fn wait_for_ping(host: &Host) -> Result {
    poll_until(PATIENCE, "a ping", || {
        host.try_run(&["ping", "-c1", "-W1", "10.2.0.1"])
            .is_ok_and(|output| output.success())
    })?;
    Ok(())
}

fn mark(text: &str) -> &str {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("tai64n_mark="));
    line.unwrap()
}

fn seconds(mark: &str) -> u64 {
    u64::from_str_radix(&mark[..16], 16).unwrap()
}

#[test]
fn a_clock_ten_years_behind_the_last_handshake_cuts_nobody_off() -> Result {
    require!();
    let lab = Lab::new("tenyears")?;
    let (node1, node2) = (lab.host("node1")?, lab.host("node2")?);
    let (mut tunnel1, _tunnel2) = (start(&node1)?, start(&node2)?);
    let _link = lab.connect(
        node1.end("eth0").addr("192.0.2.1/24"),
        node2.end("eth0").addr("192.0.2.2/24"),
    )?;
    let (key1, key2) = (key(&node1)?, key(&node2)?);
    add_peer(&node1, 1, 2, &key2)?;
    add_peer(&node2, 2, 1, &key1)?;
    wait_for_ping(&node1)?;

    // As if the clock had been ten years ahead until now.
    let path = node1.dir().join("state/tunnel.state");
    poll_until(PATIENCE, "the saved peer", || {
        std::fs::read_to_string(&path).is_ok_and(|text| text.contains("10.2.0.0/24"))
    })?;
    tunnel1.kill();
    let text = std::fs::read_to_string(&path).unwrap();
    let old = mark(&text);
    let ahead = seconds(old) + TEN_YEARS_SECONDS;
    let original = text.clone();
    let text = text.replace(old, &format!("{ahead:016x}{}", &old[16..]));
    std::fs::write(&path, text).unwrap();
    let mut least = ahead;
    // Each process stamps later than the one before, killed or not, and node2 remembers.
    for killed in [true, false, true] {
        // An initiation less than 20 ms after the last one would have to be repeated, 5 s later.
        std::thread::sleep(Duration::from_millis(20));
        tunnel1 = start(&node1)?;
        let saved = std::fs::read_to_string(&path).unwrap();
        let now_at = seconds(mark(&saved));
        assert!(
            now_at > least,
            "the mark on disk is ahead before the first handshake"
        );
        wait_for_ping(&node1)?;
        least = now_at;
        if killed {
            tunnel1.kill();
        } else {
            tunnel1.signal(Signal::SIGTERM);
            tunnel1.wait_timeout(PATIENCE)?;
            let saved = std::fs::read_to_string(&path).unwrap();
            least = seconds(mark(&saved));
            assert!(least < now_at, "an orderly end gives the reserve back");
        }
    }
    let status = node2
        .sh("socat - UNIX-CONNECT:/run/warren/tunnel.sock")?
        .stdout;
    assert!(status.contains("\ndrop_handshake_replayed=0\n"), "{status}");

    // That node2 has seen the stamps of ten years ahead: those of the clock are refused now.
    std::fs::write(&path, original).unwrap();
    let _tunnel1 = start(&node1)?;
    poll_until(PATIENCE, "a refusal", || {
        let status = node2.sh("socat - UNIX-CONNECT:/run/warren/tunnel.sock");
        status.is_ok_and(|status| !status.stdout.contains("\ndrop_handshake_replayed=0\n"))
    })?;
    Ok(())
}
