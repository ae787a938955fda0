//! The plugin in chains with Debian's reference plugins, driven by cnitool: libcni's own client.
//!
//! ```text
//!   pod 10.244.1.x          node 192.0.2.1                        outside 192.0.2.9
//!       fd00:0:0:1::x            2001:db8::1                              2001:db8::9
//!   eth0 -------------- wrn....   uplink --------------------------- eth0
//!   listens on :80      portmap: :8080 of the node's addresses -> pod:80
//! ```

#![allow(
    clippy::unwrap_used,
    reason = "in a test a failed step is a failed test"
)]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use serde_json::{Value, json};
use warren_cni_suite::world::addresses;
use warren_cni_suite::{Ns, World, schema, skip, tools, world};

const GREETING: &[u8] = b"from the pod";
const PATIENCE: Duration = Duration::from_secs(10);

/// cnitool on a node, with a chain.
struct Cnitool<'a> {
    world: &'a World,
    program: PathBuf,
    bin: PathBuf,
}

impl<'a> Cnitool<'a> {
    /// None, with the reason told, when a program is missing.
    fn new(world: &'a World, reference: &[&str]) -> Option<Self> {
        let Some(program) = tools::prepared("cnitool") else {
            skip("cnitool is not built; run tests/cni/prepare");
            return None;
        };
        for name in reference {
            if !Path::new(tools::REFERENCE_PLUGINS).join(name).exists() {
                skip(&format!(
                    "{name} is missing (Debian package containernetworking-plugins)"
                ));
                return None;
            }
        }
        let bin = tools::plugin_dir(world.dir(), reference);
        // Its cache and the locks of others are not the machine's.
        for dir in ["var-lib", "own-run"] {
            std::fs::create_dir(world.dir().join(dir)).unwrap();
        }
        Some(Self {
            world,
            program,
            bin,
        })
    }

    /// Writes the configuration: ours, then these plugins.
    fn conflist(&self, version: &str, ours: Value, chained: &[Value]) {
        let mut first = self.world.conf();
        let keys = first.as_object_mut().unwrap();
        keys.remove("cniVersion");
        keys.remove("name");
        keys.insert(
            "capabilities".into(),
            json!({"ips": true, "mac": true, "aliases": true}),
        );
        keys.extend(ours.as_object().unwrap().clone());
        let plugins = [&[first][..], chained].concat();
        let list = json!({"cniVersion": version, "name": "warren", "plugins": plugins});
        let dir = self.world.dir().join("net.d");
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("10-warren.conflist"), list.to_string()).unwrap();
    }

    fn run(&self, verb: &str, pod: &Ns, capabilities: &Value) -> Output {
        let dir = self.world.dir().display();
        let script = format!(
            "mount --make-rprivate / && mount --bind {dir}/var-lib /var/lib &&
             mount --bind {dir}/own-run /run && exec \"$@\""
        );
        let mut command = Command::new("unshare");
        command
            .args(["-m", "sh", "-c", &script, "sh"])
            .arg(&self.program);
        command.args([verb, "warren"]).arg(pod.path());
        command
            .env("NETCONFPATH", self.world.dir().join("net.d"))
            .env("CNI_PATH", &self.bin)
            .env("CAP_ARGS", capabilities.to_string())
            .env("PATH", "/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin");
        self.world.node.run(|| command.output().unwrap())
    }

    #[track_caller]
    fn ok(&self, verb: &str, pod: &Ns, capabilities: &Value) -> String {
        let out = self.run(verb, pod, capabilities);
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        let err = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success(), "{verb}: {text}{err}");
        text
    }

    #[track_caller]
    fn add(&self, pod: &Ns, capabilities: &Value) -> Value {
        serde_json::from_str(&self.ok("add", pod, capabilities)).unwrap()
    }

    #[track_caller]
    fn fails(&self, verb: &str, pod: &Ns, words: &[&str]) {
        let out = self.run(verb, pod, &json!({}));
        assert!(!out.status.success(), "{out:?}");
        let text = String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned();
        assert!(words.iter().all(|word| text.contains(word)), "{text}");
    }
}

/// Answers on TCP port 80 and UDP port 80 of a pod, until the test ends.
fn serve(pod: &Ns) {
    let (tcp, udp) = pod.run(|| {
        let any: SocketAddr = "[::]:80".parse().unwrap();
        (
            TcpListener::bind(any).unwrap(),
            UdpSocket::bind(any).unwrap(),
        )
    });
    std::thread::spawn(move || {
        for client in tcp.incoming().flatten() {
            let _ = { client }.write_all(GREETING);
        }
    });
    std::thread::spawn(move || {
        let mut packet = [0; 100];
        while let Ok((_, from)) = udp.recv_from(&mut packet) {
            let _ = udp.send_to(GREETING, from);
        }
    });
}

fn ask_tcp(from: &Ns, to: &str) -> std::io::Result<Vec<u8>> {
    let to: SocketAddr = to.parse().unwrap();
    from.run(|| {
        let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut text = Vec::new();
        stream.read_to_end(&mut text)?;
        Ok(text)
    })
}

fn ask_udp(from: &Ns, to: &str) -> std::io::Result<Vec<u8>> {
    let to: SocketAddr = to.parse().unwrap();
    from.run(|| {
        let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = UdpSocket::bind(any)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.send_to(b"?", to)?;
        let mut packet = [0; 100];
        let (length, _) = socket.recv_from(&mut packet)?;
        Ok(packet[..length].to_vec())
    })
}

fn portmap() -> Value {
    json!({"type": "portmap", "capabilities": {"portMappings": true}})
}

fn ports() -> Value {
    json!({"portMappings": [
        {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
        {"hostPort": 8080, "containerPort": 80, "protocol": "udp"},
    ]})
}

/// Ends a test where a program is missing.
macro_rules! cnitool {
    ($world:expr, $reference:expr) => {
        match Cnitool::new($world, $reference) {
            Some(tool) => tool,
            None => return,
        }
    };
}

#[test]
fn cnitool_drives_every_verb_in_every_version() {
    let world = world!();
    let tool = cnitool!(&world, &[]);
    let none = json!({});
    for version in ["0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let (pod, left) = (Ns::new(), Ns::new());
        tool.conflist(version, json!({}), &[]);
        let result = tool.add(&pod, &none);
        // libcni has read it with its own types of that version, and written it again.
        schema::check_result(&result, version);
        pod.sh("ping -n -c 1 -W 10 10.244.1.1 && ping -n -c 1 -W 10 fd00:0:0:1::1");
        match version {
            "0.3.1" => tool.fails("check", &pod, &["0.3.1", "does not support the CHECK"]),
            _ => drop(tool.ok("check", &pod, &none)),
        }
        tool.ok("status", &pod, &none);
        tool.ok("del", &pod, &none);
        tool.ok("del", &pod, &none);
        assert!(world.pod_links().is_empty() && world.reserved().is_empty());
        tool.add(&left, &none);
        drop(left);
        // libcni deletes what its cache has and nobody names valid, then calls GC.
        tool.ok("gc", &pod, &none);
        assert!(
            world.pod_links().is_empty() && world.reserved().is_empty(),
            "{version}"
        );
    }
}

#[test]
fn cnitool_shows_our_errors() {
    let world = world!();
    let tool = cnitool!(&world, &[]);
    let pod = Ns::new();
    tool.conflist("1.1.0", json!({"mtu": 7}), &[]);
    tool.fails("add", &pod, &["mtu = 7", "1280"]);
    tool.conflist("1.1.0", json!({}), &[]);
    world.stop_tunnel();
    tool.fails("status", &pod, &["tunnel"]);
    world.node.sh("nft delete table inet warren");
    tool.fails("add", &pod, &["not protected"]);
    assert!(pod.links() == ["lo"] && world.reserved().is_empty());
}

#[test]
fn a_host_port_reaches_the_pod_from_outside_and_by_the_nodes_address_in_both_families() {
    let world = world!();
    let chain = ["portmap", "bandwidth", "tuning", "firewall"];
    let tool = cnitool!(&world, &chain);
    tool.conflist(
        "1.0.0",
        json!({}),
        &[
            portmap(),
            json!({"type": "bandwidth", "capabilities": {"bandwidth": true}}),
            json!({"type": "tuning", "sysctl": {"net.core.somaxconn": "500"}}),
            json!({"type": "firewall", "backend": "iptables"}),
        ],
    );
    let mut capabilities = ports();
    capabilities["bandwidth"] = json!({
        "ingressRate": 80_000_000, "ingressBurst": 8_000_000,
        "egressRate": 80_000_000, "egressBurst": 8_000_000,
    });
    let pod = Ns::new();
    let result = tool.add(&pod, &capabilities);
    schema::check_result(
        &json!({
            "cniVersion": result["cniVersion"], "interfaces": [result["interfaces"][0], result["interfaces"][1]],
            "ips": result["ips"], "routes": result["routes"],
        }),
        "1.0.0",
    );
    serve(&pod);
    let node = ["192.0.2.1:8080", "[2001:db8::1]:8080"];
    for to in node {
        assert_eq!(
            ask_tcp(&world.outside, to).unwrap(),
            GREETING,
            "from outside, {to}"
        );
        assert_eq!(
            ask_udp(&world.outside, to).unwrap(),
            GREETING,
            "from outside, {to}"
        );
        assert_eq!(
            ask_tcp(&world.node, to).unwrap(),
            GREETING,
            "from the node, {to}"
        );
    }
    // A firewall that lets nothing pass by itself: `firewall` opened it for what the pod begins.
    world
        .node
        .sh("iptables -P FORWARD DROP && ip6tables -P FORWARD DROP");
    pod.sh("ping -n -c 1 -W 10 192.0.2.9 && ping -n -c 1 -W 10 2001:db8::9");
    world
        .node
        .sh("iptables -P FORWARD ACCEPT && ip6tables -P FORWARD ACCEPT");
    // The positive control: no port, no answer.
    assert!(ask_tcp(&world.outside, "192.0.2.1:8081").is_err());
    assert_eq!(pod.sh("cat /proc/sys/net/core/somaxconn").trim(), "500");
    let host = result["interfaces"][0]["name"].as_str().unwrap();
    assert!(
        world
            .node
            .sh(&format!("tc qdisc show dev {host}"))
            .contains("tbf")
    );
    // Debian's portmap looks for its IPv4 rules in the IPv6 table; whoever comes before it passed.
    let check = tool.run("check", &pod, &capabilities);
    let text = String::from_utf8_lossy(&check.stderr);
    assert!(
        check.status.success() || text.contains("could not check ipv6 dnat"),
        "{text}"
    );
    tool.ok("del", &pod, &capabilities);
    assert!(ask_tcp(&world.outside, node[0]).is_err());
    let rules = world.node.sh("iptables-save; ip6tables-save");
    let ips = addresses(&result);
    assert!(
        !rules.contains("8080") && !ips.iter().any(|ip| rules.contains(ip)),
        "{rules}"
    );
    assert!(
        !world
            .node
            .links()
            .iter()
            .any(|link| link.starts_with("bwp") || link == host)
    );
    assert!(world.reserved().is_empty());
}

#[test]
fn another_pod_reaches_a_host_port_by_the_nodes_address() {
    let world = world!();
    let tool = cnitool!(&world, &["portmap"]);
    tool.conflist("1.0.0", json!({}), &[portmap()]);
    let (server, client) = (Ns::new(), Ns::new());
    tool.add(&server, &ports());
    tool.add(&client, &json!({}));
    serve(&server);
    for to in ["192.0.2.1:8080", "[2001:db8::1]:8080"] {
        assert_eq!(ask_tcp(&client, to).unwrap(), GREETING, "{to}");
        // The pod itself, by way of its node.
        assert_eq!(ask_tcp(&server, to).unwrap(), GREETING, "hairpin, {to}");
    }
}

#[test]
fn tuning_behind_us_may_change_what_it_says_and_check_sees_what_breaks() {
    let world = world!();
    let tool = cnitool!(&world, &["tuning"]);
    let none = json!({});
    // A smaller MTU is theirs to choose, and said nowhere in the result of that version.
    let pod = Ns::new();
    tool.conflist(
        "1.0.0",
        json!({}),
        &[json!({"type": "tuning", "mtu": 1300})],
    );
    tool.add(&pod, &none);
    assert_eq!(pod.json("ip -j link show eth0")[0]["mtu"], 1300);
    tool.ok("check", &pod, &none);
    tool.ok("del", &pod, &none);

    // The capability is ours alone.
    let mac = "c2:11:22:33:44:55";
    tool.conflist(
        "1.0.0",
        json!({}),
        &[json!({"type": "tuning", "promisc": true})],
    );
    let asked = json!({"mac": mac});
    let result = tool.add(&pod, &asked);
    assert_eq!(result["interfaces"][1]["mac"], mac);
    pod.sh("ping -n -c 1 -W 10 10.244.1.1 && ping -n -c 1 -W 10 fd00:0:0:1::1");
    tool.ok("check", &pod, &asked);
    tool.ok("del", &pod, &asked);

    // Behind our back the kernel drops all neighbours of the interface, and CHECK says so.
    tool.conflist("1.0.0", json!({}), &[json!({"type": "tuning", "mac": mac})]);
    tool.add(&pod, &none);
    tool.fails("check", &pod, &["neighbour 169.254.1.1 on eth0", mac]);
    tool.ok("del", &pod, &none);
}

#[test]
fn capabilities_of_ours_are_taken_through_libcni() {
    let world = world!();
    let tool = cnitool!(&world, &["portmap"]);
    tool.conflist("1.0.0", json!({}), &[portmap()]);
    let pod = Ns::new();
    let asked = json!({"ips": ["10.244.1.99", "fd00:0:0:1::99"], "aliases": ["db"]});
    let result = tool.add(&pod, &asked);
    assert_eq!(addresses(&result), ["10.244.1.99", "fd00:0:0:1::99"]);
    tool.ok("check", &pod, &asked);
    tool.ok("del", &pod, &asked);
}
