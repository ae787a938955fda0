//! Who keeps what when two nodes claim the same thing.
//!
//! An incumbent keeps what it held in the last accepted view; a newcomer that claims it is refused.
//! Where neither held it, both are refused: else whoever writes last to the registry could cut off
//! another node. This node never grants to others what it has itself; whether the others grant it
//! to this node is another question ([`own_reject`]).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use crate::claims::{Claim, claims};
use crate::node::{NodeName, NodeRecord, overlap};
use crate::plan::LocalNode;
use crate::reject::{NodeNotice, NodeReject};

/// The outcome: who was refused and why, and whose addresses were not granted.
#[derive(Debug, Default)]
pub(crate) struct Verdict {
    pub(crate) rejects: BTreeMap<NodeName, NodeReject>,
    pub(crate) notices: BTreeMap<NodeName, NodeNotice>,
    /// Address claims that are not granted.
    pub(crate) denied_addresses: BTreeSet<(NodeName, IpAddr)>,
}

/// Two nodes that claim the same thing, each with its own claim (podCIDRs may differ and overlap).
struct Clash<'a> {
    a: (&'a NodeName, Claim),
    b: (&'a NodeName, Claim),
}

/// Decides every conflict among `records` and with `local`.
pub(crate) fn resolve(
    local: &LocalNode,
    records: &BTreeMap<NodeName, NodeRecord>,
    incumbents: &BTreeMap<NodeName, NodeRecord>,
) -> Verdict {
    let mut verdict = Verdict::default();
    for record in records.values() {
        against_local(local, record, &mut verdict);
    }
    let left: Vec<&NodeRecord> = records
        .values()
        .filter(|r| !verdict.rejects.contains_key(&r.name))
        .collect();
    let holds = |name: &NodeName, claim: &Claim| {
        let (Some(now), Some(before)) = (records.get(name), incumbents.get(name)) else {
            return false;
        };
        now.uid == before.uid && claims(before).contains(claim)
    };
    let clashes = find_clashes(&left);
    // Incumbents first: a newcomer refused for their sake cannot drag another newcomer down.
    for clash in &clashes {
        let (a_holds, b_holds) = (holds(clash.a.0, &clash.a.1), holds(clash.b.0, &clash.b.1));
        if a_holds != b_holds {
            let (loser, winner) = if a_holds {
                (&clash.b, &clash.a)
            } else {
                (&clash.a, &clash.b)
            };
            verdict.refuse(loser, winner);
        }
    }
    let refused_for_incumbents: BTreeSet<NodeName> = verdict.rejects.keys().cloned().collect();
    for clash in &clashes {
        let settled = holds(clash.a.0, &clash.a.1) != holds(clash.b.0, &clash.b.1)
            || refused_for_incumbents.contains(clash.a.0)
            || refused_for_incumbents.contains(clash.b.0);
        if !settled {
            verdict.refuse(&clash.a, &clash.b);
            verdict.refuse(&clash.b, &clash.a);
        }
    }
    verdict
}

/// Why the other nodes refuse this one, as far as can be told from here: another node has what this
/// one claims, and this one did not hold it in the last accepted view. The key comes first.
pub(crate) fn own_reject(
    local: &LocalNode,
    records: &BTreeMap<NodeName, NodeRecord>,
    incumbents: &BTreeMap<NodeName, NodeRecord>,
) -> Option<NodeReject> {
    let own = local.record();
    let before = incumbents.get(&local.name);
    let held = before
        .filter(|before| before.uid == local.uid)
        .map(claims)
        .unwrap_or_default();
    let mut verdict = Verdict::default();
    for claim in claims(&own).difference(&held) {
        for record in records.values() {
            let theirs = claims(record)
                .into_iter()
                .find(|other| claim.clashes(other));
            if let Some(theirs) = theirs {
                verdict.refuse(&(&local.name, claim.clone()), &(&record.name, theirs));
            }
        }
    }
    verdict.rejects.remove(&local.name)
}

impl Verdict {
    fn refuse(&mut self, loser: &(&NodeName, Claim), winner: &(&NodeName, Claim)) {
        let (name, with) = (loser.0.clone(), winner.0.clone());
        let reject = match (&loser.1, &winner.1) {
            (Claim::Key(public_key), _) => NodeReject::DuplicateKey {
                public_key: *public_key,
                with,
            },
            (Claim::PodCidr(cidr), Claim::PodCidr(other)) => NodeReject::PodCidrOverlap {
                cidr: *cidr,
                other: *other,
                with,
            },
            (Claim::PodCidr(cidr), _) => NodeReject::PodCidrOverlap {
                cidr: *cidr,
                other: *cidr,
                with,
            },
            (Claim::Endpoint(endpoint), _) => NodeReject::EndpointConflict {
                endpoint: *endpoint,
                with,
            },
            (Claim::Address(address), _) => {
                self.denied_addresses.insert((name.clone(), *address));
                let notice = NodeNotice::AddressConflict {
                    address: *address,
                    with,
                };
                self.notices.entry(name).or_insert(notice);
                return;
            }
        };
        self.rejects.entry(name).or_insert(reject);
    }
}

fn against_local(local: &LocalNode, record: &NodeRecord, verdict: &mut Verdict) {
    let me = (&local.name, Claim::Key(local.public_key));
    if record.public_key == local.public_key || record.next_public_key == Some(local.public_key) {
        let reject = NodeReject::OwnKey {
            public_key: local.public_key,
        };
        verdict.rejects.insert(record.name.clone(), reject);
        return;
    }
    for cidr in &record.pod_cidrs {
        if let Some(other) = local.pod_cidrs.iter().find(|o| overlap(o, cidr)) {
            let mine = (&local.name, Claim::PodCidr(*other));
            verdict.refuse(&(&record.name, Claim::PodCidr(*cidr)), &mine);
        }
    }
    for endpoint in record.endpoints.iter() {
        if local.endpoints.iter().any(|e| e == endpoint) {
            verdict.refuse(&(&record.name, Claim::Endpoint(*endpoint)), &me);
        }
    }
    for address in &record.addresses {
        if local.addresses.contains(address) {
            verdict.refuse(&(&record.name, Claim::Address(*address)), &me);
        }
    }
}

/// All pairs of nodes that claim the same thing. Work grows with the claims, not with the pairs of
/// nodes: equal claims meet in a map, and overlapping prefixes are neighbours once sorted.
fn find_clashes<'a>(records: &[&'a NodeRecord]) -> Vec<Clash<'a>> {
    let mut holders: BTreeMap<Claim, Vec<&'a NodeName>> = BTreeMap::new();
    let mut prefixes: Vec<(IpNet, &'a NodeName)> = Vec::new();
    for record in records {
        for claim in claims(record) {
            match claim {
                Claim::PodCidr(net) => prefixes.push((net, &record.name)),
                other => holders.entry(other).or_default().push(&record.name),
            }
        }
    }
    let mut out = Vec::new();
    for (claim, names) in &holders {
        for (i, a) in names.iter().enumerate() {
            for b in &names[i + 1..] {
                out.push(Clash {
                    a: (a, claim.clone()),
                    b: (b, claim.clone()),
                });
            }
        }
    }
    // Sorted by address, then length, whatever contains a prefix comes before it and is still open
    // (its last address not passed) when the prefix is met.
    prefixes.sort();
    let mut open: Vec<(IpNet, &'a NodeName)> = Vec::new();
    for (net, name) in prefixes {
        while open.last().is_some_and(|(outer, _)| !outer.contains(&net)) {
            open.pop();
        }
        for (outer, holder) in &open {
            if *holder != name {
                out.push(Clash {
                    a: (holder, Claim::PodCidr(*outer)),
                    b: (name, Claim::PodCidr(net)),
                });
            }
        }
        open.push((net, name));
    }
    out
}
