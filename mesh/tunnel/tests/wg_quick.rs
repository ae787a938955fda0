//! The program as wg-quick's userspace implementation, beside what wireguard-go promises of itself.
//!
//! ```text
//!   node1                      node2
//!   wg0 10.9.0.1, fd09::1      wg0 10.9.0.2, fd09::2
//!   eth0 192.0.2.1 ----------- eth0 192.0.2.2
//! ```

#![allow(clippy::unwrap_used)] // helpers of tests

use std::fs;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use warren_keyring::PrivateKey;
use warren_lab::{Host, Lab, LabError, Link, Output, Signal, poll_until, require};
use warren_tunnel::offload::Offloads;
use warren_tunnel::tun::Tun;

const TUNNEL: &str = env!("CARGO_BIN_EXE_warren-tunnel");
/// Long enough for a slow, shared machine.
const PATIENCE: Duration = Duration::from_secs(60);

type Result<T = ()> = std::result::Result<T, LabError>;

#[test]
fn wg_quick_brings_it_up_saves_strips_and_takes_it_down() -> Result {
    require!();
    if kernel_has_wireguard() {
        return Ok(());
    }
    let lab = Lab::new("wgquick")?;
    let (node1, node2, _link) = hosts(&lab)?;
    let (conf1, conf2) = write_configs(&node1, &node2);
    // That it ends in time says that the program goes to the background.
    wg_quick(&node1, "up", &conf1)?;
    wg_quick(&node2, "up", &conf2)?;
    for address in ["10.9.0.2", "fd09::2"] {
        wait_for_ping(&node1, address)?;
    }
    let parent = node1.sh("ps -o ppid= -p $(pidof warren-tunnel)")?.stdout;
    assert_eq!(parent.trim(), "1", "its caller is gone");
    let mode = node1.sh("stat -c %a /run/wireguard/wg0.sock /run/wireguard")?;
    assert_eq!(mode.stdout, "600\n700\n");
    // wg-quick has chosen the MTU: the underlay's, less 80.
    node1.sh("ip link show wg0 | grep -q 'mtu 1420 .*state UNKNOWN'")?;

    // What `strip` gives is what `showconf` gives, endpoints and all.
    let stripped = wg_quick(&node1, "strip", &conf1)?.stdout;
    let strip_file = node1.dir().join("stripped");
    fs::write(&strip_file, &stripped).unwrap();
    let before = node1.run(&["wg", "showconf", "wg0"])?.stdout;
    node1.sh(&format!("wg syncconf wg0 {}", strip_file.display()))?;
    assert_eq!(node1.run(&["wg", "showconf", "wg0"])?.stdout, before);
    node1.run(&["ping", "-c1", "-W10", "10.9.0.2"])?;

    node1.run(&["wg", "set", "wg0", "fwmark", "0x51"])?;
    wg_quick(&node1, "save", &conf1)?;
    let saved = fs::read_to_string(&conf1).unwrap();
    for part in [
        "FwMark = 0x51",
        "Address = 10.9.0.1/24",
        "AllowedIPs = 10.9.0.2/32",
    ] {
        assert!(saved.contains(part), "{part} in {saved}");
    }

    // Down and up again at once, some times: the old process must not be in the new one's way.
    for _ in 0..4 {
        wg_quick(&node1, "down", &conf1)?;
        wg_quick(&node1, "up", &conf1)?;
    }
    poll_until(PATIENCE, "one process", || pids(&node1) == 1)?;
    let mark = node1.run(&["wg", "show", "wg0", "fwmark"])?.stdout;
    assert_eq!(mark.trim(), "0x51");
    wait_for_ping(&node1, "10.9.0.2")?;
    wg_quick(&node1, "down", &conf1)?;
    assert_nothing_left(&node1)
}

#[test]
fn wg_quick_carries_a_default_route_by_mark() -> Result {
    require!();
    if kernel_has_wireguard() {
        return Ok(());
    }
    let lab = Lab::new("wgdefault")?;
    let (node1, node2, _link) = hosts(&lab)?;
    let (conf1, conf2) = write_configs(&node1, &node2);
    let everything = fs::read_to_string(&conf1)
        .unwrap()
        .replace("10.9.0.2/32, fd09::2/128", "0.0.0.0/0, ::/0");
    fs::write(&conf1, everything).unwrap();
    wg_quick(&node1, "up", &conf1)?;
    wg_quick(&node2, "up", &conf2)?;
    node2.sh("ip address add 198.51.100.7/32 dev lo")?;
    wait_for_ping(&node1, "198.51.100.7")?;
    let mark = node1.run(&["wg", "show", "wg0", "fwmark"])?.stdout;
    assert_eq!(mark.trim(), "0xca6c", "wg-quick has set its mark, 51820");
    wg_quick(&node1, "down", &conf1)?;
    let rules = node1.run(&["ip", "rule"])?.stdout;
    assert!(!rules.contains("51820"), "{rules}");
    assert_nothing_left(&node1)
}

#[test]
fn it_begins_down_without_key_and_peers_and_ends_with_its_interface_or_its_socket() -> Result {
    require!();
    let lab = Lab::new("wgends")?;
    let host = lab.host("node1")?;
    let ends = [
        ("its interface is deleted", "ip link delete wg0"),
        ("its socket is removed", "rm /run/wireguard/wg0.sock"),
        (
            "another socket takes its socket's place",
            "socat UNIX-LISTEN:/run/x,unlink-close=0 - & until test -S /run/x; do sleep 0.05; done
             kill $!; wait $! || true; mv /run/x /run/wireguard/wg0.sock",
        ),
        // What is left there now and after a kill is a dead socket, which the next one replaces.
        ("SIGKILL", "kill -9 $(pidof warren-tunnel)"),
        ("SIGTERM", "kill $(pidof warren-tunnel)"),
    ];
    for (end, script) in ends {
        host.run(&[TUNNEL, "wg0"])?;
        // Both are there as soon as the command returns.
        let dump = host.run(&["wg", "show", "wg0", "dump"])?.stdout;
        let fields: Vec<&str> = dump.trim_end().split('\t').collect();
        assert_eq!(fields[..2], ["(none)", "(none)"], "{dump}");
        assert_eq!(fields[3..], ["off"], "{dump}");
        assert_eq!(dump.lines().count(), 1, "no peers: {dump}");
        host.sh("ip link show wg0 | grep -q 'mtu 1420 .*state DOWN'")?;
        host.sh(script)?;
        poll_until(PATIENCE, end, || pids(&host) == 0)?;
        poll_until(PATIENCE, "the end of the interface", || {
            let link = host.try_run(&["ip", "link", "show", "wg0"]).unwrap();
            !link.success()
        })?;
    }
    assert_nothing_left(&host)
}

#[test]
fn a_second_one_for_the_interface_is_refused_and_the_first_goes_on() -> Result {
    require!();
    let lab = Lab::new("wgsecond")?;
    let host = lab.host("node1")?;
    host.run(&[TUNNEL, "wg0"])?;
    let second = host.try_run(&[TUNNEL, "wg0"])?;
    assert!(!second.success());
    assert!(
        second.stderr.contains("open TUN wg0") && second.stderr.contains("another's"),
        "{}",
        second.stderr
    );
    // One for another interface is none of the first one's business.
    host.run(&[TUNNEL, "wg1"])?;
    let interfaces = host.run(&["wg", "show", "interfaces"])?.stdout;
    let mut interfaces: Vec<&str> = interfaces.split_whitespace().collect();
    interfaces.sort_unstable();
    assert_eq!(interfaces, ["wg0", "wg1"]);
    // A socket that somebody answers on is not taken away from him.
    host.run(&["ip", "link", "delete", "wg1"])?;
    poll_until(PATIENCE, "the end of wg1", || pids(&host) == 1)?;
    let other = host.spawn_argv(&[
        "socat",
        "UNIX-LISTEN:/run/wireguard/wg1.sock,fork",
        "EXEC:true",
    ])?;
    poll_until(PATIENCE, "a socket", || {
        host.sh("test -S /run/wireguard/wg1.sock").is_ok()
    })?;
    let refused = host.try_run(&[TUNNEL, "wg1"])?;
    assert!(
        refused.stderr.contains("another process answers there"),
        "{}",
        refused.stderr
    );
    assert!(!host.try_run(&["ip", "link", "show", "wg1"])?.success());
    assert!(other.is_running());
    host.run(&["wg", "show", "wg0"])?;
    Ok(())
}

#[test]
fn the_node_daemon_and_a_transient_interface_live_side_by_side() -> Result {
    require!();
    let lab = Lab::new("wgbeside")?;
    let host = lab.host("node1")?;
    let state = host.dir().join("state");
    let node = host.spawn(Command::new(TUNNEL).arg("--state-dir").arg(state))?;
    node.wait_log("the tunnel is up", PATIENCE)?;
    host.run(&[TUNNEL, "wg0"])?;
    let refused = host.try_run(&[TUNNEL, "warren0"])?;
    assert!(!refused.success(), "the node's interface is the node's");
    host.run(&["ip", "link", "delete", "wg0"])?;
    poll_until(PATIENCE, "the end of wg0", || pids(&host) == 1)?;
    assert!(node.is_running());
    host.run(&["wg", "show", "warren0"])?;
    Ok(())
}

#[test]
fn it_takes_over_open_descriptors_and_stays_in_the_foreground_when_told_to() -> Result {
    require!();
    let lab = Lab::new("wgfds")?;
    let host = lab.host("node1")?;
    let foreground = host.spawn(Command::new(TUNNEL).args(["-f", "wg1", "--log", "info"]))?;
    foreground.wait_log("the tunnel is up", PATIENCE)?;
    let by_environment = host.spawn(
        Command::new(TUNNEL)
            .arg("wg2")
            .env("WG_PROCESS_FOREGROUND", "1")
            .env("LOG_LEVEL", "verbose"),
    )?;
    by_environment.wait_log("the tunnel is up", PATIENCE)?;

    // Bare packets, or packets behind a header: whatever the giver has chosen.
    for (name, offloads, in_use) in [
        ("wg3", Offloads::NONE, "offload=udp_segment,udp_gro"),
        ("wg4", Offloads::ALL, "offload=tso,"),
    ] {
        let sockets = host.dir().join(name);
        fs::create_dir(&sockets).unwrap();
        let socket = sockets.join(format!("{name}.sock"));
        let uapi = UnixListener::bind(&socket).unwrap();
        let open = || Tun::open_transient(name, 1400, offloads);
        let tun = host.in_netns(open)?.unwrap();
        inherit(uapi.as_raw_fd());
        inherit(tun.as_raw_fd());
        let given = host.spawn(
            Command::new(TUNNEL)
                .args(["-f", "any-name", "--log", "info", "--uapi-dir"])
                .arg(&sockets)
                .env("WG_TUN_FD", tun.as_raw_fd().to_string())
                .env("WG_UAPI_FD", uapi.as_raw_fd().to_string()),
        )?;
        drop((tun, uapi));
        given.wait_log("the tunnel is up", PATIENCE)?;
        for part in [name, in_use] {
            assert!(given.log().contains(part), "{part}: {}", given.log());
        }
        let mut client = Command::new("socat");
        let socket = format!("UNIX-CONNECT:{}", socket.display());
        client.args(["-t5", "-", &socket]);
        let answer = host.output_with_input(&mut client, b"get=1\n\n", PATIENCE)?;
        assert!(answer.stdout.ends_with("errno=0\n\n"), "{}", answer.stdout);
        host.run(&["ip", "link", "delete", name])?;
        assert!(given.wait_timeout(PATIENCE)?.success());
    }

    let mut wrong = Command::new(TUNNEL);
    wrong.arg("wg5").env("WG_TUN_FD", "nonsense");
    let wrong = host.output(&mut wrong, PATIENCE)?;
    assert!(!wrong.success() && wrong.stderr.contains("WG_TUN_FD=nonsense"));
    for process in [foreground, by_environment] {
        process.signal(Signal::SIGTERM);
        assert!(process.wait_timeout(PATIENCE)?.success());
    }
    Ok(())
}

fn hosts(lab: &Lab) -> Result<(Host, Host, Link)> {
    let (node1, node2) = (lab.host("node1")?, lab.host("node2")?);
    let link = lab.connect(
        node1.end("eth0").addr("192.0.2.1/24"),
        node2.end("eth0").addr("192.0.2.2/24"),
    )?;
    Ok((node1, node2, link))
}

/// The configurations of both ends, as people write them.
fn write_configs(node1: &Host, node2: &Host) -> (String, String) {
    let keys: Vec<PrivateKey> = (0..2).map(|_| PrivateKey::generate().unwrap()).collect();
    let write = |host: &Host, own: usize| {
        let (me, other) = (own + 1, 2 - own);
        let path = host.dir().join("wg0.conf").display().to_string();
        let text = format!(
            "[Interface]\nAddress = 10.9.0.{me}/24, fd09::{me}/64\nPrivateKey = {}\n\
             ListenPort = 51820\n\n[Peer]\nPublicKey = {}\nEndpoint = 192.0.2.{other}:51820\n\
             AllowedIPs = 10.9.0.{other}/32, fd09::{other}/128\nPersistentKeepalive = 25\n",
            *keys[own].to_base64(),
            keys[1 - own].public_key().to_base64(),
        );
        fs::write(&path, text).unwrap();
        path
    };
    (write(node1, 0), write(node2, 1))
}

fn wg_quick(host: &Host, verb: &str, config: &str) -> Result<Output> {
    let mut command = Command::new("wg-quick");
    command
        .args([verb, config])
        .env("WG_QUICK_USERSPACE_IMPLEMENTATION", TUNNEL);
    let output = host.output(&mut command, PATIENCE)?;
    host.check(&command, output)
}

fn wait_for_ping(host: &Host, address: &str) -> Result {
    let ping = ["ping", "-c1", "-W1", address];
    poll_until(PATIENCE, "a ping", || {
        host.try_run(&ping).is_ok_and(|output| output.success())
    })?;
    Ok(())
}

fn pids(host: &Host) -> usize {
    let pidof = host.try_run(&["pidof", "warren-tunnel"]).unwrap();
    pidof.stdout.split_whitespace().count()
}

fn assert_nothing_left(host: &Host) -> Result {
    poll_until(PATIENCE, "the end of the process", || pids(host) == 0)?;
    // A process is not found any more before the kernel has closed what it had.
    poll_until(PATIENCE, "the end of interface and socket", || {
        let gone = "! ip link show wg0 2>/dev/null && ! test -e /run/wireguard/wg0.sock";
        host.sh(gone).is_ok()
    })?;
    host.sh("! test -e /run/warren && ! test -e /var/lib/warren")?;
    Ok(())
}

fn inherit(descriptor: RawFd) {
    // SAFETY: it is open, and only its flag is changed.
    assert_eq!(unsafe { libc::fcntl(descriptor, libc::F_SETFD, 0) }, 0);
}

/// wg-quick prefers the kernel's WireGuard wherever there is one.
fn kernel_has_wireguard() -> bool {
    let found = Path::new("/sys/module/wireguard").exists();
    if found {
        println!("skipped: this kernel has WireGuard, so that wg-quick uses no other");
        assert!(std::env::var_os("CI").is_none(), "CI must not skip");
    }
    found
}
