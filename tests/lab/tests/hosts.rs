//! What a host and a pod are: private views, processes that end with them, reboots.

use std::process::Command;
use std::time::Duration;

use warren_lab::{Lab, LabError, Privilege, Signal, poll_until, privilege, require};

/// Long enough for a slow, shared machine.
const LIMIT: Duration = Duration::from_secs(30);

fn alive(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')')
        .next()
        .is_some_and(|rest| !rest.is_empty() && !rest.starts_with(" Z"))
}

#[test]
fn hosts_do_not_share_run_hostname_or_processes() -> Result<(), LabError> {
    require!();
    let lab = Lab::new("private")?;
    let (node1, node2) = (lab.host("node1")?, lab.host("node2")?);
    node1.sh("mkdir -p /var/run/wireguard && touch /var/run/wireguard/mine")?;
    assert!(
        !node2
            .try_run(&["test", "-e", "/var/run/wireguard"])?
            .success()
    );
    assert!(
        !std::path::Path::new("/run/wireguard/mine").exists(),
        "the machine's /run is its own"
    );
    assert_eq!(node1.run(&["hostname"])?.stdout.trim(), "node1");
    assert_eq!(node2.run(&["hostname"])?.stdout.trim(), "node2");
    let sleeper = node1.spawn_argv(&["sleep", "4242"])?;
    assert!(alive(sleeper.pid()));
    let seen = |host: &warren_lab::Host| {
        host.sh("cat /proc/[0-9]*/cmdline | tr '\\0' ' '")
            .map(|o| o.stdout.contains("sleep 4242"))
    };
    assert!(seen(&node1)?);
    assert!(!seen(&node2)?);
    Ok(())
}

#[test]
fn a_failed_command_tells_all_that_helps() -> Result<(), LabError> {
    require!();
    let lab = Lab::new("failure")?;
    let node1 = lab.host("node1")?;
    let error = node1
        .sh("echo to-out; echo to-err >&2; exit 3")
        .expect_err("it exits with 3");
    let text = error.to_string();
    for part in [
        "exit 3",
        "node1",
        "to-out",
        "to-err",
        "exit status: 3",
        "nsenter --target",
    ] {
        assert!(text.contains(part), "{part:?} is missing in: {text}");
    }
    // The line is for a person outside; this test may itself be inside the user namespace.
    let mut entered = format!("{} hostname", node1.enter_command());
    if privilege() == Privilege::UserNamespaces {
        entered = entered.replace(" --user --preserve-credentials", "");
    }
    let output = Command::new("sh")
        .args(["-c", &entered])
        .output()
        .expect("sh runs");
    assert_eq!(
        String::from_utf8_lossy(&output.stdout).trim(),
        "node1",
        "the hint works"
    );
    Ok(())
}

#[test]
fn a_command_that_hangs_is_killed_and_reported() -> Result<(), LabError> {
    require!();
    let lab = Lab::new("hang")?;
    let node1 = lab.host("node1")?;
    let mut command = Command::new("sleep");
    let result = node1.output(command.arg("600"), Duration::from_millis(200));
    assert!(
        matches!(result, Err(LabError::CommandTimeout { .. })),
        "{result:?}"
    );
    Ok(())
}

#[test]
fn a_process_is_signalled_logged_and_killed_on_drop() -> Result<(), LabError> {
    require!();
    let lab = Lab::new("processes")?;
    let node1 = lab.host("node1")?;
    let script = "trap 'echo got-hup' HUP; echo ready; while :; do sleep 0.05; done";
    let looping = node1.spawn_argv(&["sh", "-c", script])?;
    looping.wait_log("ready", LIMIT)?;
    looping.signal(Signal::SIGHUP);
    looping.wait_log("got-hup", LIMIT)?;
    assert!(looping.is_running());
    let pid = looping.pid();
    drop(looping);
    assert!(!alive(pid));
    let ends = node1.spawn_argv(&["sh", "-c", "exit 7"])?;
    assert_eq!(ends.wait_timeout(LIMIT)?.code(), Some(7));
    Ok(())
}

/// ```text
/// node1 ── lan ── node2      (node1 reboots)
/// ```
#[test]
fn a_reboot_keeps_the_directory_and_links_and_ends_all_processes() -> Result<(), LabError> {
    require!();
    let lab = Lab::new("reboot")?;
    let (node1, node2, lan) = (lab.host("node1")?, lab.host("node2")?, lab.bridge("lan")?);
    lab.connect(
        node1.end("eth0").addr("10.0.1.1/24").addr("fd01::1/64"),
        lan.port(),
    )?;
    lab.connect(
        node2.end("eth0").addr("10.0.1.2/24").addr("fd01::2/64"),
        lan.port(),
    )?;
    let pod = node1.pod_netns("a")?;
    std::fs::write(node1.dir().join("state"), "kept").expect("write");
    node1.sh("touch /run/volatile; setsid sh -c 'sleep 600 & echo $! ' > /dev/null 2>&1")?;
    let daemon = node1.spawn_argv(&["sleep", "600"])?;
    let in_pod = pod.spawn_argv(&["sleep", "600"])?;
    node2.run(&["ping", "-n", "-c1", "-W10", "10.0.1.1"])?;
    let before = node1.netns_path()?;

    node1.reboot()?;

    assert!(!daemon.is_running());
    assert!(!in_pod.is_running());
    assert_ne!(before, node1.netns_path()?);
    assert!(!node1.try_run(&["test", "-e", "/run/volatile"])?.success());
    assert_eq!(
        node1
            .sh(&format!("cat {}/state", node1.dir().display()))?
            .stdout,
        "kept"
    );
    let others = node1.sh("cat /proc/[0-9]*/cmdline | tr '\\0' ' '")?.stdout;
    assert!(
        !others.contains("sleep 600"),
        "daemons are gone too: {others}"
    );
    assert!(matches!(pod.run(&["true"]), Err(LabError::Gone { .. })));
    for address in ["10.0.1.1", "fd01::1"] {
        node2.run(&["ping", "-n", "-c1", "-W10", address])?;
    }
    node1.pod_netns("a")?;
    Ok(())
}

/// ```text
/// node1 [ pod a ]    (veth made from the host by the pod's path, as a CNI plugin does)
/// ```
#[test]
fn a_pods_namespace_is_usable_by_its_path_on_the_host() -> Result<(), LabError> {
    require!();
    let lab = Lab::new("pods")?;
    let node1 = lab.host("node1")?;
    let pod = node1.pod_netns("a")?;
    let path = pod.cni_netns().display().to_string();
    node1.sh(&format!(
        "ip link add wrn1 type veth peer name eth0 netns {path} && ip link set wrn1 up && \
         ip addr add 169.254.1.1/32 dev wrn1 && ip route add 10.244.1.2/32 dev wrn1 && \
         ip -n a addr add 10.244.1.2/32 dev eth0 && ip -n a link set eth0 up && \
         ip -n a route add 169.254.1.1 dev eth0"
    ))?;
    pod.run(&["ping", "-n", "-c1", "-W10", "169.254.1.1"])?;
    node1.run(&["ping", "-n", "-c1", "-W10", "10.244.1.2"])?;
    assert_eq!(pod.run(&["hostname"])?.stdout.trim(), "a");
    let outside = std::fs::read_link(pod.netns_path()?).expect("the test sees the namespace too");
    assert_eq!(
        pod.run(&["readlink", "/proc/self/ns/net"])?.stdout.trim(),
        outside.display().to_string()
    );
    let sleeper = pod.spawn_argv(&["sleep", "600"])?;
    pod.destroy()?;
    assert!(!sleeper.is_running());
    poll_until(LIMIT, "the host's end to vanish with the pod", || {
        node1
            .try_run(&["ip", "link", "show", "wrn1"])
            .is_ok_and(|o| !o.success())
    })?;
    node1.pod_netns("a")?;
    Ok(())
}
