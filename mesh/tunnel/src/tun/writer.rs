//! Writing to the TUN: packets of one flow as one frame, where the kernel takes that.

use std::io::{self, IoSlice};

use super::Tun;
use crate::offload::{Coalescer, Frame, MAX_PACKETS};
use crate::outbox::Arena;

/// Writes what peers have sent.
#[derive(Debug)]
pub(crate) struct TunWriter {
    coalescer: Coalescer,
    /// The frames that the kernel took.
    pub(crate) frames: u64,
    /// The packets that it did not take.
    pub(crate) lost_packets: u64,
}

impl TunWriter {
    pub(crate) fn new() -> Self {
        Self {
            coalescer: Coalescer::new(),
            frames: 0,
            lost_packets: 0,
        }
    }

    /// Writes the packets in order; what cannot be written is counted and passed over.
    pub(crate) fn write(&mut self, tun: Option<&mut Tun>, packets: &mut Arena<()>) {
        let Some(tun) = tun else {
            self.lost_packets += packets.len() as u64;
            return;
        };
        let offloads = tun.offloads();
        if !offloads.tso || packets.len() == 1 {
            for packet in packets.iter().map(|((), packet)| packet) {
                self.note(tun.write(packet), 1);
            }
            return;
        }
        for (_, packet) in packets.iter() {
            let packet_at = |number: u32| packets.get(number as usize);
            self.coalescer.push(packet, offloads.uso, packet_at);
        }
        for n in 0..self.coalescer.len() {
            let frame = self.coalescer.frame(n);
            let written = match frame.packets {
                1 => tun.write(packets.get(frame.head as usize)),
                _ => self.write_frame(tun, &frame, packets),
            };
            self.note(written, frame.packets.into());
        }
        self.coalescer.clear();
    }

    fn write_frame(&self, tun: &mut Tun, frame: &Frame, packets: &mut Arena<()>) -> io::Result<()> {
        let head = packets.get_mut(frame.head as usize);
        let (offload, headers_len) = self.coalescer.finish(frame, head);
        let header = offload.to_bytes(headers_len);
        let mut parts = [IoSlice::new(&[]); MAX_PACKETS + 1];
        parts[0] = IoSlice::new(&header);
        parts[1] = IoSlice::new(packets.get(frame.head as usize));
        for (part, (number, payload_at)) in
            parts[2..].iter_mut().zip(self.coalescer.followers(frame))
        {
            let packet = packets.get(number as usize);
            *part = IoSlice::new(&packet[payload_at..]);
        }
        tun.write_parts(&parts[..frame.packets as usize + 1])
    }

    fn note(&mut self, written: io::Result<()>, packets: u64) {
        match written {
            Ok(()) => self.frames += 1,
            Err(_) => self.lost_packets += packets,
        }
    }
}
