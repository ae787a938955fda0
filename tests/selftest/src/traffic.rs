//! Pings, TCP with digests, and counted datagrams.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use warren_lab::{Host, Proc, bin};

use crate::Result;
use crate::pair::{Pair, inner, other};

/// The port of the receivers of TCP.
const TCP: u16 = 7000;
/// The port of the echo of datagrams.
const UDP: u16 = 7001;
/// How long anything may take that is expected to happen.
const LIMIT: Duration = Duration::from_secs(30);
/// How much one TCP connection sends: several windows, and little enough for an emulated machine.
const TCP_BYTES: u64 = 1 << 20;
/// How much each of many sends.
const SHARE_BYTES: u64 = 64 << 10;

fn tool() -> Result<String> {
    Ok(bin("lab-tool")?.to_string_lossy().into_owned())
}

/// Starts what answers TCP and datagrams; it stays as long as its host.
///
/// # Errors
///
/// When it does not start.
pub fn serve(host: &Host) -> Result {
    for (what, port) in [("tcp-serve", TCP), ("udp-echo", UDP)] {
        let server = host.spawn_argv(&[&*tool()?, what, "--port", &port.to_string()])?;
        server.wait_log("listening", LIMIT)?;
        // Its host ends it.
        std::mem::forget(server);
    }
    Ok(())
}

/// Pings an address once; a busy machine takes its time, and what is lost is lost.
///
/// # Errors
///
/// When it does not answer.
pub fn ping(host: &Host, address: &str) -> Result {
    host.run(&["ping", "-n", "-c1", "-W30", address])?;
    Ok(())
}

/// Pings an address so many times with 56 bytes each, every time when the one before was answered.
///
/// # Errors
///
/// When one is not answered.
pub fn ping_many(host: &Host, address: &str, count: u32) -> Result {
    let script = format!("for i in $(seq {count}); do ping -n -q -c1 -W30 {address}; done");
    host.sh(&script)?;
    Ok(())
}

/// Whether a ping is not answered for some seconds.
///
/// # Errors
///
/// When `ping` cannot be run.
pub fn is_silent(host: &Host, address: &str) -> Result<bool> {
    Ok(!host
        .try_run(&["ping", "-n", "-c1", "-W3", address])?
        .success())
}

/// Begins to send bytes by TCP, which must come out as they went in.
fn start_tcp(host: &Host, to: &str, bytes: u64) -> Result<Proc> {
    let to = SocketAddr::new(to.parse()?, TCP).to_string();
    let bytes = bytes.to_string();
    let argv = [
        &tool()?,
        "tcp-send",
        &to,
        "--bytes",
        &bytes,
        "--timeout",
        "120",
    ];
    Ok(host.spawn_argv(&argv)?)
}

fn finish_tcp(sender: Proc) -> Result {
    let status = sender.wait_timeout(LIMIT * 2)?;
    let log = sender.log();
    let said = log.lines().find(|line| line.starts_with('{'));
    let said: serde_json::Value = serde_json::from_str(said.with_context(|| log.clone())?)?;
    ensure!(
        status.success() && said["digest_equal"] == true,
        "{said}: {}",
        sender.describe()
    );
    Ok(())
}

/// Sends datagrams of that size, each of which must come back once.
fn send_udp(host: &Host, to: &str, count: u32, size: usize) -> Result {
    let to = SocketAddr::new(to.parse::<IpAddr>()?, UDP).to_string();
    let (count_text, size) = (count.to_string(), size.to_string());
    let mut argv = vec![&*to, "--count", &count_text, "--size", &size];
    argv.extend(["--interval-ms", "20", "--wait-ms", "20000"]);
    let said = host.run(&[&[&*tool()?, "udp-ping"], &argv[..]].concat())?;
    let said = said.json()?;
    ensure!(
        said["received"] == count && said["duplicates"] == 0,
        "{} of {count} came back, {} twice",
        said["received"],
        said["duplicates"]
    );
    Ok(())
}

/// Sends one datagram that nobody answers.
///
/// # Errors
///
/// When it cannot be sent.
pub fn say(host: &Host, to: &str, port: u16) -> Result {
    let to = SocketAddr::new(to.parse::<IpAddr>()?, port).to_string();
    host.run(&[
        &*tool()?,
        "udp-ping",
        &to,
        "--count",
        "1",
        "--wait-ms",
        "50",
    ])?;
    Ok(())
}

/// Pings, TCP and datagrams to an address of a host that [serves](serve).
///
/// # Errors
///
/// With the first that did not arrive as it was sent.
pub fn exchange(host: &Host, address: &str) -> Result {
    ping_many(host, address, 10)?;
    start_tcp(host, address, TCP_BYTES).and_then(finish_tcp)?;
    send_udp(host, address, 50, 1200)
}

/// Everything at once between both devices of a pair: pings, TCP and datagrams in both families and both
/// directions, and 4, 5 and `most` TCP connections at the same time.
///
/// # Errors
///
/// With the first that did not arrive as it was sent.
pub fn traffic(pair: &Pair, most: usize) -> Result {
    for number in [1, 2] {
        let host = &pair.device(number).host;
        for address in inner(other(number)) {
            exchange(host, &address).with_context(|| pair.describe())?;
        }
    }
    for streams in [4, 5, most] {
        let started = (0..streams).map(|index| {
            let number = if index % 2 == 0 { 1 } else { 2 };
            let to = &inner(other(number))[index / 2 % 2];
            start_tcp(&pair.device(number).host, to, SHARE_BYTES)
        });
        for sender in started.collect::<Result<Vec<_>>>()? {
            finish_tcp(sender).with_context(|| format!("of {streams} at once"))?;
        }
    }
    Ok(())
}
