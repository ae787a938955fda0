//! Cutting what was read from the TUN.

use criterion::{Criterion, Throughput};
use warren_tunnel::offload::Segments;

use crate::cpu_time::CpuTime;
use crate::super_packets;

/// More than the longest headers that are there.
const HEADERS: usize = 80;

/// Times one super-packet, checksums included.
pub(crate) fn measure(criterion: &mut Criterion<CpuTime>) {
    let mut group = criterion.benchmark_group("segment");
    for (name, packet, segment_len) in super_packets::all() {
        let (mut frame, offload) = packet.offloaded(Some(segment_len));
        // Cutting changes the first packet's headers in place.
        let headers: [u8; HEADERS] = *frame.first_chunk().unwrap();
        group.throughput(Throughput::Bytes(frame.len() as u64));
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                frame[..HEADERS].copy_from_slice(&headers);
                let mut segments = Segments::new(&mut frame, offload).unwrap();
                let mut bytes = 0;
                while let Some(segment) = segments.next_segment() {
                    bytes += segment.len();
                }
                bytes
            });
        });
    }
}
