//! An address store's document, as a damaged disk, another program or another version may hold it.
#![no_main]

use std::collections::BTreeSet;
use std::sync::LazyLock;
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use warren_cni::env::{AttachmentId, ContainerId, IfName};
use warren_cni::ipam::{AddressRange, Circumstances, Pool, Wanted};

static RANGES: LazyLock<Vec<AddressRange>> = LazyLock::new(|| {
    let range = |text: &str| AddressRange::of(text.parse().expect("a prefix"));
    vec![range("10.244.1.0/28"), range("fd00:0:0:1::/64")]
});

fuzz_target!(|content: &[u8]| {
    let Ok(mut pool) = Pool::from_document(content, "net") else {
        return;
    };
    let stored = pool.to_document().expect("every pool can be written");
    assert_eq!(Pool::from_document(&stored, "net").as_ref(), Ok(&pool));
    let owner = AttachmentId {
        container_id: ContainerId::new("fuzz").expect("allowed"),
        ifname: IfName::new("eth0").expect("allowed"),
    };
    let before: BTreeSet<_> = pool
        .reservations()
        .iter()
        .flat_map(|r| r.addresses.clone())
        .collect();
    let wanted = Wanted {
        owner: &owner,
        pod: None,
        ranges: &RANGES,
        addresses: &[],
    };
    let with = Circumstances {
        elsewhere: &BTreeSet::new(),
        now: Duration::from_secs(1000),
        unix_time: 0,
    };
    let held = pool.held_by(&owner).is_some();
    if let Ok(granted) = pool.reserve(&wanted, &with) {
        let fresh = granted.addresses.iter().filter(|a| !before.contains(a));
        assert!(held || fresh.count() == granted.addresses.len(), "given twice");
    }
    assert_eq!(pool.check("net"), Ok(()), "what is written cannot be read again");
    pool.release(&owner, Duration::from_secs(2000));
    pool.begin_boot("next", &[]);
    assert_eq!(pool.check("net"), Ok(()), "what is written cannot be read again");
});
