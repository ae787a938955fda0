//! The address of ours that a peer speaks to, so that it is answered from there: what is on the way,
//! and the peer's own filters, know only that one. As the kernel's WireGuard and wireguard-go do.

use std::mem;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::sys::set_int_option;

/// Where a datagram comes from or goes to, and which of our own addresses it came to or leaves from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The other end's address.
    pub address: SocketAddr,
    /// Ours; `None` leaves the choice to the kernel.
    pub source: Option<Source>,
}

/// An address of ours, and the index of the link that its datagrams came by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source {
    /// The address.
    pub address: IpAddr,
    /// The link's index.
    pub link: u32,
}

impl From<SocketAddr> for Endpoint {
    fn from(address: SocketAddr) -> Self {
        Self {
            address,
            source: None,
        }
    }
}

/// The room for one control message that carries an address of ours: `CMSG_SPACE` of the larger.
const CONTROL_BYTES: usize = padded_space(mem::size_of::<libc::in6_pktinfo>());

/// What `CMSG_SPACE` gives, which is no constant function: a header and the data, each padded.
const fn padded_space(data: usize) -> usize {
    let word = mem::size_of::<usize>();
    mem::size_of::<libc::cmsghdr>().next_multiple_of(word) + data.next_multiple_of(word)
}

/// The ancillary data of one datagram.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
pub(crate) struct Control {
    bytes: [u8; CONTROL_BYTES],
    len: usize,
}

impl Control {
    pub(crate) const EMPTY: Self = Self {
        bytes: [0; CONTROL_BYTES],
        len: 0,
    };

    /// Makes what tells the kernel to send from this address. The link is left to the routes, save
    /// for a link-local address, which is none without.
    pub(crate) fn from_source(source: Source) -> Self {
        match source.address {
            IpAddr::V4(address) => Self::of(
                libc::IPPROTO_IP,
                libc::IP_PKTINFO,
                libc::in_pktinfo {
                    ipi_ifindex: 0,
                    ipi_spec_dst: libc::in_addr {
                        s_addr: u32::from(address).to_be(),
                    },
                    ipi_addr: libc::in_addr { s_addr: 0 },
                },
            ),
            IpAddr::V6(address) => Self::of(
                libc::IPPROTO_IPV6,
                libc::IPV6_PKTINFO,
                libc::in6_pktinfo {
                    ipi6_addr: libc::in6_addr {
                        s6_addr: address.octets(),
                    },
                    ipi6_ifindex: match address.is_unicast_link_local() {
                        true => source.link as _,
                        false => 0,
                    },
                },
            ),
        }
    }

    /// Lends the room to a message header, for the kernel to fill or to read.
    pub(crate) fn attach(&mut self, header: &mut libc::msghdr, room: bool) {
        if room {
            self.len = CONTROL_BYTES;
        }
        header.msg_controllen = self.len as _;
        header.msg_control = match self.len {
            0 => std::ptr::null_mut(),
            _ => self.bytes.as_mut_ptr().cast(),
        };
    }

    /// Reads the address that a received datagram came to, of the header that this was attached to.
    pub(crate) fn source(header: &libc::msghdr) -> Option<Source> {
        // SAFETY: the header's control pointer and length describe what the kernel has written into
        // a `Control` that still lives; the macro checks the length before it gives a pointer.
        let message = unsafe { libc::CMSG_FIRSTHDR(header).as_ref() }?;
        // SAFETY: as above; the data follows the header.
        let data = unsafe { libc::CMSG_DATA(message) };
        let source = match (message.cmsg_level, message.cmsg_type) {
            (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                // SAFETY: this kind of message carries this structure; it may lie unaligned.
                let info = unsafe { data.cast::<libc::in_pktinfo>().read_unaligned() };
                Source {
                    address: Ipv4Addr::from(u32::from_be(info.ipi_spec_dst.s_addr)).into(),
                    link: info.ipi_ifindex as u32,
                }
            }
            (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                // SAFETY: as above.
                let info = unsafe { data.cast::<libc::in6_pktinfo>().read_unaligned() };
                Source {
                    address: Ipv6Addr::from(info.ipi6_addr.s6_addr).into(),
                    link: info.ipi6_ifindex as u32,
                }
            }
            _ => return None,
        };
        let usable = !source.address.is_unspecified() && !source.address.is_multicast();
        usable.then_some(source)
    }

    fn of<T>(level: libc::c_int, kind: libc::c_int, info: T) -> Self {
        let mut control = Self::EMPTY;
        let data_at = padded_space(0);
        let header = libc::cmsghdr {
            cmsg_len: (data_at + mem::size_of::<T>()) as _,
            cmsg_level: level,
            cmsg_type: kind,
        };
        assert!(data_at + mem::size_of::<T>() <= CONTROL_BYTES);
        // SAFETY: the room holds a header and the data behind it, as just checked, and both are
        // plain data that may lie unaligned.
        unsafe {
            let start = control.bytes.as_mut_ptr();
            start.cast::<libc::cmsghdr>().write_unaligned(header);
            start.add(data_at).cast::<T>().write_unaligned(info);
        }
        control.len = padded_space(mem::size_of::<T>());
        control
    }
}

/// Has the kernel tell for each datagram to which of our addresses it came.
pub(crate) fn ask_for_sources(socket: &socket2::Socket, v6: bool) -> std::io::Result<()> {
    match v6 {
        true => set_int_option(socket, libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, 1),
        false => set_int_option(socket, libc::IPPROTO_IP, libc::IP_PKTINFO, 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_to_the_kernel_is_read_back() {
        for address in ["192.0.2.7", "2001:db8::7", "fe80::7"] {
            let address: IpAddr = address.parse().unwrap();
            let mut control = Control::from_source(Source { address, link: 3 });
            // SAFETY: plain data, for which all zero is a value.
            let mut header: libc::msghdr = unsafe { mem::zeroed() };
            control.attach(&mut header, false);
            let read = Control::source(&header).unwrap();
            assert_eq!(read.address, address);
        }
        // SAFETY: as above.
        let mut header: libc::msghdr = unsafe { mem::zeroed() };
        assert_eq!(Control::source(&header), None);
        let mut empty = Control::EMPTY;
        empty.attach(&mut header, false);
        assert_eq!(Control::source(&header), None);
    }

    #[test]
    fn the_room_is_what_the_macro_says() {
        // SAFETY: it only computes.
        let space = unsafe { libc::CMSG_SPACE(mem::size_of::<libc::in6_pktinfo>() as u32) };
        assert_eq!(CONTROL_BYTES, space as usize);
    }
}
