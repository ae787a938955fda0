//! Putting together what is written to the TUN.

use criterion::{Criterion, Throughput};
use warren_tunnel::offload::Coalescer;

use crate::cpu_time::CpuTime;
use crate::naive::Packet;
use crate::super_packets;

/// More than the longest headers that are there.
const HEADERS: usize = 80;

/// Times one batch: packets of one flow, and of eight by turns.
pub(crate) fn measure(criterion: &mut Criterion<CpuTime>) {
    let mut group = criterion.benchmark_group("coalesce");
    let mut measure = |name: &str, packets: Vec<Vec<u8>>, frames: usize| {
        let mut batch = packets.clone();
        let mut coalescer = Coalescer::new();
        assert_eq!(round(&mut coalescer, &mut batch, &packets), frames);
        let bytes: usize = packets.iter().map(Vec::len).sum();
        group.throughput(Throughput::Bytes(bytes as u64));
        group.bench_function(name, |bencher| {
            bencher.iter(|| round(&mut coalescer, &mut batch, &packets));
        });
    };
    for (name, packet, segment_len) in super_packets::all() {
        measure(name, split(&packet, segment_len), 1);
    }
    let flows = (1..=8).map(|port| {
        let (packet, segment_len) = super_packets::tcp4(port, 6);
        split(&packet, segment_len)
    });
    let flows: Vec<_> = flows.collect();
    let by_turns = (0..6).flat_map(|n| flows.iter().map(move |flow| flow[n].clone()));
    // Which flows share a place, and end each other's runs, follows from their ports.
    let packets: Vec<_> = by_turns.collect();
    let frames = round(&mut Coalescer::new(), &mut packets.clone(), &packets);
    assert!((8..packets.len()).contains(&frames), "{frames}");
    measure("TCP IPv4, 8 flows", packets, frames);
}

fn split(packet: &Packet, segment_len: u16) -> Vec<Vec<u8>> {
    let packets = packet.split(segment_len.into());
    packets.iter().map(Packet::bytes).collect()
}

/// Puts a batch together, and tells how many frames that makes; the batch is as before.
fn round(coalescer: &mut Coalescer, batch: &mut [Vec<u8>], original: &[Vec<u8>]) -> usize {
    for packet in batch.iter() {
        coalescer.push(packet, true, |n| &batch[n as usize]);
    }
    let frames = coalescer.len();
    for n in 0..frames {
        let frame = coalescer.frame(n);
        let head = frame.head as usize;
        std::hint::black_box(coalescer.finish(&frame, &mut batch[head]));
        std::hint::black_box(coalescer.followers(&frame).map(|(_, at)| at).sum::<usize>());
        batch[head][..HEADERS].copy_from_slice(&original[head][..HEADERS]);
    }
    coalescer.clear();
    frames
}
