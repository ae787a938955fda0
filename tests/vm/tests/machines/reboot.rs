//! A machine that reboots, while the others go on.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use warren_lab::{patience, poll_for};
use warren_vm::{Cluster, Machine, Pod, ping_all};

use crate::pods::{Stream, check_encrypted, two_pods_each};
use crate::{PATIENCE, boot_id, identity, untouched};

/// How soon after its boot a node must be reached, by its own clock.
const REACHED: Duration = Duration::from_secs(30);

pub(crate) fn run(cluster: &mut Cluster) -> Result<()> {
    let pods = two_pods_each(cluster)?;
    let targets: Vec<&str> = pods
        .iter()
        .filter(|pod| pod.node != 2)
        .flat_map(|pod| pod.addresses.iter().map(String::as_str))
        .collect();
    prepare_first_pod(cluster.machine(2), &targets)?;
    let identities = |cluster: &Cluster| -> Result<[String; 3]> {
        Ok([
            identity(cluster.machine(2))?,
            untouched(cluster.machine(1))?,
            untouched(cluster.machine(3))?,
        ])
    };
    let before = identities(cluster)?;
    let boot_before = boot_id(cluster.machine(2))?;
    let capture = cluster.capture(&[])?;
    let stream = Stream::start(cluster, &pods[0], &pods[4])?;
    cluster.machine_mut(2).reboot()?;
    let report = first_pod(cluster.machine(2))?;
    let (sent, lost) = stream.stop(cluster)?;
    println!("after the reboot: {report}");
    println!("between the others: {sent} datagrams, {lost} lost");
    cluster
        .machine(2)
        .sh("systemctl -q disable first-pod; rm /etc/systemd/system/first-pod.service")?;

    ensure!(report["boot"] != boot_before, "{report}");
    ensure!(report["filter_at_first"] == false, "{report}");
    ensure!(report["refused"].as_u64() > Some(0), "{report}");
    // Of the CNI specification: try again later.
    ensure!(report["last_refusal"]["code"] == 11, "{report}");
    ensure!(report["filter"] == true, "{report}");
    let ranges = cluster.settings.cluster_cidrs().split(',').count() as u64;
    ensure!(report["unreachable"].as_u64() >= Some(ranges), "{report}");
    ensure!(
        sent > 0 && lost == 0,
        "{lost} of {sent} datagrams lost between the others"
    );
    let after = identities(cluster)?;
    ensure!(after == before, "before: {before:?}, after: {after:?}");

    let first = Pod::of_answer(2, "first", &report["answer"])?;
    let mut now: Vec<Pod> = pods.into_iter().filter(|pod| pod.node != 2).collect();
    now.push(first);
    ping_all(cluster, &now)?;
    check_encrypted(cluster, capture, 200)?;
    let reached = report["reached_s"].as_f64().context("no reached_s")?;
    println!("reached {reached} s after its boot");
    ensure!(
        reached <= patience(REACHED).as_secs_f64(),
        "reached {reached} s after its boot: {report}"
    );
    Ok(())
}

/// Has a machine attach a pod as early in each boot as possible, with the configuration of now.
fn prepare_first_pod(machine: &Machine, targets: &[&str]) -> Result<()> {
    machine.sh(&format!(
        "mkdir -p /var/lib/vm
         cp /etc/cni/net.d/10-warren.conflist /var/lib/vm/conflist
         echo '{}' > /var/lib/vm/targets
         cp /opt/warren/guest/first-pod.service /etc/systemd/system/
         systemctl daemon-reload
         systemctl -q enable first-pod
         sync",
        targets.join(" ")
    ))?;
    Ok(())
}

/// What the first pod's attaching of this boot saw, once it has reached the others.
fn first_pod(machine: &Machine) -> Result<Value> {
    let report = || machine.json("cat /var/lib/vm/first-pod.json").ok();
    Ok(poll_for(
        PATIENCE,
        "a pod of the rebooted machine that reaches the others",
        report,
    )?)
}
