//! A machine whose power is cut while pods come and go.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use warren_lab::{Proc, poll_for};
use warren_vm::{Cluster, Machine, Pod, ping};

use crate::{PATIENCE, identity};

/// The machine whose power is cut.
const NODE: u8 = 3;
/// How many power cuts there are, unless `WARREN_VM_CUTS` says so.
const CUTS: u32 = 2;
/// ADDs and DELs a second while the plug is pulled.
const CHURN: u32 = 100;
/// What else of the machine follows each link that comes and goes; the boot starts it again.
const ONLOOKERS: &str = "systemd-udevd systemd-udevd-kernel.socket systemd-udevd-control.socket systemd-networkd \
                         systemd-networkd.socket";
/// How many of them must have been made before.
const CHURN_LEAST: u64 = 300;
/// How many pods are attached after a power cut.
const PODS_AFTER: usize = 20;

pub(crate) fn run(cluster: &mut Cluster) -> Result<()> {
    let key = identity(cluster.machine(NODE))?;
    let other = Pod::attach(cluster.machine(1), "other")?;
    let cuts = std::env::var("WARREN_VM_CUTS").ok();
    let cuts = cuts.map_or(Ok(CUTS), |text| text.parse());
    for cut in 1..=cuts.context("WARREN_VM_CUTS is a number")? {
        let machine = cluster.machine_mut(NODE);
        // Each pod's link would keep them busier than the plugin is, where nothing accelerates the machine.
        machine.sh(&format!("systemctl -q stop {ONLOOKERS}"))?;
        let churn = machine.spawn(&format!(
            "warren-churn /etc/cni/net.d/10-warren.conflist /opt/cni/bin/warren-cni {CHURN}"
        ))?;
        let (calls, seconds) = wait_churned(&churn)?;
        machine.cut_power();
        println!(
            "cut {cut}: the power went after {calls} ADDs and DELs, {:.0} a second",
            calls as f64 / seconds
        );
        machine.power_on()?;
        machine.wait_up()?;
        cluster.wait_connected()?;
        let machine = cluster.machine(NODE);
        ensure!(identity(machine)? == key, "the key is another one");
        check_nothing_leaked(cluster, cut, &other)?;
        check_state_is_whole(cluster.machine(NODE))?;
    }
    Ok(())
}

/// Waits until enough ADDs and DELs were made. Tells how many, and in how many seconds.
fn wait_churned(churn: &Proc) -> Result<(u64, f64)> {
    let made = || -> Result<Option<(u64, f64)>> {
        let log = churn.log();
        let (mut calls, mut seconds) = (0, 0.0);
        for line in log.lines().filter(|line| line.ends_with('}')) {
            let line: Value = serde_json::from_str(line).with_context(|| log.clone())?;
            ensure!(line["failed"] == 0, "{log}");
            calls += line["calls"].as_u64().context("no count")?;
            seconds += line["seconds"].as_f64().context("no time")?;
        }
        Ok((calls >= CHURN_LEAST).then_some((calls, seconds)))
    };
    let result = poll_for(PATIENCE, "enough ADDs and DELs", || {
        if !churn.is_running() {
            return Some(Err(anyhow::anyhow!("{}", churn.describe())));
        }
        made().transpose()
    });
    result.with_context(|| churn.describe())?
}

/// Every document can be read, and no daemon ended for one that could not. The plugin syncs nothing: what it finds
/// damaged it keeps aside and makes anew, which is told.
fn check_state_is_whole(machine: &Machine) -> Result<()> {
    let bad = machine.sh(
        "find /var/lib/warren /etc/cni/net.d -name '*.json' -o -name '*.conflist' | while read -r file; do
             jq -e . $file > /dev/null || echo $file
         done",
    )?;
    ensure!(
        bad.is_empty(),
        "damaged: {bad}{}",
        machine.sh("ls -lR /var/lib/warren")?
    );
    let aside = machine.sh("find /var/lib/warren -name '*damaged*'")?;
    println!(
        "address stores that were set aside: {}",
        aside.lines().count()
    );
    let warnings = "journalctl -b -q -o cat -u warren-tunnel -u warren-agent | grep -E ' (WARN|ERROR) ' || true";
    println!(
        "what the daemons warn of after the boot: [{}]",
        machine.sh(warnings)?.trim()
    );
    let restarts = machine.sh("systemctl show --value -p NRestarts warren-tunnel warren-agent")?;
    let none = restarts.split_whitespace().all(|count| count == "0");
    ensure!(none, "daemons ended after the boot: {restarts}");
    Ok(())
}

/// New pods have addresses of their own, and nothing but them is reserved.
fn check_nothing_leaked(cluster: &Cluster, round: u32, other: &Pod) -> Result<()> {
    let machine = cluster.machine(NODE);
    let mut pods = Vec::new();
    for number in 0..PODS_AFTER {
        pods.push(Pod::attach(machine, &format!("after{round}x{number}"))?);
    }
    let given: BTreeSet<&String> = pods.iter().flat_map(|pod| &pod.addresses).collect();
    let count: usize = pods.iter().map(|pod| pod.addresses.len()).sum();
    ensure!(given.len() == count, "an address was given twice: {pods:?}");
    let report = machine.json("warren pods --json")?;
    let Some(reserved) = report["pods"].as_array() else {
        bail!("no pods: {report}");
    };
    ensure!(
        reserved.len() == PODS_AFTER,
        "reserved is more or less than the pods: {report}"
    );
    ensure!(
        reserved.iter().all(|pod| pod["attached"] == true),
        "{report}"
    );
    let unreserved = report["unreservedInterfaces"].as_array().map(Vec::len);
    ensure!(unreserved == Some(0), "{report}");
    // All to all of so many would be hundreds of pings.
    ping(cluster, &[pods[0].clone(), other.clone()], &pods)?;
    for pod in &pods {
        machine.sh(&format!("pod del {}", pod.name))?;
    }
    let report = machine.json("warren pods --json")?;
    ensure!(
        report["pods"].as_array().is_some_and(Vec::is_empty),
        "{report}"
    );
    Ok(())
}
