//! `warren doctor` on nodes that are well, and on nodes with damage of each kind.
//!
//! ```text
//!   node1 ----+---- lan-a ----+---- node2
//! ```
#![allow(clippy::unwrap_used)] // in a test, a failed unwrap is the report

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use serde_json::Value;
use warren_e2e::{Mesh, Node};
use warren_lab::{Signal, bin, poll_for, poll_until, require};

/// Pings that nobody answers are waited for, and the machine is slow.
const LIMIT: Duration = Duration::from_secs(60);

/// What `warren doctor` said.
struct Diagnosis {
    code: i32,
    findings: Vec<Value>,
    text: String,
}

impl Diagnosis {
    fn of(node: &Node, bin_dir: Option<&PathBuf>, more: &[&str]) -> Result<Self> {
        let warren = bin("warren")?;
        let plugins = bin_dir
            .cloned()
            .unwrap_or(warren.parent().unwrap().to_owned());
        let run = |json: &[&str]| {
            let mut command = Command::new(&warren);
            command.arg("doctor").args(json).args(more);
            command.arg("--state-dir").arg(node.state_dir());
            command
                .arg("--cni-conf-dir")
                .arg(node.conflist_path().parent().unwrap());
            command.arg("--cni-bin-dir").arg(&plugins);
            node.host.output(&mut command, LIMIT)
        };
        let out = run(&["--json"])?;
        let document: Value = serde_json::from_str(&out.stdout)?;
        let findings = document["findings"].as_array().unwrap().clone();
        let count = |severity: &str| {
            let of_it = findings.iter().filter(|f| f["severity"] == severity);
            of_it.count()
        };
        assert_eq!(document["errors"], count("error"));
        assert_eq!(document["warnings"], count("warning"));
        let code = out.status.code().unwrap();
        assert_eq!(code, i32::from(count("error") > 0), "{}", out.stdout);
        Ok(Self {
            code,
            findings,
            text: out.stdout,
        })
    }

    /// The findings of a check that are not ok: severity, what, and what to do.
    fn troubles(&self, check: &str) -> Vec<(&str, &str, &str)> {
        self.findings
            .iter()
            .filter(|f| f["check"] == check && f["severity"] != "ok")
            .map(|f| {
                (
                    f["severity"].as_str().unwrap(),
                    f["finding"].as_str().unwrap(),
                    f["action"].as_str().unwrap(),
                )
            })
            .collect()
    }

    /// Asserts that a check says this, and what to do.
    fn says(&self, check: &str, severity: &str, finding: &str, action: &str) {
        assert!(
            self.has(check, severity, finding, action),
            "{check}: {severity}, {finding:?}, {action:?} in {:#?}",
            self.troubles(check)
        );
    }

    fn has(&self, check: &str, severity: &str, finding: &str, action: &str) -> bool {
        let troubles = self.troubles(check);
        let said = |(s, f, a): &(&str, &str, &str)| {
            *s == severity && f.contains(finding) && a.contains(action)
        };
        troubles.iter().any(said)
    }

    /// Asserts that all else is well.
    fn only(&self, checks: &[&str]) {
        let others = self
            .findings
            .iter()
            .filter(|f| f["severity"] != "ok" && !checks.contains(&f["check"].as_str().unwrap()));
        let others: Vec<_> = others.collect();
        assert!(others.is_empty(), "{others:#?}");
    }
}

fn doctor(node: &Node) -> Result<Diagnosis> {
    Diagnosis::of(node, None, &["--no-probe"])
}

fn well(node: &Node) {
    let mut last = String::new();
    let found = poll_until(LIMIT, "no finding", || {
        let Ok(seen) = Diagnosis::of(node, None, &[]) else {
            return false;
        };
        last = seen.text;
        seen.findings.iter().all(|f| f["severity"] == "ok")
    });
    assert!(found.is_ok(), "{last}");
}

/// Waits until a whole diagnosis, with probes, says this: a busy machine answers some of them too late.
fn wait_says(node: &Node, check: &str, severity: &str, finding: &str, action: &str) {
    let mut last = String::new();
    let said = poll_until(LIMIT, "the finding", || {
        let Ok(seen) = Diagnosis::of(node, None, &[]) else {
            return false;
        };
        let said = seen.has(check, severity, finding, action);
        last = seen.text;
        said
    });
    assert!(
        said.is_ok(),
        "{check}: {severity}, {finding:?}, {action:?} in {last}"
    );
}

#[test]
fn a_healthy_node_has_no_finding_and_dead_daemons_are_found() -> Result<()> {
    require!();
    let mut mesh = Mesh::start("doctor-well", 2)?;
    well(mesh.node(1));
    let page = || {
        let node = mesh.node(1);
        let cni = node.conflist_path().parent().unwrap().display().to_string();
        let (state, plugins) = (node.state_dir(), bin("warren")?);
        node.warren(&[
            "doctor",
            "--state-dir",
            state.to_str().unwrap(),
            "--cni-conf-dir",
            &cni,
            "--cni-bin-dir",
            plugins.parent().unwrap().to_str().unwrap(),
        ])
    };
    // A probe of a peer that a busy machine answers too late is a finding.
    let mut last = String::new();
    let page = poll_for(LIMIT, "no finding", || {
        let (code, page) = page().ok()?;
        last.clone_from(&page);
        let nothing = "\nnothing is wrong with this node\n";
        (code == 0 && page.ends_with(nothing)).then_some(page)
    });
    let page = page.inspect_err(|_| eprintln!("{last}"))?;
    for check in [
        "agent",
        "tunnel",
        "versions",
        "kernel",
        "sysctls",
        "protection",
        "routes",
        "firewall",
        "key",
        "state",
        "disk",
        "clock",
        "cni",
        "mtu",
        "peers",
    ] {
        assert!(
            page.contains(&format!("ok       {check:<11} ")),
            "{check} in {page}"
        );
    }
    // A daemon that hangs is as good as a dead one; then both are dead.
    let node = mesh.node_mut(1);
    let agent = node.agent.take().unwrap();
    agent.signal(Signal::SIGSTOP);
    let seen = doctor(node)?;
    seen.says(
        "agent",
        "error",
        "no whole answer within 5s; the server hangs",
        "warren status",
    );
    seen.only(&["agent"]);
    agent.signal(Signal::SIGCONT);
    agent.kill();
    node.tunnel.take().unwrap().kill();
    let seen = Diagnosis::of(node, None, &[])?;
    seen.says(
        "agent",
        "error",
        "warren-agent does not answer: ",
        "start warren-agent",
    );
    seen.says(
        "tunnel",
        "error",
        "warren-tunnel does not answer: ",
        "start warren-tunnel",
    );
    seen.only(&["agent", "tunnel"]);
    assert_eq!(seen.code, 1);
    // With nothing at all of Warren there, it still ends and says so.
    node.host.sh(&format!(
        "rm -r {}/*; ip link delete warren0; nft delete table inet warren",
        node.state_dir().display()
    ))?;
    let seen = Diagnosis::of(node, None, &[])?;
    seen.says(
        "protection",
        "error",
        "nftables table inet warren is not loaded",
        "start warren-agent",
    );
    seen.says(
        "protection",
        "error",
        "the interface warren0 is gone",
        "restart warren-tunnel",
    );
    seen.says(
        "state",
        "error",
        "node.json does not exist",
        "start warren-agent",
    );
    seen.says(
        "key",
        "error",
        "private.key does not exist",
        "make it by `wg genkey`",
    );
    Ok(())
}

#[test]
fn damage_of_the_kernels_state_is_found() -> Result<()> {
    require!();
    let mesh = Mesh::start("doctor-kernel", 2)?;
    let node = mesh.node(1);
    let sh = |script: &str| node.host.sh(script).map(drop).map_err(anyhow::Error::from);
    well(node);
    // Nobody repairs while this one is stopped; and it does not answer.
    let agent = node.agent.as_ref().unwrap();
    agent.signal(Signal::SIGSTOP);
    sh("sysctl -qw net.ipv4.ip_forward=0; sysctl -qw net.ipv6.conf.all.forwarding=0
        sysctl -qw net.ipv4.conf.warren0.rp_filter=1; sysctl -qw net.ipv4.conf.all.rp_filter=0
        nft flush chain inet warren egress
        ip route del unreachable 10.244.0.0/16; ip rule del from 10.244.1.0/24 pref 5187; ip -6 rule del to fd00:244::/48 pref 5187
        ip addr del 10.244.1.1/32 dev warren0
        ip link add docker0 type bridge; ip link set docker0 up; ip addr add 10.244.77.1/24 dev docker0")?;
    let seen = doctor(node)?;
    seen.says(
        "sysctls",
        "error",
        "net.ipv4.ip_forward is 0",
        "sysctl -w net.ipv4.ip_forward=1",
    );
    seen.says(
        "sysctls",
        "error",
        "net.ipv6.conf.all.forwarding is 0",
        "sysctl -w net.ipv6",
    );
    seen.says(
        "sysctls",
        "error",
        "rp_filter is strict",
        "sysctl -w net.ipv4.conf.warren0.rp_filter=2",
    );
    seen.says(
        "protection",
        "error",
        "lacks rules: warren:egress-src-v4",
        "start warren-agent",
    );
    seen.says(
        "protection",
        "error",
        "no unreachable route for 10.244.0.0/16",
        "start warren-agent",
    );
    seen.says(
        "protection",
        "error",
        "no rule from 10.244.1.0/24 to table 51871",
        "warren-agent",
    );
    seen.says(
        "protection",
        "error",
        "no rule to fd00:244::/48 to table 51871",
        "warren-agent",
    );
    seen.says(
        "protection",
        "error",
        "lacks the address 10.244.1.1",
        "start warren-agent",
    );
    let route = "route 10.244.77.0/24 dev docker0 table 254 (protocol 2) lies in the pods' ranges";
    let action = "ip route del 10.244.77.0/24 dev docker0 table 254; then find who sets it";
    seen.says("routes", "error", route, action);
    seen.only(&["agent", "sysctls", "protection", "routes"]);
    sh("sysctl -qw net.ipv6.conf.warren0.disable_ipv6=1; ip link set warren0 down")?;
    let seen = doctor(node)?;
    seen.says(
        "sysctls",
        "error",
        "net.ipv6.conf.warren0.disable_ipv6 is 1",
        "sysctl -w",
    );
    seen.says(
        "protection",
        "error",
        "the interface warren0 is down",
        "ip link set warren0 up",
    );
    sh("sysctl -qw net.ipv6.conf.warren0.disable_ipv6=0; ip link del docker0")?;
    sh("sysctl -qw net.ipv6.conf.eth0.accept_ra=1; sysctl -qw net.ipv6.conf.all.forwarding=1")?;
    let ra = "net.ipv6.conf.eth0.accept_ra is 1 while IPv6 forwarding is on";
    doctor(node)?.says(
        "sysctls",
        "warning",
        ra,
        "sysctl -w net.ipv6.conf.eth0.accept_ra=2",
    );
    agent.signal(Signal::SIGCONT);
    well(node);
    // What the kernel cannot do: no TUN device, no nft, no namespaces.
    sh(
        "mount --bind /dev/null /dev/net/tun; chmod 000 /dev/null 2>/dev/null; chmod 666 /dev/null
        umount /dev/net/tun; mount -t tmpfs tmpfs /dev/net",
    )?;
    // A tunnel that answers has its device, wherever this command is run.
    well(node);
    let tunnel = node.tunnel.as_ref().unwrap();
    tunnel.signal(Signal::SIGSTOP);
    doctor(node)?.says(
        "kernel",
        "error",
        "/dev/net/tun cannot be opened",
        "modprobe tun",
    );
    tunnel.signal(Signal::SIGCONT);
    sh("umount /dev/net")?;
    let mut command = Command::new(bin("warren")?);
    command
        .args(["doctor", "--json", "--no-probe"])
        .env("PATH", "/nonexistent");
    let out = node.host.output(&mut command, LIMIT)?;
    assert!(
        out.stdout.contains("run nft: No such file or directory"),
        "{}",
        out.stdout
    );
    assert!(
        out.stdout.contains("apt-get install nftables"),
        "{}",
        out.stdout
    );
    Ok(())
}

#[test]
fn firewalls_small_mtus_and_unreachable_peers_are_found() -> Result<()> {
    require!();
    let mut mesh = Mesh::start("doctor-net", 3)?;
    let sh = |mesh: &Mesh, number: u8, script: &str| {
        mesh.node(number)
            .host
            .sh(script)
            .map(drop)
            .map_err(anyhow::Error::from)
    };
    well(mesh.node(1));
    // A filter that drops by default; while all peers have sessions, that is a warning.
    sh(
        &mesh,
        1,
        "nft 'table inet guard { chain incoming { type filter hook input priority 0; policy drop;
        ct state established accept; iifname lo accept; icmp type echo-reply accept
        icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept; }
        chain passing { type filter hook forward priority 0; policy drop; }
        }'",
    )?;
    let seen = doctor(mesh.node(1))?;
    let closed = "chain incoming of table inet guard drops what comes in, and no rule of it accepts UDP \
                  port 51871";
    seen.says(
        "firewall",
        "warning",
        closed,
        "nft insert rule inet guard incoming udp dport 51871 accept",
    );
    let forward = "chain passing of table inet guard drops what is forwarded";
    seen.says(
        "firewall",
        "error",
        forward,
        "nft insert rule inet guard passing iifname 'wrn*' accept",
    );
    seen.only(&["firewall"]);
    // What it says to do helps.
    for (_, _, action) in seen.troubles("firewall") {
        sh(&mesh, 1, action)?;
    }
    well(mesh.node(1));
    sh(&mesh, 1, "nft delete table inet guard")?;
    // iptables, whichever the machine has.
    if mesh.node(1).host.try_run(&["iptables", "-S"])?.success() {
        sh(
            &mesh,
            1,
            "iptables -P INPUT DROP; iptables -A INPUT -i lo -j ACCEPT",
        )?;
        let seen = doctor(mesh.node(1))?;
        let action = "iptables -I INPUT -p udp --dport 51871 -j ACCEPT";
        seen.says("firewall", "warning", "accepts UDP port 51871", action);
        sh(&mesh, 1, action)?;
        doctor(mesh.node(1))?.only(&[]);
        sh(&mesh, 1, "iptables -P INPUT ACCEPT; iptables -F INPUT")?;
    } else {
        println!("skipped: iptables is not usable here");
    }
    // A smaller link on the way to node3, which says so.
    sh(&mesh, 1, "ip route flush cache")?;
    mesh.router.sh("ip link set lan-b mtu 1400")?;
    let path = "and the way to 198.51.100.3:51871 carries 1400: at most 1340 fit";
    let mut last = String::new();
    let found = poll_until(LIMIT, "the smaller link", || {
        let Ok(seen) = Diagnosis::of(mesh.node(1), None, &[]) else {
            return false;
        };
        let troubles = seen.troubles("mtu");
        let found = troubles
            .iter()
            .any(|(_, finding, _)| finding.contains(path));
        last = seen.text;
        found
    });
    assert!(found.is_ok(), "{last}");
    mesh.router.sh("ip link set lan-b mtu 1500")?;
    sh(&mesh, 1, "ip route flush cache")?;
    // Something swallows large packets on the way, also in fragments, and says nothing.
    mesh.router.sh(
        "nft 'table inet swallow { chain pre { type filter hook prerouting priority -500
            ip frag-off & 0x3fff != 0 drop; ip length > 1300 drop; }
         }'",
    )?;
    let swallowed = "node3 answers small packets through the tunnel, but none of ";
    let action = "tracepath -n 198.51.100.3";
    wait_says(mesh.node(1), "peers", "error", swallowed, action);
    mesh.router.sh("nft delete table inet swallow")?;
    well(mesh.node(1));
    // A peer that is not there: an unreachable port is silence, and no handshake.
    let node = mesh.node_mut(3);
    node.agent.take().unwrap().kill();
    node.tunnel.take().unwrap().kill();
    let node = mesh.node_mut(1);
    node.tunnel.take().unwrap().kill();
    node.start_tunnel()?;
    poll_until(LIMIT, "a session with node2", || {
        let peer = mesh.node(1).peer_status(mesh.node(2));
        peer.is_ok_and(|peer| peer["state"] == "up")
    })?;
    let seen = Diagnosis::of(mesh.node(1), None, &[])?;
    let silent = "no handshake with node3 at 198.51.100.3:51871";
    seen.says(
        "peers",
        "error",
        silent,
        "on node3: warren doctor, and ss -lun",
    );
    assert!(
        !seen.text.contains("no handshake with node2"),
        "{}",
        seen.text
    );
    Ok(())
}

#[test]
fn damaged_files_full_disks_and_foreign_programs_are_found() -> Result<()> {
    require!();
    let mut mesh = Mesh::start("doctor-files", 1)?;
    well(mesh.node(1));
    mesh.node_mut(1).agent.take().unwrap().kill();
    let node = mesh.node(1);
    let state = node.state_dir();
    let shown = state.display().to_string();
    let sh = |script: &str| node.host.sh(script).map(drop).map_err(anyhow::Error::from);
    // The key's file.
    sh(&format!("chmod 0644 {shown}/private.key"))?;
    let seen = doctor(node)?;
    seen.says(
        "key",
        "error",
        "has mode 0644, wider than 0600",
        &format!("`chmod 0600 {shown}/private.key`"),
    );
    sh(&format!(
        "chmod 0600 {shown}/private.key; chown 12345 {shown}/private.key"
    ))?;
    doctor(node)?.says("key", "error", "is owned by uid 12345", "chown 0");
    sh(&format!("chown 0 {shown}/private.key; chmod 0755 {shown}"))?;
    doctor(node)?.says(
        "key",
        "error",
        "has mode 0755, which lets others in",
        "chmod 0700",
    );
    sh(&format!(
        "chmod 0700 {shown}; cp -p {shown}/private.key /run/key; echo x > {shown}/private.key"
    ))?;
    doctor(node)?.says("key", "error", "has 2 bytes instead of 44", "restore it");
    sh(&format!("wg genkey > {shown}/private.key"))?;
    doctor(node)?.says(
        "key",
        "warning",
        "runs with another key than its file",
        "restart warren-tunnel",
    );
    sh(&format!("cat /run/key > {shown}/private.key"))?;
    // The state.
    let tunnel_state = std::fs::read(state.join("tunnel.state"))?;
    for file in ["node.json", "view.json"] {
        let whole = std::fs::read(state.join(file))?;
        std::fs::write(state.join(file), &whole[..whole.len() / 2])?;
        let action = format!("mv {shown}/{file} {shown}/{file}.damaged");
        doctor(node)?.says(
            "state",
            "error",
            &format!("parse {shown}/{file}: EOF"),
            &action,
        );
        std::fs::write(state.join(file), whole)?;
    }
    std::fs::write(
        state.join("tunnel.state"),
        &tunnel_state[..tunnel_state.len() - 1],
    )?;
    doctor(node)?.says(
        "state",
        "error",
        "(the final empty line)",
        "restart warren-tunnel",
    );
    std::fs::write(state.join("tunnel.state.damaged"), "")?;
    doctor(node)?.says("state", "warning", "tunnel.state.damaged exists", "rm ");
    std::fs::remove_file(state.join("tunnel.state.damaged"))?;
    std::fs::create_dir_all(state.join("ipam"))?;
    std::fs::write(state.join("ipam/torn.json"), "{")?;
    doctor(node)?.says("state", "error", "ipam/torn.json: EOF", "restore it");
    std::fs::remove_file(state.join("ipam/torn.json"))?;
    // Stamps ten years ahead of the clock, as after a clock that was set back.
    let text = String::from_utf8(tunnel_state.clone())?;
    let at = text.find("tai64n_mark=4").unwrap() + "tai64n_mark=".len();
    let mark = u64::from_str_radix(&text[at..at + 16], 16)? + 315_360_000;
    let ahead = format!("{}{mark:016x}{}", &text[..at], &text[at + 16..]);
    std::fs::write(state.join("tunnel.state"), ahead)?;
    doctor(node)?.says(
        "clock",
        "warning",
        " s ahead of the clock",
        "timedatectl set-ntp true",
    );
    std::fs::write(state.join("tunnel.state"), &tunnel_state)?;
    doctor(node)?.only(&["agent"]);
    // The CNI configuration and its plugin.
    let conflist = node.conflist_path();
    let (dir, good) = (
        conflist.parent().unwrap(),
        std::fs::read_to_string(&conflist)?,
    );
    std::fs::write(dir.join("05-other.conf"), "{}")?;
    let first = "05-other.conf comes before 10-warren.conflist";
    doctor(node)?.says("cni", "error", first, "05-other.conf.off");
    std::fs::remove_file(dir.join("05-other.conf"))?;
    std::fs::write(&conflist, &good[..good.len() / 2])?;
    doctor(node)?.says(
        "cni",
        "error",
        "is no CNI configuration: EOF",
        "warren-agent writes it anew",
    );
    std::fs::write(&conflist, good.replace("warren-cni", "bridge"))?;
    doctor(node)?.says("cni", "error", "the first plugin of ", "rm ");
    std::fs::remove_file(&conflist)?;
    doctor(node)?.says(
        "cni",
        "error",
        "10-warren.conflist: No such file",
        "warren status",
    );
    std::fs::write(&conflist, &good)?;
    let plugins = node.host.dir().join("plugins");
    std::fs::create_dir(&plugins)?;
    let with_plugin = || Diagnosis::of(node, Some(&plugins), &["--no-probe"]);
    with_plugin()?.says(
        "cni",
        "error",
        "warren-cni does not exist",
        "with mode 0755",
    );
    let plugin = |script: &str| -> Result<()> {
        let path = plugins.join("warren-cni");
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n"))?;
        sh(&format!("chmod 0755 {}", path.display()))?;
        Ok(())
    };
    plugin("exit 1")?;
    with_plugin()?.says(
        "cni",
        "error",
        "its answer to VERSION is no JSON",
        "install warren-cni",
    );
    let answer = r#"echo '{"cniVersion":"1.0.0","supportedVersions":["1.0.0"]}'"#;
    plugin(&format!(
        r#"[ "$1" = --version ] && echo warren-cni 0.0.9 && exit; {answer}"#
    ))?;
    let seen = with_plugin()?;
    let versions = "the programs are of different versions: warren ";
    seen.says("versions", "warning", versions, "install the same version");
    assert!(seen.text.contains("warren-cni 0.0.9"), "{}", seen.text);
    seen.only(&["agent", "versions"]);
    plugin(&answer.replace("1.0.0\"]", "0.2.0\"]"))?;
    with_plugin()?.says(
        "cni",
        "error",
        "supports no version of the configuration",
        "install",
    );
    // The disk: little room, none, no inodes, read-only.
    let full = "keep=/run/keep; mkdir -p $keep; cp -a STATE/. $keep; \
                mount -t tmpfs -o mode=0700,OPTIONS tmpfs STATE; cp -a $keep/. STATE";
    let mount = |options: &str| sh(&full.replace("STATE", &shown).replace("OPTIONS", options));
    mount("size=1m")?;
    doctor(node)?.says("disk", "warning", "KiB left", &format!("df -h {shown}"));
    sh(&format!("cat /dev/zero > {shown}/filler || true"))?;
    doctor(node)?.says("disk", "error", "has 0 KiB left", "du -xh");
    sh(&format!("rm {shown}/filler; mount -o remount,ro {shown}"))?;
    doctor(node)?.says(
        "disk",
        "error",
        "is on a read-only file system",
        "mount -o remount,rw",
    );
    sh(&format!("umount {shown}"))?;
    mount("nr_inodes=20")?;
    sh(&format!(
        "for i in $(seq 30); do touch {shown}/f$i || true; done 2>/dev/null"
    ))?;
    doctor(node)?.says("disk", "error", "inodes left", &format!("df -i {shown}"));
    sh(&format!("umount {shown}"))?;
    // What the agent itself complains of.
    mesh.node_mut(1).start_agent()?;
    let node = mesh.node(1);
    std::fs::write(mesh.registry().join("torn.json"), "{")?;
    let torn = "warren-agent says: registry file torn.json: no node in JSON";
    poll_until(LIMIT, "the agent to complain", || {
        doctor(node).is_ok_and(|seen| seen.text.contains(torn))
    })?;
    std::fs::remove_file(mesh.registry().join("torn.json"))?;
    let key = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
    let refused = serde_json::json!({"name": "zero", "uid": "z", "podCIDRs": ["10.244.9.0/24"],
        "addresses": ["192.0.2.9"], "annotations": {"warren.network/public-key": key}});
    std::fs::write(mesh.registry().join("zero.json"), refused.to_string())?;
    poll_until(LIMIT, "the refusal", || {
        doctor(node).is_ok_and(|seen| seen.text.contains("node zero is refused: annotation "))
    })?;
    std::fs::remove_file(mesh.registry().join("zero.json"))?;
    well(node);
    Ok(())
}
