//! What the tests of a bad underlay have in common: how long it may take to be told, and to end.

use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use warren_lab::{Capture, Space};

use crate::mesh::Mesh;
use crate::node::Node;
use crate::traffic::{MARKER, ping};

/// Why `node` says that traffic with `other` suffers; `None` when it does not say so.
pub fn reason(node: &Node, other: &Node) -> Result<Option<String>> {
    let peer = node.peer_status(other)?;
    let reason = peer["degraded"]["reason"].as_str().map(str::to_owned);
    ensure!(
        reason.is_some() == (peer["state"] == "degraded"),
        "state and cause differ: {peer}"
    );
    Ok(reason)
}

/// Waits until `node` says that traffic with `other` suffers from one of `reasons`, and reads the
/// same from the page that people see. Returns how long that took.
pub fn wait_degraded(
    node: &Node,
    other: &Node,
    reasons: &[&str],
    limit: Duration,
) -> Result<Duration> {
    let start = Instant::now();
    loop {
        let told = reason(node, other)?;
        if told.as_deref().is_some_and(|told| reasons.contains(&told)) {
            break;
        }
        if start.elapsed() > limit {
            bail!(
                "after {limit:?} {} says {told:?} of {}, not one of {reasons:?}\n{}\n{}",
                node.name(),
                other.name(),
                node.status()?,
                node.describe()
            );
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    let took = start.elapsed();
    let (code, page) = node.warren(&["status"])?;
    let top = page.lines().find(|line| line.starts_with("state "));
    ensure!(
        code == 1 && top.is_some_and(|top| top.contains("degraded: ")),
        "warren status exits with {code} and says\n{page}"
    );
    let row = page
        .lines()
        .find(|line| line.starts_with(&format!("{} ", other.name())));
    ensure!(
        row.is_some_and(|row| row.contains(" degraded ")) && page.contains("degraded peers"),
        "the page does not tell the peer:\n{page}"
    );
    Ok(took)
}

/// Waits until `node` says that all is well.
pub fn wait_well(node: &Node, limit: Duration) -> Result<Duration> {
    let start = Instant::now();
    loop {
        let (code, page) = node.warren(&["status"])?;
        if code == 0 && page.lines().any(|line| line == "state       ok") {
            return Ok(start.elapsed());
        }
        if start.elapsed() > limit {
            bail!(
                "after {limit:?} {} says\n{page}\n{}",
                node.name(),
                node.describe()
            );
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// Waits until a ping is answered at every address. Returns how long that took.
pub fn wait_back(from: &Space, addresses: &[&str], limit: Duration) -> Result<Duration> {
    let start = Instant::now();
    for address in addresses {
        while !ping(from, address, 1)?.lossless() {
            ensure!(
                start.elapsed() < limit,
                "no answer of {address} within {limit:?}"
            );
        }
    }
    Ok(start.elapsed())
}

/// Ends a capture: nothing in clear on any link, and WireGuard on those that were to carry it, so
/// that an empty capture proves nothing.
pub fn assert_captured(capture: Capture, least: u64) {
    let report = capture.stop();
    report.assert_clean();
    let seen = report.wireguard_total().frames;
    assert!(seen >= least, "only {seen} WireGuard packets were captured");
}

/// The positive control of a mesh's captures: the same check sees one marked datagram in clear, sent
/// by node1 itself to the router, on node1's cable and on the router's.
pub fn assert_check_can_fail(mesh: &Mesh) -> Result<()> {
    let capture = mesh.capture(&[])?;
    let mut command = std::process::Command::new(warren_lab::bin("lab-tool")?);
    command.args(["udp-ping", "192.0.2.254:9", "--count", "1"]);
    command.args(["--wait-ms", "50", "--marker", MARKER]);
    let node = &mesh.node(1).host;
    node.output(&mut command, Duration::from_secs(30))?;
    let seen = capture.stop().clear_text().frames;
    ensure!(
        seen >= 2,
        "a datagram in clear was seen {seen} times on two links"
    );
    Ok(())
}
