//! Numbered datagrams in one direction: what was lost, and the longest silence.

use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use warren_lab::Host;

/// How often a receiver looks whether to end, and how late a datagram may be.
const LATE: Duration = Duration::from_millis(500);

/// What came of a flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flow {
    /// Datagrams sent.
    pub sent: u64,
    /// Datagrams received, each once.
    pub received: u64,
    /// How many came after one with a higher number.
    pub reordered: u64,
    /// How many came again.
    pub duplicates: u64,
    /// The longest time between two datagrams, the ends of the flow included.
    pub longest_gap: Duration,
}

impl Flow {
    /// The lost share in per cent.
    pub fn loss_percent(&self) -> f64 {
        100.0 * (self.sent - self.received) as f64 / self.sent.max(1) as f64
    }
}

/// Sends a numbered datagram of `bytes` every `interval` for `duration`, host to host.
///
/// # Errors
/// When a socket cannot be had.
pub fn run(
    (from, to): (&Host, &Host),
    address: SocketAddr,
    bytes: usize,
    interval: Duration,
    duration: Duration,
) -> Result<Flow> {
    let receiver = to.in_netns(|| UdpSocket::bind(address))?;
    let receiver = receiver.with_context(|| format!("listen on {address}"))?;
    receiver.set_read_timeout(Some(LATE))?;
    let sender = from.in_netns(|| UdpSocket::bind("0.0.0.0:0"))??;
    let start = Instant::now();
    std::thread::scope(|scope| {
        let sending = scope.spawn(move || {
            let mut datagram = vec![0x57; bytes.max(8)];
            let mut sent = 0u64;
            while start.elapsed() < duration {
                datagram[..8].copy_from_slice(&sent.to_le_bytes());
                // One that cannot leave is a lost one.
                let _ = sender.send_to(&datagram, address);
                sent += 1;
                let next = interval.saturating_mul(u32::try_from(sent).unwrap_or(u32::MAX));
                std::thread::sleep(next.saturating_sub(start.elapsed()));
            }
            sent
        });
        let mut flow = receive(&receiver, start, duration);
        flow.sent = sending.join().unwrap_or_default();
        Ok(flow)
    })
}

fn receive(socket: &UdpSocket, start: Instant, duration: Duration) -> Flow {
    let mut flow = Flow {
        sent: 0,
        received: 0,
        reordered: 0,
        duplicates: 0,
        longest_gap: Duration::ZERO,
    };
    let (mut seen, mut highest) = (Vec::new(), None);
    let mut last = Duration::ZERO;
    let mut buffer = vec![0; 65_536];
    let end = duration + LATE;
    while start.elapsed() < end {
        let Ok(len) = socket.recv(&mut buffer) else {
            continue;
        };
        let Some(number) = buffer[..len].first_chunk().map(|n| u64::from_le_bytes(*n)) else {
            continue;
        };
        let place = number as usize;
        if place >= seen.len() {
            seen.resize(place + 1, false);
        }
        if std::mem::replace(&mut seen[place], true) {
            flow.duplicates += 1;
            continue;
        }
        flow.received += 1;
        flow.reordered += u64::from(highest > Some(number));
        highest = highest.max(Some(number));
        let now = start.elapsed();
        flow.longest_gap = flow.longest_gap.max(now - last);
        last = now;
    }
    flow.longest_gap = flow.longest_gap.max(duration.saturating_sub(last));
    flow
}
