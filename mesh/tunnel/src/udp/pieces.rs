//! Datagrams in fragments that every IPv6 path takes.
//!
//! Of IPv6 only the sender makes fragments, and the kernel only of what a route, a device or a "packet
//! too big" calls too large: `IPV6_MTU` changes how it fragments and not what (tried on 6.18). Where
//! the tunnel's probes have found out what nobody told, the fragments are made here, and the kernel
//! makes the rest of the packets: headers and way.

use std::io::{self, IoSlice};
use std::mem;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::AsRawFd;

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::control::Control;
use crate::offload::Sum;
use crate::path_probe::BASE;
use crate::source::{Endpoint, Source};
use crate::sys::{attach_program, wait_writable};

const IPV6_HEADER: usize = 40;
const FRAGMENT_HEADER: usize = 8;
const UDP_HEADER: usize = 8;
/// The protocol numbers of the fragment header (RFC 8200, section 4.5) and of UDP.
const FRAGMENT: u8 = 44;
const UDP: u8 = 17;
/// Bytes of the datagram in a fragment; a multiple of 8, as all but the last must have.
const PIECE: usize = BASE as usize - IPV6_HEADER - FRAGMENT_HEADER;
/// How long a full send buffer is waited for.
const WAIT_WRITABLE_MS: libc::c_int = 10;

/// A socket that sends fragments from the tunnel's port.
#[derive(Debug)]
pub(super) struct Pieces {
    socket: Socket,
    port: u16,
    mark: u32,
}

impl Pieces {
    /// # Errors
    /// EPERM without CAP_NET_RAW.
    pub(super) fn open(port: u16, mark: u32) -> io::Result<Self> {
        let protocol = Protocol::from(libc::c_int::from(FRAGMENT));
        let kind = Type::RAW.nonblocking().cloexec();
        let socket = Socket::new(Domain::IPV6, kind, Some(protocol))?;
        receive_nothing(&socket)?;
        if mark != 0 {
            socket.set_mark(mark)?;
        }
        Ok(Self { socket, port, mark })
    }

    /// Sends a datagram in fragments of at most 1,280 bytes.
    ///
    /// # Errors
    /// What the kernel says of the first that it does not take.
    pub(super) fn send(&self, endpoint: Endpoint, datagram: &[u8]) -> io::Result<()> {
        let SocketAddr::V6(to) = endpoint.address else {
            return Err(io::ErrorKind::Unsupported.into());
        };
        let source = match endpoint.source {
            Some(source) => source,
            None => self.source_for(to)?,
        };
        let IpAddr::V6(from) = source.address else {
            return Err(io::ErrorKind::Unsupported.into());
        };
        let udp = udp_header((from, self.port), &to, datagram)?;
        // Unpredictable, as RFC 7739 wants it: what was sealed ends with its tag.
        let identification = datagram.last_chunk::<4>().copied().unwrap_or_default();
        let address = SockAddr::from(SocketAddrV6::new(*to.ip(), 0, 0, to.scope_id()));
        let mut control = Control::EMPTY;
        control.push_source(source);
        let len = UDP_HEADER + datagram.len();
        for start in (0..len).step_by(PIECE) {
            let end = len.min(start + PIECE);
            // In eights of bytes, three bits to the left; the lowest bit says that more follow.
            let offset = start as u16 | u16::from(end < len);
            let mut fragment = [0; FRAGMENT_HEADER];
            fragment[0] = UDP;
            fragment[2..4].copy_from_slice(&offset.to_be_bytes());
            fragment[4..].copy_from_slice(&identification);
            // The UDP header is in the first of them.
            let header = if start == 0 { &udp[..] } else { &[] };
            let data = &datagram[start.saturating_sub(UDP_HEADER)..end - UDP_HEADER];
            let parts = [&fragment[..], header, data].map(IoSlice::new);
            self.send_message(&address, &mut control, &parts)?;
        }
        Ok(())
    }

    fn send_message(
        &self,
        address: &SockAddr,
        control: &mut Control,
        parts: &[IoSlice<'_>],
    ) -> io::Result<()> {
        // SAFETY: plain data, for which all zero is a value.
        let mut header: libc::msghdr = unsafe { mem::zeroed() };
        // By its documentation an IoSlice is an iovec.
        header.msg_iov = parts.as_ptr().cast_mut().cast();
        header.msg_iovlen = parts.len() as _;
        header.msg_name = address.as_ptr().cast_mut().cast();
        header.msg_namelen = address.len();
        control.attach(&mut header);
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        let mut waited = false;
        loop {
            // SAFETY: the header points to the parts of the message, to the address and to the
            // control message, all of which outlive the call, which only reads them.
            let sent = unsafe { libc::sendmsg(self.socket.as_raw_fd(), &raw const header, flags) };
            if sent >= 0 {
                return Ok(());
            }
            let error = io::Error::last_os_error();
            match error.raw_os_error() {
                Some(libc::EINTR) => {}
                Some(libc::EAGAIN) if !waited => {
                    waited = true;
                    wait_writable(self.socket.as_raw_fd(), WAIT_WRITABLE_MS);
                }
                _ => return Err(error),
            }
        }
    }

    /// The address that the kernel would choose: the checksum is over it.
    fn source_for(&self, to: SocketAddrV6) -> io::Result<Source> {
        let kind = Type::DGRAM.nonblocking().cloexec();
        let socket = Socket::new(Domain::IPV6, kind, Some(Protocol::UDP))?;
        if self.mark != 0 {
            socket.set_mark(self.mark)?;
        }
        socket.connect(&to.into())?;
        let local = socket.local_addr()?.as_socket_ipv6();
        let local = local.ok_or(io::ErrorKind::AddrNotAvailable)?;
        Ok(Source {
            address: (*local.ip()).into(),
            link: local.scope_id(),
        })
    }
}

/// The UDP header of a datagram.
fn udp_header(
    (from, port): (Ipv6Addr, u16),
    to: &SocketAddrV6,
    data: &[u8],
) -> io::Result<[u8; UDP_HEADER]> {
    let length = u16::try_from(UDP_HEADER + data.len())
        .map_err(|_| io::Error::from_raw_os_error(libc::EMSGSIZE))?;
    let mut header = [0; UDP_HEADER];
    header[..2].copy_from_slice(&port.to_be_bytes());
    header[2..4].copy_from_slice(&to.port().to_be_bytes());
    header[4..6].copy_from_slice(&length.to_be_bytes());
    let sum = Sum::default().plus(&from.octets()).plus(&to.ip().octets());
    let sum = sum.plus_u16(length).plus_u16(UDP.into());
    let checksum = sum.plus(&header).plus(data).nonzero_checksum();
    header[6..].copy_from_slice(&checksum.to_be_bytes());
    Ok(header)
}

/// A raw socket is given a copy of each fragment that arrives: of none.
fn receive_nothing(socket: &Socket) -> io::Result<()> {
    let nothing = libc::sock_filter {
        code: (libc::BPF_RET | libc::BPF_K) as u16,
        jt: 0,
        jf: 0,
        k: 0,
    };
    attach_program(socket, libc::SO_ATTACH_FILTER, &mut [nothing])
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;
    use std::time::Duration;

    #[test]
    fn what_leaves_in_pieces_arrives_whole_and_from_the_tunnels_port() {
        let pieces = match Pieces::open(51_999, 0) {
            Ok(pieces) => pieces,
            Err(error) => {
                assert!(std::env::var_os("CI").is_none(), "{error}");
                eprintln!("skipped: {error}; it opens a raw socket, which needs CAP_NET_RAW");
                return;
            }
        };
        let receiver = UdpSocket::bind("[::1]:0").unwrap();
        let patience = Some(Duration::from_secs(10));
        receiver.set_read_timeout(patience).unwrap();
        let to = receiver.local_addr().unwrap();
        let source = Source {
            address: Ipv6Addr::LOCALHOST.into(),
            link: 0,
        };
        for len in [
            1,
            PIECE - UDP_HEADER,
            PIECE - UDP_HEADER + 1,
            1352,
            4001,
            65_507,
        ] {
            for source in [None, Some(source)] {
                let data: Vec<u8> = (0..len).map(|n| (n * 7) as u8).collect();
                let endpoint = Endpoint {
                    address: to,
                    source,
                };
                pieces.send(endpoint, &data).unwrap();
                let mut buffer = vec![0; 65_536];
                let (got, from) = receiver.recv_from(&mut buffer).unwrap();
                assert!(buffer[..got] == data, "{got} of {len} bytes");
                assert_eq!(from.port(), 51_999);
            }
        }
    }
}
