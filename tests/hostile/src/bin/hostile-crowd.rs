//! Many WireGuard peers in one process, each with a key and a port of its own, that answer handshakes and
//! nothing else.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd as _;

use anyhow::Context as _;
use boringtun::noise::{Tunn, TunnResult};
use clap::Parser as _;
use warren_hostile::crowd;
use warren_keyring::PublicKey;

#[derive(Debug, clap::Parser)]
#[command(about = "Many peers that answer handshakes")]
struct Options {
    /// The address of all of them
    listen: IpAddr,
    /// The public key of the device whose peers they are
    #[arg(long)]
    key: PublicKey,
    /// How many there are
    #[arg(long)]
    count: u16,
}

struct Peer {
    socket: UdpSocket,
    tunn: Tunn,
}

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    raise_descriptor_limit().context("raise the limit of open descriptors")?;
    let peers: anyhow::Result<Vec<Peer>> = (0..options.count)
        .map(|n| {
            let address = SocketAddr::new(options.listen, crowd::port(n));
            let socket = UdpSocket::bind(address).with_context(|| format!("bind {address}"))?;
            socket.set_nonblocking(true)?;
            let (own, other) = (crowd::key(n)?.to_x25519(), options.key.to_x25519());
            let tunn = Tunn::new(own, other, None, None, u32::from(n), None);
            Ok(Peer { socket, tunn })
        })
        .collect();
    let mut peers = peers?;
    let mut readable: Vec<libc::pollfd> = peers
        .iter()
        .map(|peer| libc::pollfd {
            fd: peer.socket.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        })
        .collect();
    eprintln!("the crowd is there");
    let (mut datagram, mut answer) = ([0; 2048], [0; 2048]);
    loop {
        // SAFETY: the pointer and the length describe `readable`, which outlives the call.
        let count = unsafe { libc::poll(readable.as_mut_ptr(), readable.len() as u64, -1) };
        if count < 0 {
            return Err(std::io::Error::last_os_error()).context("poll");
        }
        for (peer, polled) in peers.iter_mut().zip(&readable) {
            if polled.revents == 0 {
                continue;
            }
            let Ok((len, from)) = peer.socket.recv_from(&mut datagram) else {
                continue;
            };
            let made = peer
                .tunn
                .decapsulate(Some(from.ip()), &datagram[..len], &mut answer);
            if let TunnResult::WriteToNetwork(bytes) = made {
                // A full buffer is a lost datagram: the other end asks again.
                let _ = peer.socket.send_to(bytes, from);
            }
        }
    }
}

/// A socket for each peer is more than a shell allows at first.
fn raise_descriptor_limit() -> std::io::Result<()> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` is there to be written to, and outlives the call.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) } < 0 {
        return Err(std::io::Error::last_os_error());
    }
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: `limit` is read only, and outlives the call.
    if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) } < 0 {
        return Err(std::io::Error::last_os_error());
    }
    Ok(())
}
