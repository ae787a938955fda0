//! Pods of three machines reach each other, and nothing of it is in clear.

use anyhow::{Result, ensure};
use warren_lab::{Allow, poll_until};
use warren_vm::{Cluster, MARKER, Pod, ping_all};

use crate::PATIENCE;
use crate::pods::{check_encrypted, transfer, two_pods_each};

pub(crate) fn run(cluster: &mut Cluster) -> Result<()> {
    let pods = two_pods_each(cluster)?;
    let capture = cluster.capture(&[])?;
    println!("{} pairs answered", ping_all(cluster, &pods)?);
    for (from, to) in [(0, 2), (2, 4), (4, 0)] {
        transfer(cluster, &pods[from], &pods[to])?;
    }
    check_encrypted(cluster, capture, 500)?;
    capture_can_fail(cluster)?;
    cut_and_restored(cluster, &pods)
}

/// The positive control: the same capture sees a marked datagram that a machine itself sends in clear, on both cables.
fn capture_can_fail(cluster: &Cluster) -> Result<()> {
    let capture = cluster.capture(&[Allow::IcmpErrors])?;
    cluster.machine(1).sh(&format!(
        "lab-tool udp-ping 192.168.56.12:9 --count 1 --wait-ms 2000 --marker {MARKER}"
    ))?;
    let seen = capture.stop().clear_text().frames;
    ensure!(
        seen >= 2,
        "a datagram in clear was seen {seen} times on two cables"
    );
    Ok(())
}

/// A cut cable takes a node away, and nothing but the cable is needed to have it back.
fn cut_and_restored(cluster: &Cluster, pods: &[Pod]) -> Result<()> {
    let machine = cluster.machine(1);
    let address = &pods[2].addresses[0];
    let answers = |seconds: u32| -> Result<bool> {
        let script = format!(
            "ip netns exec {} ping -n -q -c 1 -W {seconds} {address}",
            pods[0].name
        );
        Ok(machine.try_sh(&script)?.success())
    };
    cluster.machine(2).link.cut()?;
    ensure!(!answers(3)?, "{address} answers over a cut cable");
    cluster.machine(2).link.restore()?;
    poll_until(PATIENCE, "an answer over the restored cable", || {
        answers(3).unwrap_or(false)
    })?;
    ping_all(cluster, pods)?;
    Ok(())
}
