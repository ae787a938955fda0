//! The program as the kernel runs it, beside a search through all prefixes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::*;
use crate::random::Random;

const BPF_PROG_TEST_RUN: libc::c_long = 10;

#[repr(C)]
struct RunAttributes {
    program: u32,
    result: u32,
    packet_len: u32,
    packet_out_len: u32,
    packet: u64,
    packet_out: u64,
    repeat: u32,
    nanoseconds: u32,
}

/// Loads it, where this process may.
fn steering() -> Option<TunSteering> {
    match TunSteering::load() {
        Ok(steering) => Some(steering),
        Err(error) => {
            assert!(std::env::var_os("CI").is_none(), "{error}");
            eprintln!("skipped: {error}; CAP_BPF is needed");
            None
        }
    }
}

/// What the program returns for a packet.
fn run(steering: &TunSteering, packet: &[u8]) -> u32 {
    // The kernel takes an Ethernet header off before, and looks at what is none of IP no further.
    let mut framed = vec![0; 14];
    framed[12..].copy_from_slice(&[0x88, 0xb5]);
    framed.extend(packet);
    let mut attributes = RunAttributes {
        program: steering.program.as_raw_fd() as u32,
        result: 0,
        packet_len: framed.len() as u32,
        packet_out_len: 0,
        packet: framed.as_ptr() as u64,
        packet_out: 0,
        repeat: 1,
        nanoseconds: 0,
    };
    // SAFETY: they are BPF_PROG_TEST_RUN's, which writes into them, and the packet outlives the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_TEST_RUN,
            &raw mut attributes,
            mem::size_of::<RunAttributes>(),
        )
    };
    check(result as libc::c_int).unwrap();
    attributes.result
}

fn packet_to(destination: IpAddr) -> Vec<u8> {
    match destination {
        IpAddr::V4(address) => {
            let mut packet = vec![0; 28];
            packet[0] = 0x45;
            packet[16..20].copy_from_slice(&address.octets());
            packet
        }
        IpAddr::V6(address) => {
            let mut packet = vec![0; 48];
            packet[0] = 0x60;
            packet[24..40].copy_from_slice(&address.octets());
            packet
        }
    }
}

fn shard(number: u8) -> ShardId {
    ShardId::new(number).unwrap()
}

fn set(steering: &TunSteering, prefixes: &BTreeMap<IpNet, ShardId>) {
    let desired = || prefixes.clone().into_iter();
    for changes in steering.changes(desired()).values() {
        steering.carry_out(changes);
    }
    assert!(
        steering.changes(desired()).is_empty(),
        "nothing was refused"
    );
}

fn naive(prefixes: &BTreeMap<IpNet, ShardId>, destination: IpAddr) -> u32 {
    let matching = prefixes
        .iter()
        .filter(|(net, _)| net.contains(&destination));
    let longest = matching.max_by_key(|(net, _)| net.prefix_len());
    longest.map_or(0, |(_, shard)| shard.number().into())
}

/// An address out of few, so that prefixes lie within each other.
fn address(random: &mut Random) -> IpAddr {
    let low = random.below(1 << 10) as u32;
    match random.below(2) {
        0 => Ipv4Addr::from_bits(0x0a00_0000 | low << 6).into(),
        _ => Ipv6Addr::from_bits(0xfd << 120 | u128::from(low) << 60).into(),
    }
}

fn prefix(random: &mut Random) -> (IpNet, ShardId) {
    let address = address(random);
    let bits = if address.is_ipv4() { 33 } else { 129 };
    let net = IpNet::new(address, random.below(bits) as u8).unwrap();
    (net.trunc(), shard(random.below(16) as u8))
}

#[test]
fn the_longest_prefix_tells_the_shard_whatever_came_and_went_before() {
    let Some(steering) = steering() else { return };
    let mut random = Random::new(7);
    let mut prefixes = BTreeMap::new();
    for round in 0..30 {
        prefixes.retain(|_, _| random.below(3) > 0);
        for _ in 0..random.below(60) {
            let (net, shard) = prefix(&mut random);
            prefixes.insert(net, shard);
        }
        set(&steering, &prefixes);
        for _ in 0..100 {
            let destination = address(&mut random);
            let expected = naive(&prefixes, destination);
            assert_eq!(
                run(&steering, &packet_to(destination)),
                expected,
                "{round}: {destination}"
            );
        }
    }
}

#[test]
fn what_is_no_packet_goes_to_the_first_shard() {
    let Some(steering) = steering() else { return };
    let everything = ["0.0.0.0/0", "::/0"].map(|net| (net.parse().unwrap(), shard(3)));
    set(&steering, &everything.into());
    for (good, shortest) in [("192.0.2.1", 20), ("2001:db8::1", 40)] {
        let packet = packet_to(good.parse().unwrap());
        for len in 14..=packet.len() {
            let expected = if len >= shortest { 3 } else { 0 };
            assert_eq!(
                run(&steering, &packet[..len]),
                expected,
                "{len} bytes of one to {good}"
            );
        }
        for version in [0, 1, 5, 7, 15] {
            let mut packet = packet.clone();
            packet[0] = version << 4;
            assert_eq!(run(&steering, &packet), 0, "version {version}");
        }
    }
}

#[test]
fn changes_are_told_by_who_has_the_packets_afterwards() {
    let Some(steering) = steering() else { return };
    let net = |text: &str| text.parse::<IpNet>().unwrap();
    let before = [
        ("10.0.0.0/8", 1),
        ("10.1.0.0/16", 2),
        ("10.1.2.0/24", 3),
        ("fd00::/8", 4),
    ];
    set(
        &steering,
        &before.map(|(text, n)| (net(text), shard(n))).into(),
    );
    let after = [("10.0.0.0/8", 1), ("10.1.0.0/16", 5), ("10.2.0.0/16", 5)];
    let changes = steering.changes(after.map(|(text, n)| (net(text), shard(n))).into_iter());
    let expected = [
        (0, vec![(net("fd00::/8"), None)]),
        (
            5,
            vec![
                (net("10.1.0.0/16"), Some(shard(5))),
                (net("10.2.0.0/16"), Some(shard(5))),
                (net("10.1.2.0/24"), None),
            ],
        ),
    ];
    assert_eq!(
        changes,
        expected.map(|(n, changes)| (shard(n), changes)).into()
    );
}
