//! Numbered datagrams there and back.

use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde_json::json;

const DATAGRAM_MAX: usize = 65_535;
/// How often a blocked receive looks whether to stop.
const LOOK: Duration = Duration::from_millis(50);

#[derive(Debug, clap::Args)]
pub(crate) struct Ping {
    /// Where udp-echo listens, as HOST:PORT
    to: SocketAddr,
    /// How many datagrams to send; 0: until a signal
    #[arg(long, default_value_t = 10)]
    count: u64,
    /// Time between two datagrams
    #[arg(long, default_value_t = 100)]
    interval_ms: u64,
    /// Text put into each datagram
    #[arg(long, default_value = "")]
    marker: String,
    /// Bytes of each datagram, at least 8 and the marker's length
    #[arg(long, default_value_t = 64)]
    size: usize,
    /// Local address and port to send from
    #[arg(long)]
    from: Option<SocketAddr>,
    /// How long to wait for late answers, after a signal as well; a machine's standstill does not count
    #[arg(long, default_value_t = 1000)]
    wait_ms: u64,
}

/// Echoes until a signal.
pub(crate) fn echo(address: SocketAddr) -> anyhow::Result<()> {
    let socket = UdpSocket::bind(address).with_context(|| format!("listen on {address}"))?;
    socket.set_read_timeout(Some(LOOK))?;
    println!(
        "{}",
        json!({ "listening": socket.local_addr()?.to_string() })
    );
    let mut buffer = vec![0; DATAGRAM_MAX];
    while !crate::stopped() {
        if let Ok((count, from)) = socket.recv_from(&mut buffer) {
            // An answer that cannot be sent is a lost one, which the other side counts.
            let _ = socket.send_to(&buffer[..count], from);
        }
    }
    Ok(())
}

/// What came back.
#[derive(Debug, Default)]
struct Answers {
    rtts: Vec<f64>,
    duplicates: u64,
    first: Option<Duration>,
    last: Duration,
    longest_gap: Duration,
}

impl Ping {
    pub(crate) fn run(&self) -> anyhow::Result<()> {
        let any: SocketAddr = if self.to.is_ipv4() {
            (std::net::Ipv4Addr::UNSPECIFIED, 0).into()
        } else {
            (std::net::Ipv6Addr::UNSPECIFIED, 0).into()
        };
        let from = self.from.unwrap_or(any);
        let socket = UdpSocket::bind(from).with_context(|| format!("bind to {from}"))?;
        socket.set_read_timeout(Some(LOOK))?;
        let (sent, done) = (AtomicU64::new(0), AtomicBool::new(false));
        let start = Instant::now();
        eprintln!("sending to {}", self.to);
        let answers = std::thread::scope(|scope| {
            let receiver = scope.spawn(|| self.receive(&socket, start, &sent, &done));
            self.send(&socket, start, &sent);
            done.store(true, Ordering::Release);
            receiver.join()
        });
        let answers = answers.map_err(|_| anyhow::anyhow!("the receiving thread panicked"))?;
        let sent = sent.load(Ordering::Relaxed);
        let received = answers.rtts.len() as u64;
        println!(
            "{}",
            json!({
                "sent": sent,
                "received": received,
                "lost": sent - received,
                "duplicates": answers.duplicates,
                "first_reply_ms": answers.first.map(millis),
                "longest_gap_ms": millis(answers.longest_gap),
                "rtts": answers.rtts,
            })
        );
        Ok(())
    }

    fn send(&self, socket: &UdpSocket, start: Instant, sent: &AtomicU64) {
        let mut datagram = vec![0; self.size.max(8 + self.marker.len()).min(65_507)];
        let end = 8 + self.marker.len();
        if let Some(place) = datagram.get_mut(8..end) {
            place.copy_from_slice(self.marker.as_bytes());
        }
        let interval = Duration::from_millis(self.interval_ms);
        for number in 0.. {
            if crate::stopped() || (self.count > 0 && number >= self.count) {
                return;
            }
            datagram[..8].copy_from_slice(&number.to_le_bytes());
            sent.store(number + 1, Ordering::Relaxed);
            // No route yet, a full queue: it counts as lost.
            let _ = socket.send_to(&datagram, self.to);
            let next = interval * u32::try_from(number + 1).unwrap_or(u32::MAX);
            std::thread::sleep(next.saturating_sub(start.elapsed()));
        }
    }

    fn receive(
        &self,
        socket: &UdpSocket,
        start: Instant,
        sent: &AtomicU64,
        done: &AtomicBool,
    ) -> Answers {
        let interval = Duration::from_millis(self.interval_ms);
        let mut answers = Answers::default();
        let mut seen = std::collections::HashSet::new();
        let mut buffer = vec![0; DATAGRAM_MAX];
        // Looks in vain since the last was sent: each takes LOOK of a machine that runs.
        let (mut looks, patience) = (0, self.wait_ms.div_ceil(LOOK.as_millis() as u64));
        loop {
            if done.load(Ordering::Acquire) {
                let all = seen.len() as u64 == sent.load(Ordering::Relaxed);
                if all || looks >= patience {
                    break;
                }
                looks += 1;
            }
            let Ok((count, _)) = socket.recv_from(&mut buffer) else {
                continue;
            };
            looks = looks.saturating_sub(1);
            let number = buffer[..count]
                .first_chunk()
                .map(|b| u64::from_le_bytes(*b));
            let Some(number) = number.filter(|n| *n < sent.load(Ordering::Relaxed)) else {
                continue;
            };
            if !seen.insert(number) {
                answers.duplicates += 1;
                continue;
            }
            let now = start.elapsed();
            // The plan's time, not the actual one: a sender that was late shows as a longer trip.
            let due = interval * u32::try_from(number).unwrap_or(u32::MAX);
            answers.rtts.push(millis(now.saturating_sub(due)));
            answers.first.get_or_insert(now);
            answers.longest_gap = answers.longest_gap.max(now.saturating_sub(answers.last));
            answers.last = now;
        }
        // Silence at the end is a gap too, as far as something was still due.
        let due = interval * u32::try_from(sent.load(Ordering::Relaxed)).unwrap_or(u32::MAX);
        answers.longest_gap = answers.longest_gap.max(due.saturating_sub(answers.last));
        answers
    }
}

fn millis(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}
