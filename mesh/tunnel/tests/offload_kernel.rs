//! What is split and put together here, compared with what the kernel makes of the very same bytes.
//!
//! ```text
//!   host "ours"                                    host "kernel"
//!   in0 (TUN): super-packets are written to it     in0 (TUN): the same ones
//!     |  routed                                      |  routed, split and summed up by the kernel
//!   out0 (TUN with all offloads): read, and        out0 (TUN without any): read
//!     split by `Segments`
//! ```

#![allow(clippy::unwrap_used)] // helpers of tests

#[path = "support/naive_offload.rs"]
mod naive;

use std::io;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use naive::{ACK, CWR, FIN, Ip, PSH, Packet, Transport};
use warren_lab::{Host, Lab, Result, require};
use warren_tunnel::offload::{Coalescer, Offload, Offloads, Segments};
use warren_tunnel::tun::{FRAME_ROOM, Tun};

/// How long the kernel may take to route a packet.
const PATIENCE: Duration = Duration::from_secs(10);
const MTU: u32 = 9000;
const SOURCES: ([u8; 4], [u8; 16]) = (
    [198, 51, 100, 7],
    [0x20, 1, 0xd, 0xb8, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7],
);
const DESTINATIONS: ([u8; 4], [u8; 16]) = (
    [203, 0, 113, 9],
    [0x20, 1, 0xd, 0xb8, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9],
);

/// A host that routes from one TUN to another.
struct Router {
    input: Tun,
    output: Tun,
    _host: Host,
}

impl Router {
    fn new(lab: &Lab, name: &str, allowed: Offloads) -> Result<Self> {
        let host = lab.host(name)?;
        let (input, output) = host.in_netns(|| {
            let open = |name, offloads| Tun::open_transient(name, MTU, offloads).unwrap();
            (open("in0", Offloads::ALL), open("out0", allowed))
        })?;
        host.sh(
            "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 \
                 net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.in0.rp_filter=0 \
                 net.ipv4.conf.all.accept_source_route=1 net.ipv6.conf.all.router_solicitations=0
             ip link set in0 up && ip link set out0 txqueuelen 20000 up
             ip address add 198.51.100.1/24 dev in0 && ip address add 2001:db8:1::1/64 dev in0 nodad
             ip route add 203.0.113.0/24 dev out0 && ip route add 2001:db8:2::/64 dev out0",
        )?;
        Ok(Self {
            input,
            output,
            _host: host,
        })
    }

    fn write(&self, bytes: &[u8], offload: Offload, headers_len: u16) {
        let frame = [&offload.to_bytes(headers_len), bytes].concat();
        let written = nix::unistd::write(file(&self.input), &frame);
        assert_eq!(written, Ok(frame.len()), "{offload:?}");
    }

    /// The next packets that are for the destination, as many as that: what else the kernel has to
    /// say to its neighbours is passed over.
    fn read(&mut self, count: usize) -> (Vec<Vec<u8>>, bool) {
        let mut room = vec![0; FRAME_ROOM];
        let (mut packets, mut was_split) = (Vec::new(), false);
        let until = Instant::now() + PATIENCE;
        while packets.len() < count {
            match self.output.read(&mut room) {
                Ok(frame) if is_ours(frame.packet) => {
                    let offload = frame.offload.unwrap();
                    was_split |= offload.split.is_some();
                    let mut segments = Segments::new(frame.packet, offload).unwrap();
                    while let Some(packet) = segments.next_segment() {
                        packets.push(packet.to_vec());
                    }
                }
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    assert!(Instant::now() < until, "{} of {count} came", packets.len());
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err(error) => panic!("{error}"),
            }
        }
        (packets, was_split)
    }
}

fn file(tun: &Tun) -> std::os::fd::BorrowedFd<'_> {
    // SAFETY: the descriptor is the device's own, which is borrowed as long.
    unsafe { std::os::fd::BorrowedFd::borrow_raw(tun.as_raw_fd()) }
}

fn is_ours(packet: &[u8]) -> bool {
    match packet[0] >> 4 {
        4 => packet[16..20] == DESTINATIONS.0,
        _ => packet[24..40] == DESTINATIONS.1,
    }
}

/// Pseudo-random numbers, the same in each run.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() >> 16) as usize % limit
    }

    fn packet(&mut self, v4: bool, tcp: bool, payload: usize) -> Packet {
        let ip = if v4 {
            Ip::V4 {
                tos: self.next() as u8,
                id: self.next() as u16,
                dont_fragment: true,
                ttl: 64,
                addresses: [SOURCES.0, DESTINATIONS.0],
                // No-Operation: others are looked at on the way.
                options: vec![1; 4 * [0, 0, 1, 10][self.below(4)]],
            }
        } else {
            Ip::V6 {
                class_and_label: self.next() as u32 & 0xfff_ffff,
                hop_limit: 64,
                addresses: [SOURCES.1, DESTINATIONS.1],
                extensions: Vec::new(),
            }
        };
        let ports = [self.next() as u16 | 1, self.next() as u16 | 1];
        let transport = if tcp {
            Transport::Tcp {
                ports,
                sequence: self.next() as u32,
                ack: self.next() as u32,
                reserved: 0,
                flags: ACK | [0, PSH, FIN | PSH, CWR, CWR | PSH | 0x40, 0x40][self.below(6)],
                window: self.next() as u16,
                urgent: 0,
                options: vec![1; 4 * [0, 3, 10][self.below(3)]],
            }
        } else {
            Transport::Udp { ports }
        };
        let payload = (0..payload).map(|_| self.next() as u8).collect();
        Packet {
            ip,
            transport,
            payload,
        }
    }
}

/// The packet as it leaves the router.
fn hopped(packet: &Packet) -> Packet {
    let mut packet = packet.clone();
    match &mut packet.ip {
        Ip::V4 { ttl: hops, .. }
        | Ip::V6 {
            hop_limit: hops, ..
        } => *hops -= 1,
    }
    packet
}

fn transport_header(packet: &Packet) -> u16 {
    match &packet.transport {
        Transport::Tcp { options, .. } => 20 + options.len() as u16,
        Transport::Udp { .. } => 8,
    }
}

#[test]
fn each_segment_is_what_the_kernel_would_have_sent() -> Result<()> {
    require!();
    let lab = Lab::new("segments")?;
    let mut ours = Router::new(&lab, "ours", Offloads::ALL)?;
    let mut kernel = Router::new(&lab, "kernel", Offloads::NONE)?;
    let mut numbers = Numbers(0x5eed_0001);
    let mut compared = [0; 2];
    for round in 0..400 {
        let (v4, tcp) = (round & 1 == 0, round & 2 == 0);
        if !tcp && !ours.output.offloads().uso {
            continue;
        }
        let segment_len = [9, 100, 536, 1000, 1337, 1381, 8000][numbers.below(7)];
        let most = segment_len * if tcp { 2000 } else { 60 };
        let payload = 1 + segment_len + numbers.below(most.min(60_000) - segment_len);
        let packet = numbers.packet(v4, tcp, payload);
        let (bytes, offload) = packet.offloaded(Some(segment_len as u16));
        let headers_len = offload.checksum.unwrap().start + transport_header(&packet);
        let count = payload.div_ceil(segment_len);
        for router in [&ours, &kernel] {
            router.write(&bytes, offload, headers_len);
        }
        let (expected, _) = kernel.read(count);
        let (made, was_split) = ours.read(count);
        assert!(was_split, "the kernel left nothing to be split");
        assert_eq!(made, expected, "round {round}: {packet:?} by {segment_len}");
        compared[usize::from(tcp)] += count;
    }
    println!("{compared:?} segments of UDP and TCP are the kernel's");
    Ok(())
}

#[test]
fn a_checksum_that_is_left_to_us_is_the_kernels() -> Result<()> {
    require!();
    let lab = Lab::new("checksums")?;
    let mut ours = Router::new(&lab, "ours", Offloads::ALL)?;
    let mut kernel = Router::new(&lab, "kernel", Offloads::NONE)?;
    let mut numbers = Numbers(0x5eed_0002);
    for round in 0..200 {
        let payload = numbers.below(if round % 8 == 0 { 8900 } else { 60 });
        let packet = numbers.packet(round & 1 == 0, round & 2 == 0, payload);
        let (bytes, offload) = packet.offloaded(None);
        for router in [&ours, &kernel] {
            router.write(&bytes, offload, 0);
        }
        let (expected, _) = kernel.read(1);
        assert_eq!(ours.read(1).0, expected, "round {round}: {packet:?}");
    }
    Ok(())
}

#[test]
fn the_kernel_takes_apart_what_is_put_together_into_the_same_packets() -> Result<()> {
    require!();
    let lab = Lab::new("together")?;
    let mut kernel = Router::new(&lab, "kernel", Offloads::NONE)?;
    let mut numbers = Numbers(0x5eed_0003);
    let udp = kernel.input.offloads().uso;
    let (mut sent, mut frames) = (0, 0);
    for round in 0..200 {
        let tcp = round & 2 == 0;
        let segment_len = [1, 100, 1000, 1381][numbers.below(4)];
        let payload = segment_len * (1 + numbers.below(40)) + numbers.below(segment_len);
        let mut whole = numbers.packet(round & 1 == 0, tcp, payload);
        if let Ip::V4 { options, .. } = &mut whole.ip {
            options.clear();
        }
        let packets = whole.split(segment_len);
        let bytes: Vec<_> = packets.iter().map(Packet::bytes).collect();
        let mut coalescer = Coalescer::new();
        for packet in &bytes {
            coalescer.push(packet, udp, |n| &bytes[n as usize]);
        }
        for number in 0..coalescer.len() {
            let frame = coalescer.frame(number);
            let mut super_packet = bytes[frame.head as usize].clone();
            let (offload, headers_len) = coalescer.finish(&frame, &mut super_packet);
            for (n, payload_at) in coalescer.followers(&frame) {
                super_packet.extend(&bytes[n as usize][payload_at..]);
            }
            kernel.write(&super_packet, offload, headers_len);
            frames += 1;
        }
        let expected: Vec<_> = packets
            .iter()
            .map(|packet| hopped(packet).bytes())
            .collect();
        assert_eq!(kernel.read(packets.len()).0, expected, "round {round}");
        sent += packets.len();
    }
    assert!(frames * 2 < sent, "{sent} packets made {frames} frames");
    println!("{sent} packets came out of {frames} frames as they were");
    Ok(())
}
