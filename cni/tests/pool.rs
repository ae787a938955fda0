//! The allocator against a naive oracle that knows every address of its ranges.

#![allow(
    clippy::unwrap_used,
    reason = "in a test a failed step is a failed test"
)]

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use proptest::prelude::*;
use warren_cni::env::{AttachmentId, ContainerId, IfName};
use warren_cni::ipam::{
    AddressRange, COOL_DOWN, Circumstances, Granted, LiveAttachment, Pool, PoolError, Wanted,
    check_disjoint,
};
use warren_cni::plan::host_name;

#[derive(Clone, Debug)]
enum Step {
    Reserve(u8),
    Release(u8),
    GiveBack(u8),
    Wait(u64),
    Reboot,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        8 => (0..20u8).prop_map(Step::Reserve),
        6 => (0..20u8).prop_map(Step::Release),
        1 => (0..20u8).prop_map(Step::GiveBack),
        3 => (0..90u64).prop_map(Step::Wait),
        1 => Just(Step::Reboot),
    ];
    prop::collection::vec(step, 1..250)
}

/// One family's addresses, each in exactly one of three lists.
#[derive(Clone, Default)]
struct Oracle {
    unused: VecDeque<IpAddr>,
    freed: VecDeque<(IpAddr, u64)>,
    reserved: BTreeMap<u8, IpAddr>,
}

impl Oracle {
    fn pick(&mut self, now: u64) -> Option<IpAddr> {
        if let Some(address) = self.unused.pop_front() {
            return Some(address);
        }
        let cooled = |(_, at): &(IpAddr, u64)| now.saturating_sub(*at) >= COOL_DOWN.as_secs();
        let i = self.freed.iter().position(cooled)?;
        self.freed.remove(i).map(|(address, _)| address)
    }
}

fn owner(id: impl std::fmt::Display) -> AttachmentId {
    AttachmentId {
        container_id: ContainerId::new(format!("c{id}")).unwrap(),
        ifname: IfName::new("eth0").unwrap(),
    }
}

fn ranges(texts: &[&str]) -> Vec<AddressRange> {
    let range = |text: &&str| AddressRange::of(text.parse::<IpNet>().unwrap());
    texts.iter().map(range).collect()
}

fn with(elsewhere: &BTreeSet<IpAddr>, now: Duration) -> Circumstances<'_> {
    Circumstances {
        elsewhere,
        now,
        unix_time: 1_700_000_000,
    }
}

fn give(
    pool: &mut Pool,
    owner: &AttachmentId,
    ranges: &[AddressRange],
    now: Duration,
) -> Result<Granted, PoolError> {
    ask(pool, owner, ranges, &[], now)
}

fn ask(
    pool: &mut Pool,
    owner: &AttachmentId,
    ranges: &[AddressRange],
    addresses: &[&str],
    now: Duration,
) -> Result<Granted, PoolError> {
    let addresses: Vec<IpAddr> = addresses.iter().map(|a| a.parse().unwrap()).collect();
    let wanted = Wanted {
        owner,
        pod: None,
        ranges,
        addresses: &addresses,
    };
    pool.reserve(&wanted, &with(&BTreeSet::new(), now))
}

fn reserve(pool: &mut Pool, id: u32, range: &str, now: u64) -> Result<IpAddr, PoolError> {
    let now = Duration::from_secs(now);
    let granted = give(pool, &owner(id), &ranges(&[range]), now)?;
    Ok(granted.addresses[0])
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn the_pool_does_what_the_oracle_does(steps in steps()) {
        let both = ranges(&["10.1.0.16/28", "fd00::70/124"]);
        // All but network, first, and (IPv4) broadcast address.
        let v4 = (18..=30u8).map(|i| IpAddr::from([10, 1, 0, i])).collect();
        let v6 = (0x72..=0x7fu16).map(|i| IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, i])).collect();
        let mut oracle = [
            Oracle { unused: v4, ..Oracle::default() },
            Oracle { unused: v6, ..Oracle::default() },
        ];
        let mut pool = Pool::new("net", "boot-0");
        let (mut now, mut boot) = (1000u64, 0);
        for step in steps {
            match step {
                Step::Reserve(id) => {
                    let got = give(&mut pool, &owner(id), &both, Duration::from_secs(now));
                    if let Some(held) = oracle[0].reserved.get(&id) {
                        let granted = got.unwrap();
                        prop_assert!(!granted.fresh);
                        prop_assert_eq!(granted.addresses, vec![*held, oracle[1].reserved[&id]]);
                        continue;
                    }
                    let mut next = oracle.clone();
                    match (next[0].pick(now), next[1].pick(now)) {
                        (Some(v4), Some(v6)) => {
                            next[0].reserved.insert(id, v4);
                            next[1].reserved.insert(id, v6);
                            oracle = next;
                            let granted = got.unwrap();
                            prop_assert!(granted.fresh);
                            prop_assert_eq!(granted.addresses, vec![v4, v6]);
                        }
                        (v4, _) => {
                            let short = &oracle[usize::from(v4.is_some())];
                            match got {
                                Err(PoolError::UsedUp { taken, cooling, .. }) => {
                                    prop_assert_eq!(taken, short.reserved.len());
                                    prop_assert_eq!(cooling, short.freed.len());
                                }
                                other => prop_assert!(false, "{other:?}"),
                            }
                        }
                    }
                }
                Step::Release(id) => {
                    let released = pool.release(&owner(id), Duration::from_secs(now));
                    let mut expected = Vec::new();
                    for family in &mut oracle {
                        let Some(address) = family.reserved.remove(&id) else { continue };
                        family.freed.push_back((address, now));
                        expected.push(address);
                    }
                    prop_assert_eq!(released, expected);
                }
                Step::GiveBack(id) => {
                    pool.give_back(&owner(id));
                    for family in &mut oracle {
                        let Some(address) = family.reserved.remove(&id) else { continue };
                        family.freed.push_front((address, 0));
                    }
                }
                Step::Wait(seconds) => now += seconds,
                Step::Reboot => {
                    boot += 1;
                    now = 30;
                    // In the order of the reservations, which is the order of reserving.
                    let order: Vec<IpAddr> =
                        pool.reservations().iter().flat_map(|r| r.addresses.clone()).collect();
                    pool.begin_boot(&format!("boot-{boot}"), &[]);
                    for (i, family) in oracle.iter_mut().enumerate() {
                        family.freed.iter_mut().for_each(|freed| freed.1 = 0);
                        let own = order.iter().filter(|a| usize::from(a.is_ipv6()) == i);
                        family.freed.extend(own.map(|address| (*address, 0)));
                        family.reserved.clear();
                    }
                }
            }
            // What is stored can be read again, and passes its own check.
            let text = serde_json::to_string(&pool).unwrap();
            let again: Pool = serde_json::from_str(&text).unwrap();
            prop_assert_eq!(again.check("net"), Ok(()));
            prop_assert_eq!(&again, &pool);
        }
    }
}

#[test]
fn tiny_ranges_have_nothing_to_give_or_only_what_is_allowed() {
    for range in ["10.0.0.0/32", "10.0.0.0/31", "fd00::/128", "fd00::/127"] {
        let error = reserve(&mut Pool::new("n", "b"), 1, range, 100).unwrap_err();
        assert!(
            matches!(
                error,
                PoolError::UsedUp {
                    taken: 0,
                    cooling: 0,
                    ..
                }
            ),
            "{range}"
        );
    }
    let mut pool = Pool::new("n", "b");
    assert_eq!(
        reserve(&mut pool, 1, "10.0.0.0/30", 100),
        Ok("10.0.0.2".parse().unwrap())
    );
    assert!(reserve(&mut pool, 2, "10.0.0.0/30", 100).is_err());
    let mut pool = Pool::new("n", "b");
    assert_eq!(
        reserve(&mut pool, 1, "255.255.255.0/24", 9),
        Ok("255.255.255.2".parse().unwrap())
    );
    let top = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffc/126";
    let mut pool = Pool::new("n", "b");
    assert!(reserve(&mut pool, 1, top, 9).is_ok() && reserve(&mut pool, 2, top, 9).is_ok());
    assert!(reserve(&mut pool, 3, top, 9).is_err());
}

#[test]
fn a_node_without_ranges_gives_nothing() {
    let mut pool = Pool::new("n", "b");
    let none = give(&mut pool, &owner(1), &[], COOL_DOWN);
    assert_eq!(none, Err(PoolError::NoRange));
}

#[test]
fn a_large_range_comes_round_in_order_with_a_bounded_document() {
    let range = "10.0.0.0/21";
    let mut pool = Pool::new("n", "b");
    let mut rounds: [Vec<IpAddr>; 2] = Default::default();
    let mut now = 100;
    for round in &mut rounds {
        for i in 0..2045 {
            now += 61;
            round.push(reserve(&mut pool, i, range, now).unwrap());
            pool.release(&owner(i), Duration::from_secs(now));
        }
    }
    let distinct: BTreeSet<_> = rounds[0].iter().collect();
    assert_eq!(distinct.len(), 2045);
    assert_eq!(rounds[0], rounds[1]);
    assert!(serde_json::to_vec(&pool).unwrap().len() < 64 << 10);
}

#[test]
fn an_ipv6_podcidr_is_neither_enumerated_nor_remembered() {
    let mut pool = Pool::new("n", "b");
    let mut seen = BTreeSet::new();
    for i in 0..3000u32 {
        let now = 100 + u64::from(i);
        assert!(seen.insert(reserve(&mut pool, i, "fd00:0:0:1::/64", now).unwrap()));
        pool.release(&owner(i), Duration::from_secs(now));
    }
    assert!(serde_json::to_vec(&pool).unwrap().len() < 64 << 10);
}

#[test]
fn a_changed_podcidr_gives_new_addresses_and_takes_none() {
    let mut pool = Pool::new("n", "b");
    let old = reserve(&mut pool, 1, "10.1.0.0/24", 100).unwrap();
    let new = reserve(&mut pool, 2, "10.2.0.0/24", 100).unwrap();
    assert_eq!(new, IpAddr::from([10, 2, 0, 2]));
    assert_eq!(reserve(&mut pool, 1, "10.2.0.0/24", 100), Ok(old));
    // An overlapping range never gives what a pod still has.
    assert_eq!(
        reserve(&mut pool, 3, "10.1.0.0/16", 100),
        Ok("10.1.0.3".parse().unwrap())
    );
    assert_eq!(
        reserve(&mut pool, 4, "10.1.0.0/24", 100),
        Ok("10.1.0.4".parse().unwrap())
    );
}

#[test]
fn a_family_that_the_node_gains_is_added_to_a_reservation() {
    let mut pool = Pool::new("n", "b");
    let v4 = reserve(&mut pool, 1, "10.1.0.0/24", 100).unwrap();
    let both = ranges(&["10.1.0.0/24", "fd00::/64"]);
    let granted = give(&mut pool, &owner(1), &both, COOL_DOWN).unwrap();
    assert_eq!(granted.addresses, [v4, "fd00::2".parse().unwrap()]);
    assert!(!granted.fresh);
}

#[test]
fn what_another_network_has_is_not_given_until_it_is_free_there() {
    let range = ranges(&["10.0.0.0/29"]);
    let elsewhere: BTreeSet<IpAddr> = ["10.0.0.2", "10.0.0.4"].map(|a| a.parse().unwrap()).into();
    let mut pool = Pool::new("n", "b");
    let mut got = Vec::new();
    let give = |pool: &mut Pool, id: u32, elsewhere: &BTreeSet<IpAddr>| {
        let wanted = Wanted {
            owner: &owner(id),
            pod: None,
            ranges: &range,
            addresses: &[],
        };
        pool.reserve(&wanted, &with(elsewhere, COOL_DOWN))
    };
    for i in 0..3 {
        let granted = give(&mut pool, i, &elsewhere).unwrap();
        got.extend(granted.addresses);
    }
    let expected: [IpAddr; 3] = ["10.0.0.3", "10.0.0.5", "10.0.0.6"].map(|a| a.parse().unwrap());
    assert_eq!(got, expected);
    let full = give(&mut pool, 9, &elsewhere).unwrap_err();
    assert!(
        matches!(
            full,
            PoolError::UsedUp {
                taken: 5,
                cooling: 0,
                ..
            }
        ),
        "{full}"
    );
    let later = give(&mut pool, 9, &BTreeSet::new()).unwrap();
    assert_eq!(later.addresses, [IpAddr::from([10, 0, 0, 2])]);
}

#[test]
fn documents_that_cannot_be_ours_are_found_out() {
    let mut pool = Pool::new("n", "b");
    reserve(&mut pool, 1, "10.0.0.0/29", 100).unwrap();
    reserve(&mut pool, 2, "10.0.0.0/29", 100).unwrap();
    let good = serde_json::to_value(&pool).unwrap();
    assert_eq!(pool.check("n"), Ok(()));
    assert!(pool.check("other").unwrap_err().contains("\"other\""));
    let damaged = |change: &dyn Fn(&mut serde_json::Value)| {
        let mut value = good.clone();
        change(&mut value);
        serde_json::from_value::<Pool>(value)
            .unwrap()
            .check("n")
            .unwrap_err()
    };
    assert!(damaged(&|v| v["format"] = 1.into()).contains("format"));
    let twice = damaged(&|v| v["reservations"][1]["addresses"] = serde_json::json!(["10.0.0.2"]));
    assert!(twice.contains("10.0.0.2 twice"), "{twice}");
    let first = good["reservations"][0]["hostInterface"].clone();
    let owner = damaged(&|v| v["reservations"][1]["hostInterface"] = first.clone());
    assert!(owner.contains("c2/eth0 twice"), "{owner}");
    let next = damaged(&|v| v["ranges"]["10.0.0.2-10.0.0.6"]["next"] = "10.0.0.1".into());
    assert!(next.contains("10.0.0.2-10.0.0.6"), "{next}");
    for key in ["10.0.0.2", "10.0.0.6-10.0.0.2", "10.0.0.2-fd00::1", "a-b"] {
        let mut value = good.clone();
        value["ranges"][key] = serde_json::json!({"next": null, "forgotten": false});
        let error = Pool::from_document(value.to_string().as_bytes(), "n").unwrap_err();
        assert!(error.contains("no range of addresses"), "{error}");
    }
}

#[test]
fn exclusions_and_bounds_hold_for_given_and_for_requested_addresses() {
    let whole = AddressRange::of("10.0.0.0/24".parse().unwrap());
    let address = |text: &str| Some(text.parse::<IpAddr>().unwrap());
    let range = whole
        .clone()
        .within(address("10.0.0.10"), address("10.0.0.20"))
        .unwrap()
        .without("10.0.0.12/31".parse().unwrap())
        .unwrap()
        .without("10.0.0.15/32".parse().unwrap())
        .unwrap();
    let range = [range];
    let mut pool = Pool::new("n", "b");
    let mut got = Vec::new();
    for id in 0..8 {
        got.extend(
            give(&mut pool, &owner(id), &range, COOL_DOWN)
                .unwrap()
                .addresses,
        );
    }
    let expected = [10, 11, 14, 16, 17, 18, 19, 20].map(|i| IpAddr::from([10, 0, 0, i]));
    assert_eq!(got, expected);
    let full = give(&mut pool, &owner(9), &range, COOL_DOWN).unwrap_err();
    let text = full.to_string();
    assert!(
        text.contains("8 taken") && text.contains("warren pods"),
        "{text}"
    );
    assert!(
        text.contains("10.0.0.10-10.0.0.20 without 10.0.0.12/31"),
        "{text}"
    );
    for wrong in [
        "10.0.0.12",
        "10.0.0.15",
        "10.0.0.9",
        "10.0.0.21",
        "10.1.0.11",
        "fd00::1",
    ] {
        let error = ask(&mut pool, &owner(9), &range, &[wrong], COOL_DOWN).unwrap_err();
        assert!(matches!(error, PoolError::NotAllowed { .. }), "{error}");
    }
    // A lifted exclusion is found once the others are used up.
    let lifted = [whole
        .within(address("10.0.0.10"), address("10.0.0.20"))
        .unwrap()];
    let granted = give(&mut pool, &owner(9), &lifted, COOL_DOWN).unwrap();
    assert_eq!(granted.addresses, [IpAddr::from([10, 0, 0, 12])]);
}

#[test]
fn impossible_ranges_are_refused() {
    let whole = |text: &str| AddressRange::of(text.parse().unwrap());
    let address = |text: &str| Some(text.parse::<IpAddr>().unwrap());
    let error = whole("10.0.0.0/24")
        .within(address("10.0.1.1"), None)
        .unwrap_err();
    assert!(error.to_string().contains("rangeStart 10.0.1.1"), "{error}");
    let error = whole("10.0.0.0/24")
        .within(address("10.0.0.9"), address("10.0.0.8"))
        .unwrap_err();
    assert!(error.to_string().contains("10.0.0.8"), "{error}");
    assert!(whole("10.0.0.0/32").within(None, None).is_err());
    assert!(
        whole("10.0.0.0/24")
            .without("10.0.0.0/23".parse().unwrap())
            .is_err()
    );
    let apart = [
        whole("10.0.0.0/24"),
        whole("10.0.1.0/24"),
        whole("fd00::/64"),
    ];
    assert_eq!(check_disjoint(&apart), Ok(()));
    let error = check_disjoint(&[whole("10.0.0.0/23"), whole("10.0.1.0/24")]).unwrap_err();
    assert!(error.to_string().contains("share addresses"), "{error}");
}

#[test]
fn several_ranges_are_used_up_in_order() {
    let both = ranges(&["10.0.0.0/30", "10.0.9.0/30"]);
    let mut pool = Pool::new("n", "b");
    let mut got = Vec::new();
    for id in 0..2 {
        got.extend(
            give(&mut pool, &owner(id), &both, COOL_DOWN)
                .unwrap()
                .addresses,
        );
    }
    assert_eq!(
        got,
        [IpAddr::from([10, 0, 0, 2]), IpAddr::from([10, 0, 9, 2])]
    );
    assert!(give(&mut pool, &owner(3), &both, COOL_DOWN).is_err());
}

#[test]
fn a_requested_address_is_given_when_free_and_no_other_one_then() {
    let both = ranges(&["10.0.0.0/24", "fd00::/64"]);
    let mut pool = Pool::new("n", "b");
    let now = COOL_DOWN;
    let granted = ask(&mut pool, &owner(1), &both, &["10.0.0.77"], now).unwrap();
    assert_eq!(
        granted.addresses,
        ["10.0.0.77", "fd00::2"].map(|a| a.parse::<IpAddr>().unwrap())
    );
    let error = ask(&mut pool, &owner(2), &both, &["10.0.0.77"], now).unwrap_err();
    assert!(
        matches!(&error, PoolError::Taken { by, .. } if by == "c1/eth0"),
        "{error}"
    );
    let error = ask(&mut pool, &owner(2), &both, &["10.0.0.5", "10.0.0.6"], now).unwrap_err();
    assert!(matches!(error, PoolError::TwoOfAFamily { .. }), "{error}");
    let elsewhere = BTreeSet::from(["10.0.0.5".parse().unwrap()]);
    let wanted = Wanted {
        owner: &owner(2),
        pod: None,
        ranges: &both,
        addresses: &["10.0.0.5".parse().unwrap()],
    };
    let error = pool.reserve(&wanted, &with(&elsewhere, now)).unwrap_err();
    assert!(error.to_string().contains("another network"), "{error}");
    // Asked for again by its owner it is its own; another one replaces it.
    assert!(
        !ask(&mut pool, &owner(1), &both, &["10.0.0.77"], now)
            .unwrap()
            .fresh
    );
    let moved = ask(&mut pool, &owner(1), &both, &["10.0.0.78"], now).unwrap();
    assert_eq!(moved.addresses[0], IpAddr::from([10, 0, 0, 78]));
    // A pod that is made anew gets its address at once, whatever cools down.
    pool.release(&owner(1), now);
    let again = ask(&mut pool, &owner(3), &both, &["10.0.0.78"], now).unwrap();
    assert_eq!(again.addresses[0], IpAddr::from([10, 0, 0, 78]));
    assert_eq!(pool.check("n"), Ok(()));
}

#[test]
fn whether_a_pod_would_get_addresses_is_told_without_giving_any() {
    let range = ranges(&["10.0.0.0/30", "fd00::/64"]);
    let mut pool = Pool::new("n", "b");
    let none = BTreeSet::new();
    let before = pool.clone();
    assert_eq!(pool.check_free(&range, &with(&none, COOL_DOWN)), Ok(()));
    assert_eq!(pool, before);
    give(&mut pool, &owner(1), &range, COOL_DOWN).unwrap();
    let error = pool
        .check_free(&range, &with(&none, COOL_DOWN))
        .unwrap_err();
    assert!(
        matches!(error, PoolError::UsedUp { taken: 1, .. }),
        "{error}"
    );
    assert_eq!(
        pool.check_free(&[], &with(&none, COOL_DOWN)),
        Err(PoolError::NoRange)
    );
}

fn live(id: u32, addresses: &[&str]) -> LiveAttachment {
    LiveAttachment {
        host_interface: host_name(&owner(id)),
        container_id: format!("c{id}"),
        ifname: String::new(),
        ours: true,
        addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
    }
}

#[test]
fn what_lives_is_adopted_and_released_by_its_owner() {
    let range = ranges(&["10.0.0.0/29"]);
    let mut pool = Pool::new("n", "b");
    let elsewhere = BTreeSet::from(["10.0.0.4".parse().unwrap()]);
    pool.adopt(
        &[live(1, &["10.0.0.3"]), live(2, &["10.0.0.4"]), live(3, &[])],
        &elsewhere,
    );
    assert_eq!(pool.reservations().len(), 1);
    assert_eq!(
        give(&mut pool, &owner(7), &range, COOL_DOWN)
            .unwrap()
            .addresses,
        [IpAddr::from([10, 0, 0, 2])]
    );
    assert_eq!(
        give(&mut pool, &owner(8), &range, COOL_DOWN)
            .unwrap()
            .addresses,
        [IpAddr::from([10, 0, 0, 4])]
    );
    // Its interface inside the container is not known, and yet it is known whose it is.
    assert_eq!(pool.held_by(&owner(1)).unwrap().container_id, "c1");
    assert_eq!(
        pool.release(&owner(1), COOL_DOWN),
        [IpAddr::from([10, 0, 0, 3])]
    );
    assert_eq!(pool.check("n"), Ok(()));
}

#[test]
fn a_boot_keeps_only_what_lives() {
    let range = ranges(&["10.0.0.0/29"]);
    let mut pool = Pool::new("n", "b");
    for id in 1..=3 {
        give(&mut pool, &owner(id), &range, COOL_DOWN).unwrap();
    }
    pool.begin_boot("c", &[live(2, &["10.0.0.3"])]);
    let left: Vec<_> = pool
        .reservations()
        .iter()
        .map(|r| &*r.container_id)
        .collect();
    assert_eq!(left, ["c2"]);
    assert_eq!(pool.check("n"), Ok(()));
}
