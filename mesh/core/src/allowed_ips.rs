//! The table that says whose an inner address is: the longest prefix decides.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use prefix_trie::PrefixMap;

/// WireGuard's cryptokey routing table: prefixes of both families, each owned by exactly one `T`,
/// looked up by the longest match.
///
/// Prefixes are held with their host bits cleared. An IPv4-mapped IPv6 address is an IPv6
/// address here, as in wireguard-go.
#[derive(Clone)]
pub struct AllowedIps<T> {
    v4: PrefixMap<Ipv4Net, T>,
    v6: PrefixMap<Ipv6Net, T>,
    /// What each owner has, so that a peer's prefixes are found without a look at all others'.
    ///
    /// INVARIANT: it says the same as `v4` and `v6`, and no owner in it has nothing.
    owned: BTreeMap<T, BTreeSet<IpNet>>,
}

impl<T> AllowedIps<T> {
    /// Makes an empty table.
    pub fn new() -> Self {
        Self {
            v4: PrefixMap::new(),
            v6: PrefixMap::new(),
            owned: BTreeMap::new(),
        }
    }

    /// Returns the owner of exactly this prefix.
    pub fn get(&self, prefix: &IpNet) -> Option<&T> {
        match prefix {
            IpNet::V4(net) => self.v4.get(net),
            IpNet::V6(net) => self.v6.get(net),
        }
    }

    /// Returns the owner of the longest prefix that contains the address; allocates nothing.
    #[inline]
    pub fn lookup(&self, address: IpAddr) -> Option<&T> {
        match address {
            IpAddr::V4(address) => self.v4.get_lpm(&host_v4(address)).map(|(_, owner)| owner),
            IpAddr::V6(address) => self.v6.get_lpm(&host_v6(address)).map(|(_, owner)| owner),
        }
    }

    /// Returns the longest prefix that contains the address, and its owner.
    pub fn longest_match(&self, address: IpAddr) -> Option<(IpNet, &T)> {
        match address {
            IpAddr::V4(address) => {
                let (net, owner) = self.v4.get_lpm(&host_v4(address))?;
                Some((IpNet::V4(net), owner))
            }
            IpAddr::V6(address) => {
                let (net, owner) = self.v6.get_lpm(&host_v6(address))?;
                Some((IpNet::V6(net), owner))
            }
        }
    }

    /// Goes through all prefixes and owners: IPv4 before IPv6, then by address, and a prefix
    /// before the longer ones that it contains.
    pub fn iter(&self) -> impl Iterator<Item = (IpNet, &T)> {
        let v4 = self.v4.iter().map(|(net, owner)| (IpNet::V4(net), owner));
        let v6 = self.v6.iter().map(|(net, owner)| (IpNet::V6(net), owner));
        v4.chain(v6)
    }

    /// Returns the number of prefixes of both families.
    pub fn len(&self) -> usize {
        self.v4.len() + self.v6.len()
    }

    /// Tells whether there is no prefix.
    pub fn is_empty(&self) -> bool {
        self.v4.is_empty() && self.v6.is_empty()
    }

    fn remove_from_trie(&mut self, prefix: &IpNet) -> Option<T> {
        match prefix {
            IpNet::V4(net) => self.v4.remove(net),
            IpNet::V6(net) => self.v6.remove(net),
        }
    }
}

impl<T: Ord + Clone> AllowedIps<T> {
    /// Gives the prefix to `owner` and returns who had it before. There is no moment at which
    /// nobody has it, so that moving a prefix between peers loses no packet.
    pub fn insert(&mut self, prefix: IpNet, owner: T) -> Option<T> {
        let prefix = prefix.trunc();
        let before = match prefix {
            IpNet::V4(net) => self.v4.insert(net, owner.clone()),
            IpNet::V6(net) => self.v6.insert(net, owner.clone()),
        };
        if before.as_ref() != Some(&owner) {
            if let Some(before) = &before {
                self.disown(&prefix, before);
            }
            self.owned.entry(owner).or_default().insert(prefix);
        }
        before
    }

    /// Takes exactly this prefix away, whosever it is, and returns its owner.
    pub fn remove(&mut self, prefix: &IpNet) -> Option<T> {
        let prefix = prefix.trunc();
        let owner = self.remove_from_trie(&prefix)?;
        self.disown(&prefix, &owner);
        Some(owner)
    }

    /// Takes exactly this prefix away if it is `owner`'s, and tells whether it was. UAPI's
    /// `allowed_ip=-CIDR` is this: a peer cannot take a prefix away from another one.
    pub fn remove_if_owner(&mut self, prefix: &IpNet, owner: &T) -> bool {
        if self.get(prefix) != Some(owner) {
            return false;
        }
        self.remove(prefix).is_some()
    }

    /// Goes through the prefixes of one owner, in the order of [`AllowedIps::iter`].
    pub fn owned_by<'a>(&'a self, owner: &T) -> impl Iterator<Item = IpNet> + use<'a, T> {
        self.owned.get(owner).into_iter().flatten().copied()
    }

    /// Takes all prefixes of one owner away and returns them, in the order of
    /// [`AllowedIps::iter`]. The work grows with their number, not with that of all prefixes.
    pub fn remove_all(&mut self, owner: &T) -> Vec<IpNet> {
        let prefixes = self.owned.remove(owner).unwrap_or_default();
        for prefix in &prefixes {
            self.remove_from_trie(prefix);
        }
        prefixes.into_iter().collect()
    }

    fn disown(&mut self, prefix: &IpNet, owner: &T) {
        if let Some(prefixes) = self.owned.get_mut(owner) {
            prefixes.remove(prefix);
            if prefixes.is_empty() {
                self.owned.remove(owner);
            }
        }
    }
}

impl<T> Default for AllowedIps<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T: PartialEq> PartialEq for AllowedIps<T> {
    fn eq(&self, other: &Self) -> bool {
        self.len() == other.len() && self.iter().eq(other.iter())
    }
}

impl<T: Eq> Eq for AllowedIps<T> {}

impl<T: std::fmt::Debug> std::fmt::Debug for AllowedIps<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

#[inline]
fn host_v4(address: Ipv4Addr) -> Ipv4Net {
    Ipv4Net::from(address)
}

#[inline]
fn host_v6(address: Ipv6Addr) -> Ipv6Net {
    Ipv6Net::from(address)
}
