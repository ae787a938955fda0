//! What a listing of the table in `nft`'s JSON says.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::Value;
use warren_core::consts::rule_comment as rule;

use super::{Counted, Counters, PEER_SETS};

/// The comments and expressions of the rules of a listing.
pub(super) fn rules(listing: &Value) -> impl Iterator<Item = (Option<&str>, &Value)> {
    let objects = listing["nftables"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    let rules = objects.iter().filter_map(|object| object.get("rule"));
    rules.map(|rule| (rule["comment"].as_str(), &rule["expr"]))
}

/// What each rule that has a comment of ours and a counter has counted.
pub(super) fn counters(listing: &Value) -> Counters {
    let counted = rules(listing).filter_map(|(comment, expr)| {
        let comment = comment.filter(|comment| comment.starts_with(rule::PREFIX))?;
        let counter = expr.as_array()?.iter().find_map(|e| e.get("counter"))?;
        let counted = Counted {
            packets: counter["packets"].as_u64()?,
            bytes: counter["bytes"].as_u64()?,
        };
        Some((comment.to_owned(), counted))
    });
    counted.collect()
}

/// A normalised listing without the elements of its sets.
pub(super) fn without_elements(listing: &Value) -> Value {
    let mut listing = listing.clone();
    for object in listing["nftables"].as_array_mut().into_iter().flatten() {
        if let Some(Value::Object(set)) = object.get_mut("set") {
            set.remove("elem");
        }
    }
    listing
}

/// Takes away what differs between two listings of one and the same table, and the addresses of peers,
/// which come and go one by one; `None` for these when there is anything else among them.
pub(super) fn normalise(mut listing: Value) -> (Value, Option<BTreeSet<IpNet>>) {
    let mut peers = Some(BTreeSet::new());
    if let Some(objects) = listing["nftables"].as_array_mut() {
        objects.retain(|object| object.get("metainfo").is_none());
        for object in objects {
            strip(object);
            let Some(Value::Object(set)) = object.get_mut("set") else {
                continue;
            };
            let name = set.get("name").and_then(Value::as_str).unwrap_or_default();
            if name.strip_suffix("_v4").or(name.strip_suffix("_v6")) != Some(PEER_SETS) {
                continue;
            }
            for element in set
                .remove("elem")
                .iter()
                .flat_map(Value::as_array)
                .flatten()
            {
                let address = element
                    .as_str()
                    .and_then(|text| text.parse::<IpAddr>().ok());
                match (&mut peers, address) {
                    (Some(peers), Some(address)) => drop(peers.insert(IpNet::from(address))),
                    _ => peers = None,
                }
            }
        }
    }
    (listing, peers)
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
