//! The nftables table `inet warren`: one atomic batch puts it in place, and a listing tells whether
//! anyone changed it since.
//!
//! The table is deleted and made anew within one transaction: there is no packet that meets none
//! or half of it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::process::Stdio;
use std::time::Duration;

use ipnet::IpNet;
use serde_json::Value;
use thiserror::Error;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use warren_core::consts::{NFT_TABLE, UNMASQUERADED_GROUP, VETH_PREFIX, rule_comment as rule};
use warren_core::state::FilterSpec;

/// How long `nft` may take.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Why the table could not be loaded or read.
#[derive(Debug, Error)]
pub enum NftError {
    /// The program could not be run.
    #[error("run nft: {source}; is the package nftables installed?")]
    Run {
        /// The system's answer.
        source: std::io::Error,
    },
    /// The program refused.
    #[error("nft {operation}: {message}")]
    Refused {
        /// What was tried.
        operation: &'static str,
        /// What it said.
        message: String,
    },
    /// The program did not end in time.
    #[error("nft {operation} does not end within {TIMEOUT:?}; is another program holding it up?")]
    Timeout {
        /// What was tried.
        operation: &'static str,
    },
    /// The listing is no listing.
    #[error("parse nft's listing: {source}")]
    Listing {
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// Some rules are missing right after they were loaded.
    #[error("nft took the table, but the rule {comment} is not in it")]
    Incomplete {
        /// The comment of the first missing rule.
        comment: &'static str,
    },
}

/// The filter in the kernel, and what it looked like when this process loaded it.
#[derive(Debug, Default)]
pub struct Filter {
    loaded: Option<(FilterSpec, Value)>,
    drops: BTreeMap<String, u64>,
}

impl Filter {
    /// Nothing is known of the kernel's table yet: the first [`Filter::observe`] finds no filter,
    /// and so a start of the agent always loads its own.
    pub fn new() -> Self {
        Self::default()
    }

    /// What the kernel enforces; `None` when the table is absent, was changed by anyone, or is not
    /// this process's.
    ///
    /// # Errors
    /// [`NftError`] when the table cannot be listed.
    pub async fn observe(&mut self) -> Result<Option<FilterSpec>, NftError> {
        let Some(listing) = list().await? else {
            self.loaded = None;
            self.drops.clear();
            return Ok(None);
        };
        self.drops = drops(&listing);
        let normal = normalise(listing);
        Ok(self
            .loaded
            .as_ref()
            .filter(|(_, ours)| *ours == normal)
            .map(|(spec, _)| spec.clone()))
    }

    /// Replaces the table in one transaction.
    ///
    /// # Errors
    /// [`NftError`]; when nft refused, the old table is still there.
    pub async fn apply(&mut self, spec: &FilterSpec) -> Result<(), NftError> {
        self.loaded = None;
        run("-f -", &["-f", "-"], ruleset(spec).as_bytes()).await?;
        let listing = list().await?.unwrap_or(Value::Null);
        let found: BTreeSet<&str> = rules(&listing).filter_map(|(comment, _)| comment).collect();
        if let Some(comment) = rule::REQUIRED.into_iter().find(|c| !found.contains(c)) {
            return Err(NftError::Incomplete { comment });
        }
        self.drops = drops(&listing);
        self.loaded = Some((spec.clone(), normalise(listing)));
        Ok(())
    }

    /// Packets that each dropping rule has dropped since the table was loaded, as last observed.
    pub fn drops(&self) -> &BTreeMap<String, u64> {
        &self.drops
    }
}

/// The whole batch, in nft's own language.
pub fn ruleset(spec: &FilterSpec) -> String {
    let tunnel = &spec.interface;
    let mut out = String::new();
    // `add` first: deleting a table that is not there would fail the batch.
    let _ = writeln!(
        out,
        "add table inet {NFT_TABLE}\ndelete table inet {NFT_TABLE}"
    );
    let _ = writeln!(out, "table inet {NFT_TABLE} {{");
    sets(&mut out, "pod", &spec.pod_ranges);
    sets(&mut out, "own", &spec.own_allowed_ips);
    sets(&mut out, "ownpod", &spec.own_pod_cidrs);
    sets(&mut out, "peer", &spec.peer_addresses);

    let drop = |comment: &str| format!("counter drop comment \"{comment}\"");
    let accept = |name: &str| format!("accept comment \"{}{name}\"", rule::PREFIX);
    let pods = format!("iifname \"{VETH_PREFIX}*\"");
    // Before destination NAT and connection tracking: what pretends to be of a pod, or asks for
    // one in clear, is gone before anything can rewrite it.
    chain(
        &mut out,
        "ingress",
        "type filter hook prerouting priority raw; policy accept;",
        [
            format!("iifname \"lo\" {}", accept("ingress-lo")),
            format!(
                "{pods} fib saddr . iif oif missing {}",
                drop(rule::ANTISPOOF)
            ),
            format!("{pods} ip6 saddr fe80::/10 {}", drop(rule::POD_LINK_LOCAL)),
            format!("{pods} ip daddr 127.0.0.0/8 {}", drop(rule::POD_LOOPBACK)),
            format!("{pods} {}", accept("ingress-pod")),
            format!("iifname \"{tunnel}\" {}", accept("ingress-tunnel")),
            format!("ip saddr @pod_v4 {}", drop(rule::INGRESS_SRC_V4)),
            format!("ip6 saddr @pod_v6 {}", drop(rule::INGRESS_SRC_V6)),
            format!("ip daddr @pod_v4 {}", drop(rule::INGRESS_DST_V4)),
            format!("ip6 daddr @pod_v6 {}", drop(rule::INGRESS_DST_V6)),
        ],
    );
    // After source NAT: at the forward hook masqueraded traffic still has its pod's source.
    chain(
        &mut out,
        "egress",
        "type filter hook postrouting priority 300; policy accept;",
        [
            format!("oifname \"lo\" {}", accept("egress-lo")),
            format!("oifname \"{tunnel}\" {}", accept("egress-tunnel")),
            format!("oifname \"{VETH_PREFIX}*\" {}", accept("egress-pod")),
            format!("ip saddr @pod_v4 {}", drop(rule::EGRESS_SRC_V4)),
            format!("ip6 saddr @pod_v6 {}", drop(rule::EGRESS_SRC_V6)),
            format!("ip daddr @pod_v4 {}", drop(rule::EGRESS_DST_V4)),
            format!("ip6 daddr @pod_v6 {}", drop(rule::EGRESS_DST_V6)),
        ],
    );
    // Without the rule or the table for node addresses such a packet would take the underlay; the
    // egress chain no longer knows it, for it has the node's source by then.
    chain(
        &mut out,
        "pod-to-node",
        "type filter hook forward priority filter; policy accept;",
        [
            format!(
                "{pods} oifname != \"{tunnel}\" ip daddr @peer_v4 {}",
                drop(rule::POD_TO_NODE_V4)
            ),
            format!(
                "{pods} oifname != \"{tunnel}\" ip6 daddr @peer_v6 {}",
                drop(rule::POD_TO_NODE_V6)
            ),
        ],
    );
    let mut nat = Vec::new();
    let comment = |name: &str| format!("comment \"{}{name}\"", rule::PREFIX);
    if let Some(source) = spec.tunnel_v4 {
        let to = format!("snat ip to {source} {}", comment("snat-v4"));
        nat.push(format!("oifname \"{tunnel}\" ip saddr != @own_v4 {to}"));
    }
    if let Some(source) = spec.tunnel_v6 {
        let to = format!("snat ip6 to {source} {}", comment("snat-v6"));
        nat.push(format!("oifname \"{tunnel}\" ip6 saddr != @own_v6 {to}"));
    }
    if spec.masquerade {
        nat.push(format!("oifname \"lo\" {}", accept("nat-lo")));
        nat.push(format!("oifname \"{tunnel}\" {}", accept("nat-tunnel")));
        nat.push(format!("oifname \"{VETH_PREFIX}*\" {}", accept("nat-pod")));
        nat.push(format!(
            "iifgroup {UNMASQUERADED_GROUP} accept comment \"{}\"",
            rule::NAT_UNMASQUERADED
        ));
        let to = |comment: &str| format!("masquerade comment \"{comment}\"");
        nat.push(format!(
            "ip saddr @ownpod_v4 ip daddr != @pod_v4 {}",
            to(rule::MASQUERADE_V4)
        ));
        nat.push(format!(
            "ip6 saddr @ownpod_v6 ip6 daddr != @pod_v6 {}",
            to(rule::MASQUERADE_V6)
        ));
    }
    chain(
        &mut out,
        "source-nat",
        "type nat hook postrouting priority srcnat; policy accept;",
        nat,
    );
    let clamp = "tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu";
    chain(
        &mut out,
        "mss",
        "type filter hook forward priority mangle; policy accept;",
        [
            format!("oifname \"{tunnel}\" {clamp} {}", comment("mss-out")),
            format!("iifname \"{tunnel}\" {clamp} {}", comment("mss-in")),
        ],
    );
    out.push_str("}\n");
    out
}

/// The set of each family, also when it is empty: the rules are the same on every node.
fn sets(out: &mut String, name: &str, prefixes: &BTreeSet<IpNet>) {
    for (family, kind, ipv6) in [("v4", "ipv4_addr", false), ("v6", "ipv6_addr", true)] {
        let of_family = prefixes.iter().filter(|net| net.addr().is_ipv6() == ipv6);
        let elements: Vec<String> = of_family.map(IpNet::to_string).collect();
        let _ = writeln!(out, "\tset {name}_{family} {{");
        // A node address may lie inside another element; without auto-merge that is an error.
        let _ = writeln!(out, "\t\ttype {kind}; flags interval; auto-merge");
        if !elements.is_empty() {
            let _ = writeln!(out, "\t\telements = {{ {} }}", elements.join(", "));
        }
        out.push_str("\t}\n");
    }
}

fn chain(out: &mut String, name: &str, head: &str, rules: impl IntoIterator<Item = String>) {
    let _ = writeln!(out, "\tchain {name} {{\n\t\t{head}");
    for rule in rules {
        let _ = writeln!(out, "\t\t{rule}");
    }
    out.push_str("\t}\n");
}

/// The table in JSON; `None` when there is none.
async fn list() -> Result<Option<Value>, NftError> {
    let operation = "list table";
    match run(operation, &["-j", "list", "table", "inet", NFT_TABLE], b"").await {
        Ok(text) => serde_json::from_slice(&text)
            .map(Some)
            .map_err(|e| NftError::Listing { source: e }),
        Err(NftError::Refused { message, .. }) if message.contains("No such file") => Ok(None),
        Err(e) => Err(e),
    }
}

async fn run(operation: &'static str, args: &[&str], input: &[u8]) -> Result<Vec<u8>, NftError> {
    let failed = |source| NftError::Run { source };
    let mut child = Command::new("nft")
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .env("LC_ALL", "C")
        .kill_on_drop(true)
        .spawn()
        .map_err(failed)?;
    let stdin = child.stdin.take();
    let work = async {
        if let Some(mut stdin) = stdin {
            // A program that ends before it has read all says why by itself.
            let _ = stdin.write_all(input).await;
        }
        child.wait_with_output().await
    };
    let output = tokio::time::timeout(TIMEOUT, work).await;
    let output = output
        .map_err(|_| NftError::Timeout { operation })?
        .map_err(failed)?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(NftError::Refused { operation, message })
}

/// The comments and expressions of the rules of a listing.
fn rules(listing: &Value) -> impl Iterator<Item = (Option<&str>, &Value)> {
    let objects = listing["nftables"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    let rules = objects.iter().filter_map(|object| object.get("rule"));
    rules.map(|rule| (rule["comment"].as_str(), &rule["expr"]))
}

/// Packets counted by each rule that has a comment of ours and a counter.
fn drops(listing: &Value) -> BTreeMap<String, u64> {
    let counted = rules(listing).filter_map(|(comment, expr)| {
        let name = comment?.strip_prefix(rule::PREFIX)?;
        let packets = expr
            .as_array()?
            .iter()
            .find_map(|e| e["counter"]["packets"].as_u64())?;
        Some((name.to_owned(), packets))
    });
    counted.collect()
}

/// Takes away what differs between two listings of one and the same table.
fn normalise(mut listing: Value) -> Value {
    if let Some(objects) = listing["nftables"].as_array_mut() {
        objects.retain(|object| object.get("metainfo").is_none());
        for object in objects {
            strip(object);
        }
    }
    listing
}

fn strip(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.remove("handle");
            if let Some(Value::Object(counter)) = fields.get_mut("counter") {
                counter.clear();
            }
            fields.values_mut().for_each(strip);
        }
        Value::Array(items) => items.iter_mut().for_each(strip),
        _ => {}
    }
}
