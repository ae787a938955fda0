//! A packet socket with a TPACKET_V3 ring: the kernel copies frames, super-packets of 64 KB
//! included, into 64 MB of shared memory, and counts what did not fit.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering, fence};
use std::time::Duration;

use super::parse::LinkLayer;

/// A block must hold at least one super-packet; the kernel closes a block that is not empty after
/// [`RETIRE`]. With any traffic at all the ring is full after all blocks' time: so long may the
/// reader be kept from the processor.
const BLOCK_BYTES: usize = 1 << 20;
const BLOCKS: usize = 64;
const RETIRE: Duration = Duration::from_millis(100);
/// Smallest slot; only a divisor for the kernel's checks in version 3.
const FRAME_BYTES: u32 = 2048;

/// One frame in the ring.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Frame<'a> {
    pub(crate) layer: LinkLayer,
    /// Time since the epoch.
    pub(crate) time: Duration,
    pub(crate) data: &'a [u8],
    /// The length on the wire; longer than `data` if it was cut.
    pub(crate) wire_len: usize,
}

/// The socket and its ring.
#[derive(Debug)]
pub(crate) struct Ring {
    socket: OwnedFd,
    memory: NonNull<u8>,
    next: usize,
}

// SAFETY: the mapping belongs to this value alone and is reached only through `&mut self`.
unsafe impl Send for Ring {}

impl Ring {
    /// Opens a ring in the network namespace of the calling thread, bound to no interface yet.
    pub(crate) fn open() -> io::Result<Self> {
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
        // Protocol 0: nothing arrives before `bind`.
        // SAFETY: plain integers; the result is checked.
        let fd = unsafe { libc::socket(libc::AF_PACKET, kind, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel just gave us this descriptor.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        let version = libc::tpacket_versions::TPACKET_V3 as libc::c_int;
        set_option(&socket, libc::PACKET_VERSION, &version)?;
        let total = BLOCK_BYTES * BLOCKS;
        let request = libc::tpacket_req3 {
            tp_block_size: BLOCK_BYTES as u32,
            tp_block_nr: BLOCKS as u32,
            tp_frame_size: FRAME_BYTES,
            tp_frame_nr: total as u32 / FRAME_BYTES,
            tp_retire_blk_tov: RETIRE.as_millis() as u32,
            tp_sizeof_priv: 0,
            tp_feature_req_word: 0,
        };
        set_option(&socket, libc::PACKET_RX_RING, &request)?;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new shared mapping of the ring just made, of exactly its size.
        let memory = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                total,
                protection,
                libc::MAP_SHARED,
                fd,
                0,
            )
        };
        if memory == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let memory = NonNull::new(memory.cast::<u8>()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self {
            socket,
            memory,
            next: 0,
        })
    }

    /// A second descriptor of the socket, for binding and polling from elsewhere.
    pub(crate) fn socket(&self) -> io::Result<OwnedFd> {
        self.socket.try_clone()
    }

    /// Gives every frame of every closed block to `take`; tells whether there was any block.
    pub(crate) fn drain(&mut self, mut take: impl FnMut(Frame<'_>)) -> bool {
        let mut any = false;
        loop {
            // SAFETY: `next` is below BLOCKS, so the block lies inside the mapping and is aligned.
            let block = unsafe { self.memory.add(self.next * BLOCK_BYTES) };
            let descriptor = block.cast::<libc::tpacket_block_desc>();
            // SAFETY: the descriptor is at the block's start; its status word is shared with the
            // kernel and aligned, so it is reached as an atomic only.
            let (header, status) = unsafe {
                let header = &raw mut (*descriptor.as_ptr()).hdr.bh1;
                (header, AtomicU32::from_ptr(&raw mut (*header).block_status))
            };
            if status.load(Ordering::Acquire) & libc::TP_STATUS_USER == 0 {
                return any;
            }
            any = true;
            // SAFETY: TP_STATUS_USER gives the block to us until we give it back below.
            let bytes = unsafe { std::slice::from_raw_parts(block.as_ptr(), BLOCK_BYTES) };
            // SAFETY: the same; plain fields of the header.
            let (count, first) =
                unsafe { ((*header).num_pkts, (*header).offset_to_first_pkt as usize) };
            frames(bytes, first, count, &mut take);
            fence(Ordering::Release);
            status.store(libc::TP_STATUS_KERNEL, Ordering::Release);
            self.next = (self.next + 1) % BLOCKS;
        }
    }

    /// The frames the kernel dropped since the last call because the ring was full.
    pub(crate) fn take_drops(&self) -> io::Result<u64> {
        // SAFETY: all-zero is a valid value of this plain structure.
        let mut statistics: libc::tpacket_stats_v3 = unsafe { std::mem::zeroed() };
        let mut length = size_of_val(&statistics) as libc::socklen_t;
        // SAFETY: pointer and length describe `statistics`.
        let done = unsafe {
            libc::getsockopt(
                self.socket.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_STATISTICS,
                (&raw mut statistics).cast(),
                &mut length,
            )
        };
        if done != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(statistics.tp_drops.into())
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `open`; nothing refers to it any more.
        unsafe { libc::munmap(self.memory.as_ptr().cast(), BLOCK_BYTES * BLOCKS) };
    }
}

/// Binds a packet socket to an interface of its own network namespace, for all protocols; tells
/// the interface's index.
pub(crate) fn bind(socket: BorrowedFd<'_>, ifname: &str) -> io::Result<i32> {
    let index = interface_index(socket, ifname)?;
    // SAFETY: all-zero is a valid value of this plain structure.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
    address.sll_ifindex = index;
    let length = size_of_val(&address) as libc::socklen_t;
    // SAFETY: pointer and length describe `address`.
    if unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(index)
}

/// The index of an interface in the socket's network namespace, whatever thread asks.
pub(crate) fn interface_index(socket: BorrowedFd<'_>, ifname: &str) -> io::Result<i32> {
    // SAFETY: all-zero is a valid value of this plain structure.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, byte) in request
        .ifr_name
        .iter_mut()
        .take(libc::IFNAMSIZ - 1)
        .zip(ifname.bytes())
    {
        *to = byte as libc::c_char;
    }
    // SAFETY: `request` holds a terminated name; the kernel fills in the index.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFINDEX, &mut request) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: after success this member of the union is the one that is set.
    Ok(unsafe { request.ifr_ifru.ifru_ifindex })
}

fn set_option<T>(socket: &OwnedFd, name: libc::c_int, value: &T) -> io::Result<()> {
    let length = size_of::<T>() as libc::socklen_t;
    let value = std::ptr::from_ref(value).cast();
    // SAFETY: pointer and length describe `value`.
    let done =
        unsafe { libc::setsockopt(socket.as_raw_fd(), libc::SOL_PACKET, name, value, length) };
    if done != 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Walks the frames of a block: `tpacket3_hdr`, `sockaddr_ll`, data, each chained to the next.
fn frames(block: &[u8], first: usize, count: u32, take: &mut impl FnMut(Frame<'_>)) {
    let mut at = first;
    for _ in 0..count {
        let Some(header) = read::<libc::tpacket3_hdr>(block, at) else {
            return;
        };
        let align = libc::TPACKET_ALIGNMENT;
        let address = at + size_of::<libc::tpacket3_hdr>().next_multiple_of(align);
        let Some(address) = read::<libc::sockaddr_ll>(block, address) else {
            return;
        };
        let start = at + usize::from(header.tp_mac);
        let Some(data) = block.get(start..start + header.tp_snaplen as usize) else {
            return;
        };
        let layer = match address.sll_hatype {
            libc::ARPHRD_ETHER | libc::ARPHRD_LOOPBACK => LinkLayer::Ethernet,
            _ => LinkLayer::Ip,
        };
        let time = Duration::new(header.tp_sec.into(), header.tp_nsec);
        take(Frame {
            layer,
            time,
            data,
            wire_len: header.tp_len as usize,
        });
        at += header.tp_next_offset as usize;
    }
}

/// Copies a plain kernel structure out of a block.
fn read<T: Copy>(block: &[u8], at: usize) -> Option<T> {
    let bytes = block.get(at..at + size_of::<T>())?;
    // SAFETY: the bytes are as many as T has, and T is a structure of integers.
    Some(unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}
