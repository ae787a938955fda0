//! The TUN device. That of a node is persistent, so that a dead daemon does not take addresses and
//! routes along, and multi-queue from the first day, because the kernel refuses to add that later.
//! A transient one is neither: it goes with its process, and a second process cannot open it.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;

use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};

use crate::sys::check;

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
    #[error("use the given TUN: {0}; give one with IFF_TUN and IFF_NO_PI and without IFF_VNET_HDR")]
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
    name: String,
}

impl Tun {
    /// Opens the persistent device of that name, or makes it: with the MTU given, and up where
    /// `bring_up`. One that is there keeps what it has: MTU, addresses, routes, up or not.
    ///
    /// # Errors
    /// [`TunError`], whose message says what to do.
    pub fn open(name: &str, mtu_bytes: u32, bring_up: bool) -> Result<Self, TunError> {
        let (tun, existed) = Self::attach(name, libc::IFF_MULTI_QUEUE)?;
        if !existed {
            tun.make_lasting()?;
            tun.set_mtu(mtu_bytes)?;
            if bring_up {
                tun.bring_up()?;
            }
        }
        Ok(tun)
    }

    /// Makes a device that goes when it is closed, or takes one that is there and that nobody has
    /// open. It has the MTU given, and whether it is up is for others to say.
    ///
    /// # Errors
    /// [`TunError`], whose message says what to do.
    pub fn open_transient(name: &str, mtu_bytes: u32) -> Result<Self, TunError> {
        let (tun, _) = Self::attach(name, 0)?;
        tun.set_mtu(mtu_bytes)?;
        Ok(tun)
    }

    /// Takes a device that somebody else has opened.
    ///
    /// # Errors
    /// [`TunError::Given`] when packets could not be read from it as we do.
    pub fn from_descriptor(descriptor: OwnedFd) -> Result<Self, TunError> {
        let queue = File::from(descriptor);
        // SAFETY: `ifreq` is plain data, for which all zero is a value.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        // SAFETY: TUNGETIFF fills an `ifreq`, which outlives the call.
        check(unsafe { libc::ioctl(queue.as_raw_fd(), libc::TUNGETIFF as _, &raw mut request) })
            .map_err(TunError::Given)?;
        // SAFETY: TUNGETIFF has filled this member of the union.
        let flags = libc::c_int::from(unsafe { request.ifr_ifru.ifru_flags });
        let mode = libc::IFF_TUN | libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        if flags & mode != libc::IFF_TUN | libc::IFF_NO_PI {
            return Err(TunError::Given(io::ErrorKind::InvalidInput.into()));
        }
        let flags = FdFlag::FD_CLOEXEC;
        fcntl(&queue, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))
            .and_then(|_| fcntl(&queue, FcntlArg::F_SETFD(flags)))
            .map_err(|error| TunError::Given(error.into()))?;
        let name = request.ifr_name.iter().take_while(|byte| **byte != 0);
        Ok(Self {
            name: name.map(|byte| char::from(*byte as u8)).collect(),
            queue,
        })
    }

    /// Returns the interface's name, as it was when the device was opened.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Opens a queue of the device, and tells whether the device was there.
    fn attach(name: &str, extra: libc::c_int) -> Result<(Self, bool), TunError> {
        let mut request = request_for(name)?;
        let existed = index_of(&mut request).is_some();
        let queue = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open(DEVICE)
            .map_err(TunError::Open)?;
        let flags = libc::IFF_TUN | libc::IFF_NO_PI | extra;
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
        let name = name.to_owned();
        Ok((Self { queue, name }, existed))
    }

    /// Reads one packet.
    ///
    /// # Errors
    /// `WouldBlock` when there is none; anything else means that the device is down or gone.
    #[inline]
    pub fn read(&mut self, packet: &mut [u8]) -> io::Result<usize> {
        self.queue.read(packet)
    }

    /// Writes one packet.
    ///
    /// # Errors
    /// What the kernel says; the packet is then lost and the next one may be tried.
    #[inline]
    pub fn write(&mut self, packet: &[u8]) -> io::Result<()> {
        self.queue.write(packet).map(drop)
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

impl AsRawFd for Tun {
    fn as_raw_fd(&self) -> RawFd {
        self.queue.as_raw_fd()
    }
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
