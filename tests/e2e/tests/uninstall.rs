//! `warren uninstall` leaves a node as it was.
#![allow(clippy::unwrap_used)] // in a test, a failed unwrap is the report

use std::collections::BTreeSet;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Result;
use warren_e2e::{Mesh, Node};
use warren_lab::{Signal, bin, poll_for, poll_until, require};

/// Long enough for a slow, shared machine.
const LIMIT: Duration = Duration::from_secs(60);

/// Whatever Warren could have touched: a line for each thing.
fn dump(node: &Node) -> Result<BTreeSet<String>> {
    let dir = node.host.dir().display();
    // Anycast routes and multicast memberships come with IPv6 forwarding.
    let script = format!(
        "ip -o link | cut -d' ' -f2-; ip -o addr
         ip -4 route show table all; ip -6 route show table all | grep -v anycast
         ip rule; ip -6 rule; nft list ruleset; ip neigh show nud permanent
         sysctl -a 2>/dev/null | grep -E '^net.ipv[46].(conf|ip_forward)'
         for place in {dir}/cni {dir}/opt {dir}/state /run/warren /var/run/wireguard /etc/cni; do
             [ -e $place ] && find $place -exec stat -c '%n %F %a' {{}} +
             [ -e $place ] && find $place -type f -exec sha256sum {{}} +
         done; true"
    );
    let out = node.host.sh(&script)?;
    Ok(out.stdout.lines().map(str::to_owned).collect())
}

/// As [`dump`], once nothing changes any more: duplicate addresses are looked for, and routes come with a
/// carrier of which the kernel puts off the news. What `is_alive` changes all the time.
fn settled(node: &Node, is_alive: fn(&str) -> bool) -> Result<BTreeSet<String>> {
    let quiet = |dump: &BTreeSet<String>| -> BTreeSet<String> {
        dump.iter()
            .filter(|line| !is_alive(line))
            .cloned()
            .collect()
    };
    let (mut last, mut since) = (dump(node)?, Instant::now());
    poll_until(LIMIT, "the node to settle", || {
        let now = dump(node).unwrap_or_default();
        let tentative = now.iter().any(|line| line.contains(" tentative"));
        if tentative || quiet(&now) != quiet(&last) {
            since = Instant::now();
        }
        last = now;
        since.elapsed() > Duration::from_secs(2)
    })?;
    Ok(last)
}

/// Counters, what the daemons save, and link-local addresses.
fn is_alive(line: &str) -> bool {
    ["counter packets", "state/", "fe80"]
        .iter()
        .any(|part| line.contains(part))
}

/// Topology: node1 and node2 on one subnet; node2 has things of other programs beside Warren's, is
/// installed, has a pod, and is uninstalled.
#[test]
fn all_that_is_ours_goes_and_all_else_stays() -> Result<()> {
    require!();
    let mut mesh = Mesh::underlay("uninstall")?;
    mesh.add_node(1)?.start()?;
    let node = mesh.add_node(2)?;
    let dir = node.host.dir().to_owned();
    for place in ["cni", "opt", "state"] {
        std::fs::create_dir_all(dir.join(place))?;
    }
    let private = std::os::unix::fs::PermissionsExt::from_mode(0o700);
    std::fs::set_permissions(dir.join("state"), private)?;
    std::fs::write(dir.join("cni/99-other.conflist"), "{}")?;
    std::fs::write(dir.join("opt/warren-cni"), "the plugin")?;
    // What an installer that was killed leaves.
    std::fs::write(dir.join("opt/.warren-cni-XqZ1Pw"), "a part of it")?;
    std::fs::write(dir.join("opt/bridge"), "another plugin")?;
    std::fs::write(dir.join("state/notes"), "an administrator's")?;
    node.host.sh(
        "ip link add wrnother type veth peer name other0; ip link set wrnother up; ip link set other0 up
         ip addr add 203.0.113.1/24 dev wrnother; ip addr add 2001:db8:c::1/64 dev wrnother nodad
         ip route add 203.0.114.0/24 dev wrnother; ip route add 10.244.9.0/24 dev wrnother metric 7
         ip -6 route add 2001:db8:d::/64 dev wrnother; ip route add 203.0.115.0/24 dev wrnother proto 151 table 77
         ip rule add pref 5187 from 203.0.113.0/24 lookup main; ip rule add pref 100 to 203.0.116.0/24 lookup 77
         nft add table inet other; nft add table ip warren
         nft 'add chain inet other c { type filter hook forward priority 0; }'
         nft 'add rule inet other c ip saddr 203.0.113.9 counter drop'",
    )?;
    let before = settled(node, |_| false)?;
    node.start()?;
    mesh.wait_connected(LIMIT)?;
    let pod = mesh.node(2).attach("a")?;
    let node = mesh.node(2);
    // Aliases of a pod that had some, and whose DEL never came.
    node.host
        .sh("mkdir -p /run/warren/hosts && echo 10.244.2.9 b >/run/warren/hosts/wrn0")?;
    let (state, cni, opt) = (dir.join("state"), dir.join("cni"), dir.join("opt"));
    let (state, cni, opt) = (
        state.display().to_string(),
        cni.display().to_string(),
        opt.display().to_string(),
    );
    let registry = mesh.registry().display().to_string();
    let uninstall = |more: &[&str]| {
        let mut args = vec!["uninstall", "--state-dir", &state, "--cni-conf-dir", &cni];
        args.extend(["--cni-bin-dir", &opt, "--registry-dir", &registry]);
        args.extend(more);
        node.warren(&args)
    };
    let installed = settled(node, is_alive)?;
    assert_ne!(installed, before);

    // It refuses while daemons run or a pod is there, and a dry run only lists.
    for more in [&[][..], &["--pods"], &["--stop"]] {
        let (code, text) = uninstall(more)?;
        assert_eq!(code, 1, "{more:?}: {text}");
        assert!(!text.contains("removed"), "{text}");
    }
    let (code, listed) = uninstall(&["--dry-run", "--pods"])?;
    assert_eq!(code, 1, "the daemons run: {listed}");
    for part in [
        "would remove interface warren0",
        "10-warren.conflist",
        "would remove nftables table inet warren",
        "private.key",
        "opt/warren-cni",
        "opt/.warren-cni-XqZ1Pw",
        "from 10.244.2.0/24",
        "node2.json",
    ] {
        assert!(listed.contains(part), "no {part} in {listed}");
    }
    let state_of_things = dump(node)?;
    let changed: Vec<_> = installed.symmetric_difference(&state_of_things).collect();
    assert!(
        changed.iter().all(|line| is_alive(line)),
        "a dry run changed {changed:#?}"
    );
    assert_eq!(node.status()?["protected"], true);

    let (code, text) = uninstall(&["--stop", "--pods"])?;
    println!("{text}");
    assert_eq!(code, 0, "{text}");
    let after = dump(node)?;
    let named = |line: &str| {
        let key = line.split(' ').next().unwrap_or_default();
        text.contains(&format!("sysctl {key}="))
            || key.ends_with(".forwarding")
            || key == "net.ipv4.conf.all.accept_redirects"
    };
    let new: Vec<_> = after.difference(&before).filter(|l| !named(l)).collect();
    let missing: Vec<_> = before
        .difference(&after)
        .filter(|l| !named(l) && !l.contains("opt/warren-cni") && !l.contains("opt/.warren-cni-"))
        .collect();
    assert!(
        new.is_empty() && missing.is_empty(),
        "new: {new:#?}\nmissing: {missing:#?}"
    );
    for gone in ["warren-cni", ".warren-cni-XqZ1Pw"] {
        assert!(!std::path::Path::new(&opt).join(gone).exists(), "{gone}");
    }
    assert!(!mesh.registry().join("node2.json").exists());
    assert!(mesh.registry().join("node1.json").exists());
    assert!(text.contains("state/notes"), "{text}");

    // Once more: there is nothing left to do, and that is no error.
    let (code, text) = uninstall(&[])?;
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("nothing of Warren's is here"), "{text}");
    assert_eq!(dump(node)?, after);
    pod.pod.destroy()?;
    Ok(())
}

fn children(pid: &str) -> Result<String> {
    Ok(std::fs::read_to_string(format!(
        "/proc/{pid}/task/{pid}/children"
    ))?)
}

/// Topology: node1 alone. Its daemons are ended by somebody else, as a DaemonSet is deleted, while `warren uninstall`
/// waits for that; as a container's first process it stays until it is told to end.
#[test]
fn it_waits_for_daemons_that_others_end_and_stays_until_it_is_ended() -> Result<()> {
    require!();
    let mesh = Mesh::start("uninstall-wait", 1)?;
    let node = mesh.node(1);
    let dir = node.host.dir().display().to_string();
    let warren = bin("warren")?.display().to_string();
    let command = |wait: &str| {
        format!(
            "{warren} uninstall --wait {wait} --stay --state-dir {dir}/state --cni-conf-dir {dir}/cni"
        )
    };
    // Nobody ends them in time: nothing is removed, and nothing stays.
    let refused = node
        .host
        .sh(&format!("{} 2>&1 || echo ended $?", command("1")))?;
    let text = refused.stdout;
    assert!(
        text.contains("ended 1") && text.contains("nothing was removed"),
        "{text}"
    );

    let script = format!("unshare --fork --pid --kill-child {}", command("60"));
    let uninstall = node
        .host
        .spawn(Command::new("sh").args(["-c", &format!("exec {script}")]))?;
    std::thread::sleep(Duration::from_secs(1));
    assert!(uninstall.log().is_empty(), "{}", uninstall.log());
    for daemon in [&node.agent, &node.tunnel] {
        daemon.as_ref().unwrap().signal(Signal::SIGTERM);
    }
    let removed = || {
        uninstall
            .log()
            .contains("removed nftables table")
            .then_some(())
    };
    poll_for(LIMIT, "warren uninstall to be done", removed)?;
    std::thread::sleep(Duration::from_secs(1));
    assert!(uninstall.is_running(), "{}", uninstall.log());
    // The last of unshare's line: the first process of its namespace.
    let mut first = uninstall.pid().to_string();
    while let Some(child) = children(&first)?.split_whitespace().next() {
        first = child.to_owned();
    }
    assert!(Command::new("kill").arg(&first).status()?.success());
    poll_for(LIMIT, "its end", || (!uninstall.is_running()).then_some(()))?;
    Ok(())
}

/// Topology: node1 alone. Its agent is stopped, so that `warren uninstall` waits for its end, and in
/// this time a pod comes: it must not be left behind in clear.
#[test]
fn a_pod_that_comes_while_it_runs_is_not_left_without_a_filter() -> Result<()> {
    require!();
    let mesh = Mesh::start("uninstall-late", 1)?;
    let node = mesh.node(1);
    let agent = node.agent.as_ref().unwrap();
    let dir = node.host.dir().display();
    let warren = bin("warren")?;
    agent.signal(Signal::SIGSTOP);
    let script = format!(
        "{} uninstall --stop --pods --state-dir {dir}/state --cni-conf-dir {dir}/cni; echo ended $?",
        warren.display()
    );
    let uninstall = node.host.spawn(Command::new("sh").args(["-c", &script]))?;
    let asked = || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", agent.pid()));
        let status = status.unwrap_or_default();
        let pending = status.lines().find_map(|l| l.strip_prefix("ShdPnd:"));
        let pending = pending.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
        // Bit 14: SIGTERM.
        pending.filter(|mask| mask & (1 << 14) != 0)
    };
    poll_for(LIMIT, "the agent to be asked to end", asked)?;
    let late = node.attach("late")?;
    agent.signal(Signal::SIGCONT);
    let ended = || uninstall.log().contains("ended").then_some(());
    poll_for(LIMIT, "warren uninstall to end", ended)?;
    let text = uninstall.log();
    assert!(text.contains("ended 0"), "{text}");
    let left = node.host.sh("ip -br link; nft list tables")?.stdout;
    assert!(
        !left.contains("wrn") && !left.contains("inet warren"),
        "{left}\n{text}"
    );
    late.pod.destroy()?;
    Ok(())
}
