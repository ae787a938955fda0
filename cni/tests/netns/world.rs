//! A node prepared by hand, pods' namespaces, and the program run in them.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use nix::sched::{CloneFlags, setns, unshare};
use serde_json::{Value, json};
use warren_core::consts::rule_comment as rule;

pub(crate) const CLUSTER: [&str; 2] = ["10.244.0.0/16", "fd00::/48"];
pub(crate) const PLUGIN: &str = env!("CARGO_BIN_EXE_warren-cni");

/// Whether namespaces can be made; says so when not, and fails where a skip is not allowed.
pub(crate) fn require_root() -> bool {
    if nix::unistd::geteuid().is_root() {
        return true;
    }
    assert!(
        std::env::var_os("CI").is_none(),
        "this test needs root, and CI may not skip it"
    );
    eprintln!("skipped: it makes network namespaces, which needs root");
    false
}

/// A network namespace that lives as long as this value, and the links in it.
pub(crate) struct Ns(File);

impl Ns {
    pub(crate) fn new() -> Self {
        let make = || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            File::open("/proc/thread-self/ns/net").unwrap()
        };
        Self(std::thread::spawn(make).join().unwrap())
    }

    /// A path of it that every process of the machine can open.
    pub(crate) fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }

    pub(crate) fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        let inside = || {
            setns(&self.0, CloneFlags::CLONE_NEWNET).unwrap();
            f()
        };
        std::thread::scope(|scope| scope.spawn(inside).join().unwrap())
    }

    /// Runs a shell command inside, which must succeed, and returns what it printed.
    #[track_caller]
    pub(crate) fn sh(&self, command: &str) -> String {
        let out = self.run(|| Command::new("sh").args(["-c", command]).output().unwrap());
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (stdout, stderr) = (text(&out.stdout), text(&out.stderr));
        assert!(
            out.status.success(),
            "{command}: {}\n{stdout}{stderr}",
            out.status
        );
        stdout
    }

    pub(crate) fn json(&self, command: &str) -> Value {
        serde_json::from_str(&self.sh(command)).unwrap()
    }

    pub(crate) fn links(&self) -> Vec<String> {
        let links = self.json("ip -j link");
        let name = |link: &Value| link["ifname"].as_str().unwrap().to_owned();
        let mut names: Vec<String> = links.as_array().unwrap().iter().map(name).collect();
        names.sort();
        names
    }
}

/// What the program answered.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) success: bool,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Reply {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    /// The result of an ADD that must have succeeded.
    #[track_caller]
    pub(crate) fn ok(&self) -> Value {
        assert!(self.success, "{self:?}");
        self.json()
    }

    /// A DEL that must have succeeded.
    #[track_caller]
    pub(crate) fn done(&self) {
        assert!(self.success && self.stdout.is_empty(), "{self:?}");
    }
}

/// A protected node.
pub(crate) struct World {
    pub(crate) node: Ns,
    state: tempfile::TempDir,
}

impl World {
    pub(crate) fn new() -> Self {
        let world = Self {
            node: Ns::new(),
            state: tempfile::tempdir().unwrap(),
        };
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
        world.load_rules(None);
        world.write_node(&["10.244.1.0/24", "fd00:0:0:1::/64"], &CLUSTER);
        world
    }

    pub(crate) fn state(&self) -> &Path {
        self.state.path()
    }

    /// Loads the filter, without the rule of this comment.
    pub(crate) fn load_rules(&self, without: Option<&str>) {
        let text = |rules: &[(&str, &str)]| {
            let rules = rules
                .iter()
                .filter(|(_, comment)| Some(*comment) != without);
            let lines =
                rules.map(|(rule, comment)| format!("{rule} counter drop comment \"{comment}\"\n"));
            lines.collect::<String>()
        };
        let pods = text(&[
            (
                "iifname \"wrn*\" fib saddr . iif oif missing",
                rule::ANTISPOOF,
            ),
            ("iifname \"wrn*\" ip6 saddr fe80::/10", rule::POD_LINK_LOCAL),
            ("iifname \"wrn*\" ip daddr 127.0.0.0/8", rule::POD_LOOPBACK),
            (
                "iifname \"wrn*\" ip6 daddr ::ffff:0.0.0.0/96",
                rule::POD_MAPPED,
            ),
            (
                "iifname \"wrn*\" ip daddr 169.254.0.0/16 fib daddr type local",
                rule::POD_TO_LINK_LOCAL_V4,
            ),
            (
                "iifname \"wrn*\" ip6 daddr fe80::/10",
                rule::POD_TO_LINK_LOCAL_V6,
            ),
        ]);
        let ingress = text(&[
            ("ip saddr 10.244.0.0/16", rule::INGRESS_SRC_V4),
            ("ip6 saddr fd00::/48", rule::INGRESS_SRC_V6),
            ("ip daddr 10.244.0.0/16", rule::INGRESS_DST_V4),
            ("ip6 daddr fd00::/48", rule::INGRESS_DST_V6),
        ]);
        let to_node = text(&[
            (
                "iifname \"wrn*\" oifname != \"warren0\" ip daddr 198.51.100.0/24",
                rule::POD_TO_NODE_V4,
            ),
            (
                "iifname \"wrn*\" oifname != \"warren0\" ip6 daddr 2001:db8:b::/64",
                rule::POD_TO_NODE_V6,
            ),
        ]);
        let egress = text(&[
            ("ip saddr 10.244.0.0/16", rule::EGRESS_SRC_V4),
            ("ip6 saddr fd00::/48", rule::EGRESS_SRC_V6),
            ("ip daddr 10.244.0.0/16", rule::EGRESS_DST_V4),
            ("ip6 daddr fd00::/48", rule::EGRESS_DST_V6),
            ("icmp type destination-unreachable", rule::EGRESS_QUOTE_V4),
            ("icmpv6 type destination-unreachable", rule::EGRESS_QUOTE_V6),
        ]);
        let ruleset = format!(
            "add table inet warren
             delete table inet warren
             table inet warren {{
               chain ingress {{
                 type filter hook prerouting priority raw; policy accept;
                 iifname \"lo\" accept
                 {pods}
                 iifname \"wrn*\" accept
                 iifname \"warren0\" accept
                 {ingress}
               }}
               chain pod-to-node {{
                 type filter hook forward priority filter; policy accept;
                 {to_node}
               }}
               chain egress {{
                 type filter hook postrouting priority 300; policy accept;
                 oifname \"lo\" accept
                 oifname \"warren0\" accept
                 oifname \"wrn*\" accept
                 {egress}
               }}
             }}"
        );
        let file = self.state().join("rules.nft");
        std::fs::write(&file, ruleset).unwrap();
        self.node.sh(&format!("nft -f {}", file.display()));
    }

    /// Writes the agent's record.
    pub(crate) fn write_node(&self, pod_cidrs: &[&str], cluster_cidrs: &[&str]) {
        let record = json!({
            "name": "node-1",
            "interface": "warren0",
            "clusterCIDRs": cluster_cidrs,
            "podCIDRs": pod_cidrs,
            "tunnelAddresses": ["10.244.1.1", "fd00:0:0:1::1"],
            "mtu": 1400,
        });
        std::fs::write(self.state().join("node.json"), record.to_string()).unwrap();
    }

    pub(crate) fn conf(&self) -> Value {
        let state = self.state();
        json!({"cniVersion": "1.1.0", "name": "warren", "type": "warren-cni", "stateDir": state})
    }

    pub(crate) fn add(&self, id: &str, pod: &Ns) -> Reply {
        self.call("ADD", id, Some(pod), &[], &self.conf())
    }

    pub(crate) fn del(&self, id: &str) -> Reply {
        self.call("DEL", id, None, &[], &self.conf())
    }

    pub(crate) fn call(
        &self,
        verb: &str,
        id: &str,
        pod: Option<&Ns>,
        env: &[(&str, &str)],
        conf: &Value,
    ) -> Reply {
        let Output {
            status,
            stdout,
            stderr,
        } = self
            .spawn(verb, id, pod, env, conf)
            .wait_with_output()
            .unwrap();
        Reply {
            success: status.success(),
            stdout: String::from_utf8(stdout).unwrap(),
            stderr: String::from_utf8(stderr).unwrap(),
        }
    }

    pub(crate) fn spawn(
        &self,
        verb: &str,
        id: &str,
        pod: Option<&Ns>,
        env: &[(&str, &str)],
        conf: &Value,
    ) -> Child {
        let mut command = Command::new(PLUGIN);
        command.stdout(Stdio::piped());
        self.start(command, verb, id, pod, (env, conf))
    }

    /// Starts a call by another command than the plugin's own; its stdout is as it says.
    pub(crate) fn start(
        &self,
        mut command: Command,
        verb: &str,
        id: &str,
        pod: Option<&Ns>,
        (env, conf): (&[(&str, &str)], &Value),
    ) -> Child {
        command
            .env_clear()
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", id);
        command
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", "/opt/cni/bin");
        command
            .envs(pod.map(|pod| ("CNI_NETNS", pod.path())))
            .envs(env.iter().copied());
        command.stdin(Stdio::piped()).stderr(Stdio::piped());
        let mut child = self.node.run(|| command.spawn().unwrap());
        let mut stdin = child.stdin.take().unwrap();
        // A call that is refused by its environment reads nothing.
        let _ = stdin.write_all(conf.to_string().as_bytes());
        child
    }

    /// The host sides of pods.
    pub(crate) fn pod_links(&self) -> Vec<String> {
        let mut links = self.node.links();
        links.retain(|name| name.starts_with("wrn"));
        links
    }

    pub(crate) fn reservations(&self) -> Vec<Value> {
        let file: PathBuf = self.state().join("ipam/warren.json");
        let Ok(text) = std::fs::read_to_string(file) else {
            return Vec::new();
        };
        let pool: Value = serde_json::from_str(&text).unwrap();
        pool["reservations"].as_array().unwrap().clone()
    }
}
