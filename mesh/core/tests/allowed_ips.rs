//! `AllowedIps` against a list that is searched from end to end.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use proptest::prelude::*;
use warren_core::allowed_ips::AllowedIps;

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn addr(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// The oracle: obviously right, and slow.
#[derive(Default)]
struct SlowTable(Vec<(IpNet, u8)>);

impl SlowTable {
    fn insert(&mut self, prefix: IpNet, owner: u8) -> Option<u8> {
        let before = self.remove(&prefix);
        self.0.push((prefix.trunc(), owner));
        before
    }

    fn remove(&mut self, prefix: &IpNet) -> Option<u8> {
        let at = self.0.iter().position(|(net, _)| *net == prefix.trunc())?;
        Some(self.0.swap_remove(at).1)
    }

    fn remove_if_owner(&mut self, prefix: &IpNet, owner: u8) -> bool {
        self.0.contains(&(prefix.trunc(), owner)) && self.remove(prefix).is_some()
    }

    fn remove_all(&mut self, owner: u8) -> Vec<IpNet> {
        let mut gone: Vec<IpNet> = self
            .0
            .iter()
            .filter(|(_, other)| *other == owner)
            .map(|(net, _)| *net)
            .collect();
        gone.sort();
        self.0.retain(|(_, other)| *other != owner);
        gone
    }

    fn longest_match(&self, address: IpAddr) -> Option<(IpNet, u8)> {
        self.0
            .iter()
            .filter(|(net, _)| net.contains(&address))
            .max_by_key(|(net, _)| net.prefix_len())
            .copied()
    }

    fn sorted(&self) -> Vec<(IpNet, u8)> {
        let mut all = self.0.clone();
        all.sort();
        all
    }
}

/// One step; prefixes and owners come from few values, so that steps meet each other.
#[derive(Debug, Clone)]
enum Step {
    Insert(IpNet, u8),
    Remove(IpNet),
    RemoveIfOwner(IpNet, u8),
    RemoveAll(u8),
    Lookup(IpAddr),
}

/// Bits are drawn from a few patterns, each with a few changed low or high bits, so that many
/// prefixes are nested, and the boundaries of the families' lengths come often.
fn v4() -> impl Strategy<Value = Ipv4Addr> {
    let base = prop_oneof![Just(0u32), Just(u32::MAX), Just(0x0af4_0000), any::<u32>()];
    (base, 0u32..8, 0u32..32).prop_map(|(base, bits, shift)| (base ^ (bits << shift)).into())
}

fn v6() -> impl Strategy<Value = Ipv6Addr> {
    let base = prop_oneof![
        Just(0u128),
        Just(u128::MAX),
        Just(0xfd00_u128 << 112),
        any::<u128>()
    ];
    (base, 0u128..8, 0u32..128).prop_map(|(base, bits, shift)| (base ^ (bits << shift)).into())
}

fn address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![v4().prop_map(IpAddr::V4), v6().prop_map(IpAddr::V6)]
}

fn prefix() -> impl Strategy<Value = IpNet> {
    let v4_len = prop_oneof![Just(0u8), Just(32u8), 0u8..=32];
    let v6_len = prop_oneof![Just(0u8), Just(128u8), 0u8..=128];
    prop_oneof![
        (v4(), v4_len).prop_map(|(addr, len)| IpNet::new_assert(addr.into(), len)),
        (v6(), v6_len).prop_map(|(addr, len)| IpNet::new_assert(addr.into(), len)),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (prefix(), 0u8..6).prop_map(|(net, owner)| Step::Insert(net, owner)),
        3 => prefix().prop_map(Step::Remove),
        3 => (prefix(), 0u8..6).prop_map(|(net, owner)| Step::RemoveIfOwner(net, owner)),
        1 => (0u8..6).prop_map(Step::RemoveAll),
        20 => address().prop_map(Step::Lookup),
    ]
}

proptest! {
    // 100 runs of 200 steps, of which four in seven are look-ups: over 10,000 of them, and the
    // final pass looks every boundary of every prefix up too.
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn longest_match_equals_the_naive_oracle(steps in prop::collection::vec(step(), 200)) {
        let mut table = AllowedIps::new();
        let mut oracle = SlowTable::default();
        for step in steps {
            match step {
                Step::Insert(net, owner) => {
                    prop_assert_eq!(table.insert(net, owner), oracle.insert(net, owner));
                }
                Step::Remove(net) => {
                    prop_assert_eq!(table.remove(&net), oracle.remove(&net));
                }
                Step::RemoveIfOwner(net, owner) => {
                    prop_assert_eq!(
                        table.remove_if_owner(&net, &owner),
                        oracle.remove_if_owner(&net, owner)
                    );
                }
                Step::RemoveAll(owner) => {
                    prop_assert_eq!(table.remove_all(&owner), oracle.remove_all(owner));
                }
                Step::Lookup(address) => check(&table, &oracle, address)?,
            }
            prop_assert_eq!(table.len(), oracle.0.len());
            prop_assert_eq!(table.is_empty(), oracle.0.is_empty());
        }

        let all: Vec<(IpNet, u8)> = table.iter().map(|(net, owner)| (net, *owner)).collect();
        prop_assert_eq!(&all, &oracle.sorted());
        for owner in 0..6 {
            let owned: Vec<IpNet> = table.owned_by(&owner).collect();
            let expected: Vec<IpNet> =
                all.iter().filter(|(_, other)| *other == owner).map(|(net, _)| *net).collect();
            prop_assert_eq!(owned, expected);
        }
        for (net, _) in all {
            check(&table, &oracle, net.network())?;
            check(&table, &oracle, net.broadcast())?;
        }
    }
}

fn check(table: &AllowedIps<u8>, oracle: &SlowTable, address: IpAddr) -> Result<(), TestCaseError> {
    let expected = oracle.longest_match(address);
    let found = table
        .longest_match(address)
        .map(|(net, owner)| (net, *owner));
    prop_assert_eq!(found, expected, "longest match of {}", address);
    prop_assert_eq!(
        table.lookup(address).copied(),
        expected.map(|(_, owner)| owner)
    );
    Ok(())
}

#[test]
fn the_longest_of_nested_prefixes_wins_and_the_shorter_takes_over_when_it_goes() {
    let mut table = AllowedIps::new();
    table.insert(net("0.0.0.0/0"), "default");
    table.insert(net("10.244.0.0/16"), "cluster");
    table.insert(net("10.244.1.0/24"), "node");
    table.insert(net("10.244.1.7/32"), "pod");

    let pod = addr("10.244.1.7");
    for (prefix, owner) in [
        ("10.244.1.7/32", "pod"),
        ("10.244.1.0/24", "node"),
        ("10.244.0.0/16", "cluster"),
        ("0.0.0.0/0", "default"),
    ] {
        assert_eq!(table.longest_match(pod), Some((net(prefix), &owner)));
        assert_eq!(table.remove(&net(prefix)), Some(owner));
    }
    assert_eq!(table.lookup(pod), None);
    assert!(table.is_empty());
}

#[test]
fn a_prefix_moves_to_its_new_owner_whole() {
    let mut table = AllowedIps::new();
    assert_eq!(table.insert(net("fd00:2::/64"), 'a'), None);
    assert_eq!(table.insert(net("fd00:2::/64"), 'b'), Some('a'));
    assert_eq!(table.len(), 1);
    assert_eq!(table.lookup(addr("fd00:2::5")), Some(&'b'));
    assert_eq!(table.owned_by(&'a').count(), 0);
}

#[test]
fn host_bits_are_cleared() {
    let mut table = AllowedIps::new();
    table.insert(net("10.244.1.9/24"), 'a');
    assert_eq!(table.insert(net("10.244.1.200/24"), 'b'), Some('a'));
    assert_eq!(
        table.iter().collect::<Vec<_>>(),
        [(net("10.244.1.0/24"), &'b')]
    );
    assert_eq!(
        table.longest_match(addr("10.244.1.1")),
        Some((net("10.244.1.0/24"), &'b'))
    );
    assert_eq!(table.get(&net("10.244.1.77/24")), Some(&'b'));
}

#[test]
fn only_the_owner_can_have_its_prefix_removed() {
    let mut table = AllowedIps::new();
    table.insert(net("10.244.1.0/24"), 'a');
    assert!(!table.remove_if_owner(&net("10.244.1.0/24"), &'b'));
    assert!(!table.remove_if_owner(&net("10.244.1.0/25"), &'a'));
    assert_eq!(table.lookup(addr("10.244.1.1")), Some(&'a'));
    assert!(table.remove_if_owner(&net("10.244.1.0/24"), &'a'));
    assert!(table.is_empty());
}

#[test]
fn families_do_not_mix() {
    let mut table = AllowedIps::new();
    table.insert(net("0.0.0.0/0"), 4);
    assert_eq!(table.lookup(addr("::1")), None);
    assert_eq!(table.lookup(addr("::ffff:10.0.0.1")), None);
    table.insert(net("::/0"), 6);
    assert_eq!(table.lookup(addr("::ffff:10.0.0.1")), Some(&6));
    assert_eq!(table.lookup(addr("10.0.0.1")), Some(&4));
}

#[test]
fn equality_and_debug_follow_the_content() {
    let mut one = AllowedIps::new();
    let mut two = AllowedIps::new();
    one.insert(net("10.0.0.0/8"), 1);
    one.insert(net("fd00::/8"), 2);
    two.insert(net("fd00::/8"), 2);
    assert_ne!(one, two);
    two.insert(net("10.0.0.0/8"), 1);
    assert_eq!(one, two);
    assert_eq!(format!("{one:?}"), "{10.0.0.0/8: 1, fd00::/8: 2}");
}

#[test]
fn the_table_can_be_shared_between_threads() {
    fn shared<T: Send + Sync>(_: &T) {}
    shared(&AllowedIps::<u32>::new());
}
