//! The TUN device. That of a node is persistent, so that a dead daemon does not take addresses and
//! routes along, and multi-queue from the first day, because the kernel refuses to add that later.
//! A transient one is neither: it goes with its process, and a second process cannot open it.
//!
//! With offloads each packet comes and goes behind a header (`IFF_VNET_HDR`) that says how it is to
//! be split and which checksum is still to be computed. Without, packets are bare, and the kernel
//! splits and computes.

mod steering;
mod writer;

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;

use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};

use crate::offload::{Offload, Offloads, VIRTIO_HEADER_LEN};
use crate::sys::check;

pub use steering::TunSteering;
pub(crate) use writer::TunWriter;

const DEVICE: &str = "/dev/net/tun";

/// What can go wrong with the TUN device.
#[derive(Debug, thiserror::Error)]
pub enum TunError {
    /// The name cannot be that of an interface.
    #[error("open TUN: `{0}` is no interface name; give 1 to 15 bytes without `/` and white space")]
    Name(String),
    /// The kernel's device could not be opened.
    #[error(
        "open {DEVICE}: {0}; is the module `tun` loaded, the device node there, and, in a container, \
         allowed by the runtime?"
    )]
    Open(#[source] io::Error),
    /// An interface of that name is there, and it is none that we could open.
    #[error(
        "open TUN {name}: an interface of that name exists, and it is another's or of another kind \
         ({source}); remove it by `ip link delete {name}` or use another name"
    )]
    OtherType {
        /// The interface.
        name: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The descriptor that was given is no TUN device, or not in the mode that we read.
    #[error("use the given TUN: {0}; give one with IFF_TUN and IFF_NO_PI")]
    Given(#[source] io::Error),
    /// The kernel refused to make the device.
    #[error("{operation} TUN {name}: {source}; CAP_NET_ADMIN is needed")]
    Refused {
        /// What was tried.
        operation: &'static str,
        /// The interface.
        name: String,
        /// What the kernel said.
        source: io::Error,
    },
}

/// One queue of a TUN device, non-blocking.
#[derive(Debug)]
pub struct Tun {
    queue: File,
    /// Another shard reads it.
    writes_only: bool,
    name: String,
    /// A header stands before each packet.
    framed: bool,
    offloads: Offloads,
}

/// The room that a frame is read into: the largest packet and what stands before it.
pub const FRAME_ROOM: usize = VIRTIO_HEADER_LEN + 65_535 + 1;

/// What was read from the TUN: a packet, or a super-packet.
#[derive(Debug)]
pub struct TunFrame<'a> {
    /// Its bytes.
    pub packet: &'a mut [u8],
    /// What is left to be done with it; `None` where the kernel says something that it was not
    /// asked for.
    pub offload: Option<Offload>,
}

impl Tun {
    /// Opens the persistent device of that name, or makes it: with the MTU given, and up where
    /// `bring_up`. One that is there keeps what it has: MTU, addresses, routes, up or not. Of the
    /// offloads those are used that are allowed and that the kernel has.
    ///
    /// # Errors
    /// [`TunError`], whose message says what to do.
    pub fn open(
        name: &str,
        mtu_bytes: u32,
        bring_up: bool,
        allowed: Offloads,
    ) -> Result<Self, TunError> {
        let (tun, existed) = Self::attach(name, libc::IFF_MULTI_QUEUE, allowed)?;
        if !existed {
            tun.make_lasting()?;
            tun.set_mtu(mtu_bytes)?;
            if bring_up {
                tun.bring_up()?;
            }
        }
        Ok(tun)
    }

    /// As [`Tun::open`], for so many shards, at least one. With `steering` each has a queue of its own;
    /// without, or where the kernel refuses, the first one reads the only queue and all of them write to
    /// it: left to itself, the kernel moves flows between queues, and packets would overtake each other.
    ///
    /// # Errors
    /// [`TunError`], whose message says what to do.
    pub fn open_shards(
        name: &str,
        mtu_bytes: u32,
        bring_up: bool,
        allowed: Offloads,
        shards: u8,
        steering: Option<&TunSteering>,
    ) -> Result<Vec<Self>, TunError> {
        let mut queues = vec![Self::open(name, mtu_bytes, bring_up, allowed)?];
        if shards > 1
            && let Some(steering) = steering
        {
            match queues[0].add_queues(shards - 1, allowed, steering) {
                Ok(added) => queues.extend(added),
                Err(error) => {
                    tracing::warn!(%error, "no TUN queue for each shard; one shard reads for all");
                }
            }
        }
        while queues.len() < usize::from(shards) {
            let writer = queues[0].writer().map_err(queues[0].refused("share"))?;
            queues.push(writer);
        }
        Ok(queues)
    }

    /// Adds queues to a device that has this one alone.
    fn add_queues(
        &self,
        count: u8,
        allowed: Offloads,
        steering: &TunSteering,
    ) -> Result<Vec<Self>, TunError> {
        // First, so that no packet is dealt out otherwise.
        steering.attach(self).map_err(self.refused("steer"))?;
        let add = |_| Ok(Self::attach(&self.name, libc::IFF_MULTI_QUEUE, allowed)?.0);
        (0..count).map(add).collect()
    }

    /// Another handle on the same queue, to write to it.
    fn writer(&self) -> io::Result<Self> {
        Ok(Self {
            queue: self.queue.try_clone()?,
            writes_only: true,
            name: self.name.clone(),
            ..*self
        })
    }

    /// Tells whether its packets are read by another shard.
    pub(crate) fn writes_only(&self) -> bool {
        self.writes_only
    }

    /// Makes a device that goes when it is closed, or takes one that is there and that nobody has
    /// open. It has the MTU given, and whether it is up is for others to say.
    ///
    /// # Errors
    /// [`TunError`], whose message says what to do.
    pub fn open_transient(name: &str, mtu_bytes: u32, allowed: Offloads) -> Result<Self, TunError> {
        let (tun, _) = Self::attach(name, 0, allowed)?;
        tun.set_mtu(mtu_bytes)?;
        Ok(tun)
    }

    /// Takes a device that somebody else has opened.
    ///
    /// # Errors
    /// [`TunError::Given`] when packets could not be read from it as we do.
    pub fn from_descriptor(descriptor: OwnedFd, allowed: Offloads) -> Result<Self, TunError> {
        let queue = File::from(descriptor);
        let request = request_of(&queue).map_err(TunError::Given)?;
        let flags = flags_of(&request);
        let mode = libc::IFF_TUN | libc::IFF_TAP | libc::IFF_NO_PI;
        if flags & mode != libc::IFF_TUN | libc::IFF_NO_PI {
            return Err(TunError::Given(io::ErrorKind::InvalidInput.into()));
        }
        fcntl(&queue, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))
            .and_then(|_| fcntl(&queue, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)))
            .map_err(|error| TunError::Given(error.into()))?;
        let name = request.ifr_name.iter().take_while(|byte| **byte != 0);
        let name = name.map(|byte| char::from(*byte as u8)).collect();
        Self::agree(queue, name, allowed).map_err(TunError::Given)
    }

    /// Returns the interface's name, as it was when the device was opened.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Opens a queue of the device, and tells whether the device was there.
    fn attach(name: &str, extra: libc::c_int, allowed: Offloads) -> Result<(Self, bool), TunError> {
        let mut request = request_for(name)?;
        let existed = index_of(&mut request).is_some();
        let queue = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open(DEVICE)
            .map_err(TunError::Open)?;
        let header = if allowed.tso { libc::IFF_VNET_HDR } else { 0 };
        let flags = libc::IFF_TUN | libc::IFF_NO_PI | header | extra;
        request.ifr_ifru.ifru_flags = flags as libc::c_short;
        // SAFETY: TUNSETIFF reads and writes an `ifreq`, which outlives the call.
        check(unsafe { libc::ioctl(queue.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) })
            .map_err(|source| match source.raw_os_error() {
                Some(libc::EINVAL | libc::EBUSY | libc::EEXIST) if existed => TunError::OtherType {
                    name: name.to_owned(),
                    source,
                },
                _ => TunError::Refused {
                    operation: "attach to",
                    name: name.to_owned(),
                    source,
                },
            })?;
        let tun =
            Self::agree(queue, name.to_owned(), allowed).map_err(|source| TunError::Refused {
                operation: "set the offloads of",
                name: name.to_owned(),
                source,
            })?;
        Ok((tun, existed))
    }

    /// Agrees with the kernel on what stands before packets and on what it leaves undone, whatever
    /// the process before had agreed on.
    fn agree(queue: File, name: String, allowed: Offloads) -> io::Result<Self> {
        // Where somebody else has a queue of the device, it is as he wants it.
        let framed = flags_of(&request_of(&queue)?) & libc::IFF_VNET_HDR != 0;
        let mut offloads = Offloads::NONE;
        if framed {
            let len = VIRTIO_HEADER_LEN as libc::c_int;
            // SAFETY: TUNSETVNETHDRSZ reads an int, which outlives the call.
            check(unsafe {
                libc::ioctl(
                    queue.as_raw_fd(),
                    libc::TUNSETVNETHDRSZ as _,
                    &raw const len,
                )
            })?;
            let tso = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;
            let uso = libc::TUN_F_USO4 | libc::TUN_F_USO6;
            offloads.uso = allowed.tso && allowed.uso && set_offloads(&queue, tso | uso).is_ok();
            offloads.tso = offloads.uso || allowed.tso && set_offloads(&queue, tso).is_ok();
        }
        if !offloads.tso {
            set_offloads(&queue, 0)?;
        }
        Ok(Self {
            queue,
            writes_only: false,
            name,
            framed,
            offloads,
        })
    }

    /// Returns which of the offloads of TUN devices are in use; those of sockets are none here.
    pub fn offloads(&self) -> Offloads {
        self.offloads
    }

    /// Reads one frame into the room, of at least [`FRAME_ROOM`] bytes.
    ///
    /// # Errors
    /// `WouldBlock` when there is none; anything else means that the device is down or gone.
    #[inline]
    pub fn read<'a>(&mut self, room: &'a mut [u8]) -> io::Result<TunFrame<'a>> {
        let len = self.queue.read(room)?;
        let frame = &mut room[..len];
        if !self.framed {
            return Ok(TunFrame {
                packet: frame,
                offload: Some(Offload::default()),
            });
        }
        match frame.split_first_chunk_mut::<VIRTIO_HEADER_LEN>() {
            Some((header, packet)) => Ok(TunFrame {
                offload: Offload::parse(header),
                packet,
            }),
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    /// Writes one packet, for which nothing is left to be done.
    ///
    /// # Errors
    /// What the kernel says; the packet is then lost and the next one may be tried.
    #[inline]
    pub fn write(&mut self, packet: &[u8]) -> io::Result<()> {
        if self.framed {
            let header = Offload::default().to_bytes(0);
            self.write_parts(&[IoSlice::new(&header), IoSlice::new(packet)])
        } else {
            self.queue.write(packet).map(drop)
        }
    }

    /// Writes one frame, header first, of its parts.
    fn write_parts(&mut self, parts: &[IoSlice<'_>]) -> io::Result<()> {
        self.queue.write_vectored(parts).map(drop)
    }

    /// Reads the interface's index.
    ///
    /// # Errors
    /// What the kernel says, for one when the interface is gone.
    pub fn index(&self) -> io::Result<u32> {
        Ok(nix::net::if_::if_nametoindex(self.name.as_str())?)
    }

    /// Reads the interface's MTU in bytes.
    ///
    /// # Errors
    /// What the kernel says, for one when the interface is gone.
    pub fn mtu(&self) -> io::Result<u32> {
        let mut request = request_for(&self.name).map_err(io::Error::other)?;
        interface_ioctl(libc::SIOCGIFMTU as _, &mut request)?;
        // SAFETY: SIOCGIFMTU has filled this member of the union.
        let mtu = unsafe { request.ifr_ifru.ifru_mtu };
        Ok(u32::try_from(mtu).unwrap_or_default())
    }

    /// Reads how many packets each queue of the interface holds.
    pub(crate) fn queue_len(&self) -> io::Result<u32> {
        let mut request = request_for(&self.name).map_err(io::Error::other)?;
        interface_ioctl(libc::SIOCGIFTXQLEN as _, &mut request)?;
        // SAFETY: SIOCGIFTXQLEN has filled the union with an int, as this member is.
        let len = unsafe { request.ifr_ifru.ifru_metric };
        Ok(u32::try_from(len).unwrap_or_default())
    }

    fn make_lasting(&self) -> Result<(), TunError> {
        // SAFETY: TUNSETPERSIST takes a plain number.
        check(unsafe { libc::ioctl(self.queue.as_raw_fd(), libc::TUNSETPERSIST as _, 1) })
            .map_err(self.refused("keep"))?;
        Ok(())
    }

    fn set_mtu(&self, mtu_bytes: u32) -> Result<(), TunError> {
        let mut request = request_for(&self.name)?;
        request.ifr_ifru.ifru_mtu = mtu_bytes as libc::c_int;
        interface_ioctl(libc::SIOCSIFMTU as _, &mut request).map_err(self.refused("set the MTU of"))
    }

    fn bring_up(&self) -> Result<(), TunError> {
        let mut request = request_for(&self.name)?;
        interface_ioctl(libc::SIOCGIFFLAGS as _, &mut request)
            .map_err(self.refused("read the flags of"))?;
        // SAFETY: SIOCGIFFLAGS has filled this member of the union.
        let flags = unsafe { request.ifr_ifru.ifru_flags };
        request.ifr_ifru.ifru_flags = flags | libc::IFF_UP as libc::c_short;
        interface_ioctl(libc::SIOCSIFFLAGS as _, &mut request).map_err(self.refused("bring up"))
    }

    fn refused(&self, operation: &'static str) -> impl FnOnce(io::Error) -> TunError {
        let name = self.name.clone();
        move |source| TunError::Refused {
            operation,
            name,
            source,
        }
    }
}

impl AsFd for Tun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.queue.as_fd()
    }
}

impl AsRawFd for Tun {
    fn as_raw_fd(&self) -> RawFd {
        self.queue.as_raw_fd()
    }
}

/// Asks what an open device is.
fn request_of(queue: &File) -> io::Result<libc::ifreq> {
    // SAFETY: `ifreq` is plain data, for which all zero is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // SAFETY: TUNGETIFF fills an `ifreq`, which outlives the call.
    check(unsafe { libc::ioctl(queue.as_raw_fd(), libc::TUNGETIFF as _, &raw mut request) })?;
    Ok(request)
}

/// The flags of a request that [`request_of`] has made.
fn flags_of(request: &libc::ifreq) -> libc::c_int {
    // SAFETY: TUNGETIFF has filled this member of the union.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    libc::c_int::from(flags as u16)
}

/// Says what may be left undone of the packets that are read.
fn set_offloads(queue: &File, offloads: libc::c_uint) -> io::Result<()> {
    // SAFETY: TUNSETOFFLOAD takes a plain number.
    check(unsafe {
        libc::ioctl(
            queue.as_raw_fd(),
            libc::TUNSETOFFLOAD as _,
            libc::c_ulong::from(offloads),
        )
    })
    .map(drop)
}

fn request_for(name: &str) -> Result<libc::ifreq, TunError> {
    let allowed = (1..libc::IFNAMSIZ).contains(&name.len())
        && name != "."
        && name != ".."
        && !name.bytes().any(|byte| {
            byte == b'/' || byte == b':' || byte == b'%' || byte == 0 || byte.is_ascii_whitespace()
        });
    if !allowed {
        return Err(TunError::Name(name.to_owned()));
    }
    // SAFETY: `ifreq` is plain data, for which all zero is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    Ok(request)
}

fn index_of(request: &mut libc::ifreq) -> Option<libc::c_int> {
    interface_ioctl(libc::SIOCGIFINDEX as _, request).ok()?;
    // SAFETY: SIOCGIFINDEX has filled this member of the union.
    Some(unsafe { request.ifr_ifru.ifru_ifindex })
}

fn interface_ioctl(operation: libc::Ioctl, request: &mut libc::ifreq) -> io::Result<()> {
    let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::DGRAM, None)?;
    // SAFETY: all operations of this file read or write one `ifreq`, which outlives the call.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), operation, &raw mut *request) }).map(drop)
}
