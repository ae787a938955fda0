//! Super-packets from the TUN: ten bytes of header, then the packet. What is cut is what the naive
//! model cuts.
#![no_main]

#[path = "../../../mesh/tunnel/tests/support/naive_offload.rs"]
mod naive;
#[path = "../../../mesh/tunnel/tests/support/offload_check.rs"]
mod offload_check;

use libfuzzer_sys::fuzz_target;
use offload_check::segments;
use warren_tunnel::offload::{MAX_SEGMENTS, Offload, SplitKind, VIRTIO_HEADER_LEN};

fuzz_target!(|input: &[u8]| {
    let Some((header, packet)) = input.split_first_chunk::<VIRTIO_HEADER_LEN>() else {
        return;
    };
    let Some(offload) = Offload::parse(header) else {
        return;
    };
    let Some(made) = segments(packet, offload) else {
        return;
    };
    assert!(!made.is_empty() && made.len() <= MAX_SEGMENTS);
    let (Some(split), Some(partial)) = (offload.split, offload.checksum) else {
        return;
    };
    // With the sum that the kernel would have left.
    let mut frame = packet.to_vec();
    let protocol = if split.kind == SplitKind::Udp { 17 } else { 6 };
    naive::put_pseudo_sum(&mut frame, protocol, partial);
    assert_eq!(segments(&frame, offload), Some(naive::cut(&frame, offload)));
});
