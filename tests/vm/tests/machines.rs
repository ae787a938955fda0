//! Warren on three machines with kernels of their own, whose power is cut and which reboot.

#![allow(
    clippy::unwrap_used,
    reason = "in a test a failed step is a failed test"
)]

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use warren_lab::{Allow, Capture, Family as Outer, Proc, poll_for, poll_until};
use warren_vm::{
    Cluster, MARKER, Machine, Payload, Pod, Settings, earlier_version, ping_all, require_machines,
    with_cluster,
};

/// How soon after its boot a node must be reached, by its own clock.
const REACHED: Duration = Duration::from_secs(30);
/// How long something in a machine may take that is not measured.
const PATIENCE: Duration = Duration::from_secs(240);
/// How many power cuts there are.
const CUTS: usize = 2;
/// ADDs and DELs a second while the plug is pulled.
const CHURN: u32 = 100;
/// How many of them must have been made before.
const CHURN_LEAST: u64 = 200;
/// How many pods are attached after a power cut.
const PODS_AFTER: usize = 20;

/// One cluster at a time: each has all of the processor.
static TURN: Mutex<()> = Mutex::new(());

fn on_machines(
    name: &str,
    machines: u8,
    payloads: &[Payload],
    test: fn(&mut Cluster) -> Result<()>,
) {
    if !require_machines() {
        return;
    }
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    with_cluster(name, Settings::new(machines).unwrap(), payloads, test);
}

#[test]
fn pods_of_three_machines_reach_each_other_and_nothing_is_in_clear() {
    on_machines("vm-all-to-all", 3, &[], |cluster| {
        let pods = two_pods_each(cluster)?;
        let capture = cluster.capture(&[])?;
        println!("{} pairs answered", ping_all(cluster, &pods)?);
        for (from, to) in [(0, 2), (2, 4), (4, 0)] {
            transfer(cluster, &pods[from], &pods[to])?;
        }
        assert_encrypted(cluster, capture, 500);
        assert_capture_can_fail(cluster)?;
        cut_and_restored(cluster, &pods)
    });
}

#[test]
fn a_rebooted_machine_is_protected_before_its_first_pod_and_has_its_old_key() {
    on_machines("vm-reboot", 3, &[], |cluster| {
        let pods = two_pods_each(cluster)?;
        let targets: Vec<&str> = pods
            .iter()
            .filter(|pod| pod.node != 2)
            .flat_map(|pod| pod.addresses.iter().map(String::as_str))
            .collect();
        prepare_first_pod(cluster.machine(2), &targets)?;
        let before = (
            identity(cluster.machine(2))?,
            untouched(cluster.machine(1))?,
            untouched(cluster.machine(3))?,
        );
        let boot_before = boot_id(cluster.machine(2))?;
        let capture = cluster.capture(&[])?;
        let stream = Stream::start(cluster, &pods[0], &pods[4])?;
        cluster.machine_mut(2).reboot()?;
        let report = first_pod(cluster.machine(2))?;
        let (sent, lost) = stream.stop(cluster)?;
        println!("after the reboot: {report}");
        println!("between the others: {sent} datagrams, {lost} lost");

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
        let after = (
            identity(cluster.machine(2))?,
            untouched(cluster.machine(1))?,
            untouched(cluster.machine(3))?,
        );
        ensure!(after == before, "before: {before:?}, after: {after:?}");

        let first = Pod::of_answer(2, "first", &report["answer"])?;
        let mut now: Vec<Pod> = pods.into_iter().filter(|pod| pod.node != 2).collect();
        now.push(first);
        ping_all(cluster, &now)?;
        assert_encrypted(cluster, capture, 200);
        let reached = report["reached_s"].as_f64().context("no reached_s")?;
        ensure!(
            reached <= REACHED.as_secs_f64(),
            "reached {reached} s after its boot: {report}"
        );
        Ok(())
    });
}

#[test]
fn a_power_cut_amid_adds_and_dels_leaves_no_damage_and_no_leak() {
    on_machines("vm-power-cut", 1, &[], |cluster| {
        let key = identity(cluster.machine(1))?;
        for cut in 1..=CUTS {
            let machine = cluster.machine_mut(1);
            let churn = machine.spawn(&format!(
                "warren-churn /etc/cni/net.d/10-warren.conflist /opt/cni/bin/warren-cni {CHURN}"
            ))?;
            let (calls, seconds) = wait_churned(&churn)?;
            machine.cut_power();
            println!(
                "cut {cut}: the power went after {calls} ADDs and DELs, {:.0} a second",
                calls as f64 / seconds as f64
            );
            machine.power_on()?;
            machine.wait_up()?;
            cluster.wait_connected()?;
            let machine = cluster.machine(1);
            ensure!(identity(machine)? == key, "the key is another one");
            assert_nothing_leaked(cluster, cut)?;
            assert_state_is_whole(cluster.machine(1))?;
        }
        Ok(())
    });
}

#[test]
fn an_earlier_version_on_one_machine_reaches_the_current_ones() {
    if !require_machines() {
        return;
    }
    let earlier = Payload {
        other_version: Some(earlier_version().unwrap()),
    };
    on_machines("vm-upgrade", 3, &[earlier, Payload::default()], |cluster| {
        let versions: Vec<String> = (1..=3)
            .map(|number| {
                cluster
                    .machine(number)
                    .sh("sha256sum < /usr/local/bin/warren-agent")
            })
            .collect::<Result<_>>()?;
        ensure!(versions[0] != versions[1], "node1 has the current version");
        ensure!(versions[1] == versions[2], "node2 and node3 differ");
        let pods = two_pods_each(cluster)?;
        let capture = cluster.capture(&[])?;
        ping_all(cluster, &pods)?;
        transfer(cluster, &pods[0], &pods[2])?;
        transfer(cluster, &pods[4], &pods[0])?;
        assert_encrypted(cluster, capture, 200);
        Ok(())
    });
}

/// Two pods on each machine, in the order of the machines.
fn two_pods_each(cluster: &Cluster) -> Result<Vec<Pod>> {
    let machines = cluster.machines.iter();
    machines
        .flat_map(|machine| {
            ["a", "b"].map(|name| Pod::attach(machine, &format!("{name}{}", machine.number)))
        })
        .collect()
}

/// Sends marked data by TCP to each address of a pod and compares the digests.
fn transfer(cluster: &Cluster, from: &Pod, to: &Pod) -> Result<()> {
    let (client, server) = (cluster.machine(from.node), cluster.machine(to.node));
    server.sh(&format!(
        "systemd-run -q --collect --unit tcp-serve ip netns exec {} lab-tool tcp-serve --port 5201",
        to.name
    ))?;
    let listening = || {
        let found = server.try_sh(&format!("ip netns exec {} ss -Htln sport = :5201", to.name));
        found.is_ok_and(|out| out.stdout.contains("LISTEN"))
    };
    poll_until(PATIENCE, "a listening server", listening)?;
    for address in &to.addresses {
        let target = std::net::SocketAddr::new(address.parse()?, 5201);
        let sent = client.json(&format!(
            "ip netns exec {} lab-tool tcp-send {target} --bytes 2000000 --marker {MARKER}",
            from.name
        ))?;
        ensure!(
            sent["digest_equal"] == true,
            "{} to {address}: {sent}",
            from.name
        );
    }
    server.sh("systemctl stop tcp-serve")?;
    Ok(())
}

/// Ends a capture: nothing in clear, and enough WireGuard that it proves something.
fn assert_encrypted(cluster: &Cluster, capture: Capture, least: u64) {
    let report = capture.stop();
    report.assert_clean();
    println!("captured: {report}");
    let preferred = if cluster.settings.node_addresses(1).contains('.') {
        Outer::V4
    } else {
        Outer::V6
    };
    let seen = report.wireguard_of(preferred).frames;
    assert!(seen >= least, "only {seen} WireGuard packets were captured");
}

/// The positive control: the same capture sees a marked datagram that a machine itself sends in clear, on both cables.
fn assert_capture_can_fail(cluster: &Cluster) -> Result<()> {
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

fn boot_id(machine: &Machine) -> Result<String> {
    Ok(machine
        .sh("cat /proc/sys/kernel/random/boot_id")?
        .trim()
        .to_owned())
}

/// The key of a node, as the device has it.
fn identity(machine: &Machine) -> Result<String> {
    machine.sh("wg show warren0 public-key")
}

/// What would be another if a node's daemons had been started again, or the node itself.
fn untouched(machine: &Machine) -> Result<String> {
    let daemons = "systemctl show -p MainPID,NRestarts warren-tunnel warren-agent";
    Ok(boot_id(machine)? + &machine.sh(daemons)?)
}

/// Datagrams from a pod to another that are to be answered, a hundred after another.
struct Stream {
    client: u8,
}

impl Stream {
    fn start(cluster: &Cluster, from: &Pod, to: &Pod) -> Result<Self> {
        cluster.machine(to.node).sh(&format!(
            "systemd-run -q --collect --unit udp-echo ip netns exec {} lab-tool udp-echo --port 5202",
            to.name
        ))?;
        let target = std::net::SocketAddr::new(to.addresses[0].parse()?, 5202);
        let client = cluster.machine(from.node);
        client.sh(&format!(
            "cat > /run/stream.sh <<'END'
while [ ! -e /run/stream.stop ]; do
    lab-tool udp-ping {target} --count 100 --interval-ms 100 --wait-ms 20000 --marker {MARKER} >>/run/stream.json
done
END
             # The echo listens once the first of these is answered.
             until ip netns exec {pod} lab-tool udp-ping {target} --count 1 --wait-ms 1000 | grep -q '\"received\":1'; do
                 sleep 0.2
             done
             systemd-run -q --unit stream ip netns exec {pod} sh /run/stream.sh",
            pod = from.name
        ))?;
        Ok(Self { client: from.node })
    }

    /// Ends it after the present hundred. Tells how many datagrams were sent, and how many lost.
    fn stop(self, cluster: &Cluster) -> Result<(u64, u64)> {
        let client = cluster.machine(self.client);
        client.sh("touch /run/stream.stop")?;
        let ended = || {
            let state = client.try_sh("systemctl is-active stream");
            state.is_ok_and(|out| !out.success())
        };
        poll_until(PATIENCE, "the end of the datagrams", ended)?;
        let text = client.sh("cat /run/stream.json")?;
        let mut sums = (0, 0);
        for line in text.lines() {
            let line: Value = serde_json::from_str(line)?;
            sums.0 += line["sent"].as_u64().context("no count")?;
            sums.1 += line["lost"].as_u64().context("no count")?;
        }
        Ok(sums)
    }
}

/// Waits until enough ADDs and DELs were made. Tells how many, and in how many seconds.
fn wait_churned(churn: &Proc) -> Result<(u64, u64)> {
    let made = || -> Result<Option<(u64, u64)>> {
        let log = churn.log();
        let (mut calls, mut seconds) = (0, 0);
        for line in log.lines().filter(|line| line.ends_with('}')) {
            let line: Value = serde_json::from_str(line).with_context(|| log.clone())?;
            ensure!(line["failed"] == 0, "{log}");
            calls += line["calls"].as_u64().context("no count")?;
            seconds += 1;
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
fn assert_state_is_whole(machine: &Machine) -> Result<()> {
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
    let restarts = machine.sh("systemctl show --value -p NRestarts warren-tunnel warren-agent")?;
    let none = restarts.split_whitespace().all(|count| count == "0");
    ensure!(none, "daemons ended after the boot: {restarts}");
    Ok(())
}

/// New pods have addresses of their own, and nothing but them is reserved.
fn assert_nothing_leaked(cluster: &Cluster, round: usize) -> Result<()> {
    let machine = cluster.machine(1);
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
    ping_all(cluster, &pods)?;
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
