//! Packets cost no memory: two devices over loopback, with all that a packet meets between two TUN
//! devices but their system calls, in a program that counts what each thread allocates.
//!
//! ```text
//! frame -> engine a -> outbox -> trains -> sendmmsg ~ 127.0.0.1 ~ recvmmsg -> engine b -> coalescer
//! ```

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use warren_core::uapi::{AllowedIpUpdate, PeerUpdate, SetRequest};
use warren_keyring::PrivateKey;

use crate::drops::DropReason;
use crate::engine::{Engine, EngineConfig};
use crate::offload::{Coalescer, Offload, Offloads, PartialChecksum, Split, SplitKind};
use crate::outbox::Outbox;
use crate::time::Now;
use crate::udp::{BATCH, Lane, ReceiveArena, Sender, Udp, UdpBook};

/// The system's allocator, and what each thread has asked it for.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

fn note() {
    ALLOCATIONS.set(ALLOCATIONS.get() + 1);
}

// SAFETY: all calls are the system allocator's, with the caller's own promises passed on; a counter
// that needs no memory and has no destructor is all there is besides.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note();
        // SAFETY: as above.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        note();
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        note();
        // SAFETY: as above.
        unsafe { System.realloc(memory, layout, size) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// How often this thread asks for memory while it does the work.
fn allocations(work: impl FnOnce()) -> u64 {
    let before = ALLOCATIONS.get();
    work();
    ALLOCATIONS.get() - before
}

/// A device without its TUN.
struct End {
    engine: Engine,
    key: PrivateKey,
    number: u8,
    udp: Udp,
    sender: Sender,
    book: UdpBook,
    out: Outbox,
    received: ReceiveArena,
    coalescer: Coalescer,
    /// Packets for the TUN, and the frames that they were.
    packets: usize,
    frames: usize,
    frame: Vec<u8>,
}

impl End {
    fn new(number: u8) -> Self {
        let key = PrivateKey::generate().unwrap();
        Self {
            engine: Engine::new(EngineConfig::new(Some(key.clone()), number.into())),
            key,
            number,
            udp: Udp::bind(0, 0, Offloads::ALL).unwrap(),
            sender: Sender::new(),
            book: UdpBook::default(),
            out: Outbox::new(),
            received: ReceiveArena::new(),
            coalescer: Coalescer::new(),
            packets: 0,
            frames: 0,
            frame: vec![0; 65_535],
        }
    }

    fn add(&mut self, now: Now, other: &Self) {
        let prefix = format!("10.{}.0.0/24", other.number).parse().unwrap();
        let update = PeerUpdate {
            endpoint: Some(SocketAddr::from(([127, 0, 0, 1], other.udp.port()))),
            allowed_ips: vec![AllowedIpUpdate::Add(prefix)],
            path_probes: Some(true),
            ..PeerUpdate::new(other.key.public_key())
        };
        let request = SetRequest {
            peers: vec![update],
            ..SetRequest::default()
        };
        self.engine.apply(now, &request).unwrap();
    }

    /// A packet of that length to the other end, or a super-packet of TCP.
    fn send(&mut self, now: Now, len: usize, segment_len: Option<u16>) {
        let frame = &mut self.frame[..len];
        frame.fill(7);
        frame[..20].fill(0);
        frame[0] = 0x45;
        frame[2..4].copy_from_slice(&(len as u16).to_be_bytes());
        frame[8] = 64;
        frame[9] = 17;
        frame[12..20].copy_from_slice(&[10, self.number, 0, 1, 10, 3 - self.number, 0, 1]);
        let mut offload = Offload::default();
        if let Some(segment_len) = segment_len {
            frame[9] = 6;
            // Five words of header, an ACK.
            frame[32..34].copy_from_slice(&[0x50, 0x10]);
            offload.checksum = Some(PartialChecksum {
                start: 20,
                offset: 16,
            });
            offload.split = Some(Split {
                kind: SplitKind::Tcp4,
                segment_len,
                ecn: false,
            });
        }
        self.engine
            .handle_tun_frame(now, frame, Some(offload), &mut self.out);
    }

    /// Sends what is for the network and puts together what is for the TUN, as the loop does.
    fn flush(&mut self) {
        self.sender.send(&self.udp, &self.out, &mut self.book);
        let packets = &self.out.packets;
        for (_, packet) in packets.iter() {
            let packet_at = |number: u32| packets.get(number as usize);
            self.coalescer.push(packet, true, packet_at);
        }
        for n in 0..self.coalescer.len() {
            let frame = self.coalescer.frame(n);
            let followers = self.coalescer.followers(&frame).count();
            assert_eq!(followers + 1, frame.packets as usize);
            self.frames += 1;
            self.packets += frame.packets as usize;
        }
        self.coalescer.clear();
        self.out.clear();
    }

    /// Takes what has come by now.
    fn receive(&mut self, now: Now) {
        for lane in [Lane::Data, Lane::Handshakes] {
            for socket in self.udp.lanes(lane) {
                let count = self.received.receive(socket, BATCH).unwrap_or(0);
                for n in 0..count {
                    let message = self.received.message(n).unwrap();
                    for datagram in message.datagrams() {
                        self.engine
                            .handle_datagram(now, message.from, datagram, &mut self.out);
                    }
                }
            }
        }
        self.flush();
    }

    fn run_timers(&mut self, now: Now) {
        while self
            .engine
            .poll_timeout()
            .is_some_and(|at| at <= now.monotonic)
        {
            self.engine.handle_timers(now, &mut self.out);
            self.flush();
        }
        while let Some(query) = self.engine.poll_path_query() {
            self.engine.handle_path_mtu(now, query, 1500);
        }
    }
}

/// Lets both ends receive until one has had so many packets.
fn receive_until(now: Now, ends: &mut [End; 2], to: usize, packets: usize) {
    let patience = Instant::now() + Duration::from_secs(20);
    loop {
        for end in &mut *ends {
            end.receive(now);
        }
        if ends[to].packets >= packets {
            return;
        }
        assert!(
            Instant::now() < patience,
            "{} of {packets}",
            ends[to].packets
        );
        std::thread::yield_now();
    }
}

/// Two ends that have a session.
fn connected(now: Now) -> [End; 2] {
    let mut ends = [End::new(1), End::new(2)];
    let [a, b] = &mut ends;
    a.add(now, b);
    b.add(now, a);
    a.send(now, 100, None);
    a.flush();
    receive_until(now, &mut ends, 1, 1);
    ends
}

/// A super-packet and single packets of three lengths, each way.
fn round(now: Now, ends: &mut [End; 2]) {
    for from in [0, 1] {
        let expected = ends[1 - from].packets + 30 + 9;
        ends[from].run_timers(now);
        ends[from].send(now, 40 + 30 * 1360, Some(1360));
        ends[from].flush();
        for len in [40, 999, 1420].into_iter().cycle().take(9) {
            ends[from].send(now, len, None);
        }
        ends[from].flush();
        receive_until(now, ends, 1 - from, expected);
    }
}

#[test]
fn traffic_in_both_directions_allocates_nothing() {
    let start = Now::read();
    let mut ends = None;
    let handshake = allocations(|| ends = Some(connected(start)));
    let mut ends = ends.unwrap();
    assert!(handshake > 0, "the allocator counts");
    for n in 0..20 {
        round(start + Duration::from_millis(100 * n), &mut ends);
    }
    // Half a minute: keepalives, probes of the path, timers that are moved with each packet.
    let steady = allocations(|| {
        for n in 20..320 {
            round(start + Duration::from_millis(100 * n), &mut ends);
        }
    });
    assert_eq!(steady, 0, "allocations in 300 rounds");
    for end in &ends {
        let counters = end.engine.counters();
        assert!(
            end.frames < end.packets / 2,
            "{} of {}",
            end.frames,
            end.packets
        );
        assert_eq!(counters.drops.total(), 0);
        assert!(counters.path_probes > 0);
        assert_eq!(counters.handshakes, 1);
    }
}

#[test]
fn a_burst_that_nobody_sends_on_takes_no_more_memory_than_there_was() {
    let now = Now::read();
    let [mut a, _b] = connected(now);
    let burst = allocations(|| {
        for _ in 0..50 {
            a.send(now, 65_535, Some(32));
            a.send(now, 65_535, Some(1360));
        }
    });
    assert_eq!(burst, 0);
    assert!(a.engine.counters().drops.get(DropReason::OutboxFull) > 0);
    let sealed: usize = a.out.datagrams().map(|(_, datagram)| datagram.len()).sum();
    assert!(sealed < 1 << 20, "{sealed} bytes");
}
