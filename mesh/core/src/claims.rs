//! What only one node may have, and an index of who claims it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use warren_keyring::PublicKey;

use crate::node::{NodeName, NodeRecord, overlap};

/// Something that only one node may have.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Claim {
    Key(PublicKey),
    PodCidr(IpNet),
    Endpoint(SocketAddr),
    Address(IpAddr),
}

impl Claim {
    pub(crate) fn clashes(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::PodCidr(a), Self::PodCidr(b)) => overlap(a, b),
            _ => self == other,
        }
    }
}

/// All that a node claims.
pub(crate) fn claims(record: &NodeRecord) -> BTreeSet<Claim> {
    let mut out = BTreeSet::from([Claim::Key(record.public_key)]);
    out.extend(record.next_public_key.map(Claim::Key));
    out.extend(record.pod_cidrs.iter().copied().map(Claim::PodCidr));
    out.extend(record.endpoints.iter().copied().map(Claim::Endpoint));
    out.extend(record.addresses.iter().copied().map(Claim::Address));
    out
}

/// Who claims what; a look-up's work grows with the length of a prefix, not with the nodes.
///
/// Nodes have numbers here: a name beside each claim would be most of what a large mesh takes.
#[derive(Debug, Default)]
pub(crate) struct ClaimIndex {
    claimed: BTreeSet<(Claim, u32)>,
    numbers: BTreeMap<NodeName, u32>,
    next: u32,
}

impl ClaimIndex {
    /// Adds claims to those that the node has.
    pub(crate) fn insert(&mut self, name: &NodeName, claims: BTreeSet<Claim>) {
        let number = match self.numbers.get(name) {
            Some(number) => *number,
            None => {
                self.next += 1;
                self.numbers.insert(name.clone(), self.next);
                self.next
            }
        };
        let claimed = claims.into_iter().map(|claim| (claim, number));
        self.claimed.extend(claimed);
    }

    /// Takes a node away, whose claims are all of these.
    pub(crate) fn remove(&mut self, name: &NodeName, claims: BTreeSet<Claim>) {
        let Some(number) = self.numbers.remove(name) else {
            return;
        };
        for claim in claims {
            self.claimed.remove(&(claim, number));
        }
    }

    /// Whether another node than `name` claims anything of this.
    pub(crate) fn is_contested(&self, name: &NodeName, claims: &BTreeSet<Claim>) -> bool {
        let own = self.numbers.get(name);
        claims.iter().any(|claim| match claim {
            Claim::PodCidr(net) => self.overlapping(net).any(|number| Some(number) != own),
            other => self.holders(other).any(|number| Some(number) != own),
        })
    }

    fn holders<'a>(&'a self, claim: &Claim) -> impl Iterator<Item = &'a u32> + use<'a> {
        let all = (claim.clone(), 0)..=(claim.clone(), u32::MAX);
        self.claimed.range(all).map(|(_, number)| number)
    }

    fn overlapping(&self, net: &IpNet) -> impl Iterator<Item = &u32> {
        let net = net.trunc();
        let around = (0..net.prefix_len())
            .filter_map(move |length| IpNet::new(net.addr(), length).ok())
            .flat_map(|outer| self.holders(&Claim::PodCidr(outer.trunc())));
        // Sorted by address, then length: what lies inside follows.
        let inside = self
            .claimed
            .range((Claim::PodCidr(net), 0)..)
            .take_while(
                move |(claim, _)| matches!(claim, Claim::PodCidr(inner) if net.contains(inner)),
            )
            .map(|(_, number)| number);
        around.chain(inside)
    }
}
