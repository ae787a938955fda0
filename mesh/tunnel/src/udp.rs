//! The UDP sockets. Datagrams go through them in batches and in trains, see `send.rs` and `receive.rs`.
//!
//! Each family has several sockets on the one port: the first is for data messages, the others are for
//! handshakes of several kinds, see `steer.rs`. So a flood of handshakes never takes the room of data.
//! Which sources share a socket changes with `Udp::reshuffle`. Where the kernel refuses that,
//! everything comes to one socket. With several shards each has its own part of the sockets.

mod control;
mod pieces;
mod receive;
mod send;
#[cfg(test)]
mod tests;
mod trains;

use std::io;
use std::mem;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd;
use std::sync::OnceLock;

use socket2::{Domain, Protocol, Socket, Type};

pub(crate) use receive::{BATCH, ReceiveArena};
pub(crate) use send::Sender;

use self::pieces::Pieces;
use crate::offload::Offloads;
use crate::send_failures::{SendFailures, cause_of};
use crate::source::ask_for_sources;
use crate::steer::{self, Deal};
use crate::sys::{check, int_option, set_int_option};

/// The size of the sockets' buffers: 30 ms at 2 Gb/s.
const BUFFER_BYTES: libc::c_int = 8 << 20;
/// The size of each buffer for handshakes: the kernel doubles it, and counts 768 bytes for each.
const HANDSHAKE_BUFFER_BYTES: libc::c_int = 256 << 10;
/// How many ports of the kernel's choice are tried until one is free in both families.
const PORT_TRIES: usize = 16;

/// What can go wrong with the sockets.
#[derive(Debug, thiserror::Error)]
pub enum UdpError {
    /// The port cannot be had.
    #[error("listen on UDP port {port}: {source}; is another WireGuard running? Set listen_port")]
    Bind {
        /// The port asked for.
        port: u16,
        /// What the kernel said.
        source: io::Error,
    },
    /// The mark cannot be set.
    #[error("set fwmark {mark} on the UDP sockets: {source}; CAP_NET_ADMIN is needed")]
    Mark {
        /// The mark asked for.
        mark: u32,
        /// What the kernel said.
        source: io::Error,
    },
}

/// What the sockets have counted, and the endpoints that fail now.
#[derive(Debug, Default)]
pub struct UdpBook {
    /// The counters.
    pub counters: UdpCounters,
    /// The endpoints that the kernel takes no datagrams for.
    pub failures: SendFailures,
    /// How often the kernel took a datagram, or a train of them.
    pub sent_messages: u64,
    /// Those that it takes none for from the address that was asked for, since the last look.
    pub(crate) refused_sources: Vec<SocketAddr>,
}

/// What the sockets have counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UdpCounters {
    /// Datagrams that could not be sent.
    pub send_errors: u64,
    /// Of those, the ones that no route led to (ENETUNREACH, EHOSTUNREACH, EINVAL, EADDRNOTAVAIL).
    pub send_unreachable: u64,
    /// Of those, the ones that a local filter refused (EPERM, EACCES).
    pub send_refused: u64,
    /// Of those, the ones that were too large (EMSGSIZE).
    pub send_too_large: u64,
    /// Of those, the ones for which there was no memory or room (ENOBUFS, EAGAIN).
    pub send_no_buffers: u64,
    /// Errors on receiving; none of them ends the loop.
    pub receive_errors: u64,
    /// Data messages that the kernel dropped because the receive buffer was full.
    pub receive_overflows: u64,
    /// Other messages, handshakes that is, dropped for the same reason.
    pub handshake_overflows: u64,
}

/// What a socket is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lane {
    /// Data messages, and everything where there is no other lane.
    Data,
    /// Everything else: handshakes, cookies, rubbish.
    Handshakes,
}

/// The sockets of one family, of one shard.
#[derive(Debug)]
struct Lanes {
    data: Socket,
    handshakes: Vec<Socket>,
    /// The kernel hands trains of data over as they came.
    gro: bool,
}

/// Sockets of one shard for each family that the machine has.
#[derive(Debug)]
pub struct Udp {
    v4: Option<Lanes>,
    v6: Option<Lanes>,
    /// How many shards there are.
    shards: u8,
    /// It is the first one's, which decides how datagrams are dealt out.
    leads: bool,
    port: u16,
    mark: u32,
    allowed: Offloads,
    segments: bool,
    /// Made when it is first needed; none where the kernel refuses it.
    pieces: OnceLock<Option<Pieces>>,
}

impl Udp {
    /// Binds both families to one port; 0 lets the kernel choose it. A machine without one family
    /// gets the other. Of the offloads those are used that are allowed and that the kernel has.
    ///
    /// # Errors
    /// [`UdpError`]; there are then no sockets, and others are as they were.
    pub fn bind(port: u16, mark: u32, allowed: Offloads) -> Result<Self, UdpError> {
        let mut all = Self::bind_shards(port, mark, allowed, 1)?;
        Ok(all.remove(0))
    }

    /// As [`Udp::bind`], for so many shards, at least one; the first is the one that takes initiations.
    ///
    /// # Errors
    /// [`UdpError`], also where the kernel does not deal datagrams out to several shards.
    pub fn bind_shards(
        port: u16,
        mark: u32,
        allowed: Offloads,
        shards: u8,
    ) -> Result<Vec<Self>, UdpError> {
        let failed = |source| UdpError::Bind { port, source };
        let mut last = None;
        for _ in 0..if port == 0 { PORT_TRIES } else { 1 } {
            match Self::bind_once(port, allowed, shards) {
                Ok(all) => return all.into_iter().map(|udp| udp.with_mark(mark)).collect(),
                Err(source) if source.kind() == io::ErrorKind::AddrInUse => last = Some(source),
                Err(source) => return Err(failed(source)),
            }
        }
        Err(failed(
            last.unwrap_or_else(|| io::ErrorKind::AddrInUse.into()),
        ))
    }

    /// Returns the port, the same in both families.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Returns the mark of what is sent.
    pub fn mark(&self) -> u32 {
        self.mark
    }

    /// Returns which offloads may be used.
    pub(crate) fn allowed(&self) -> Offloads {
        self.allowed
    }

    /// Returns which of the offloads of sockets are in use; those of the TUN are none here.
    pub fn offloads(&self) -> Offloads {
        let lanes = || self.v4.iter().chain(&self.v6);
        Offloads {
            udp_segment: self.segments,
            udp_gro: lanes().all(|lanes| lanes.gro),
            ..Offloads::NONE
        }
    }

    /// Marks everything that is sent from now on.
    ///
    /// # Errors
    /// [`UdpError::Mark`] without CAP_NET_ADMIN.
    pub fn set_mark(&mut self, mark: u32) -> Result<(), UdpError> {
        for socket in self.sockets() {
            if mark != self.mark {
                socket
                    .set_mark(mark)
                    .map_err(|source| UdpError::Mark { mark, source })?;
            }
        }
        if mark != self.mark {
            // With the new mark when it is needed next.
            self.pieces = OnceLock::new();
        }
        self.mark = mark;
        Ok(())
    }

    /// What sends datagrams in pieces that every IPv6 path takes.
    fn pieces(&self) -> Option<&Pieces> {
        let open = || {
            let opened = Pieces::open(self.port, self.mark);
            let without = "datagrams that do not arrive in one piece are lost: without CAP_NET_RAW \
                           they cannot be sent in several";
            opened
                .inspect_err(|error| tracing::warn!(%error, "{without}"))
                .ok()
        };
        self.pieces.get_or_init(open).as_ref()
    }

    /// All sockets of a kind.
    pub(crate) fn lanes(&self, lane: Lane) -> impl Iterator<Item = &Socket> {
        let lanes = self.v4.iter().chain(&self.v6);
        lanes.flat_map(move |lanes| match lane {
            Lane::Data => std::slice::from_ref(&lanes.data),
            Lane::Handshakes => &lanes.handshakes,
        })
    }

    /// All sockets.
    pub(crate) fn sockets(&self) -> impl Iterator<Item = &Socket> {
        self.lanes(Lane::Data).chain(self.lanes(Lane::Handshakes))
    }

    /// Returns how many shards the port has sockets for.
    pub(crate) fn shards(&self) -> u8 {
        self.shards
    }

    /// Deals the sources of handshakes out to the sockets anew: the addresses of peers are known, and
    /// nobody outside knows the secret.
    pub(crate) fn reshuffle(&self, secret: u32, known: Vec<IpAddr>) {
        if !self.leads {
            return;
        }
        let shards = self.shards;
        let deal = &Deal {
            shards,
            secret,
            known,
        };
        for (domain, lanes) in [(Domain::IPV4, &self.v4), (Domain::IPV6, &self.v6)] {
            if let Some(lanes) = lanes
                && !lanes.handshakes.is_empty()
            {
                // Where the kernel has no memory for it now, the old one stays.
                if let Err(error) = steer::attach(domain, &lanes.data, deal) {
                    tracing::debug!(%error, "handshakes are dealt out as before");
                }
            }
        }
    }

    /// Asks the kernel how many datagrams it has dropped because nobody was there in time to
    /// receive them: data messages and others.
    pub(crate) fn overflows(&self) -> (u64, u64) {
        // What an old kernel does not count is not shown.
        let sum = |lane| {
            let counts = self.lanes(lane).filter_map(|socket| dropped(socket).ok());
            counts.map(u64::from).sum()
        };
        (sum(Lane::Data), sum(Lane::Handshakes))
    }

    fn with_mark(mut self, mark: u32) -> Result<Self, UdpError> {
        self.set_mark(mark)?;
        Ok(self)
    }

    fn bind_once(port: u16, allowed: Offloads, shards: u8) -> io::Result<Vec<Self>> {
        let open = |domain, address, port| {
            let address = SocketAddr::new(address, port);
            present(Lanes::open(domain, address, allowed.udp_gro, shards))
        };
        let mut v4 = open(Domain::IPV4, Ipv4Addr::UNSPECIFIED.into(), port)?;
        let port = match v4.first() {
            Some(lanes) => local_port(&lanes.data)?,
            None => port,
        };
        let mut v6 = open(Domain::IPV6, Ipv6Addr::UNSPECIFIED.into(), port)?;
        let port = match (v4.first(), v6.first()) {
            (None, Some(lanes)) => local_port(&lanes.data)?,
            (None, None) => return Err(io::ErrorKind::AddrNotAvailable.into()),
            _ => port,
        };
        let (mut v4, mut v6) = (v4.drain(..), v6.drain(..));
        let all = (0..shards).map(|shard| {
            let udp = Self {
                v4: v4.next(),
                v6: v6.next(),
                shards,
                leads: shard == 0,
                port,
                mark: 0,
                allowed,
                segments: false,
                pieces: OnceLock::new(),
            };
            let known = |socket| int_option(socket, libc::SOL_UDP, libc::UDP_SEGMENT).is_ok();
            let segments = allowed.udp_segment && udp.lanes(Lane::Data).all(known);
            Self { segments, ..udp }
        });
        Ok(all.collect())
    }
}

impl Lanes {
    fn open(domain: Domain, address: SocketAddr, gro: bool, shards: u8) -> io::Result<Vec<Self>> {
        Self::open_with(domain, address, gro, shards, steer::attach)
    }

    fn open_with(
        domain: Domain,
        address: SocketAddr,
        gro: bool,
        shards: u8,
        attach: Attach,
    ) -> io::Result<Vec<Self>> {
        let data = open(domain, BUFFER_BYTES)?;
        let gro = gro && set_int_option(&data, libc::SOL_UDP, libc::UDP_GRO, 1).is_ok();
        // Alone and without SO_REUSEPORT: a port that another WireGuard has is refused here.
        data.bind(&address.into())?;
        let parts = match split(domain, &data, shards, attach) {
            Ok(parts) => parts,
            Err(error) if shards > 1 => return Err(error),
            Err(error) => {
                tracing::warn!(%error, "no sockets of their own for handshakes: a flood of them can cost data");
                // Nobody else shall share the port.
                data.set_reuse_port(false)?;
                Parts::default()
            }
        };
        let data = std::iter::once(data).chain(parts.data);
        // Only where there is one shard may it have none.
        let handshakes = parts.handshakes.into_iter().chain([Vec::new()]);
        let lanes = data.zip(handshakes).map(|(data, handshakes)| {
            // It was set for the first one.
            let gro = gro && set_int_option(&data, libc::SOL_UDP, libc::UDP_GRO, 1).is_ok();
            Self {
                data,
                handshakes,
                gro,
            }
        });
        Ok(lanes.collect())
    }
}

/// How the kernel is told which socket is for what.
type Attach = fn(Domain, &Socket, &Deal) -> io::Result<()>;

/// The sockets on the port of the first.
#[derive(Default)]
struct Parts {
    /// For data, of each shard but the first.
    data: Vec<Socket>,
    /// For all else, of each shard.
    handshakes: Vec<Vec<Socket>>,
}

/// Makes more sockets on the port of the first: for all that is no data message, and for the data of
/// other shards. In the order that `steer.rs` counts them.
fn split(domain: Domain, data: &Socket, shards: u8, attach: Attach) -> io::Result<Parts> {
    let address = data.local_addr()?;
    data.set_reuse_port(true)?;
    let open_some = |count: u32, buffer_bytes| {
        let open_one = |_| {
            let socket = open(domain, buffer_bytes)?;
            socket.set_reuse_port(true)?;
            socket.bind(&address)?;
            Ok(socket)
        };
        (0..count).map(open_one).collect::<io::Result<Vec<_>>>()
    };
    let others = open_some(u32::from(shards) - 1, BUFFER_BYTES)?;
    let handshakes = (0..shards).map(|shard| {
        let lanes = match shard {
            0 => steer::lanes(),
            _ => steer::answer_lanes(),
        };
        open_some(lanes, HANDSHAKE_BUFFER_BYTES)
    });
    let parts = Parts {
        data: others,
        handshakes: handshakes.collect::<io::Result<_>>()?,
    };
    let deal = Deal {
        shards,
        ..Deal::default()
    };
    attach(domain, data, &deal)?;
    Ok(parts)
}

/// How many datagrams the kernel has dropped at a socket.
fn dropped(socket: &Socket) -> io::Result<u32> {
    // SK_MEMINFO_DROPS of linux/sock_diag.h, the last of nine.
    const DROPS: usize = 8;
    let mut info = [0u32; DROPS + 1];
    let mut len = mem::size_of_val(&info) as libc::socklen_t;
    // SAFETY: the pointers describe `info` and its length, which outlive the call.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_MEMINFO,
            info.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    check(result)?;
    Ok(info[DROPS])
}

fn open(domain: Domain, receive_bytes: libc::c_int) -> io::Result<Socket> {
    let socket = Socket::new(
        domain,
        Type::DGRAM.nonblocking().cloexec(),
        Some(Protocol::UDP),
    )?;
    ask_for_sources(&socket, domain == Domain::IPV6)?;
    if domain == Domain::IPV6 {
        socket.set_only_v6(true)?;
        set_int_option(
            &socket,
            libc::IPPROTO_IPV6,
            libc::IPV6_MTU_DISCOVER,
            libc::IPV6_PMTUDISC_DONT,
        )?;
    } else {
        // A too large outer packet is fragmented: slower is better than not at all, and the inner
        // MTU is chosen so that it does not come to that.
        set_int_option(
            &socket,
            libc::IPPROTO_IP,
            libc::IP_MTU_DISCOVER,
            libc::IP_PMTUDISC_DONT,
        )?;
    }
    for (forced, name, bytes) in [
        (libc::SO_RCVBUFFORCE, libc::SO_RCVBUF, receive_bytes),
        (libc::SO_SNDBUFFORCE, libc::SO_SNDBUF, BUFFER_BYTES),
    ] {
        // The kernel's own limit is what remains without CAP_NET_ADMIN.
        if set_int_option(&socket, libc::SOL_SOCKET, forced, bytes).is_err() {
            set_int_option(&socket, libc::SOL_SOCKET, name, bytes)?;
        }
    }
    Ok(socket)
}

/// A family that the machine does not have is no error.
fn present(lanes: io::Result<Vec<Lanes>>) -> io::Result<Vec<Lanes>> {
    match lanes {
        Ok(lanes) => Ok(lanes),
        Err(error)
            if matches!(
                error.raw_os_error(),
                Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL | libc::EPROTONOSUPPORT)
            ) =>
        {
            Ok(Vec::new())
        }
        Err(error) => Err(error),
    }
}

fn local_port(socket: &Socket) -> io::Result<u16> {
    Ok(socket
        .local_addr()?
        .as_socket()
        .map_or(0, |address| address.port()))
}

/// Asks the routing table how large a datagram to the endpoint may be, outer headers included; it
/// knows of smaller links on the way where ICMP told it.
///
/// # Errors
/// What the kernel says, for one when there is no route.
pub fn path_mtu(endpoint: SocketAddr, mark: u32) -> io::Result<u32> {
    let socket = Socket::new(
        Domain::for_address(endpoint),
        Type::DGRAM.nonblocking().cloexec(),
        Some(Protocol::UDP),
    )?;
    if mark != 0 {
        socket.set_mark(mark)?;
    }
    socket.connect(&endpoint.into())?;
    let (level, name) = match endpoint.ip() {
        IpAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_MTU),
        IpAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_MTU),
    };
    Ok(u32::try_from(int_option(&socket, level, name)?).unwrap_or_default())
}

impl UdpBook {
    /// Notes that the kernel took what was for this endpoint.
    #[inline]
    fn note_sent(&mut self, endpoint: &SocketAddr) {
        self.sent_messages += 1;
        if !self.failures.is_empty() {
            self.failures.note_sent(endpoint);
        }
    }

    /// Notes that the kernel did not take so many datagrams for this endpoint.
    fn note_lost(&mut self, endpoint: SocketAddr, error: &io::Error, datagrams: usize) {
        let code = error.raw_os_error();
        for _ in 0..datagrams {
            self.counters.count_send_error(code);
            if let Some(cause) = cause_of(code) {
                self.failures.note(endpoint, cause);
            }
        }
    }

    /// Notes how sending a datagram to an endpoint went.
    fn note(&mut self, endpoint: SocketAddr, sent: io::Result<()>) {
        match sent {
            Ok(()) => self.note_sent(&endpoint),
            Err(error) => self.note_lost(endpoint, &error, 1),
        }
    }
}

impl UdpCounters {
    /// Adds what the sockets of another shard have counted.
    pub(crate) fn add(&mut self, other: &Self) {
        self.send_errors += other.send_errors;
        self.send_unreachable += other.send_unreachable;
        self.send_refused += other.send_refused;
        self.send_too_large += other.send_too_large;
        self.send_no_buffers += other.send_no_buffers;
        self.receive_errors += other.receive_errors;
        self.receive_overflows += other.receive_overflows;
        self.handshake_overflows += other.handshake_overflows;
    }

    fn count_send_error(&mut self, code: Option<i32>) {
        self.send_errors += 1;
        match code {
            Some(libc::ENETUNREACH | libc::EHOSTUNREACH | libc::EINVAL | libc::EADDRNOTAVAIL) => {
                self.send_unreachable += 1;
            }
            Some(libc::EPERM | libc::EACCES) => self.send_refused += 1,
            Some(libc::EMSGSIZE) => self.send_too_large += 1,
            Some(libc::ENOBUFS | libc::EAGAIN) => self.send_no_buffers += 1,
            _ => {}
        }
    }
}
