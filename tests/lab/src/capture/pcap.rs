//! The classic pcap file format, with nanoseconds.

use super::report::Offence;

/// LINKTYPE_ETHERNET; a frame without an Ethernet header gets one of zeros.
const LINKTYPE: u32 = 1;
const SNAPLEN: u32 = 1 << 18;

/// A whole pcap file with the packets.
pub(crate) fn file(offences: &[&Offence]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend_from_slice(&0xa1b2_3c4d_u32.to_le_bytes());
    for version in [2_u16, 4] {
        bytes.extend_from_slice(&version.to_le_bytes());
    }
    for word in [0, 0, SNAPLEN, LINKTYPE] {
        bytes.extend_from_slice(&word.to_le_bytes());
    }
    for offence in offences {
        let mut frame = Vec::with_capacity(offence.frame.len() + 14);
        if !offence.ethernet {
            let v6 = offence.frame.first().is_some_and(|b| b >> 4 == 6);
            frame.extend_from_slice(&[0; 12]);
            frame.extend_from_slice(if v6 { &[0x86, 0xdd] } else { &[0x08, 0x00] });
        }
        frame.extend_from_slice(&offence.frame);
        let length = frame.len() as u32;
        let (seconds, nanos) = (offence.time.as_secs() as u32, offence.time.subsec_nanos());
        for word in [seconds, nanos, length, length] {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        bytes.extend_from_slice(&frame);
    }
    bytes
}
