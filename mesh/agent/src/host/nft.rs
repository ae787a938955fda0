//! The nftables table `inet warren`: one atomic batch puts it in place, and a listing tells whether
//! anyone changed it since.
//!
//! The table is deleted and made anew within one transaction, or only its sets are given other
//! elements: there is no packet that meets none or half of it. Beside it stands a small table that
//! this process owns, and that nobody else can flush.

mod listing;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::IpAddr;
use std::process::Stdio;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use serde_json::Value;
use thiserror::Error;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use warren_core::consts::{
    NFT_GUARD_TABLE, NFT_TABLE, UNMASQUERADED_GROUP, VETH_PREFIX, rule_comment as rule,
};
use warren_core::state::FilterSpec;
use warren_netlink::{Guard, GuardSpec, NetlinkError, change_peer_sets, protection};

use self::listing::{counters, normalise, rules, without_elements};

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
    /// The addresses of peers could not be changed one by one.
    #[error("change the filter's peer addresses: {source}")]
    Elements {
        /// The kernel's answer.
        source: NetlinkError,
    },
    /// The filter is not there, or not as this process loaded it.
    #[error("change the filter's peer addresses: the filter is not as it was loaded")]
    NotLoaded,
    /// Some rules are missing right after they were loaded.
    #[error("nft took the table, but the rule {comment} is not in it")]
    Incomplete {
        /// The comment of the first missing rule.
        comment: &'static str,
    },
}

/// How old a listing may be while the ruleset's generation says that nothing changed: the counters
/// in it are told to people.
const FRESH: Duration = Duration::from_secs(4);
/// How long to wait before the owned table is tried again.
const GUARD_RETRY: Duration = Duration::from_secs(60);

/// How the names of the sets of peers' addresses start. They hold single addresses, not intervals, so
/// that one address can be added without a look at the others.
const PEER_SETS: &str = "peer";

/// How the names of the sets of pod ranges start that quoted packets' destinations are looked up in: nft
/// takes what lies within an ICMP message for a number, not for an address.
const QUOTED_SETS: &str = "quoted";
/// Where an ICMP error has the destination of the packet that it quotes: behind its own 8 bytes, as far as
/// the address is in an IPv4 or IPv6 header; in bits from the start of the message, and how many.
const QUOTED_V4: &str = "@th,192,32";
const QUOTED_V6: &str = "@th,256,128";

/// The filter in the kernel, and what it looked like when this process loaded it.
#[derive(Debug, Default)]
pub struct Filter {
    loaded: Option<Loaded>,
    counters: Counters,
    guard: Option<Guard>,
    guard_tried: Option<Instant>,
}

#[derive(Debug)]
struct Loaded {
    spec: FilterSpec,
    listing: Value,
    /// The ruleset's generation that the listing is not older than, own changes of peers aside.
    generation: Option<u32>,
    listed: Instant,
}

/// What each dropping rule has counted, by the rule's comment.
type Counters = BTreeMap<String, Counted>;

/// What a rule has counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counted {
    packets: u64,
    bytes: u64,
}

impl Filter {
    /// Nothing is known of the kernel's table yet: the first [`Filter::observe`] finds no filter,
    /// and so a start of the agent always loads its own.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether the table is not there at all; it takes some ten microseconds to know.
    pub fn is_gone(&self) -> bool {
        // What cannot be read is for `observe` to tell.
        matches!(protection::table_exists("inet", NFT_TABLE), Ok(false))
    }

    /// What the kernel enforces; `None` when the table is absent, was changed by anyone, or is not
    /// this process's.
    ///
    /// # Errors
    /// [`NftError`] when the table cannot be listed.
    pub async fn observe(&mut self) -> Result<Option<FilterSpec>, NftError> {
        // Read before the listing: a change between the two is then found by the next look.
        let generation = protection::generation().ok();
        let untouched = |loaded: &&Loaded| {
            generation.is_some()
                && loaded.generation == generation
                && loaded.listed.elapsed() < FRESH
        };
        if let Some(loaded) = self.loaded.as_ref().filter(untouched) {
            return Ok(Some(loaded.spec.clone()));
        }
        let listing = match self.is_gone() {
            true => None,
            false => list().await?,
        };
        let Some(listing) = listing else {
            self.loaded = None;
            return Ok(None);
        };
        self.count(&listing);
        let (normal, peers) = normalise(listing);
        let same = |loaded: &mut Loaded| {
            loaded.listing == normal && peers.as_ref() == Some(&loaded.spec.peer_addresses)
        };
        let Some(loaded) = self.loaded.take_if(same) else {
            self.loaded = None;
            return Ok(None);
        };
        let spec = loaded.spec.clone();
        self.keep_guard(&spec);
        self.loaded = Some(Loaded {
            generation,
            listed: Instant::now(),
            ..loaded
        });
        Ok(Some(spec))
    }

    /// Brings the table to this state in one transaction: sets alone where nothing else differs from
    /// what was last observed, else the whole table. What the rules have counted is kept.
    ///
    /// # Errors
    /// [`NftError`]; when nft refused, the old table is still there.
    pub async fn apply(&mut self, spec: &FilterSpec) -> Result<(), NftError> {
        if let Some(loaded) = self.loaded.take()
            && same_rules(&loaded.spec, spec)
        {
            let batch = set_changes(&loaded.spec, spec);
            run("-f -", &["-f", "-"], batch.as_bytes()).await?;
            let listing = self.list_loaded(spec).await?;
            // Somebody else's change between two looks must not be taken for ours.
            if without_elements(&listing) == without_elements(&loaded.listing) {
                self.keep_guard(spec);
                return Ok(());
            }
            self.loaded = None;
        }
        let batch = ruleset_with(spec, &self.counters);
        run("-f -", &["-f", "-"], batch.as_bytes()).await?;
        self.list_loaded(spec).await?;
        self.keep_guard(spec);
        Ok(())
    }

    /// Takes single addresses into, and out of, the peers' sets, without the `nft` program and without
    /// a look at the table: [`Filter::observe`] finds whatever else has changed.
    ///
    /// # Errors
    /// [`NftError::NotLoaded`] and [`NftError::Elements`]; the filter is then as it was.
    pub fn change_peers(
        &mut self,
        add: &BTreeSet<IpNet>,
        remove: &BTreeSet<IpNet>,
    ) -> Result<(), NftError> {
        let loaded = self.loaded.as_mut().ok_or(NftError::NotLoaded)?;
        let addresses = |nets: &BTreeSet<IpNet>| nets.iter().map(IpNet::addr).collect();
        let (added, removed): (BTreeSet<IpAddr>, BTreeSet<IpAddr>) =
            (addresses(add), addresses(remove));
        let before = protection::generation().ok();
        change_peer_sets(NFT_TABLE, &added, &removed)
            .map_err(|source| NftError::Elements { source })?;
        loaded.spec.change_peer_addresses(add, remove);
        let mut transactions = 1;
        if let Some(guard) = &mut self.guard {
            transactions += 1;
            if guard.change_peers(&added, &removed).is_err() {
                // It is loaded anew with all of them.
                self.guard = None;
            }
        }
        // Anybody else's transaction meanwhile, or one that was not seen yet, is to be looked at.
        let expected = before
            .filter(|before| loaded.generation == Some(*before))
            .map(|before| before.wrapping_add(transactions));
        loaded.generation = protection::generation()
            .ok()
            .filter(|now| expected == Some(*now));
        Ok(())
    }

    /// Whether nobody has changed any table since this process loaded its own, or looked at it.
    pub fn is_as_loaded(&self) -> bool {
        let known = self.loaded.as_ref().and_then(|loaded| loaded.generation);
        known.is_some() && known == protection::generation().ok()
    }

    async fn list_loaded(&mut self, spec: &FilterSpec) -> Result<Value, NftError> {
        let generation = protection::generation().ok();
        let listing = list().await?.unwrap_or(Value::Null);
        let found: BTreeSet<&str> = rules(&listing).filter_map(|(comment, _)| comment).collect();
        if let Some(comment) = rule::REQUIRED.into_iter().find(|c| !found.contains(c)) {
            return Err(NftError::Incomplete { comment });
        }
        self.count(&listing);
        let (listing, _) = normalise(listing);
        self.loaded = Some(Loaded {
            spec: spec.clone(),
            listing: listing.clone(),
            generation,
            listed: Instant::now(),
        });
        Ok(listing)
    }

    /// Packets that each dropping rule has dropped since the agent found the table, as last
    /// observed.
    pub fn drops(&self) -> BTreeMap<String, u64> {
        let drops = self.counters.iter().map(|(comment, counted)| {
            let name = comment.strip_prefix(rule::PREFIX).unwrap_or(comment);
            (name.to_owned(), counted.packets)
        });
        drops.collect()
    }

    fn count(&mut self, listing: &Value) {
        for (comment, counted) in counters(listing) {
            let known = self.counters.entry(comment).or_default();
            // A table that somebody put in the place of ours counts from 0.
            known.packets = known.packets.max(counted.packets);
            known.bytes = known.bytes.max(counted.bytes);
        }
    }

    /// Sees to it that the owned table is there, which holds what `nft flush ruleset` takes away.
    fn keep_guard(&mut self, spec: &FilterSpec) {
        let wanted = GuardSpec {
            table: NFT_GUARD_TABLE.into(),
            comment_prefix: rule::PREFIX.into(),
            tunnel: spec.interface.clone(),
            veth_prefix: VETH_PREFIX.into(),
            pod_ranges: spec.pod_ranges.iter().copied().collect(),
            peers: spec.peer_addresses.iter().map(IpNet::addr).collect(),
        };
        // The kernel needs no second look: nobody but its owner can change the table.
        if let Some(guard) = &mut self.guard {
            if *guard.spec() == wanted {
                return;
            }
            let others = GuardSpec {
                peers: guard.spec().peers.clone(),
                ..wanted.clone()
            };
            if *guard.spec() == others && guard.set_peers(&wanted.peers).is_ok() {
                return;
            }
        }
        self.guard = None;
        if self
            .guard_tried
            .is_some_and(|tried| tried.elapsed() < GUARD_RETRY)
        {
            return;
        }
        match Guard::load(&wanted) {
            Ok(guard) => self.guard = Some(guard),
            Err(e) => {
                self.guard_tried = Some(Instant::now());
                tracing::info!(
                    error = %e,
                    "no owned table (Linux before 5.12 has none): until the filter is repaired, \
                     `nft flush ruleset` opens it"
                );
            }
        }
    }
}

/// Whether two filters have the same rules, so that only elements of sets may differ.
fn same_rules(one: &FilterSpec, other: &FilterSpec) -> bool {
    let rules_of = |spec: &FilterSpec| FilterSpec {
        pod_ranges: BTreeSet::new(),
        own_allowed_ips: BTreeSet::new(),
        own_pod_cidrs: BTreeSet::new(),
        peer_addresses: BTreeSet::new(),
        ..spec.clone()
    };
    rules_of(one) == rules_of(other)
}

/// The transaction that gives each set that differs its new elements.
fn set_changes(old: &FilterSpec, new: &FilterSpec) -> String {
    let mut out = String::new();
    for ((name, before), (_, after)) in named_sets(old).into_iter().zip(named_sets(new)) {
        if before == after {
            continue;
        }
        for (family, ipv6) in [("v4", false), ("v6", true)] {
            let set = format!("inet {NFT_TABLE} {name}_{family}");
            let elements = elements(name, after, ipv6);
            let _ = writeln!(out, "flush set {set}");
            if !elements.is_empty() {
                let _ = writeln!(out, "add element {set} {{ {elements} }}");
            }
        }
    }
    out
}

fn named_sets(spec: &FilterSpec) -> [(&'static str, &BTreeSet<IpNet>); 5] {
    [
        ("pod", &spec.pod_ranges),
        (QUOTED_SETS, &spec.pod_ranges),
        ("own", &spec.own_allowed_ips),
        ("ownpod", &spec.own_pod_cidrs),
        (PEER_SETS, &spec.peer_addresses),
    ]
}

fn elements(name: &str, prefixes: &BTreeSet<IpNet>, ipv6: bool) -> String {
    let of_family = prefixes.iter().filter(|net| net.addr().is_ipv6() == ipv6);
    let elements: Vec<String> = of_family
        .map(|net| match name {
            PEER_SETS => net.addr().to_string(),
            QUOTED_SETS => range(net),
            _ => net.to_string(),
        })
        .collect();
    elements.join(", ")
}

/// A prefix as the numbers from its first address to its last.
fn range(net: &IpNet) -> String {
    match net {
        IpNet::V4(net) => format!(
            "{:#x}-{:#x}",
            net.network().to_bits(),
            net.broadcast().to_bits()
        ),
        IpNet::V6(net) => format!(
            "{:#x}-{:#x}",
            net.network().to_bits(),
            net.broadcast().to_bits()
        ),
    }
}

/// The whole batch, in nft's own language.
pub fn ruleset(spec: &FilterSpec) -> String {
    ruleset_with(spec, &Counters::new())
}

/// The same, with rules that have counted already.
fn ruleset_with(spec: &FilterSpec, counters: &Counters) -> String {
    let tunnel = &spec.interface;
    let mut out = String::new();
    // `add` first: deleting a table that is not there would fail the batch.
    let _ = writeln!(
        out,
        "add table inet {NFT_TABLE}\ndelete table inet {NFT_TABLE}"
    );
    let _ = writeln!(out, "table inet {NFT_TABLE} {{");
    for (name, prefixes) in named_sets(spec) {
        sets(&mut out, name, prefixes);
    }

    let drop = |comment: &str| {
        let counted = match counters.get(comment) {
            Some(Counted { packets, bytes }) if *packets > 0 => {
                format!(" packets {packets} bytes {bytes}")
            }
            _ => String::new(),
        };
        format!("counter{counted} drop comment \"{comment}\"")
    };
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
            format!(
                "{pods} ip6 daddr ::ffff:0.0.0.0/96 {}",
                drop(rule::POD_MAPPED)
            ),
            // What is not the node's own, such as a cloud's metadata, is forwarded as any other.
            format!(
                "{pods} ip daddr 169.254.0.0/16 fib daddr type local {}",
                drop(rule::POD_TO_LINK_LOCAL_V4)
            ),
            format!(
                "{pods} ip6 daddr fe80::/10 {}",
                drop(rule::POD_TO_LINK_LOCAL_V6)
            ),
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
            // A node tells another one that a pod cannot be reached: with the first bytes of what was sent
            // to the pod, from and to the nodes' own addresses.
            format!(
                "icmp type {{ destination-unreachable, redirect, time-exceeded, parameter-problem }} \
                 {QUOTED_V4} @{QUOTED_SETS}_v4 {}",
                drop(rule::EGRESS_QUOTE_V4)
            ),
            format!(
                "icmpv6 type {{ destination-unreachable, packet-too-big, time-exceeded, \
                 parameter-problem }} {QUOTED_V6} @{QUOTED_SETS}_v6 {}",
                drop(rule::EGRESS_QUOTE_V6)
            ),
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
    let kinds = match name {
        QUOTED_SETS => [format!("typeof {QUOTED_V4}"), format!("typeof {QUOTED_V6}")],
        _ => ["type ipv4_addr".to_owned(), "type ipv6_addr".to_owned()],
    };
    for ((family, ipv6), kind) in [("v4", false), ("v6", true)].into_iter().zip(kinds) {
        let elements = elements(name, prefixes, ipv6);
        let _ = writeln!(out, "\tset {name}_{family} {{");
        // An element may lie inside another one; without auto-merge that is an error.
        let how = match name {
            PEER_SETS => "",
            _ => "; flags interval; auto-merge",
        };
        let _ = writeln!(out, "\t\t{kind}{how}");
        if !elements.is_empty() {
            let _ = writeln!(out, "\t\telements = {{ {elements} }}");
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
