//! Bulk transfer with digests.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

/// What is sent is this block over and over, stamped with its number.
const BLOCK: usize = 64 * 1024;
/// Distance of the markers in a block.
const MARKER_EVERY: usize = 1024;
const CONNECT_LIMIT: Duration = Duration::from_secs(10);

#[derive(Debug, clap::Args)]
pub(crate) struct Send {
    /// Where tcp-serve listens, as HOST:PORT
    to: SocketAddr,
    /// How many bytes to send
    #[arg(long, default_value_t = 1 << 20)]
    bytes: u64,
    /// Text planted in every KiB of the data
    #[arg(long, default_value = "")]
    marker: String,
    /// Seed of the data
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Local address to connect from
    #[arg(long)]
    from: Option<std::net::IpAddr>,
    /// Give up when nothing moves for this many seconds
    #[arg(long, default_value_t = 30)]
    timeout: u64,
}

/// Serves every connection on a thread of its own until a signal.
pub(crate) fn serve(address: SocketAddr) -> anyhow::Result<()> {
    let listener = TcpListener::bind(address).with_context(|| format!("listen on {address}"))?;
    println!(
        "{}",
        json!({ "listening": listener.local_addr()?.to_string() })
    );
    for stream in listener.incoming() {
        match stream {
            Ok(stream) => {
                std::thread::spawn(move || match receive(stream) {
                    Ok(line) => println!("{line}"),
                    Err(e) => eprintln!("{e:#}"),
                });
            }
            Err(_) if crate::stopped() => break,
            Err(e) => eprintln!("accept: {e}"),
        }
    }
    Ok(())
}

fn receive(mut stream: TcpStream) -> anyhow::Result<Value> {
    let peer = crate::plain(stream.peer_addr()?);
    let mut digest = Sha256::new();
    let mut bytes = 0_u64;
    let mut buffer = vec![0; BLOCK];
    loop {
        let count = stream
            .read(&mut buffer)
            .with_context(|| format!("read from {peer}"))?;
        if count == 0 {
            break;
        }
        bytes += count as u64;
        digest.update(&buffer[..count]);
    }
    let line = json!({ "peer": peer.to_string(), "bytes": bytes, "digest": hex(digest) });
    writeln!(stream, "{line}").with_context(|| format!("answer {peer}"))?;
    Ok(line)
}

impl Send {
    pub(crate) fn run(&self) -> anyhow::Result<()> {
        let mut block = block(self.seed, self.marker.as_bytes());
        let mut stream = self
            .connect()
            .with_context(|| format!("connect to {}", self.to))?;
        let limit = Some(Duration::from_secs(self.timeout.max(1)));
        stream.set_read_timeout(limit)?;
        stream.set_write_timeout(limit)?;
        let local = crate::plain(stream.local_addr()?);
        let mut digest = Sha256::new();
        let start = Instant::now();
        let mut left = self.bytes;
        for number in 0_u64.. {
            if left == 0 {
                break;
            }
            block[..8].copy_from_slice(&number.to_le_bytes());
            let part = &block[..usize::try_from(left).map_or(BLOCK, |l| l.min(BLOCK))];
            digest.update(part);
            stream
                .write_all(part)
                .with_context(|| format!("send to {}", self.to))?;
            left -= part.len() as u64;
        }
        stream.shutdown(Shutdown::Write)?;
        let mut answer = String::new();
        stream
            .read_to_string(&mut answer)
            .context("read the server's digest")?;
        let seconds = start.elapsed().as_secs_f64();
        let answer: Value = serde_json::from_str(&answer).context("parse the server's answer")?;
        let digest = hex(digest);
        println!(
            "{}",
            json!({
                "local": local.to_string(),
                "bytes": self.bytes,
                "seconds": seconds,
                "mbit_per_s": self.bytes as f64 * 8e-6 / seconds,
                "digest": digest,
                "server_saw_peer": answer["peer"],
                "server_saw_bytes": answer["bytes"],
                "digest_equal": answer["digest"] == digest.as_str(),
            })
        );
        if answer["digest"] != digest.as_str() {
            bail!("the server's digest differs: {answer}");
        }
        Ok(())
    }

    fn connect(&self) -> anyhow::Result<TcpStream> {
        let Some(from) = self.from else {
            return Ok(TcpStream::connect_timeout(&self.to, CONNECT_LIMIT)?);
        };
        use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage};
        use nix::sys::socket::{bind, connect, setsockopt, socket, sockopt};
        use std::os::fd::AsRawFd as _;
        let family = if from.is_ipv4() {
            AddressFamily::Inet
        } else {
            AddressFamily::Inet6
        };
        let fd = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        bind(
            fd.as_raw_fd(),
            &SockaddrStorage::from(SocketAddr::new(from, 0)),
        )?;
        let limit = nix::sys::time::TimeVal::new(CONNECT_LIMIT.as_secs() as i64, 0);
        setsockopt(&fd, sockopt::SendTimeout, &limit)?;
        connect(fd.as_raw_fd(), &SockaddrStorage::from(self.to))?;
        Ok(TcpStream::from(fd))
    }
}

/// Pseudo-random bytes (xorshift64*) with the marker planted.
fn block(seed: u64, marker: &[u8]) -> Vec<u8> {
    let mut state = seed | 1;
    let mut block: Vec<u8> = (0..BLOCK / 8)
        .flat_map(|_| {
            state ^= state >> 12;
            state ^= state << 25;
            state ^= state >> 27;
            state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes()
        })
        .collect();
    // The first bytes of the block hold its number.
    for space in block.chunks_exact_mut(MARKER_EVERY) {
        if let Some(place) = space.get_mut(8..8 + marker.len()) {
            place.copy_from_slice(marker);
        }
    }
    block
}

fn hex(digest: Sha256) -> String {
    digest
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}
