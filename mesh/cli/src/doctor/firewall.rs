//! Filters of others that drop the tunnel's packets, or the pods'.
//!
//! What nftables lists is judged by shape: a base chain that drops what nothing accepts, and no rule
//! of its table that accepts the tunnel's port, or the pods' interfaces or ranges. That is what an
//! operator looks for; a rule that accepts in some other way shows as a warning at most, for the
//! peers' sessions are looked at too.

use std::path::Path;
use std::time::Duration;

use ipnet::IpNet;
use serde_json::Value;
use warren_core::consts::{NFT_GUARD_TABLE, NFT_TABLE, VETH_PREFIX};

use super::facts::Facts;
use super::finding::{Check, Finding};
use super::program;

const LIMIT: Duration = Duration::from_secs(5);
/// A session lives that long (Reject-After-Time, WireGuard paper, section 6.1).
const SESSION_SECONDS: u64 = 180;

/// A chain that drops what must pass.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Closed {
    family: String,
    table: String,
    chain: String,
    hook: Hook,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hook {
    Input,
    Forward,
}

pub(super) fn check(facts: &Facts) -> Vec<Finding> {
    let mut check = Check::new("firewall");
    let (port, interface) = (facts.port(), facts.args.interface.as_str());
    let mut closed = Vec::new();
    match &facts.ruleset {
        Ok(ruleset) => closed = closed_chains(ruleset, port, interface, &facts.pod_ranges()),
        Err(e) => check.warn(
            format!("cannot list the packet filter: {e}"),
            "whether a firewall drops the tunnel's packets is not known",
            "apt-get install nftables, and run this as root",
        ),
    }
    closed.extend(legacy(port, interface));
    for chain in closed {
        let Closed {
            family,
            table,
            chain,
            hook,
        } = chain;
        let place = format!("chain {chain} of table {family} {table}");
        let legacy = table == LEGACY;
        match hook {
            Hook::Input => {
                let finding = format!(
                    "{place} drops what comes in, and no rule of it accepts UDP port {port}"
                );
                let means = "handshakes of peers are dropped; sessions work only where this node \
                             begins them";
                let action = match (legacy, family.as_str()) {
                    (true, _) | (_, "ip" | "ip6") => {
                        let six = if family == "ip6" { "6" } else { "" };
                        format!("ip{six}tables -I INPUT -p udp --dport {port} -j ACCEPT")
                    }
                    _ => format!("nft insert rule {family} {table} {chain} udp dport {port} accept"),
                };
                // With a session of each peer the port is evidently open some other way.
                if all_peers_are_up(facts) {
                    check.warn(finding, means, action);
                } else {
                    check.error(finding, means, action);
                }
            }
            Hook::Forward => check.error(
                format!("{place} drops what is forwarded, and no rule of it accepts the pods' packets"),
                "pods reach nobody but the pods of this node, or not even those",
                match (legacy, family.as_str()) {
                    (true, _) | (_, "ip" | "ip6") => {
                        let six = if family == "ip6" { "6" } else { "" };
                        format!(
                            "ip{six}tables -I FORWARD -i {VETH_PREFIX}+ -j ACCEPT; ip{six}tables -I \
                             FORWARD -o {VETH_PREFIX}+ -j ACCEPT"
                        )
                    }
                    _ => format!(
                        "nft insert rule {family} {table} {chain} iifname '{VETH_PREFIX}*' accept; nft \
                         insert rule {family} {table} {chain} oifname '{VETH_PREFIX}*' accept"
                    ),
                },
            ),
        }
    }
    check.done(format!(
        "nothing seen that drops UDP port {port} or the pods' packets"
    ))
}

fn all_peers_are_up(facts: &Facts) -> bool {
    let Ok(device) = &facts.device else {
        return false;
    };
    let is_up = |peer: &warren_core::uapi::Peer| {
        let at = peer.last_handshake.map(|at| at.as_secs());
        at.is_some_and(|at| facts.now.saturating_sub(at) < SESSION_SECONDS)
    };
    !device.peers.is_empty() && device.peers.iter().all(is_up)
}

/// The base chains of others that drop what nothing accepts, and accept nothing of ours.
fn closed_chains(ruleset: &Value, port: u16, interface: &str, ranges: &[IpNet]) -> Vec<Closed> {
    let objects = ruleset["nftables"]
        .as_array()
        .map_or(&[][..], Vec::as_slice);
    let of_kind = |kind: &'static str| objects.iter().filter_map(move |object| object.get(kind));
    let mut out = Vec::new();
    for chain in of_kind("chain") {
        let hook = match chain["hook"].as_str() {
            Some("input") => Hook::Input,
            Some("forward") => Hook::Forward,
            _ => continue,
        };
        let text = |key: &str| chain[key].as_str().unwrap_or_default().to_owned();
        let (family, table, name) = (text("family"), text("table"), text("name"));
        let ip = ["ip", "ip6", "inet"].contains(&family.as_str());
        if !ip || [NFT_TABLE, NFT_GUARD_TABLE].contains(&table.as_str()) {
            continue;
        }
        let in_table = |object: &&Value| object["family"] == *family && object["table"] == *table;
        let last = of_kind("rule").rfind(|rule| in_table(rule) && rule["chain"] == *name);
        if chain["policy"] != "drop" && !last.is_some_and(|rule| drops_all(&rule["expr"])) {
            continue;
        }
        // Named sets of the table count as if they were written into its rules.
        let sets: Vec<&Value> = of_kind("set").filter(in_table).collect();
        let accepts = |rule: &Value| {
            let expr = &rule["expr"];
            let named = sets
                .iter()
                .filter(|set| mentions_set(expr, set["name"].as_str()));
            let mut seen = named.map(|set| &set["elem"]).chain([expr]);
            let ours = match hook {
                Hook::Input => seen.any(|value| mentions_port(value, port)),
                Hook::Forward => seen.any(|value| mentions_pods(value, interface, ranges)),
            };
            ours && accepts(expr)
        };
        let everything = |rule: &Value| is_unconditional(&rule["expr"]) && accepts_verdict(rule);
        let mut rules = of_kind("rule").filter(in_table);
        if !rules.any(|rule| accepts(rule) || (rule["chain"] == *name && everything(rule))) {
            out.push(Closed {
                family,
                table,
                chain: name,
                hook,
            });
        }
    }
    out
}

fn statements(expr: &Value) -> &[Value] {
    expr.as_array().map_or(&[], Vec::as_slice)
}

fn accepts(expr: &Value) -> bool {
    statements(expr).iter().any(|s| s.get("accept").is_some())
}

fn accepts_verdict(rule: &Value) -> bool {
    accepts(&rule["expr"])
}

/// Whether a rule applies to every packet.
fn is_unconditional(expr: &Value) -> bool {
    let plain = ["counter", "drop", "reject", "accept", "log"];
    statements(expr)
        .iter()
        .all(|s| plain.iter().any(|word| s.get(word).is_some()))
}

fn drops_all(expr: &Value) -> bool {
    let drops = |s: &Value| s.get("drop").is_some() || s.get("reject").is_some();
    is_unconditional(expr) && statements(expr).iter().any(drops)
}

fn mentions_set(expr: &Value, name: Option<&str>) -> bool {
    let Some(name) = name else { return false };
    any(expr, &|value| {
        value
            .as_str()
            .is_some_and(|text| text.strip_prefix('@') == Some(name))
    })
}

/// Whether a port number, or a range around it, stands anywhere in it.
fn mentions_port(value: &Value, port: u16) -> bool {
    let port = u64::from(port);
    any(value, &|value| {
        let range = value["range"].as_array().map(Vec::as_slice);
        let inside = matches!(range, Some([from, to])
            if from.as_u64().is_some_and(|from| from <= port) && to.as_u64().is_some_and(|to| port <= to));
        inside || value.as_u64() == Some(port)
    })
}

fn mentions_pods(value: &Value, interface: &str, ranges: &[IpNet]) -> bool {
    any(value, &|value| {
        let prefix = &value["prefix"];
        let net = prefix["addr"].as_str().zip(prefix["len"].as_u64());
        let net = net.and_then(|(addr, len)| format!("{addr}/{len}").parse::<IpNet>().ok());
        let of_pods =
            net.is_some_and(|net| ranges.iter().any(|r| net.contains(r) || r.contains(&net)));
        let name = value.as_str();
        of_pods || name.is_some_and(|n| n == interface || n.starts_with(VETH_PREFIX))
    })
}

/// Whether something in a JSON value is so.
fn any(value: &Value, is: &dyn Fn(&Value) -> bool) -> bool {
    is(value)
        || match value {
            Value::Array(items) => items.iter().any(|item| any(item, is)),
            Value::Object(fields) => fields.values().any(|field| any(field, is)),
            _ => false,
        }
}

/// How findings call the tables that nft does not list.
const LEGACY: &str = "filter (iptables-legacy)";

/// What iptables-legacy has, which nft does not list.
fn legacy(port: u16, interface: &str) -> Vec<Closed> {
    let mut out = Vec::new();
    for (family, names, program) in [
        ("ip", "/proc/net/ip_tables_names", "iptables-legacy"),
        ("ip6", "/proc/net/ip6_tables_names", "ip6tables-legacy"),
    ] {
        let tables = std::fs::read_to_string(Path::new(names)).unwrap_or_default();
        if !tables.lines().any(|table| table == "filter") {
            continue;
        }
        if let Ok(ended) = program::run(program, &["-S"], "", LIMIT) {
            out.extend(closed_legacy(family, &ended.stdout, port, interface));
        }
    }
    out
}

/// Judges what `iptables -S` prints.
fn closed_legacy(family: &str, listing: &str, port: u16, interface: &str) -> Vec<Closed> {
    let accepts = |line: &str, words: &[String]| {
        let accepted = line.ends_with("-j ACCEPT") && line.starts_with("-A ");
        let found = words
            .iter()
            .any(|word| line.split_whitespace().any(|w| w == word));
        accepted && found
    };
    let mut out = Vec::new();
    for (hook, chain, words) in [
        (Hook::Input, "INPUT", vec![port.to_string()]),
        (
            Hook::Forward,
            "FORWARD",
            vec![interface.to_owned(), format!("{VETH_PREFIX}+")],
        ),
    ] {
        let all = ["DROP", "REJECT --reject-with icmp-port-unreachable"]
            .map(|verdict| format!("-A {chain} -j {verdict}"));
        let drops =
            |line: &str| line == format!("-P {chain} DROP") || all.iter().any(|l| l == line);
        let takes_all = format!("-A {chain} -j ACCEPT");
        let open = listing
            .lines()
            .any(|line| accepts(line, &words) || line == takes_all);
        if listing.lines().any(drops) && !open {
            out.push(Closed {
                family: family.into(),
                table: LEGACY.into(),
                chain: chain.into(),
                hook,
            });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // in a test, a failed unwrap is the report

    use super::*;

    fn chain(hook: &str, policy: &str) -> Value {
        serde_json::json!({"chain": {"family": "inet", "table": "filter", "name": hook,
            "type": "filter", "hook": hook, "prio": 0, "policy": policy}})
    }

    fn rule(chain: &str, expr: &str) -> Value {
        let expr: Value = serde_json::from_str(expr).unwrap();
        serde_json::json!({"rule": {"family": "inet", "table": "filter", "chain": chain, "expr": expr}})
    }

    fn closed(objects: Vec<Value>) -> Vec<Hook> {
        let ruleset = serde_json::json!({ "nftables": objects });
        let ranges = ["10.244.0.0/16".parse().unwrap()];
        let found = closed_chains(&ruleset, 51871, "warren0", &ranges);
        found.into_iter().map(|closed| closed.hook).collect()
    }

    const DROP: &str = r#"[{"counter": {"packets": 0, "bytes": 0}}, {"drop": null}]"#;
    const REJECT_TCP: &str = r#"[{"match": {"left": {"meta": {"key": "l4proto"}}, "op": "==",
        "right": "tcp"}}, {"reject": null}]"#;

    #[test]
    fn a_chain_is_closed_by_its_policy_or_by_a_last_rule_for_everything() {
        assert_eq!(closed(vec![chain("input", "drop")]), [Hook::Input]);
        assert_eq!(closed(vec![chain("forward", "drop")]), [Hook::Forward]);
        assert_eq!(closed(vec![chain("input", "accept")]), []);
        assert_eq!(
            closed(vec![chain("input", "accept"), rule("input", DROP)]),
            [Hook::Input]
        );
        assert_eq!(
            closed(vec![chain("input", "accept"), rule("input", REJECT_TCP)]),
            []
        );
        assert_eq!(closed(vec![chain("output", "drop")]), []);
    }

    #[test]
    fn a_rule_opens_a_chain_for_the_port_by_number_range_or_set() {
        let left = r#"{"payload": {"protocol": "udp", "field": "dport"}}"#;
        for right in [
            "51871",
            r#"{"range": [50000, 60000]}"#,
            r#"{"set": [53, 51871]}"#,
            "\"@ports\"",
        ] {
            let accept = format!(
                r#"[{{"match": {{"op": "==", "left": {left}, "right": {right}}}}}, {{"accept": null}}]"#
            );
            let set = serde_json::json!({"set": {"family": "inet", "table": "filter",
                "name": "ports", "elem": [53, 51871]}});
            let rules = vec![chain("input", "drop"), rule("services", &accept), set];
            assert_eq!(closed(rules), [], "{right}");
        }
        let other = format!(
            r#"[{{"match": {{"op": "==", "left": {left}, "right": 51820}}}}, {{"accept": null}}]"#
        );
        assert_eq!(
            closed(vec![chain("input", "drop"), rule("input", &other)]),
            [Hook::Input]
        );
    }

    #[test]
    fn a_rule_opens_a_chain_for_pods_by_interface_or_range() {
        for right in [
            "\"wrn*\"",
            "\"warren0\"",
            r#"{"prefix": {"addr": "10.0.0.0", "len": 8}}"#,
        ] {
            let accept = format!(
                r#"[{{"match": {{"op": "==", "left": {{"meta": {{"key": "iifname"}}}}, "right": {right}}}}},
                   {{"accept": null}}]"#
            );
            assert_eq!(
                closed(vec![chain("forward", "drop"), rule("forward", &accept)]),
                [],
                "{right}"
            );
        }
    }

    #[test]
    fn what_iptables_prints_is_judged_alike() {
        let closed = |listing: &str| closed_legacy("ip", listing, 51871, "warren0").len();
        assert_eq!(closed("-P INPUT DROP\n-P FORWARD ACCEPT\n"), 1);
        assert_eq!(closed("-P INPUT DROP\n-P FORWARD DROP\n"), 2);
        assert_eq!(
            closed("-P INPUT DROP\n-A INPUT -p udp -m udp --dport 51871 -j ACCEPT\n"),
            0
        );
        assert_eq!(closed("-P FORWARD DROP\n-A FORWARD -i wrn+ -j ACCEPT\n"), 0);
        assert_eq!(closed("-P INPUT ACCEPT\n-A INPUT -j DROP\n"), 1);
    }
}
