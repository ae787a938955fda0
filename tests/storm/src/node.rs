//! The node and the pods' namespaces.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use serde_json::{Value, json};
use warren_core::consts::rule_comment;

/// Whether namespaces can be made; says so when not, and fails where a skip is not allowed.
pub fn require_root() -> bool {
    if nix::unistd::geteuid().is_root() {
        return true;
    }
    assert!(
        std::env::var_os("CI").is_none(),
        "this test needs root, and CI may not skip it"
    );
    println!("skipped: it makes network namespaces, which needs root");
    false
}

/// A pod's network namespace; it ends with this value, unless a call leaks it.
#[derive(Debug)]
pub struct Pod(File);

impl Pod {
    /// Makes one.
    ///
    /// # Errors
    /// Without root.
    pub fn new() -> Result<Self> {
        let make = || -> Result<File> {
            unshare(CloneFlags::CLONE_NEWNET)?;
            Ok(File::open("/proc/thread-self/ns/net")?)
        };
        let made = std::thread::scope(|scope| scope.spawn(make).join());
        Ok(Self(made.expect("it does not panic")?))
    }

    /// A path of it that every process of the machine can open.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }

    /// Runs a command inside.
    ///
    /// # Errors
    /// When it fails, with what it printed.
    pub fn sh(&self, command: &str) -> Result<String> {
        let inside = || {
            setns(&self.0, CloneFlags::CLONE_NEWNET)?;
            sh(command)
        };
        std::thread::scope(|scope| scope.spawn(inside).join()).expect("it does not panic")
    }
}

/// A protected node: the network and mount namespace of the thread that made it, and of the threads
/// and processes that this thread makes from then on.
#[derive(Debug)]
pub struct Node {
    dir: tempfile::TempDir,
}

impl Node {
    /// Makes the calling thread a node, with a state directory on a file system of so many KiB.
    ///
    /// # Errors
    /// Without root, or where `ip` or `nft` are missing.
    pub fn new(disk_kib: u32) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET)?;
        let private = MsFlags::MS_PRIVATE | MsFlags::MS_REC;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>)?;
        let size = format!("size={disk_kib}k,mode=0700");
        let (none, flags) = (Some("none"), MsFlags::empty());
        mount(none, dir.path(), Some("tmpfs"), flags, Some(size.as_str()))?;
        let node = Self { dir };
        fs::create_dir_all(node.state())?;
        sh("set -e
            ip link set lo up
            echo 1 > /proc/sys/net/ipv4/ip_forward
            echo 1 > /proc/sys/net/ipv6/conf/all/forwarding
            ip link add warren0 type veth peer name far
            ip link set warren0 up; ip link set far up
            ip addr add 10.244.0.1/32 dev warren0
            ip addr add fd00:0:0:1::1/128 dev warren0 nodad
            ip route add unreachable 10.244.0.0/16 metric 4294967280 proto 151
            ip -6 route add unreachable fd00::/48 metric 4294967280 proto 151
            ip rule add from 10.244.0.0/20 lookup 51871 priority 5187")?;
        // The filter's rules are counted, not hit: each is there under the comment that the plugin
        // asks the kernel for, with matches like the agent's.
        let mut rules = [String::new(), String::new(), String::new()];
        for comment in rule_comment::REQUIRED {
            let chain = match comment {
                c if c.contains("egress") => 2,
                c if c.contains("pod-to-node") => 1,
                _ => 0,
            };
            let family = if comment.ends_with("v6") { "ip6" } else { "ip" };
            let rule = format!(
                "iifname \"none\" {family} saddr . {family} daddr @never_{family} counter drop \
                 comment \"{comment}\"\n"
            );
            rules[chain].push_str(&rule);
        }
        let [ingress, to_node, egress] = rules;
        let ruleset = format!(
            "table inet warren {{
               set never_ip {{ type ipv4_addr . ipv4_addr; }}
               set never_ip6 {{ type ipv6_addr . ipv6_addr; }}
               chain ingress {{
                 type filter hook prerouting priority raw; policy accept;
                 {ingress} }}
               chain pod-to-node {{
                 type filter hook forward priority filter; policy accept;
                 {to_node} }}
               chain egress {{
                 type filter hook postrouting priority 300; policy accept;
                 {egress} }}
               chain source-nat {{
                 type nat hook postrouting priority srcnat; policy accept;
                 ip saddr 10.244.0.0/16 ip daddr != 10.244.0.0/16 masquerade
                 ip6 saddr fd00::/48 ip6 daddr != fd00::/48 masquerade
               }}
             }}"
        );
        let file = node.dir.path().join("rules.nft");
        fs::write(&file, ruleset)?;
        sh(&format!("nft -f {}", file.display()))?;
        let record = json!({
            "name": "node-1", "interface": "warren0", "mtu": 1400,
            "clusterCIDRs": ["10.244.0.0/16", "fd00::/48"],
            "podCIDRs": ["10.244.0.0/20", "fd00:0:0:1::/64"],
            "tunnelAddresses": ["10.244.0.1", "fd00:0:0:1::1"],
        });
        fs::write(node.state().join("node.json"), record.to_string())?;
        Ok(node)
    }

    /// Where plugins keep their state.
    pub fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    /// The small file system.
    pub fn disk(&self) -> &Path {
        self.dir.path()
    }

    /// The host sides of pods.
    ///
    /// # Errors
    /// When `ip` fails.
    pub fn pod_links(&self) -> Result<Vec<String>> {
        let links = self.json("ip -j link")?;
        let names = links.as_array().into_iter().flatten();
        let names = names.filter_map(|link| link["ifname"].as_str());
        Ok(names
            .filter(|name| name.starts_with("wrn"))
            .map(Into::into)
            .collect())
    }

    /// The destinations of the routes that plugins made.
    ///
    /// # Errors
    /// When `ip` fails.
    pub fn pod_routes(&self) -> Result<Vec<String>> {
        let mut all = Vec::new();
        for family in ["-4", "-6"] {
            let routes = self.json(&format!("ip -j {family} route show proto 152"))?;
            let routes = routes.as_array().into_iter().flatten();
            all.extend(routes.filter_map(|route| Some(route["dst"].as_str()?.to_owned())));
        }
        Ok(all)
    }

    /// The rules and routes that are there whatever pods there are, as text.
    ///
    /// # Errors
    /// When a command fails.
    pub fn protection(&self) -> Result<String> {
        sh(
            "nft -s list ruleset; ip rule; ip -6 rule; ip route show type unreachable; \
            ip -6 route show type unreachable",
        )
    }

    fn json(&self, command: &str) -> Result<Value> {
        let text = sh(command)?;
        // `ip -j` prints nothing for an empty list.
        match text.trim() {
            "" => Ok(Value::Null),
            text => Ok(serde_json::from_str(text)?),
        }
    }
}

fn sh(command: &str) -> Result<String> {
    let out = Command::new("sh").args(["-c", command]).output();
    let out = out.with_context(|| format!("run {command}"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    ensure!(
        out.status.success(),
        "{command}: {}\n{}{}",
        out.status,
        text(&out.stdout),
        text(&out.stderr)
    );
    Ok(text(&out.stdout))
}
