//! The UDP sockets, and datagrams in batches: one system call for many.
//!
//! Each family has several sockets on the one port: the first is for data messages, the others are for
//! handshakes of several kinds, see `steer.rs`. So a flood of handshakes never takes the room of data.
//! Which sources share a socket changes with `Udp::reshuffle`. Where the kernel refuses that,
//! everything comes to one socket.

use std::io;
use std::mem;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, RawFd};

use socket2::{Domain, Protocol, SockAddr, SockAddrStorage, Socket, Type};
use warren_core::peer_path::SendFailure;

use crate::outbox::Outbox;
use crate::send_failures::{SendFailures, cause_of};
use crate::source::{Control, Endpoint, Source, ask_for_sources};
use crate::steer::{self, Deal};
use crate::sys::{check, int_option, set_int_option, wait_writable};

/// The datagrams of one system call.
pub(crate) const BATCH: usize = 64;
/// The room of a received datagram: any datagram fits.
const SLOT_BYTES: usize = 65_536;
/// The size of the sockets' buffers: 30 ms at 2 Gb/s.
const BUFFER_BYTES: libc::c_int = 8 << 20;
/// The size of each buffer for handshakes: the kernel doubles it, and counts 768 bytes for each.
const HANDSHAKE_BUFFER_BYTES: libc::c_int = 512 << 10;
/// How long a full send buffer is waited for. The TUN's queue fills up meanwhile, which slows the
/// senders down; dropping would make them send again.
const WAIT_WRITABLE_MS: libc::c_int = 10;
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

/// The sockets of one family.
#[derive(Debug)]
struct Lanes {
    data: Socket,
    handshakes: Vec<Socket>,
}

/// Sockets for each family that the machine has.
#[derive(Debug)]
pub struct Udp {
    v4: Option<Lanes>,
    v6: Option<Lanes>,
    port: u16,
    mark: u32,
}

impl Udp {
    /// Binds both families to one port; 0 lets the kernel choose it. A machine without one family
    /// gets the other.
    ///
    /// # Errors
    /// [`UdpError`]; there are then no sockets, and others are as they were.
    pub fn bind(port: u16, mark: u32) -> Result<Self, UdpError> {
        let failed = |source| UdpError::Bind { port, source };
        let mut last = None;
        for _ in 0..if port == 0 { PORT_TRIES } else { 1 } {
            match Self::bind_once(port) {
                Ok(udp) => return udp.with_mark(mark),
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
        self.mark = mark;
        Ok(())
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

    /// Deals the sources of handshakes out to the sockets anew.
    pub(crate) fn reshuffle(&self, deal: &Deal) {
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

    fn bind_once(port: u16) -> io::Result<Self> {
        let v4 = present(Lanes::open(
            Domain::IPV4,
            SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port),
        ))?;
        let port = match &v4 {
            Some(lanes) => local_port(&lanes.data)?,
            None => port,
        };
        let v6 = present(Lanes::open(
            Domain::IPV6,
            SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port),
        ))?;
        let port = match (&v4, &v6) {
            (None, Some(lanes)) => local_port(&lanes.data)?,
            (None, None) => return Err(io::ErrorKind::AddrNotAvailable.into()),
            _ => port,
        };
        Ok(Self {
            v4,
            v6,
            port,
            mark: 0,
        })
    }
}

impl Lanes {
    fn open(domain: Domain, address: SocketAddr) -> io::Result<Self> {
        Self::open_with(domain, address, steer::attach)
    }

    fn open_with(domain: Domain, address: SocketAddr, attach: Attach) -> io::Result<Self> {
        let data = open(domain, BUFFER_BYTES)?;
        // Alone and without SO_REUSEPORT: a port that another WireGuard has is refused here.
        data.bind(&address.into())?;
        let handshakes = split_off_handshakes(domain, &data, attach);
        let handshakes = match handshakes {
            Ok(handshakes) => handshakes,
            Err(error) => {
                tracing::warn!(%error, "no sockets of their own for handshakes: a flood of them can cost data");
                // Nobody else shall share the port.
                data.set_reuse_port(false)?;
                Vec::new()
            }
        };
        Ok(Self { data, handshakes })
    }
}

/// How the kernel is told which socket is for what.
type Attach = fn(Domain, &Socket, &Deal) -> io::Result<()>;

/// Makes more sockets on the port of the first, for all that is no data message.
fn split_off_handshakes(domain: Domain, data: &Socket, attach: Attach) -> io::Result<Vec<Socket>> {
    let address = data.local_addr()?;
    data.set_reuse_port(true)?;
    let open_one = |_| {
        let socket = open(domain, HANDSHAKE_BUFFER_BYTES)?;
        socket.set_reuse_port(true)?;
        socket.bind(&address)?;
        Ok(socket)
    };
    let handshakes = (0..steer::lanes())
        .map(open_one)
        .collect::<io::Result<Vec<_>>>()?;
    attach(domain, data, &Deal::default())?;
    Ok(handshakes)
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
fn present(lanes: io::Result<Lanes>) -> io::Result<Option<Lanes>> {
    match lanes {
        Ok(lanes) => Ok(Some(lanes)),
        Err(error)
            if matches!(
                error.raw_os_error(),
                Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL | libc::EPROTONOSUPPORT)
            ) =>
        {
            Ok(None)
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

/// Fixed room for a batch of received datagrams. Pages that no datagram has touched take no memory.
pub(crate) struct ReceiveArena {
    bytes: Vec<u8>,
    addresses: Vec<SockAddrStorage>,
    controls: Vec<Control>,
    sources: Vec<Option<Source>>,
    lengths: Vec<usize>,
}

impl ReceiveArena {
    pub(crate) fn new() -> Self {
        Self {
            bytes: vec![0; BATCH * SLOT_BYTES],
            addresses: (0..BATCH).map(|_| SockAddrStorage::zeroed()).collect(),
            controls: vec![Control::EMPTY; BATCH],
            sources: vec![None; BATCH],
            lengths: vec![0; BATCH],
        }
    }

    /// Receives up to `most` datagrams, of at most a batch, and returns how many.
    pub(crate) fn receive(&mut self, socket: &Socket, most: usize) -> io::Result<usize> {
        // SAFETY: plain data, for which all zero is a value.
        let mut messages: [libc::mmsghdr; BATCH] = unsafe { mem::zeroed() };
        // SAFETY: as above.
        let mut vectors: [libc::iovec; BATCH] = unsafe { mem::zeroed() };
        let slots = self.bytes.chunks_exact_mut(SLOT_BYTES);
        for ((((message, vector), slot), address), control) in messages
            .iter_mut()
            .zip(&mut vectors)
            .zip(slots)
            .zip(&mut self.addresses)
            .zip(&mut self.controls)
        {
            control.attach(&mut message.msg_hdr, true);
            vector.iov_base = slot.as_mut_ptr().cast();
            vector.iov_len = slot.len();
            message.msg_hdr.msg_iov = vector;
            message.msg_hdr.msg_iovlen = 1;
            message.msg_hdr.msg_namelen = address.size_of();
            message.msg_hdr.msg_name = std::ptr::from_mut(address).cast();
        }
        // SAFETY: each header points to one vector of one slot, one address and one room for control
        // messages, all of which outlive the call and do not overlap.
        let received = check(unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                messages.as_mut_ptr(),
                most.min(BATCH) as libc::c_uint,
                libc::MSG_DONTWAIT,
                std::ptr::null_mut(),
            )
        })? as usize;
        for (n, message) in messages[..received].iter().enumerate() {
            self.lengths[n] = message.msg_len as usize;
            self.sources[n] = Control::source(&message.msg_hdr);
        }
        Ok(received)
    }

    /// Returns a received datagram, where it came from, and to which address of ours.
    #[inline]
    pub(crate) fn datagram(&self, n: usize) -> Option<(Endpoint, &[u8])> {
        let start = n * SLOT_BYTES;
        let datagram = &self.bytes[start..start + self.lengths[n]];
        let endpoint = Endpoint {
            address: socket_address(&self.addresses[n])?,
            source: self.sources[n],
        };
        Some((endpoint, datagram))
    }
}

#[inline]
fn socket_address(storage: &SockAddrStorage) -> Option<SocketAddr> {
    // SAFETY: the kernel wrote an address of the family that it names, or the storage is zero.
    let raw: &libc::sockaddr_storage =
        unsafe { &*std::ptr::from_ref(storage).cast::<libc::sockaddr_storage>() };
    match libc::c_int::from(raw.ss_family) {
        libc::AF_INET => {
            // SAFETY: the family says that this is what is stored.
            let raw = unsafe { &*std::ptr::from_ref(raw).cast::<libc::sockaddr_in>() };
            let address = Ipv4Addr::from(u32::from_be(raw.sin_addr.s_addr));
            Some(SocketAddr::new(address.into(), u16::from_be(raw.sin_port)))
        }
        libc::AF_INET6 => {
            // SAFETY: the family says that this is what is stored.
            let raw = unsafe { &*std::ptr::from_ref(raw).cast::<libc::sockaddr_in6>() };
            let address = Ipv6Addr::from(raw.sin6_addr.s6_addr);
            // The flow label is not part of who the peer is.
            Some(SocketAddr::V6(std::net::SocketAddrV6::new(
                address,
                u16::from_be(raw.sin6_port),
                0,
                raw.sin6_scope_id,
            )))
        }
        _ => None,
    }
}

/// Sends what is in the outbox for the network; what cannot be sent is counted and passed over.
pub(crate) fn send(udp: &Udp, out: &Outbox, book: &mut UdpBook) {
    let mut batch = SendBatch::default();
    for (endpoint, datagram) in out.outgoing() {
        let socket = if endpoint.address.is_ipv4() {
            &udp.v4
        } else {
            &udp.v6
        };
        let Some(Lanes { data: socket, .. }) = socket else {
            book.counters.send_errors += 1;
            book.counters.send_unreachable += 1;
            book.failures.note(endpoint.address, SendFailure::NoFamily);
            continue;
        };
        let descriptor = socket.as_raw_fd();
        if batch.descriptor != descriptor || batch.items.len() == BATCH {
            batch.flush(book);
            batch.descriptor = descriptor;
        }
        let same = batch.items.last().map_or(0, |(_, n)| *n);
        // Neighbours mostly go to one endpoint: its address is converted once.
        match batch.addresses.last() {
            Some(last) if last.endpoint == endpoint => batch.items.push((datagram, same)),
            _ => {
                batch.addresses.push(Address::new(endpoint));
                batch.items.push((datagram, batch.addresses.len() - 1));
            }
        }
    }
    batch.flush(book);
}

/// An endpoint in the kernel's forms.
struct Address {
    endpoint: Endpoint,
    to: SockAddr,
    from: Control,
}

impl Address {
    fn new(endpoint: Endpoint) -> Self {
        Self {
            endpoint,
            to: endpoint.address.into(),
            from: endpoint.source.map_or(Control::EMPTY, Control::from_source),
        }
    }
}

#[derive(Default)]
struct SendBatch<'a> {
    descriptor: RawFd,
    addresses: Vec<Address>,
    items: Vec<(&'a [u8], usize)>,
}

impl SendBatch<'_> {
    fn flush(&mut self, book: &mut UdpBook) {
        let count = self.items.len();
        // SAFETY: plain data, for which all zero is a value.
        let mut messages: [libc::mmsghdr; BATCH] = unsafe { mem::zeroed() };
        // SAFETY: as above.
        let mut vectors: [libc::iovec; BATCH] = unsafe { mem::zeroed() };
        for ((message, vector), (datagram, address)) in
            messages.iter_mut().zip(&mut vectors).zip(&self.items)
        {
            let address = &mut self.addresses[*address];
            vector.iov_base = datagram.as_ptr().cast_mut().cast();
            vector.iov_len = datagram.len();
            message.msg_hdr.msg_iov = vector;
            message.msg_hdr.msg_iovlen = 1;
            message.msg_hdr.msg_name = address.to.as_ptr().cast_mut().cast();
            message.msg_hdr.msg_namelen = address.to.len();
            address.from.attach(&mut message.msg_hdr, false);
        }
        let mut sent = 0;
        let mut waited = false;
        while sent < count {
            let rest = &mut messages[sent..count];
            // SAFETY: each header points to one vector of a datagram, to one address and perhaps to
            // one control message, all of which outlive the call; sendmmsg only reads them.
            let result = check(unsafe {
                libc::sendmmsg(
                    self.descriptor,
                    rest.as_mut_ptr(),
                    rest.len() as libc::c_uint,
                    libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
                )
            });
            match result {
                Ok(now) => {
                    let done = sent..sent + now as usize;
                    if !book.failures.is_empty() {
                        for (_, address) in &self.items[done.clone()] {
                            book.failures
                                .note_sent(&self.addresses[*address].endpoint.address);
                        }
                    }
                    sent = done.end;
                }
                Err(error) => match error.raw_os_error() {
                    Some(libc::EINTR) => {}
                    Some(libc::EAGAIN) if !waited => {
                        waited = true;
                        wait_writable(self.descriptor, WAIT_WRITABLE_MS);
                    }
                    Some(libc::EINVAL | libc::ENETUNREACH | libc::EHOSTUNREACH)
                        if rest[0].msg_hdr.msg_controllen != 0 =>
                    {
                        // Perhaps the address is ours no more: the kernel's choice is as good.
                        let refused = self.items[sent].1;
                        for (message, item) in
                            messages[sent..count].iter_mut().zip(&self.items[sent..])
                        {
                            if item.1 == refused {
                                message.msg_hdr.msg_controllen = 0;
                            }
                        }
                        let endpoint = self.addresses[refused].endpoint.address;
                        book.refused_sources.push(endpoint);
                    }
                    code => {
                        // Of the first of the rest; the others are tried.
                        book.counters.count_send_error(code);
                        if let Some(cause) = cause_of(code) {
                            let endpoint = self.addresses[self.items[sent].1].endpoint.address;
                            book.failures.note(endpoint, cause);
                        }
                        sent += 1;
                    }
                },
            }
        }
        self.items.clear();
        self.addresses.clear();
    }
}

impl UdpCounters {
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

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;
    use crate::steer::Kind;

    /// Where a datagram from this address comes out: `None` is the socket for data.
    fn lane_of(lanes: &Lanes, from: &str, datagram: &[u8]) -> Option<usize> {
        let to = lanes.data.local_addr().unwrap().as_socket().unwrap();
        let sender = UdpSocket::bind((from, 0)).unwrap();
        sender.send_to(datagram, to).unwrap();
        let mut arena = ReceiveArena::new();
        for _ in 0..500 {
            if arena.receive(&lanes.data, BATCH).is_ok() {
                return None;
            }
            let mut handshakes = lanes.handshakes.iter();
            if let Some(lane) = handshakes.position(|socket| arena.receive(socket, BATCH).is_ok()) {
                return Some(lane);
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        panic!("a datagram of {} bytes was lost", datagram.len());
    }

    fn kind_of(lanes: &Lanes, from: &str, datagram: &[u8]) -> Option<Kind> {
        let lane = lane_of(lanes, from, datagram)?;
        Some(Kind::of(lane).unwrap())
    }

    /// A datagram of this type and length, with a byte set.
    fn datagram(kind: u8, len: usize, set: Option<usize>) -> Vec<u8> {
        let mut bytes = vec![0; len];
        if let Some(first) = bytes.first_mut() {
            *first = kind;
        }
        if let Some(at) = set {
            bytes[at] = 0x80;
        }
        bytes
    }

    fn check_kinds(domain: Domain, address: &str, source: &str) {
        let at = SocketAddr::new(address.parse().unwrap(), 0);
        let lanes = Lanes::open(domain, at).unwrap();
        assert_eq!(lanes.handshakes.len(), steer::lanes() as usize);
        let kind = |bytes: &[u8]| kind_of(&lanes, source, bytes);
        for len in [32, 33, 148, 1452] {
            assert_eq!(kind(&datagram(4, len, None)), None, "data of {len} bytes");
        }
        assert_eq!(kind(&datagram(2, 92, None)), Some(Kind::Answers));
        assert_eq!(kind(&datagram(2, 92, Some(80))), Some(Kind::Answers));
        assert_eq!(kind(&datagram(3, 64, None)), Some(Kind::Answers));
        // Each single byte of MAC2 makes it a claim, and none before it does.
        assert_eq!(kind(&datagram(1, 148, None)), Some(Kind::Strangers));
        assert_eq!(kind(&datagram(1, 148, Some(131))), Some(Kind::Strangers));
        for at in 132..148 {
            assert_eq!(kind(&datagram(1, 148, Some(at))), Some(Kind::Claims));
        }
        // Rubbish never takes the room of data.
        for (first, len) in [
            (0, 0),
            (4, 1),
            (4, 31),
            (1, 4),
            (1, 140),
            (1, 149),
            (9, 1000),
        ] {
            let bytes = datagram(first, len, None);
            assert_eq!(kind(&bytes), Some(Kind::Strangers), "{first}, {len} bytes");
        }
        let reserved = datagram(4, 64, Some(2));
        assert_eq!(kind(&reserved), Some(Kind::Strangers), "reserved bytes");
    }

    #[test]
    fn each_kind_of_message_has_sockets_of_its_own_in_both_families() {
        check_kinds(Domain::IPV4, "127.0.0.1", "127.0.0.1");
        match UdpSocket::bind("[::1]:0") {
            Ok(_) => check_kinds(Domain::IPV6, "::1", "::1"),
            Err(error) => println!("skipped for IPv6: no ::1: {error}"),
        }
    }

    #[test]
    fn peers_have_sockets_apart_from_strangers_however_many_they_are() {
        let at = "127.0.0.1:0".parse().unwrap();
        let lanes = Lanes::open(Domain::IPV4, at).unwrap();
        let initiation = datagram(1, 148, None);
        let known = |n: u32| IpAddr::V4(Ipv4Addr::from_bits(0x7f01_0000 + 3 * n));
        for (count, secret) in [
            (1, 5),
            (7, 0x8000_0001),
            (8, 0),
            (9, 77),
            (510, 0xdead_beef),
        ] {
            let peers = (0..count).map(known);
            // Those of the other family and duplicates do not count.
            let others = [known(0), "2001:db8::1".parse().unwrap()];
            let known_addresses = peers.chain(others).collect();
            let deal = Deal {
                secret,
                known: known_addresses,
            };
            steer::attach(Domain::IPV4, &lanes.data, &deal).unwrap();
            for n in [0, count / 3, count / 2, count - 1] {
                let peer = known(n).to_string();
                assert_eq!(
                    kind_of(&lanes, &peer, &initiation),
                    Some(Kind::Peers),
                    "{n} of {count}"
                );
                let stranger = known(n).to_string().replace("127.1.", "127.2.");
                let kind = kind_of(&lanes, &stranger, &initiation);
                assert_eq!(kind, Some(Kind::Strangers), "{stranger}");
            }
        }
        // More than a program can know: each is among those of one secret or another.
        let all: Vec<IpAddr> = (0..2000).map(known).collect();
        let hits = (1..40u32).filter(|n| {
            let deal = Deal {
                secret: n.wrapping_mul(0x9e37_79b9),
                known: all.clone(),
            };
            steer::attach(Domain::IPV4, &lanes.data, &deal).unwrap();
            kind_of(&lanes, &known(1234).to_string(), &initiation) == Some(Kind::Peers)
        });
        let hits = hits.count();
        assert!((1..39).contains(&hits), "{hits} of 39");
    }

    #[test]
    fn the_sources_are_spread_over_the_sockets_of_their_kind_and_anew_by_each_secret() {
        let at = "127.0.0.1:0".parse().unwrap();
        let lanes = Lanes::open(Domain::IPV4, at).unwrap();
        let sources: Vec<String> = (1..60).map(|n| format!("127.0.{n}.1")).collect();
        let dealt = |secret| {
            let deal = Deal {
                secret,
                known: Vec::new(),
            };
            steer::attach(Domain::IPV4, &lanes.data, &deal).unwrap();
            let sources = sources.iter();
            let lane = |from: &String| lane_of(&lanes, from, &datagram(1, 148, None));
            sources.map(lane).collect::<Vec<_>>()
        };
        let (first, second) = (dealt(0x1234_5678), dealt(0x8765_4321));
        for dealt in [&first, &second] {
            let lanes: std::collections::BTreeSet<_> = dealt.iter().collect();
            assert!(lanes.len() >= 6, "of 8 sockets only {lanes:?}");
        }
        let same = first.iter().zip(&second).filter(|(a, b)| a == b).count();
        assert!(same < 30, "{same} of 59 are where they were");
    }

    #[test]
    fn where_the_kernel_refuses_everything_comes_to_the_one_socket_and_the_port_is_ours_alone() {
        let at = "127.0.0.1:0".parse().unwrap();
        let refuse: Attach = |_, _, _| Err(io::ErrorKind::Unsupported.into());
        let lanes = Lanes::open_with(Domain::IPV4, at, refuse).unwrap();
        assert!(lanes.handshakes.is_empty());
        for (kind, len) in [(1, 148), (2, 92), (3, 64), (4, 64), (0, 0)] {
            for n in 1..20 {
                let from = format!("127.0.0.{n}");
                assert_eq!(lane_of(&lanes, &from, &datagram(kind, len, None)), None);
            }
        }
        let port = lanes.data.local_addr().unwrap().as_socket().unwrap();
        let other = open(Domain::IPV4, BUFFER_BYTES).unwrap();
        other.set_reuse_port(true).unwrap();
        let error = other.bind(&port.into()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    }
}
