//! The reference model: what an agent must make of what it was told, worked out as slowly and
//! plainly as can be, from facts instead of text, and without a line of the planner.
//!
//! It keeps a list of who holds what. A node that is planned with holds all that it claims; one
//! that is refused keeps what it held while this life of it is in the registry, save what somebody
//! else holds by now. Whoever claims what another holds is refused; where nobody holds it, all
//! that claim it are.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;

use ipnet::IpNet;
use warren_keyring::PublicKey;

use crate::entry::{Entry, Flaw, Listed};

/// Something that one node may have only.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Claim {
    Key(PublicKey),
    Cidr(IpNet),
    Endpoint(SocketAddr),
    Address(IpAddr),
}

impl Claim {
    fn clashes(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Cidr(a), Self::Cidr(b)) => overlap(a, b),
            _ => self == other,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::Key(_) => "DuplicateKey",
            Self::Cidr(_) => "PodCIDROverlap",
            Self::Endpoint(_) => "EndpointConflict",
            Self::Address(_) => "AddressConflict",
        }
    }
}

/// Whether two prefixes share an address: their first bits are the same, as many as the shorter has.
pub fn overlap(a: &IpNet, b: &IpNet) -> bool {
    let bits = |net: &IpNet| match net {
        IpNet::V4(net) => (u128::from(u32::from(net.network())) << 96, 4),
        IpNet::V6(net) => (u128::from(net.network()), 6),
    };
    let ((a_bits, a_family), (b_bits, b_family)) = (bits(a), bits(b));
    let shorter = u32::from(a.prefix_len().min(b.prefix_len()));
    a_family == b_family && (shorter == 0 || (a_bits ^ b_bits) >> (128 - shorter) == 0)
}

/// Whether a prefix has an address.
pub fn within(net: &IpNet, address: IpAddr) -> bool {
    overlap(net, &IpNet::from(address))
}

/// The node that judges.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Local {
    /// Its name.
    pub name: String,
    /// The uid of this life of it.
    pub uid: String,
    /// Whether the whole view was told.
    pub synced: bool,
    /// Its key.
    pub key: PublicKey,
    /// Its pod ranges.
    pub pod_cidrs: Vec<IpNet>,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Its endpoints, an operator's word aside.
    pub endpoints: Vec<SocketAddr>,
    /// The MTU of its underlay in bytes.
    pub mtu: u32,
}

/// What the underlay's route to an address carries, in bytes: some ways are narrower.
pub fn path_mtu(mtu: u32, to: IpAddr) -> u32 {
    let last = match to {
        IpAddr::V4(v4) => v4.octets()[3],
        IpAddr::V6(v6) => v6.octets()[15],
    };
    if last % 5 == 0 { mtu - 100 } else { mtu }
}

/// What must become of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Judged {
    /// It is a peer.
    Accepted {
        /// Where to.
        endpoint: SocketAddr,
        /// The largest inner packet in bytes.
        mtu: u32,
        /// Its addresses that the tunnel reaches.
        addresses: Vec<IpAddr>,
    },
    /// It is not, for this node has another's key and must be silent.
    Silent,
    /// It is not, for one of these reasons.
    Refused(BTreeSet<&'static str>),
}

/// One agent's knowledge.
#[derive(Clone, Debug, Default)]
pub struct Oracle {
    /// What it was told, by name.
    pub view: Rc<BTreeMap<String, Rc<Listed>>>,
    /// By name and uid.
    held: Rc<BTreeMap<(String, String), Vec<Claim>>>,
    /// What this node itself held, with its uid, when it was alone with it.
    own: Option<(String, Vec<Claim>)>,
    /// What the last judgement was made from, and its outcome: the same comes of the same.
    last: Option<(Local, Rc<BTreeMap<String, Judged>>)>,
}

impl Oracle {
    /// The whole view.
    pub fn synced(&mut self, all: &[Rc<Listed>]) {
        if all.len() == self.view.len() && all.iter().all(|listed| self.knows(listed)) {
            return;
        }
        self.last = None;
        let all = all.iter().map(|l| (l.entry.name.clone(), Rc::clone(l)));
        self.view = Rc::new(all.collect());
    }

    /// One node.
    pub fn applied(&mut self, listed: &Rc<Listed>) {
        if self.knows(listed) {
            return;
        }
        self.last = None;
        Rc::make_mut(&mut self.view).insert(listed.entry.name.clone(), Rc::clone(listed));
    }

    /// One node less, if it was that life of it.
    pub fn deleted(&mut self, name: &str, uid: &str) {
        self.last = None;
        if self.view.get(name).is_some_and(|l| l.entry.uid == uid) {
            Rc::make_mut(&mut self.view).remove(name);
        }
    }

    fn knows(&self, listed: &Rc<Listed>) -> bool {
        let known = self.view.get(&listed.entry.name);
        known.is_some_and(|known| Rc::ptr_eq(known, listed))
    }

    /// Judges every node, and takes note of who holds what from now on.
    pub fn judge(&mut self, local: &Local) -> Rc<BTreeMap<String, Judged>> {
        if let Some((before, judged)) = &self.last
            && before == local
        {
            return Rc::clone(judged);
        }
        let mut out = self.judge_once(local);
        // What a refused incumbent has given up is granted at once, so nothing moves any more in the
        // end. Who was accepted on the way is an incumbent by then, and is given as the reason
        // where there are several.
        loop {
            let before = std::mem::replace(&mut out, self.judge_once(local));
            let refused = |how: &Judged| matches!(how, Judged::Refused(_));
            let same = out
                .iter()
                .all(|(name, how)| refused(how) == refused(&before[name]));
            for (name, how) in before {
                if let (Some(Judged::Refused(reasons)), Judged::Refused(more)) =
                    (out.get_mut(&name), how)
                {
                    reasons.extend(more);
                }
            }
            if same {
                break;
            }
        }
        let out = Rc::new(out);
        self.last = Some((local.clone(), Rc::clone(&out)));
        out
    }

    /// The addresses that pods never reach in clear: those of the nodes that are planned with, and of
    /// those that are not for the moment.
    pub fn members(&self, judged: &BTreeMap<String, Judged>) -> BTreeSet<IpAddr> {
        let held = self.held.values().flatten();
        let held = held.filter_map(|claim| match claim {
            Claim::Address(address) => Some(*address),
            _ => None,
        });
        let silent = judged.iter().filter(|(_, how)| **how == Judged::Silent);
        let silent = silent.filter_map(|(name, _)| self.view.get(name));
        held.chain(silent.flat_map(|listed| listed.entry.addresses.iter().copied()))
            .collect()
    }

    fn judge_once(&mut self, local: &Local) -> BTreeMap<String, Judged> {
        let others: Vec<&Entry> = self
            .view
            .values()
            .map(|listed| &listed.entry)
            .filter(|entry| entry.name != local.name)
            .collect();
        let mut reasons: BTreeMap<&str, BTreeSet<&'static str>> = BTreeMap::new();
        let mut denied: Vec<(&str, IpAddr)> = Vec::new();
        let mut claimants: Vec<(&Entry, Vec<Claim>)> = Vec::new();
        for &entry in &others {
            let claims = match entry.flaw {
                None => claims_of(entry),
                // What cannot be read claims what it held before.
                Some(flaw) => {
                    reasons
                        .entry(&entry.name)
                        .or_default()
                        .insert(flaw.reason());
                    self.held_by(entry)
                }
            };
            claimants.push((entry, claims));
        }
        let mine = self.claims_of_local(local);
        let held = self.own.as_ref().filter(|(uid, _)| *uid == local.uid);
        let unheld = |c: &&Claim| !held.is_some_and(|(_, held)| held.contains(c));
        let strange: Vec<&Claim> = mine.iter().filter(unheld).filter(|c| blocks(c)).collect();
        let others_have = |mine: &Claim| {
            let mut theirs = claimants.iter().flat_map(|(_, claims)| claims);
            theirs.any(|c| c.clashes(mine))
        };
        let silent = strange
            .iter()
            .any(|c| matches!(c, Claim::Key(_)) && others_have(c));
        let alone = !strange.iter().any(|c| others_have(c));
        for (entry, claims) in &claimants {
            for claim in claims.iter().filter(|c| mine.iter().any(|m| m.clashes(c))) {
                lose(entry, claim, &mut reasons, &mut denied);
            }
        }
        claimants.retain(|(entry, _)| {
            entry.flaw.is_some() || !reasons.contains_key(entry.name.as_str())
        });
        // A record that cannot be read and claims what is this node's is out of the contest too.
        claimants.retain(|(_, claims)| {
            !claims
                .iter()
                .any(|c| blocks(c) && mine.iter().any(|m| m.clashes(c)))
        });
        let clashes = self.clashes(&claimants);
        let mut for_incumbents: BTreeSet<&str> = BTreeSet::new();
        for (a, x, a_holds, b, y, b_holds) in &clashes {
            if a_holds != b_holds {
                let (loser, claim) = if *a_holds { (b, y) } else { (a, x) };
                lose(loser, claim, &mut reasons, &mut denied);
                if blocks(claim) {
                    for_incumbents.insert(&loser.name);
                }
            }
        }
        for (a, x, a_holds, b, y, b_holds) in &clashes {
            let out = |e: &Entry| for_incumbents.contains(e.name.as_str());
            if a_holds == b_holds && !out(a) && !out(b) {
                lose(a, x, &mut reasons, &mut denied);
                lose(b, y, &mut reasons, &mut denied);
            }
        }
        let ours = self.own_endpoints(local);
        let mut out = BTreeMap::new();
        for &entry in &others {
            let judged = match reasons.get(entry.name.as_str()) {
                Some(why) => Judged::Refused(why.clone()),
                None => match meet(local, &ours, entry, &denied) {
                    Judged::Accepted { .. } if silent => Judged::Silent,
                    judged => judged,
                },
            };
            out.insert(entry.name.clone(), judged);
        }
        self.note(&out);
        if local.synced && alone {
            self.own = Some((local.uid.clone(), mine));
        }
        out
    }

    /// This node's endpoints: an operator's word on its own entry comes first.
    pub fn own_endpoints(&self, local: &Local) -> Vec<SocketAddr> {
        let own = self.view.get(&local.name).map(|listed| &listed.entry);
        let readable =
            own.filter(|own| own.flaw != Some(Flaw::Forced) && own.flaw != Some(Flaw::Endpoint));
        let forced = readable.and_then(|own| own.forced.clone());
        forced.unwrap_or_else(|| local.endpoints.clone())
    }

    /// This node's own claims. As its record is, without a next key.
    fn claims_of_local(&self, local: &Local) -> Vec<Claim> {
        let mut out = vec![Claim::Key(local.key)];
        out.extend(local.pod_cidrs.iter().copied().map(Claim::Cidr));
        out.extend(self.own_endpoints(local).into_iter().map(Claim::Endpoint));
        out.extend(local.addresses.iter().copied().map(Claim::Address));
        out
    }

    fn held_by(&self, entry: &Entry) -> Vec<Claim> {
        let life = (entry.name.clone(), entry.uid.clone());
        self.held.get(&life).cloned().unwrap_or_default()
    }

    fn clashes<'a>(&self, claimants: &[(&'a Entry, Vec<Claim>)]) -> Vec<Clash<'a>> {
        let held: Vec<Vec<Claim>> = claimants.iter().map(|(e, _)| self.held_by(e)).collect();
        let mut out = Vec::new();
        for (i, j) in candidates(claimants) {
            let ((a, a_claims), (b, b_claims)) = (&claimants[i], &claimants[j]);
            for x in a_claims {
                for y in b_claims.iter().filter(|y| x.clashes(y)) {
                    let (ah, bh) = (held[i].contains(x), held[j].contains(y));
                    out.push((*a, x.clone(), ah, *b, y.clone(), bh));
                }
            }
        }
        out
    }

    fn note(&mut self, judged: &BTreeMap<String, Judged>) {
        let mut now: BTreeMap<(String, String), Vec<Claim>> = BTreeMap::new();
        for (name, how) in judged {
            let Judged::Accepted { addresses, .. } = how else {
                continue;
            };
            let entry = &self.view[name].entry;
            let granted = |c: &Claim| !matches!(c, Claim::Address(a) if !addresses.contains(a));
            let claims = claims_of(entry).into_iter().filter(granted);
            now.insert((name.clone(), entry.uid.clone()), claims.collect());
        }
        let mut kept = Vec::new();
        for (life, claims) in self.held.iter() {
            let refused = !matches!(judged.get(&life.0), Some(Judged::Accepted { .. }) | None);
            let alive = self
                .view
                .get(&life.0)
                .is_some_and(|l| l.entry.uid == life.1);
            if refused && alive {
                let taken = |claim: &Claim| now.values().flatten().any(|c| c.clashes(claim));
                // Without its key it is not known by anything else either.
                if !claims.first().is_some_and(taken) {
                    let left = claims.iter().filter(|claim| !taken(claim));
                    kept.push((life.clone(), left.cloned().collect()));
                }
            }
        }
        now.extend(kept);
        self.held = Rc::new(now);
    }
}

/// Both sides of a clash: who, what, and whether it is held.
type Clash<'a> = (&'a Entry, Claim, bool, &'a Entry, Claim, bool);

/// The pairs that may clash: all of them, but for large worlds, where those that share no key, no
/// endpoint, no address and no half of a cluster's prefix are left out.
fn candidates(claimants: &[(&Entry, Vec<Claim>)]) -> BTreeSet<(usize, usize)> {
    const LARGE: usize = 64;
    let count = claimants.len();
    if count <= LARGE {
        return (0..count)
            .flat_map(|i| (i + 1..count).map(move |j| (i, j)))
            .collect();
    }
    let mut same: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    let mut wide = Vec::new();
    for (i, (_, claims)) in claimants.iter().enumerate() {
        for claim in claims {
            let text = match claim {
                Claim::Key(key) => key.to_hex(),
                Claim::Endpoint(endpoint) => format!("endpoint {endpoint}"),
                Claim::Address(address) => address.to_string(),
                // As every node's range in such a world: equal or inside one another.
                Claim::Cidr(IpNet::V4(net)) if net.prefix_len() >= 24 => {
                    format!("{:?}", &net.network().octets()[..3])
                }
                Claim::Cidr(IpNet::V6(net)) if net.prefix_len() >= 64 => {
                    format!("{:?}", &net.network().octets()[..8])
                }
                Claim::Cidr(_) => {
                    wide.push(i);
                    continue;
                }
            };
            same.entry(text).or_default().push(i);
        }
    }
    let mut out = BTreeSet::new();
    let mut add = |a: usize, b: usize| {
        if a != b {
            out.insert((a.min(b), a.max(b)));
        }
    };
    for group in same.values().filter(|group| group.len() > 1) {
        for a in group {
            group.iter().for_each(|b| add(*a, *b));
        }
    }
    for a in wide {
        (0..count).for_each(|b| add(a, b));
    }
    out
}

/// Two claims of an address refuse nobody.
fn blocks(claim: &Claim) -> bool {
    !matches!(claim, Claim::Address(_))
}

fn lose<'a>(
    entry: &'a Entry,
    claim: &Claim,
    reasons: &mut BTreeMap<&'a str, BTreeSet<&'static str>>,
    denied: &mut Vec<(&'a str, IpAddr)>,
) {
    match claim {
        Claim::Address(address) => denied.push((&entry.name, *address)),
        // What cannot be read is refused for that.
        _ if entry.flaw.is_some() => {}
        _ => drop(
            reasons
                .entry(&entry.name)
                .or_default()
                .insert(claim.reason()),
        ),
    }
}

fn claims_of(entry: &Entry) -> Vec<Claim> {
    let mut out = vec![Claim::Key(entry.key)];
    out.extend(entry.next_key.map(Claim::Key));
    out.extend(entry.pod_cidrs.iter().copied().map(Claim::Cidr));
    out.extend(entry.endpoints().into_iter().map(Claim::Endpoint));
    out.extend(entry.addresses.iter().copied().map(Claim::Address));
    out
}

/// The first family that both have, in the order of the one whose name comes first.
fn meet(local: &Local, ours: &[SocketAddr], entry: &Entry, denied: &[(&str, IpAddr)]) -> Judged {
    let theirs = entry.endpoints();
    let (first, second) = if local.name < entry.name {
        (ours, &theirs[..])
    } else {
        (&theirs[..], ours)
    };
    let family = first
        .iter()
        .map(SocketAddr::is_ipv6)
        .find(|ipv6| second.iter().any(|e| e.is_ipv6() == *ipv6));
    let endpoint = family.and_then(|ipv6| theirs.iter().find(|e| e.is_ipv6() == ipv6));
    let Some(endpoint) = endpoint else {
        return Judged::Refused(BTreeSet::from(["NoCommonFamily"]));
    };
    let outer = path_mtu(local.mtu, endpoint.ip()).min(entry.mtu.unwrap_or(u32::MAX));
    let headers = if endpoint.is_ipv6() { 80 } else { 60 };
    let refused = |a: &&IpAddr| !denied.contains(&(entry.name.as_str(), **a));
    Judged::Accepted {
        endpoint: *endpoint,
        mtu: (outer - headers).max(1280),
        addresses: entry.addresses.iter().filter(refused).copied().collect(),
    }
}
