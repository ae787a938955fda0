//! Whose an inner address is, among many peers.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use criterion::{BenchmarkId, Criterion};
use ipnet::{Ipv4Net, Ipv6Net};
use warren_core::AllowedIps;

use crate::cpu_time::CpuTime;

/// How many addresses are looked up by turns, so that no answer is the last one's.
const ADDRESSES: u32 = 4096;

/// Times one look-up among peers with a prefix of each family.
pub(crate) fn measure(criterion: &mut Criterion<CpuTime>) {
    let mut group = criterion.benchmark_group("lookup");
    for peers in [1, 1_000, 5_000] {
        let mut table = AllowedIps::new();
        for n in 0..peers {
            table.insert(Ipv4Net::new(v4(n, 0), 24).unwrap().into(), n);
            table.insert(Ipv6Net::new(v6(n, 0), 64).unwrap().into(), n);
        }
        // A multiplier that goes through all remainders in no order.
        let of_peer = |n: u32| n.wrapping_mul(2_654_435_761) % peers;
        let all = || (0..ADDRESSES).map(of_peer);
        let families: [(&str, Vec<IpAddr>); 2] = [
            ("IPv4", all().map(|n| v4(n, 9).into()).collect()),
            ("IPv6", all().map(|n| v6(n, 9).into()).collect()),
        ];
        for (family, addresses) in families {
            let mut addresses = addresses.iter().cycle();
            group.bench_function(BenchmarkId::new(family, peers), |bencher| {
                bencher.iter(|| addresses.next().map(|address| table.lookup(*address)));
            });
        }
    }
}

fn v4(peer: u32, host: u8) -> Ipv4Addr {
    let [_, _, high, low] = peer.to_be_bytes();
    Ipv4Addr::new(10, high, low, host)
}

fn v6(peer: u32, host: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0x244, 0, peer as u16, 0, 0, 0, host)
}
