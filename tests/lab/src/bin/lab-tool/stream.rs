//! A TCP connection that must not stall.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde_json::json;

const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// How long the last answers may take.
const LAST_ANSWERS: Duration = Duration::from_secs(30);

#[derive(Debug, clap::Args)]
pub(crate) struct Send {
    /// Where stream-serve listens, as HOST:PORT
    to: SocketAddr,
    /// How long to go on; 0: until a signal
    #[arg(long, default_value_t = 0)]
    seconds: u64,
    /// Time between two numbers
    #[arg(long, default_value_t = 10)]
    interval_ms: u64,
}

/// Echoes every connection on a thread of its own until a signal.
pub(crate) fn serve(address: SocketAddr) -> anyhow::Result<()> {
    let listener = TcpListener::bind(address).with_context(|| format!("listen on {address}"))?;
    println!(
        "{}",
        json!({ "listening": listener.local_addr()?.to_string() })
    );
    for stream in listener.incoming() {
        match stream {
            Ok(mut stream) => {
                std::thread::spawn(move || {
                    let _ = stream.set_nodelay(true);
                    let copied = stream
                        .try_clone()
                        .and_then(|mut to| std::io::copy(&mut stream, &mut to));
                    let _ = stream.shutdown(Shutdown::Both);
                    if let Err(e) = copied {
                        eprintln!("echo: {e}");
                    }
                });
            }
            Err(_) if crate::stopped() => break,
            Err(e) => eprintln!("accept: {e}"),
        }
    }
    Ok(())
}

impl Send {
    pub(crate) fn run(&self) -> anyhow::Result<()> {
        let mut stream = TcpStream::connect_timeout(&self.to, CONNECT_LIMIT)
            .with_context(|| format!("connect to {}", self.to))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(LAST_ANSWERS))?;
        let (local, reading) = (stream.local_addr()?, stream.try_clone()?);
        let start = Instant::now();
        let receiver = std::thread::spawn(move || receive(reading, start));
        let interval = Duration::from_millis(self.interval_ms.max(1));
        let end = (self.seconds > 0).then(|| start + Duration::from_secs(self.seconds));
        let mut sent = 0_u64;
        let mut broken = None;
        while !crate::stopped() && end.is_none_or(|end| Instant::now() < end) {
            if let Err(e) = stream.write_all(&sent.to_be_bytes()) {
                broken = Some(format!("send: {e}"));
                break;
            }
            sent += 1;
            std::thread::sleep(interval);
        }
        let _ = stream.shutdown(Shutdown::Write);
        let (echoed, in_order, longest, error) = receiver
            .join()
            .map_err(|_| anyhow::anyhow!("the receiving thread panicked"))?;
        println!(
            "{}",
            json!({
                "local": crate::plain(local).to_string(),
                "sent": sent,
                "echoed": echoed,
                "in_order": in_order,
                "longest_stall_ms": (longest.as_secs_f64() * 1e6).round() / 1e3,
                "seconds": start.elapsed().as_secs_f64(),
                "error": broken.or(error),
            })
        );
        Ok(())
    }
}

/// Counts the numbers that come back, whether in order, and the longest time between two.
fn receive(mut stream: TcpStream, start: Instant) -> (u64, bool, Duration, Option<String>) {
    let (mut count, mut in_order, mut longest, mut last) = (0_u64, true, Duration::ZERO, start);
    let mut number = [0; 8];
    loop {
        match stream.read_exact(&mut number) {
            Ok(()) => {
                in_order &= u64::from_be_bytes(number) == count;
                count += 1;
                longest = longest.max(last.elapsed());
                last = Instant::now();
            }
            Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => {
                return (count, in_order, longest, None);
            }
            Err(e) => {
                let error = Some(format!("receive: {e}"));
                return (count, in_order, longest.max(last.elapsed()), error);
            }
        }
    }
}
