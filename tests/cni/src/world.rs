//! A protected node with a neighbour outside, and the plugin run on it.

use std::collections::BTreeSet;
use std::io::Write;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};
use warren_core::state::FilterSpec;

use crate::ns::Ns;

pub const CLUSTER: [&str; 2] = ["10.244.0.0/16", "fd00::/48"];
pub const POD_CIDRS: [&str; 2] = ["10.244.1.0/24", "fd00:0:0:1::/64"];

/// What the plugin answered.
#[derive(Debug)]
pub struct Reply {
    pub success: bool,
    pub stdout: String,
    pub stderr: String,
}

impl Reply {
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    /// The result of an ADD or VERSION that must have succeeded.
    #[track_caller]
    pub fn ok(&self) -> Value {
        assert!(self.success, "{self:?}");
        self.json()
    }

    /// A call without a result that must have succeeded.
    #[track_caller]
    pub fn done(&self) {
        assert!(self.success && self.stdout.is_empty(), "{self:?}");
    }

    /// A call that must have failed with this code and these words.
    #[track_caller]
    pub fn refused(&self, code: u32, words: &[&str]) {
        assert!(!self.success, "{self:?}");
        let json = self.json();
        crate::schema::check_error(&json);
        assert_eq!(json["code"], code, "{json}");
        let text = json["msg"].as_str().unwrap();
        for word in words {
            assert!(text.contains(word), "{word} is not in {text}");
        }
    }
}

/// A protected node.
#[derive(Debug)]
pub struct World {
    pub node: Ns,
    pub outside: Ns,
    dir: tempfile::TempDir,
}

impl World {
    #[track_caller]
    pub fn new() -> Self {
        let world = Self {
            node: Ns::new(),
            outside: Ns::new(),
            dir: tempfile::tempdir().unwrap(),
        };
        std::fs::create_dir(world.state()).unwrap();
        std::fs::create_dir(world.run_dir()).unwrap();
        world.node.sh("set -e
             ip link set lo up
             echo 1 > /proc/sys/net/ipv4/ip_forward
             echo 1 > /proc/sys/net/ipv6/conf/all/forwarding
             ip link add warren0 type veth peer name far
             ip link set warren0 up; ip link set far up
             ip addr add 10.244.1.1/32 dev warren0
             ip addr add fd00:0:0:1::1/128 dev warren0 nodad
             ip route add unreachable 10.244.0.0/16 metric 4294967280 proto 151
             ip -6 route add unreachable fd00::/48 metric 4294967280 proto 151");
        world.node.sh(&format!(
            "ip link add uplink type veth peer name eth0 netns {0}
             ip addr add 192.0.2.1/24 dev uplink; ip addr add 2001:db8::1/64 dev uplink nodad
             ip link set uplink up",
            world.outside.path()
        ));
        world.outside.sh("ip link set lo up
             ip addr add 192.0.2.9/24 dev eth0; ip addr add 2001:db8::9/64 dev eth0 nodad
             ip link set eth0 up
             ip route add default via 192.0.2.1; ip -6 route add default via 2001:db8::1");
        world.load_rules(true);
        world.write_node(&POD_CIDRS);
        world.start_tunnel();
        world
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn state(&self) -> PathBuf {
        self.dir().join("state")
    }

    pub fn run_dir(&self) -> PathBuf {
        self.dir().join("run")
    }

    /// Loads the agent's own filter.
    #[track_caller]
    pub fn load_rules(&self, masquerade: bool) {
        let nets = |texts: &[&str]| -> BTreeSet<ipnet::IpNet> {
            texts.iter().map(|text| text.parse().unwrap()).collect()
        };
        let ruleset = warren_agent::host::nft::ruleset(&FilterSpec {
            interface: "warren0".into(),
            pod_ranges: nets(&CLUSTER),
            own_allowed_ips: nets(&[&POD_CIDRS[..], &["192.0.2.1/32", "2001:db8::1/128"]].concat()),
            own_pod_cidrs: nets(&POD_CIDRS),
            peer_addresses: nets(&["198.51.100.7/32", "2001:db8:b::7/128"]),
            tunnel_v4: Some("10.244.1.1".parse().unwrap()),
            tunnel_v6: Some("fd00:0:0:1::1".parse().unwrap()),
            masquerade,
        });
        let file = self.dir().join("rules.nft");
        std::fs::write(&file, ruleset).unwrap();
        self.node.sh(&format!("nft -f {}", file.display()));
    }

    /// Writes the agent's record.
    pub fn write_node(&self, pod_cidrs: &[&str]) {
        let record = json!({
            "name": "node-1",
            "interface": "warren0",
            "clusterCIDRs": CLUSTER,
            "podCIDRs": pod_cidrs,
            "tunnelAddresses": ["10.244.1.1", "fd00:0:0:1::1"],
            "mtu": 1400,
        });
        std::fs::write(self.state().join("node.json"), record.to_string()).unwrap();
    }

    fn tunnel_socket(&self) -> PathBuf {
        self.run_dir().join("tunnel.sock")
    }

    /// Answers on the tunnel's status socket, until [`World::stop_tunnel`].
    pub fn start_tunnel(&self) {
        let listener = UnixListener::bind(self.tunnel_socket()).unwrap();
        let path = self.tunnel_socket();
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let Ok(mut client) = client else { return };
                let _ = client.write_all(b"version=0\nmtu_bytes=1400\n");
                if !path.exists() {
                    return;
                }
            }
        });
    }

    /// Nobody answers any more; what listens is refused like a socket that a dead daemon left.
    pub fn stop_tunnel(&self) {
        let path = self.tunnel_socket();
        let left = path.with_extension("old");
        std::fs::rename(&path, &left).unwrap();
        let _ = std::os::unix::net::UnixStream::connect(&left);
        std::fs::remove_file(&left).unwrap();
    }

    pub fn conf(&self) -> Value {
        self.conf_of("1.1.0")
    }

    pub fn conf_of(&self, version: &str) -> Value {
        json!({
            "cniVersion": version, "name": "warren", "type": "warren-cni",
            "stateDir": self.state(), "runDir": self.run_dir(),
        })
    }

    #[track_caller]
    pub fn add(&self, id: &str, pod: &Ns) -> Reply {
        self.call("ADD", id, Some(pod), &[], &self.conf())
    }

    #[track_caller]
    pub fn del(&self, id: &str) -> Reply {
        self.call("DEL", id, None, &[], &self.conf())
    }

    /// CHECK with this result as the previous one.
    #[track_caller]
    pub fn check(&self, id: &str, pod: &Ns, result: &Value) -> Reply {
        let version = result["cniVersion"].as_str().unwrap_or("1.1.0");
        let mut conf = self.conf_of(version);
        conf["prevResult"] = result.clone();
        self.call("CHECK", id, Some(pod), &[], &conf)
    }

    /// GC with this list of `container/interface`.
    #[track_caller]
    pub fn gc(&self, valid: &[(&str, &str)]) -> Reply {
        let one = |(id, ifname): &(&str, &str)| json!({"containerID": id, "ifname": ifname});
        let valid: Vec<Value> = valid.iter().map(one).collect();
        let mut conf = self.conf();
        conf["cni.dev/valid-attachments"] = json!(valid);
        self.run(
            &[("CNI_COMMAND", "GC"), ("CNI_PATH", "/opt/cni/bin")],
            Some(&conf),
        )
    }

    #[track_caller]
    pub fn status(&self) -> Reply {
        self.run(&[("CNI_COMMAND", "STATUS")], Some(&self.conf()))
    }

    #[track_caller]
    pub fn call(
        &self,
        verb: &str,
        id: &str,
        pod: Option<&Ns>,
        env: &[(&str, &str)],
        conf: &Value,
    ) -> Reply {
        let netns = pod.map(Ns::path);
        let mut all = vec![
            ("CNI_COMMAND", verb),
            ("CNI_CONTAINERID", id),
            ("CNI_IFNAME", "eth0"),
            ("CNI_PATH", "/opt/cni/bin"),
        ];
        all.extend(netns.as_deref().map(|path| ("CNI_NETNS", path)));
        all.extend(env);
        self.run(&all, Some(conf))
    }

    /// Runs the plugin on the node; without a configuration stdin is empty.
    #[track_caller]
    pub fn run(&self, env: &[(&str, &str)], conf: Option<&Value>) -> Reply {
        let mut child = self.spawn(env);
        let mut stdin = child.stdin.take().unwrap();
        // A call that is refused by its environment reads nothing.
        let _ = stdin.write_all(conf.map(Value::to_string).unwrap_or_default().as_bytes());
        drop(stdin);
        let out = child.wait_with_output().unwrap();
        Reply {
            success: out.status.success(),
            stdout: String::from_utf8(out.stdout).unwrap(),
            stderr: String::from_utf8(out.stderr).unwrap(),
        }
    }

    fn spawn(&self, env: &[(&str, &str)]) -> Child {
        let mut command = Command::new(warren_lab::bin("warren-cni").unwrap());
        command.env_clear();
        command.envs(env.iter().filter(|(_, value)| !value.is_empty()).copied());
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        self.node.run(|| command.spawn().unwrap())
    }

    /// The host sides of pods.
    pub fn pod_links(&self) -> Vec<String> {
        let mut links = self.node.links();
        links.retain(|name| name.starts_with("wrn"));
        links
    }

    /// What is reserved: the container ids, sorted.
    pub fn reserved(&self) -> Vec<String> {
        let Ok(text) = std::fs::read_to_string(self.state().join("ipam/warren.json")) else {
            return Vec::new();
        };
        let pool: Value = serde_json::from_str(&text).unwrap();
        let ids = pool["reservations"].as_array().unwrap().iter();
        let mut ids: Vec<String> = ids
            .map(|r| r["containerId"].as_str().unwrap().to_owned())
            .collect();
        ids.sort();
        ids
    }
}

impl Default for World {
    fn default() -> Self {
        Self::new()
    }
}

/// The addresses of a result without their prefix lengths.
pub fn addresses(result: &Value) -> Vec<String> {
    let ips = result["ips"].as_array().unwrap().iter();
    ips.map(|ip| {
        ip["address"]
            .as_str()
            .unwrap()
            .split('/')
            .next()
            .unwrap()
            .to_owned()
    })
    .collect()
}
