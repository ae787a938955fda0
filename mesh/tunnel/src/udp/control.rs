//! What goes along with a datagram beside its bytes (control messages): the address of ours that it
//! came to or leaves from, how a train is split, and how many hops are left.

use std::mem;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::source::Source;

/// The room for an address of ours, for the length of a train's datagrams and for their hops.
const CONTROL_BYTES: usize = padded_space(mem::size_of::<libc::in6_pktinfo>())
    + 2 * padded_space(mem::size_of::<libc::c_int>());

/// What `CMSG_SPACE` gives, which is no constant function: a header and the data, each padded.
const fn padded_space(data: usize) -> usize {
    let word = mem::size_of::<usize>();
    mem::size_of::<libc::cmsghdr>().next_multiple_of(word) + data.next_multiple_of(word)
}

/// The control messages of one datagram, or of one train.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(8))]
pub(crate) struct Control {
    bytes: [u8; CONTROL_BYTES],
    len: usize,
    /// What of it is no source: the messages before that.
    len_without_source: usize,
}

/// What the kernel tells of a received datagram or train.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Received {
    /// The address of ours that it came to.
    pub(crate) source: Option<Source>,
    /// The length of each datagram but the last in bytes, where there are several.
    pub(crate) segment_len: Option<usize>,
}

impl Control {
    pub(crate) const EMPTY: Self = Self {
        bytes: [0; CONTROL_BYTES],
        len: 0,
        len_without_source: 0,
    };

    /// Has the kernel split what is sent into datagrams of that many bytes. Comes before a source.
    pub(crate) fn push_segment_len(&mut self, bytes: u16) {
        self.push(libc::SOL_UDP, libc::UDP_SEGMENT, bytes);
        self.len_without_source = self.len;
    }

    /// Has the kernel send it with so many hops, 1 to 255, to an endpoint of this family. Comes before a source.
    pub(crate) fn push_hops(&mut self, endpoint: &SocketAddr, hops: u8) {
        let (level, kind) = match endpoint {
            SocketAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_TTL),
            SocketAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_HOPLIMIT),
        };
        self.push(level, kind, libc::c_int::from(hops));
        self.len_without_source = self.len;
    }

    /// Has the kernel send from this address. The link is left to the routes, save for a link-local
    /// address, which is none without.
    pub(crate) fn push_source(&mut self, source: Source) {
        match source.address {
            IpAddr::V4(address) => self.push(
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
            IpAddr::V6(address) => self.push(
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

    /// Whether the kernel is told from where to send.
    pub(crate) fn has_source(&self) -> bool {
        self.len > self.len_without_source
    }

    /// Leaves it to the kernel from where to send.
    pub(crate) fn drop_source(&mut self) {
        self.len = self.len_without_source;
    }

    /// Lends what is in it to a message header, for the kernel to read.
    pub(crate) fn attach(&mut self, header: &mut libc::msghdr) {
        header.msg_controllen = self.len as _;
        header.msg_control = match self.len {
            0 => std::ptr::null_mut(),
            _ => self.bytes.as_mut_ptr().cast(),
        };
    }

    /// Lends the whole room to a message header, for the kernel to fill.
    pub(crate) fn attach_room(&mut self, header: &mut libc::msghdr) {
        self.len = CONTROL_BYTES;
        self.attach(header);
    }

    /// Reads what the kernel has written, of the header that this was attached to.
    #[inline]
    pub(crate) fn received(header: &libc::msghdr) -> Received {
        let mut received = Received::default();
        // SAFETY: the header's control pointer and length describe what the kernel has written into
        // a `Control` that still lives; the macros check the length before they give a pointer.
        let mut next = unsafe { libc::CMSG_FIRSTHDR(header) };
        // SAFETY: as above: null, or a header within the room.
        while let Some(message) = unsafe { next.as_ref() } {
            // SAFETY: as above; the data follows the header.
            let data = unsafe { libc::CMSG_DATA(message) };
            match (message.cmsg_level, message.cmsg_type) {
                (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                    // SAFETY: this kind of message carries this structure; it may lie unaligned.
                    let info = unsafe { data.cast::<libc::in_pktinfo>().read_unaligned() };
                    received.note_source(Source {
                        address: Ipv4Addr::from(u32::from_be(info.ipi_spec_dst.s_addr)).into(),
                        link: info.ipi_ifindex as u32,
                    });
                }
                (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                    // SAFETY: as above.
                    let info = unsafe { data.cast::<libc::in6_pktinfo>().read_unaligned() };
                    received.note_source(Source {
                        address: Ipv6Addr::from(info.ipi6_addr.s6_addr).into(),
                        link: info.ipi6_ifindex as u32,
                    });
                }
                (libc::SOL_UDP, libc::UDP_GRO) => {
                    // SAFETY: as above: an int.
                    let len = unsafe { data.cast::<libc::c_int>().read_unaligned() };
                    received.segment_len = usize::try_from(len).ok().filter(|len| *len > 0);
                }
                _ => {}
            }
            // SAFETY: as for the first one.
            next = unsafe { libc::CMSG_NXTHDR(header, message) };
        }
        received
    }

    fn push<T>(&mut self, level: libc::c_int, kind: libc::c_int, data: T) {
        let data_at = padded_space(0);
        let header = libc::cmsghdr {
            cmsg_len: (data_at + mem::size_of::<T>()) as _,
            cmsg_level: level,
            cmsg_type: kind,
        };
        let end = self.len + padded_space(mem::size_of::<T>());
        assert!(end <= CONTROL_BYTES);
        // SAFETY: the room has place for a header and the data behind it, as just checked, and both
        // are plain data that may lie unaligned.
        unsafe {
            let start = self.bytes.as_mut_ptr().add(self.len);
            start.cast::<libc::cmsghdr>().write_unaligned(header);
            start.add(data_at).cast::<T>().write_unaligned(data);
        }
        self.len = end;
    }
}

impl Received {
    fn note_source(&mut self, source: Source) {
        let usable = !source.address.is_unspecified() && !source.address.is_multicast();
        self.source = usable.then_some(source);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(control: &mut Control) -> Received {
        // SAFETY: plain data, for which all zero is a value.
        let mut header: libc::msghdr = unsafe { mem::zeroed() };
        control.attach(&mut header);
        Control::received(&header)
    }

    #[test]
    fn what_is_said_to_the_kernel_is_read_back() {
        for address in ["192.0.2.7", "2001:db8::7", "fe80::7"] {
            let address: IpAddr = address.parse().unwrap();
            let mut control = Control::EMPTY;
            // As the kernel tells it; it is told the same by another number.
            control.push(libc::SOL_UDP, libc::UDP_GRO, 1452 as libc::c_int);
            control.len_without_source = control.len;
            control.push_source(Source { address, link: 3 });
            assert!(control.has_source());
            let received = read(&mut control);
            assert_eq!(received.source.map(|source| source.address), Some(address));
            assert_eq!(received.segment_len, Some(1452));
            control.drop_source();
            assert!(!control.has_source());
            let received = read(&mut control);
            assert_eq!((received.source, received.segment_len), (None, Some(1452)));
        }
        assert_eq!(read(&mut Control::EMPTY.clone()), Received::default());
    }

    #[test]
    fn the_room_is_what_the_macro_says() {
        // SAFETY: it only computes.
        let space = unsafe {
            libc::CMSG_SPACE(mem::size_of::<libc::in6_pktinfo>() as u32) + 2 * libc::CMSG_SPACE(4)
        };
        assert_eq!(CONTROL_BYTES, space as usize);
    }
}
