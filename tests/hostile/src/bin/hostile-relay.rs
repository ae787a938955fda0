//! Stands between two tunnels and hands their datagrams on, some of them late.

use std::collections::BTreeMap;
use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Parser as _;
use warren_hostile::random::Random;

#[derive(Debug, clap::Parser)]
#[command(about = "Relays UDP between two addresses and reorders it")]
struct Options {
    /// The local address that stands for B to A
    #[arg(long)]
    listen_a: SocketAddr,
    /// The local address that stands for A to B
    #[arg(long)]
    listen_b: SocketAddr,
    /// Where A is
    #[arg(long)]
    a: SocketAddr,
    /// Where B is
    #[arg(long)]
    b: SocketAddr,
    /// One datagram in so many comes late
    #[arg(long, default_value_t = 20)]
    late_one_in: usize,
    /// And by at most so much
    #[arg(long, default_value_t = 20)]
    late_ms: usize,
}

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let bind = |at| UdpSocket::bind(at).with_context(|| format!("listen on {at}"));
    let (from_a, from_b) = (bind(options.listen_a)?, bind(options.listen_b)?);
    println!("relaying");
    std::thread::scope(|scope| {
        let there = scope.spawn(|| relay(&options, 1, &from_a, &from_b, options.b));
        let back = scope.spawn(|| relay(&options, 2, &from_b, &from_a, options.a));
        let ended = [there.join(), back.join()];
        ended.into_iter().try_for_each(|end| {
            end.unwrap_or_else(|_| Err(anyhow::anyhow!("a direction panicked")))
        })
    })
}

fn relay(
    options: &Options,
    seed: u64,
    from: &UdpSocket,
    by: &UdpSocket,
    to: SocketAddr,
) -> anyhow::Result<()> {
    let mut random = Random::new(seed);
    let mut late: BTreeMap<(Instant, u64), Vec<u8>> = BTreeMap::new();
    let (mut number, mut buffer) = (0, vec![0; 65_536]);
    loop {
        let now = Instant::now();
        while let Some(entry) = late.first_entry() {
            if entry.key().0 > now {
                break;
            }
            // What cannot be sent is lost, as on any network.
            let _ = by.send_to(&entry.remove(), to);
        }
        let wait = late.keys().next().map(|(at, _)| {
            at.saturating_duration_since(now)
                .max(Duration::from_millis(1))
        });
        from.set_read_timeout(wait)?;
        let Ok((len, _)) = from.recv_from(&mut buffer) else {
            continue;
        };
        if random.one_in(options.late_one_in.max(1)) {
            let delay = 1 + random.below(options.late_ms.max(1));
            let at = Instant::now() + Duration::from_millis(delay as u64);
            number += 1;
            late.insert((at, number), buffer[..len].to_vec());
        } else {
            let _ = by.send_to(&buffer[..len], to);
        }
    }
}
