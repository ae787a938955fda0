//! Devices and namespaces that go.

use std::time::Duration;

use anyhow::ensure;
use warren_lab::{Lab, bin, poll_until};
use warren_selftest::{Kind, Pair, Result, Roles};

scenarios! {
    a_removed_device_leaves_nothing
    crossed_namespaces_go_when_nobody_is_in_them
}

/// How long the kernel may take to end a namespace.
const LIMIT: Duration = Duration::from_secs(30);

/// Both interfaces are removed while they talk: their processes end, and can be started again.
fn a_removed_device_leaves_nothing(roles: Roles) -> Result {
    let pair = Pair::new(roles)?;
    pair.meet(warren_selftest::Outer::V4)?;
    pair.reaches(1)?;
    let Pair { first, second, .. } = pair;
    for device in [first, second] {
        let (kind, host, name) = (device.kind, device.host.clone(), device.name.clone());
        device.remove()?;
        ensure!(
            host.run(&["wg", "show", "interfaces"])?
                .stdout
                .trim()
                .is_empty()
        );
        // The port is free again.
        warren_selftest::Device::new(kind, &host, &name, Pair::port(1))?.remove()?;
    }
    Ok(())
}

/// ```text
///   namespace a: made wg1, has wg2         namespace b: made wg2, has wg1
/// ```
///
/// Each device is moved to the namespace that the other one was made in, and sends and receives in its own.
/// Then the names of both go. `wg2` is the kernel's, which holds no namespace; a program is in the one that it
/// was started in and keeps it, until its device goes with the other one. Two programs would hold each
/// other's for ever: that is no fault of either. The ends of cables tell whether the namespaces are there.
fn crossed_namespaces_go_when_nobody_is_in_them(roles: Roles) -> Result {
    if [roles.first, roles.second] == [Kind::Ours; 2] {
        return Ok(());
    }
    let lab = Lab::new("selftest")?;
    let host = lab.host("host1")?;
    host.sh("for space in a b; do
             ip netns add $space
             ip link add to-$space type veth peer name eth0 netns $space
         done")?;
    let mut programs = Vec::new();
    for (kind, name, space, other) in [
        (roles.first, "wg1", "a", "b"),
        (roles.second, "wg2", "b", "a"),
    ] {
        if kind == Kind::Ours {
            let program = bin("warren-tunnel")?;
            let program = program.to_string_lossy();
            let argv = [
                "ip", "netns", "exec", space, &*program, "-f", "--log", "info", name,
            ];
            let started = host.spawn_argv(&argv)?;
            started.wait_log("the tunnel is up", LIMIT)?;
            programs.push(started);
        } else {
            host.sh(&format!("ip -n {space} link add {name} type wireguard"))?;
        }
        host.sh(&format!("ip -n {space} link set {name} netns {other}"))?;
        host.sh(&format!("ip -n {other} link set {name} up"))?;
    }
    let there = || host.try_run(&["sh", "-c", "ip link show to-a || ip link show to-b"]);
    ensure!(there()?.success());
    host.sh("ip netns delete a; ip netns delete b")?;
    poll_until(LIMIT, "both namespaces to be gone", || {
        there().is_ok_and(|said| !said.success())
    })?;
    for program in programs {
        let status = program.wait_timeout(LIMIT)?;
        ensure!(status.success(), "{status}: {}", program.describe());
    }
    Ok(())
}
