//! The images under a real runtime, Debian's containerd and runc: the daemons run with the rights
//! that the documentation names, and no others.
//!
//! ```text
//!   node1 192.0.2.1 ---- lan ---- node2 192.0.2.2
//!   containers: tunnel, agent     containers: tunnel, agent
//! ```
#![allow(clippy::unwrap_used)] // in a test, a failed unwrap is the report

use std::collections::BTreeSet;
use std::io::Write as _;
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Result;
use serde_json::Value;
use warren_image_suite::{Container, IMAGES, Node, PATIENCE, missing};
use warren_lab::{Lab, Proc, poll_until, require};

/// The rights of each daemon; ARCHITECTURE.md says what for.
const TUNNEL: [&str; 2] = ["CAP_NET_ADMIN", "CAP_NET_RAW"];
const AGENT: [&str; 1] = ["CAP_NET_ADMIN"];
const NO_RIGHTS: [&str; 0] = [];

/// Says why containers cannot be run here; in CI that is a failure.
fn skipped() -> bool {
    let Some(what) = missing() else { return false };
    assert!(std::env::var_os("CI").is_none(), "missing: {what}");
    let _ = writeln!(std::io::stderr(), "skipped: missing: {what}");
    true
}

fn nodes(lab: &Lab, count: u8, images: &[&str]) -> Result<Vec<Node>> {
    let lan = lab.bridge("lan")?;
    (1..=count)
        .map(|n| {
            let host = lab.host(&format!("node{n}"))?;
            let end = host.end("eth0").addr(&format!("192.0.2.{n}/24"));
            lab.connect(end.via("192.0.2.254"), lan.port())?;
            Node::start(host, images)
        })
        .collect()
}

/// The directories that both daemons share, as the kubelet makes them: anybody may look in.
fn with_state(node: &Node, container: Container) -> Result<Container> {
    let state = node.directory("state")?;
    Ok(container
        .mount(state, "/var/lib/warren")
        .mount(node.directory("run")?, "/run/warren")
        .mount(node.directory("uapi")?, "/var/run/wireguard"))
}

fn tunnel(node: &Node, capabilities: &[&'static str]) -> Result<Proc> {
    let container = Container::new("tunnel", "tunnel").capabilities(capabilities);
    let container = with_state(node, container)?.mount("/dev/net/tun", "/dev/net/tun");
    node.spawn(&container, &["/usr/bin/warren-tunnel"])
}

fn agent(node: &Node, number: usize, registry: &Path, more: &[&str]) -> Result<Proc> {
    let container = Container::new("agent", "agent").capabilities(&AGENT);
    let container = with_state(node, container)?
        .mount("/proc/sys/net", "/host/proc/sys/net")
        .mount(node.directory("net.d")?, "/etc/cni/net.d")
        .mount(registry, "/nodes");
    let name = format!("--node-name=node{number}");
    let pods = format!("--pod-cidrs=10.244.{number}.0/24,fd00:244:0:{number}::/64");
    let mut program = vec!["/usr/bin/warren-agent", &name, &pods];
    program.extend([
        "--cluster-cidrs=10.244.0.0/16,fd00:244::/48",
        "--registry=file",
        "--registry-dir=/nodes",
    ]);
    program.extend(more);
    node.spawn(&container, &program)
}

fn status(node: &Node) -> Option<Value> {
    let said = node
        .exec("agent", &["/usr/bin/warren", "status", "--json"])
        .ok()?;
    said.json().ok()
}

#[test]
fn a_runtime_takes_the_images_and_starts_each_of_their_programs() -> Result<()> {
    require!();
    if skipped() {
        return Ok(());
    }
    let lab = Lab::new("images")?;
    let node = &nodes(&lab, 1, &IMAGES)?[0];
    let version = env!("CARGO_PKG_VERSION");
    let warren = format!("warren {version}\n");
    for (image, program, expected) in [
        (
            "tunnel",
            "/usr/bin/warren-tunnel",
            format!("warren-tunnel {version}\n"),
        ),
        ("tunnel", "/usr/bin/warren", warren.clone()),
        (
            "agent",
            "/usr/bin/warren-agent",
            format!("warren-agent {version}\n"),
        ),
        ("agent", "/usr/bin/warren", warren.clone()),
        ("cni", "/usr/bin/warren", warren),
    ] {
        let container = Container::new(image, "version");
        let said = node.run(&container, &[program, "--version"])?;
        assert_eq!(
            (said.success(), &*said.stdout),
            (true, &*expected),
            "{said:?}"
        );
    }
    let container = Container::new("agent", "nft");
    let said = node.run(&container, &["/usr/sbin/nft", "--version"])?;
    assert!(said.stdout.starts_with("nftables v"), "{said:?}");
    for image in IMAGES {
        let shell = node.run(&Container::new(image, "shell"), &["/bin/sh", "-c", "true"])?;
        assert!(
            !shell.success() && shell.stderr.contains("no such file"),
            "{shell:?}"
        );
    }
    Ok(())
}

#[test]
fn the_plugin_is_installed_by_a_container_without_any_right() -> Result<()> {
    require!();
    if skipped() {
        return Ok(());
    }
    let lab = Lab::new("install")?;
    let node = &nodes(&lab, 1, &["cni"])?[0];
    let bin = node.directory("bin")?;
    let container = Container::new("cni", "install").mount(&bin, "/host/cni-bin");
    let program = ["/usr/bin/warren", "install-cni", "--to", "/host/cni-bin"];
    for expected in ["installed", "up to date"] {
        let said = node.run(&container, &program)?;
        let line = format!("/host/cni-bin/warren-cni: {expected}\n");
        assert_eq!(
            (said.success(), said.stdout.clone()),
            (true, line),
            "{said:?}"
        );
    }
    // On the host, which has another C library or none.
    let plugin = bin.join("warren-cni");
    let said = node
        .host
        .sh(&format!("CNI_COMMAND=VERSION {}", plugin.display()))?;
    assert_eq!(said.json()?["cniVersion"], "1.1.0");
    Ok(())
}

/// Topology: see above.
#[test]
fn nodes_are_a_mesh_by_daemons_in_containers_that_have_only_the_rights_they_need() -> Result<()> {
    require!();
    if skipped() {
        return Ok(());
    }
    let lab = Lab::new("containers")?;
    let nodes = nodes(&lab, 2, &["tunnel", "agent"])?;
    let registry = lab.dir().join("nodes");
    std::fs::create_dir(&registry)?;
    let mut daemons = Vec::new();
    for (node, number) in nodes.iter().zip(1..) {
        daemons.push(tunnel(node, &TUNNEL)?);
        daemons.push(agent(
            node,
            number,
            &registry,
            &["--sysctl-dir=/host/proc/sys"],
        )?);
    }
    let logs = || daemons.iter().map(|it| it.describe()).collect::<String>();
    let is_well = |node: &Node| {
        let none = serde_json::json!([]);
        status(node).is_some_and(|it| {
            it["protected"] == true && it["peers"][0]["node"].is_string() && it["problems"] == none
        })
    };
    poll_until(PATIENCE, "both nodes know one another", || {
        nodes.iter().all(is_well)
    })
    .inspect_err(|_| eprintln!("{}", logs()))?;
    for to in ["10.244.2.1", "fd00:244:0:2::1"] {
        nodes[0].host.run(&["ping", "-c3", "-W5", to])?;
    }
    for node in &nodes {
        let settings = ["net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"];
        for setting in settings {
            assert_eq!(node.host.run(&["sysctl", "-n", setting])?.stdout, "1\n");
        }
        assert!(
            node.directory("net.d")?
                .join("10-warren.conflist")
                .is_file()
        );
        // What a probe of the tunnel runs.
        let probe = ["/usr/bin/warren", "show", "warren0", "listen-port"];
        let said = node.exec("tunnel", &probe)?;
        assert_eq!(
            (said.success(), &*said.stdout),
            (true, "51871\n"),
            "{said:?}"
        );
    }
    // What is there of the daemons' rights, as the kernel says it.
    let rights = |container: &str| -> Result<BTreeSet<String>> {
        let of = nodes[0].host.sh(&format!(
            "grep -h -E '^(CapPrm|CapBnd|NoNewPrivs|Seccomp):' /proc/$(pgrep -x warren-{container} | head -n 1)/status"
        ))?;
        Ok(of
            .stdout
            .lines()
            .map(|it| it.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect())
    };
    let expected = |mask: &str| -> BTreeSet<String> {
        [
            format!("CapPrm: {mask}"),
            format!("CapBnd: {mask}"),
            "NoNewPrivs: 1".into(),
            "Seccomp: 2".into(),
        ]
        .into()
    };
    assert_eq!(rights("tunnel")?, expected("0000000000003000"));
    assert_eq!(rights("agent")?, expected("0000000000001000"));

    // They end when they are told to, well before the kubelet would kill them.
    for container in ["agent", "tunnel"] {
        nodes[0].terminate(container)?;
    }
    for daemon in &daemons[..2] {
        let ended = daemon.wait_timeout(Duration::from_secs(20))?;
        assert!(ended.success(), "{}", daemon.describe());
    }
    nodes[0].host.run(&["ip", "link", "show", "warren0"])?;
    Ok(())
}

#[test]
fn daemons_without_a_right_that_they_need_say_which() -> Result<()> {
    require!();
    if skipped() {
        return Ok(());
    }
    let lab = Lab::new("rights")?;
    let node = &nodes(&lab, 1, &["tunnel", "agent"])?[0];
    let refused = tunnel(node, &NO_RIGHTS)?;
    assert!(!refused.wait_timeout(PATIENCE)?.success());
    assert!(refused.log().contains("CAP_NET_ADMIN"), "{}", refused.log());

    let registry = node.directory("nodes")?;
    let _tunnel = tunnel(node, &TUNNEL)?;
    let agent = agent(node, 1, &registry, &[])?;
    let says_so = |it: Value| it["problems"].to_string().contains("sysctl-dir");
    poll_until(PATIENCE, "the agent says that it cannot set", || {
        status(node).is_some_and(says_so)
    })
    .inspect_err(|_| eprintln!("{}", agent.describe()))?;
    Ok(())
}

/// Answers questions for this name: its IPv4 address is 127.0.0.7, and it has none of IPv6.
fn answer_dns(socket: &UdpSocket, name: &str, stop: &AtomicBool) -> std::io::Result<()> {
    let labels: Vec<u8> = name
        .split('.')
        .flat_map(|label| [&[label.len() as u8], label.as_bytes()].concat())
        .chain([0])
        .collect();
    let mut question = [0; 512];
    while !stop.load(Ordering::Relaxed) {
        let Ok((length, from)) = socket.recv_from(&mut question) else {
            continue;
        };
        let end = 12 + labels.len() + 4;
        if length < end || question[12..12 + labels.len()] != labels {
            continue;
        }
        let is_ipv4 = question[end - 4..end] == [0, 1, 0, 1];
        let mut answer = question[..end].to_vec();
        // A recursive answer without an error, with one record or none.
        answer[2..12].copy_from_slice(&[0x81, 0x80, 0, 1, 0, u8::from(is_ipv4), 0, 0, 0, 0]);
        if is_ipv4 {
            answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 127, 0, 0, 7]);
        }
        socket.send_to(&answer, from)?;
    }
    Ok(())
}

/// A static program brings its own resolver along. Each form of the name leads to an address of its
/// own, where somebody waits for a connection.
#[test]
fn an_agent_finds_its_api_server_by_address_by_etc_hosts_and_by_dns() -> Result<()> {
    require!();
    if skipped() {
        return Ok(());
    }
    let lab = Lab::new("names")?;
    let node = &nodes(&lab, 1, &["agent"])?[0];
    let dir = node.directory("etc")?;
    std::fs::write(dir.join("hosts"), "127.0.0.6 api.hosts.test\n")?;
    std::fs::write(dir.join("resolv.conf"), "nameserver 127.0.0.1\n")?;
    // As the kubelet does it for the host's network, the runtime shows these of the node.
    for file in ["hosts", "resolv.conf"] {
        let from = dir.join(file);
        let mount = format!("mount --bind {} /etc/{file}", from.display());
        node.host.sh(&mount)?;
    }
    let socket = node.host.in_netns(|| UdpSocket::bind("127.0.0.1:53"))??;
    socket.set_read_timeout(Some(Duration::from_millis(100)))?;
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let dns = std::thread::spawn(move || answer_dns(&socket, "api.dns.test", &stopped));

    for (server, port) in [
        ("127.0.0.5", 6005),
        ("api.hosts.test", 6006),
        ("api.dns.test", 6007),
    ] {
        let address = format!("127.0.0.{}:{port}", port - 6000);
        let listener = node
            .host
            .in_netns(|| std::net::TcpListener::bind(&address))??;
        let kubeconfig = kubeconfig(&dir, &format!("https://{server}:{port}"))?;
        let container = Container::new("agent", "names")
            .capabilities(&AGENT)
            .mount(&kubeconfig, "/kubeconfig")
            .mount(dir.join("authority"), "/authority")
            .mount(node.directory(server)?, "/var/lib/warren")
            .mount(node.directory(&format!("{server}-run"))?, "/run/warren");
        let program = [
            "/usr/bin/warren-agent",
            "--registry=kubernetes",
            "--kubeconfig=/kubeconfig",
            "--node-name=node1",
            "--cluster-cidrs=10.244.0.0/16",
            "--cni-conf-dir=",
        ];
        let agent = node.spawn(&container, &program)?;
        listener.set_nonblocking(true)?;
        poll_until(PATIENCE, server, || listener.accept().is_ok())
            .inspect_err(|_| eprintln!("{}", agent.describe()))?;
        node.terminate("names")?;
        agent.wait_timeout(PATIENCE)?;
    }
    stop.store(true, Ordering::Relaxed);
    dns.join().unwrap()?;
    Ok(())
}

/// Of a cluster with an authority of its own, as all have: the image holds nobody's certificates.
fn kubeconfig(dir: &Path, server: &str) -> Result<PathBuf> {
    let authority = rcgen::generate_simple_self_signed(["authority".to_owned()])?;
    std::fs::write(dir.join("authority"), authority.cert.pem())?;
    let path = dir.join("kubeconfig");
    let document = serde_json::json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "it",
        "clusters": [{ "name": "it", "cluster": { "server": server, "certificate-authority": "/authority" } }],
        "users": [{ "name": "it", "user": { "token": "none" } }],
        "contexts": [{ "name": "it", "context": { "cluster": "it", "user": "it" } }],
    });
    std::fs::write(&path, document.to_string())?;
    Ok(path)
}
