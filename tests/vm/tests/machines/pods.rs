//! Pods, and what goes between them.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use warren_lab::{Capture, Family as Outer, poll_until};
use warren_vm::{Cluster, MARKER, Pod};

use crate::PATIENCE;

/// Two pods on each machine, in the order of the machines.
pub(crate) fn two_pods_each(cluster: &Cluster) -> Result<Vec<Pod>> {
    let machines = cluster.machines.iter();
    machines
        .flat_map(|machine| {
            ["a", "b"].map(|name| Pod::attach(machine, &format!("{name}{}", machine.number)))
        })
        .collect()
}

/// Sends marked data by TCP to each address of a pod and compares the digests.
pub(crate) fn transfer(cluster: &Cluster, from: &Pod, to: &Pod) -> Result<()> {
    let (client, server) = (cluster.machine(from.node), cluster.machine(to.node));
    server.sh(&format!(
        "systemd-run -q --collect -p KillSignal=KILL --unit tcp-serve ip netns exec {} lab-tool tcp-serve --port 5201",
        to.name
    ))?;
    let listening = || {
        let found = server.try_sh(&format!("ip netns exec {} ss -Htln sport = :5201", to.name));
        found.is_ok_and(|out| out.stdout.contains("LISTEN"))
    };
    poll_until(PATIENCE, "a listening server", listening)?;
    for address in &to.addresses {
        let target = SocketAddr::new(address.parse()?, 5201);
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
pub(crate) fn check_encrypted(cluster: &Cluster, capture: Capture, least: u64) -> Result<()> {
    let report = capture.stop();
    println!("captured: {report}");
    report.check()?;
    let preferred = if cluster.settings.node_addresses(1).contains('.') {
        Outer::V4
    } else {
        Outer::V6
    };
    let seen = report.wireguard_of(preferred).frames;
    ensure!(seen >= least, "only {seen} WireGuard packets were captured");
    Ok(())
}

/// Datagrams from a pod to another that are to be answered, a hundred after another.
pub(crate) struct Stream {
    client: u8,
    server: u8,
}

impl Stream {
    pub(crate) fn start(cluster: &Cluster, from: &Pod, to: &Pod) -> Result<Self> {
        cluster.machine(to.node).sh(&format!(
            "systemd-run -q --collect -p KillSignal=KILL --unit udp-echo ip netns exec {} lab-tool udp-echo --port 5202",
            to.name
        ))?;
        let target = SocketAddr::new(to.addresses[0].parse()?, 5202);
        let client = cluster.machine(from.node);
        client.sh(&format!(
            "rm -f /run/stream.*
             cat > /run/stream.sh <<'END'
while [ ! -e /run/stream.stop ]; do
    lab-tool udp-ping {target} --count 100 --interval-ms 100 --wait-ms 20000 --marker {MARKER} >>/run/stream.json
done
END
             # The echo listens once the first of these is answered.
             until ip netns exec {pod} lab-tool udp-ping {target} --count 1 --wait-ms 1000 | grep -q '\"received\":1'; do
                 sleep 0.2
             done
             systemd-run -q --collect --unit stream ip netns exec {pod} sh /run/stream.sh",
            pod = from.name
        ))?;
        Ok(Self {
            client: from.node,
            server: to.node,
        })
    }

    /// Ends it after the present hundred. Tells how many datagrams were sent, and how many lost.
    pub(crate) fn stop(self, cluster: &Cluster) -> Result<(u64, u64)> {
        let client = cluster.machine(self.client);
        client.sh("touch /run/stream.stop")?;
        let ended = || {
            let state = client.try_sh("systemctl is-active stream");
            state.is_ok_and(|out| !out.success())
        };
        poll_until(PATIENCE, "the end of the datagrams", ended)?;
        cluster.machine(self.server).sh("systemctl stop udp-echo")?;
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
