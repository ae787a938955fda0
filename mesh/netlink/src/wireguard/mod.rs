//! The kernel's own WireGuard, by generic netlink (linux/wireguard.h).
//!
//! [`set_messages`] and [`WireGuardDevice::of_dump`] are pure; [`WireGuard`] is the socket. The
//! kernel tells the private key to whoever may configure a device: it is wiped from what was
//! received before anything is parsed, and never leaves this module.

mod decode;
mod encode;

use std::io;

use netlink_packet_core::{
    DecodeError, ErrorBuffer, NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NLMSG_DONE,
    NLMSG_ERROR, NlasIterator, Parseable,
};
use netlink_packet_wireguard::{WireguardAttribute, WireguardCmd, WireguardMessage};
use nix::sys::socket::{SockFlag, SockProtocol, setsockopt, sockopt};
use nix::sys::time::TimeVal;
use zeroize::{Zeroize, Zeroizing};

use crate::NetlinkError;
use crate::connection::kernel_error;
use crate::socket::{Datagram, Socket, messages};

pub use decode::WireGuardDevice;
pub use encode::{Removal, SetMessage, set_messages};

/// The name of the family, and of the kind of link.
const NAME: &str = "wireguard";
/// Length of `struct genlmsghdr` (linux/genetlink.h).
const FAMILY_HEADER: usize = 4;
// linux/genetlink.h
const CONTROLLER: u16 = 0x10;
const GET_FAMILY: u8 = 3;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;
/// `WGDEVICE_A_PRIVATE_KEY` (linux/wireguard.h).
const PRIVATE_KEY: u16 = 3;

/// How often a dump is repeated during which the device changed.
const DUMP_ATTEMPTS: usize = 20;
/// The kernel answers at once, but a thousand new peers cost it a key exchange each.
const PATIENCE: i64 = 10;

const FIND: &str = "find the kernel's WireGuard";
const READ: &str = "read WireGuard device";
const SET: &str = "set WireGuard device";

/// A socket to the kernel's WireGuard, for the network namespace that it was opened in. Each call
/// blocks until the kernel has answered.
pub struct WireGuard {
    socket: Socket,
    family: u16,
    sequence: u32,
}

impl std::fmt::Debug for WireGuard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("WireGuard")
    }
}

impl WireGuard {
    /// Opens a socket in the calling thread's network namespace. The kernel loads its module, where
    /// there is one.
    ///
    /// # Errors
    /// [`NetlinkError::Kernel`], where `is_not_found` says that this kernel has no WireGuard;
    /// [`NetlinkError::Socket`].
    pub fn open() -> Result<Self, NetlinkError> {
        let socket = open().map_err(|source| NetlinkError::Socket {
            operation: FIND,
            source,
        })?;
        let mut opened = Self {
            socket,
            family: CONTROLLER,
            sequence: 0,
        };
        opened.family = opened.find_family()?;
        Ok(opened)
    }

    /// Reads a device.
    ///
    /// # Errors
    /// [`NetlinkError::Kernel`]: `is_not_found` without such a link, EOPNOTSUPP for a link of another
    /// kind, EPERM without CAP_NET_ADMIN. [`NetlinkError::Interrupted`] when it kept changing.
    pub fn device(&mut self, interface: &str) -> Result<WireGuardDevice, NetlinkError> {
        let request = WireguardMessage {
            cmd: WireguardCmd::GetDevice,
            attributes: vec![WireguardAttribute::IfName(interface.to_owned())],
        };
        for _ in 0..DUMP_ATTEMPTS {
            let sequence = self.next_sequence();
            let flags = NLM_F_REQUEST | NLM_F_DUMP;
            let bytes = encode::encode(&request, self.family, flags, sequence);
            let told = self.exchange(READ, interface, &bytes, sequence)?;
            if !told.consistent {
                continue;
            }
            return device_of(&told.payloads).ok_or_else(|| NetlinkError::Answer {
                operation: READ,
                subject: interface.to_owned(),
                reason: "its attributes are malformed",
            });
        }
        Err(NetlinkError::Interrupted { operation: READ })
    }

    /// Changes a device.
    ///
    /// # Errors
    /// [`NetlinkError::Kernel`], as [`WireGuard::device`]; EINVAL for what this kernel does not know.
    /// The entries before the one that failed have been carried out.
    pub fn set(&mut self, interface: &str, message: &SetMessage) -> Result<(), NetlinkError> {
        let sequence = self.next_sequence();
        let bytes = message.encode(self.family, NLM_F_REQUEST | NLM_F_ACK, sequence);
        self.exchange(SET, interface, &bytes, sequence).map(drop)
    }

    fn find_family(&mut self) -> Result<u16, NetlinkError> {
        let sequence = self.next_sequence();
        let mut bytes = Vec::with_capacity(64);
        let name = [NAME.as_bytes(), &[0]].concat();
        let attribute = 4 + name.len();
        let padded = attribute.next_multiple_of(4);
        let length = 16 + FAMILY_HEADER + padded;
        bytes.extend(u32::try_from(length).unwrap_or(u32::MAX).to_ne_bytes());
        bytes.extend(CONTROLLER.to_ne_bytes());
        bytes.extend((NLM_F_REQUEST | NLM_F_ACK).to_ne_bytes());
        bytes.extend(sequence.to_ne_bytes());
        bytes.extend([0; 4]);
        bytes.extend([GET_FAMILY, 1, 0, 0]);
        bytes.extend(u16::try_from(attribute).unwrap_or(u16::MAX).to_ne_bytes());
        bytes.extend(FAMILY_NAME.to_ne_bytes());
        bytes.extend(name);
        bytes.resize(length, 0);
        let told = self.exchange(FIND, NAME, &bytes, sequence)?;
        let id = told.payloads.iter().find_map(|payload| {
            let attributes = payload.get(FAMILY_HEADER..)?;
            let mut all = NlasIterator::new(attributes).flatten();
            let id = all.find(|attribute| attribute.kind() == FAMILY_ID)?;
            Some(u16::from_ne_bytes(id.value().try_into().ok()?))
        });
        id.ok_or_else(|| NetlinkError::Answer {
            operation: FIND,
            subject: NAME.to_owned(),
            reason: "it has no number of the family",
        })
    }

    fn next_sequence(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        self.sequence
    }

    /// Sends a request and reads until the answer to it is complete.
    fn exchange(
        &mut self,
        operation: &'static str,
        subject: &str,
        request: &[u8],
        sequence: u32,
    ) -> Result<Answers, NetlinkError> {
        let failed = |source| NetlinkError::Socket { operation, source };
        self.socket
            .set_send_buffer(request.len())
            .and_then(|()| self.socket.send(request))
            .map_err(failed)?;
        let told = read_answers(&mut self.socket, operation, subject, sequence);
        self.socket.wipe();
        told
    }
}

struct Answers {
    /// What follows the netlink header, each.
    payloads: Vec<Zeroizing<Vec<u8>>>,
    consistent: bool,
}

fn open() -> io::Result<Socket> {
    let socket = Socket::open(SockProtocol::NetlinkGeneric, SockFlag::empty(), 0)?;
    setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(PATIENCE, 0))?;
    Ok(socket)
}

fn read_answers(
    socket: &mut Socket,
    operation: &'static str,
    subject: &str,
    sequence: u32,
) -> Result<Answers, NetlinkError> {
    let mut told = Answers {
        payloads: Vec::new(),
        consistent: true,
    };
    loop {
        let received = socket.receive();
        let received = received.map_err(|source| NetlinkError::Socket { operation, source })?;
        let datagram = match received {
            Datagram::Messages(datagram) => datagram,
            Datagram::Foreign => continue,
            Datagram::Truncated => {
                return Err(NetlinkError::Answer {
                    operation,
                    subject: subject.to_owned(),
                    reason: "it is longer than any datagram of the kernel",
                });
            }
        };
        for message in messages(datagram) {
            if message.sequence_number() != sequence {
                continue;
            }
            told.consistent &= message.flags() & NLM_F_DUMP_INTR == 0;
            match message.message_type() {
                NLMSG_ERROR => {
                    let error = ErrorBuffer::new_checked(message.payload());
                    return match error.ok().and_then(|error| error.code()) {
                        Some(code) => Err(kernel_error(operation, &subject, code.get(), &[])),
                        None => Ok(told),
                    };
                }
                NLMSG_DONE => {
                    let code = message.payload().first_chunk::<4>();
                    return match code.map_or(0, |code| i32::from_ne_bytes(*code)) {
                        0 => Ok(told),
                        code => Err(kernel_error(operation, &subject, code, &[])),
                    };
                }
                _ => told
                    .payloads
                    .push(Zeroizing::new(message.payload().to_vec())),
            }
        }
    }
}

/// Parses a dump; `None` when it is malformed.
fn device_of(payloads: &[Zeroizing<Vec<u8>>]) -> Option<WireGuardDevice> {
    let mut parsed = Vec::with_capacity(payloads.len());
    for payload in payloads {
        let mut attributes = Zeroizing::new(payload.get(FAMILY_HEADER..)?.to_vec());
        wipe_private_key(&mut attributes);
        let all = NlasIterator::new(&attributes[..]);
        let all = all.map(|attribute| WireguardAttribute::parse(&attribute?));
        parsed.push(WireguardMessage {
            cmd: WireguardCmd::GetDevice,
            attributes: all.collect::<Result<_, DecodeError>>().ok()?,
        });
    }
    let device = WireGuardDevice::of_dump(&parsed);
    parsed.iter_mut().for_each(encode::wipe);
    Some(device)
}

/// Overwrites the private key among a device's attributes.
fn wipe_private_key(mut attributes: &mut [u8]) {
    while let Some([a, b, c, d]) = attributes.first_chunk::<4>().copied() {
        let length = usize::from(u16::from_ne_bytes([a, b]));
        let kind = u16::from_ne_bytes([c, d]);
        if kind == PRIVATE_KEY
            && let Some(value) = attributes.get_mut(4..length)
        {
            value.zeroize();
        }
        let next = length.max(4).next_multiple_of(4);
        attributes = attributes.get_mut(next..).unwrap_or_default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use netlink_packet_core::Emitable as _;

    #[test]
    fn the_private_key_of_a_dump_is_wiped_and_nothing_else() {
        let attributes = |private| {
            vec![
                WireguardAttribute::IfName("warren0".into()),
                WireguardAttribute::PrivateKey(private),
                WireguardAttribute::PublicKey([7; 32]),
                WireguardAttribute::ListenPort(51871),
            ]
        };
        let bytes = |private| {
            let all = attributes(private);
            let mut bytes = vec![0; all.as_slice().buffer_len()];
            all.as_slice().emit(&mut bytes);
            bytes
        };
        let mut told = bytes([9; 32]);
        wipe_private_key(&mut told);
        assert_eq!(told, bytes([0; 32]));
        // Lengths that lie end the walk, whatever follows.
        for cut in 0..told.len() {
            let mut cut = bytes([9; 32])[..cut].to_vec();
            wipe_private_key(&mut cut);
        }
        let mut lying = vec![0; 12];
        wipe_private_key(&mut lying);
        assert_eq!(lying, [0; 12]);
    }
}
