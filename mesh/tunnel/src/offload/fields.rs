//! Where things stand in IP, TCP and UDP headers.

pub(in crate::offload) const IPV4_HEADER: usize = 20;
pub(in crate::offload) const IPV6_HEADER: usize = 40;
pub(in crate::offload) const TCP_HEADER: usize = 20;
pub(in crate::offload) const UDP_HEADER: usize = 8;

/// Protocol numbers.
pub(in crate::offload) const TCP: u8 = 6;
pub(in crate::offload) const UDP: u8 = 17;

/// The checksum's place in a TCP header, and in a UDP header.
pub(in crate::offload) const TCP_CHECKSUM: usize = 16;
pub(in crate::offload) const UDP_CHECKSUM: usize = 6;

/// The flags' place in a TCP header, and the flags.
pub(in crate::offload) const TCP_FLAGS: usize = 13;
pub(in crate::offload) const FIN: u8 = 0x01;
pub(in crate::offload) const PSH: u8 = 0x08;
pub(in crate::offload) const ACK: u8 = 0x10;
pub(in crate::offload) const ECE: u8 = 0x40;
pub(in crate::offload) const CWR: u8 = 0x80;

/// The length of a TCP header by its own word; at most 60, and it may be too small.
#[inline]
pub(in crate::offload) fn tcp_header_len(header: &[u8; TCP_HEADER]) -> usize {
    usize::from(header[12] >> 4) * 4
}

#[inline]
pub(in crate::offload) fn get_u16(packet: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([packet[at], packet[at + 1]])
}

#[inline]
pub(in crate::offload) fn put_u16(packet: &mut [u8], at: usize, number: u16) {
    packet[at..at + 2].copy_from_slice(&number.to_be_bytes());
}

#[inline]
pub(in crate::offload) fn get_u32(packet: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([packet[at], packet[at + 1], packet[at + 2], packet[at + 3]])
}

#[inline]
pub(in crate::offload) fn put_u32(packet: &mut [u8], at: usize, number: u32) {
    packet[at..at + 4].copy_from_slice(&number.to_be_bytes());
}
