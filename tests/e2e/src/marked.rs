//! Packets with a mark in their payload, by which a capture knows clear text.

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use warren_lab::{ClearTextRules, Proc, Space, Tap, bin};

use crate::{MARKER, Mesh};

/// Long enough for a slow, shared machine.
const LIMIT: Duration = Duration::from_secs(60);

/// How many marked packets pass a place while `work` runs.
///
/// # Errors
///
/// Those of the capture, and of `work`.
pub fn marked_packets(mesh: &Mesh, tap: Tap, work: impl FnOnce() -> Result<()>) -> Result<u64> {
    let rules = ClearTextRules {
        marker: MARKER.into(),
        ..ClearTextRules::default()
    };
    let capture = mesh.lab.capture(&[tap], rules)?;
    work()?;
    Ok(capture.stop().clear_text().frames)
}

/// Sends twenty marked datagrams, from an address of its own if one is given; nobody has to answer.
///
/// # Errors
///
/// When it cannot be done; not when nothing arrives.
pub fn send_marked(from: &Space, to: &str, source: Option<&str>) -> Result<()> {
    let mut command = marked(to, source)?;
    command.args(["--count", "20", "--interval-ms", "5", "--wait-ms", "50"]);
    from.output(&mut command, LIMIT)?;
    Ok(())
}

/// Sends marked datagrams until it is killed; nobody has to answer.
///
/// # Errors
///
/// When it does not begin.
pub fn stream_marked(
    from: &Space,
    to: &str,
    source: Option<&str>,
    interval_ms: u32,
) -> Result<Proc> {
    let mut command = marked(to, source)?;
    command.args(["--count", "0", "--interval-ms", &interval_ms.to_string()]);
    let stream = from.spawn(&mut command)?;
    stream.wait_log("sending", LIMIT)?;
    Ok(stream)
}

fn marked(to: &str, source: Option<&str>) -> Result<Command> {
    let target = SocketAddr::new(to.parse()?, 9).to_string();
    let mut command = Command::new(bin("lab-tool")?);
    command.args(["udp-ping", &target, "--marker", MARKER]);
    if let Some(source) = source {
        let source = SocketAddr::new(source.parse()?, 0).to_string();
        command.args(["--from", &source]);
    }
    Ok(command)
}
