//! Which queue of the TUN the kernel puts a packet into: that of the shard whose peer has the
//! destination, by a program over a table of all allowed IPs (`TUNSETSTEERINGEBPF`).
//!
//! ```text
//! IPv4, IPv6 --longest match of the destination in the family's table--> the peer's shard
//!     none of it, or neither --------------------------------------------> the first shard
//! ```
//!
//! It is about speed alone: a packet that comes to a shard that does not have its peer is handed over.

use std::collections::BTreeMap;
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use ipnet::IpNet;

use super::Tun;
use crate::shards::ShardId;
use crate::sys::check;

// Of linux/bpf.h.
const BPF_MAP_CREATE: libc::c_long = 0;
const BPF_MAP_UPDATE_ELEM: libc::c_long = 2;
const BPF_MAP_DELETE_ELEM: libc::c_long = 3;
const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_MAP_TYPE_LPM_TRIE: u32 = 11;
const BPF_PROG_TYPE_SOCKET_FILTER: u32 = 1;
const BPF_F_NO_PREALLOC: u32 = 1;
const BPF_PSEUDO_MAP_FD: u8 = 1;
const BPF_FUNC_MAP_LOOKUP_ELEM: i32 = 1;
const BPF_FUNC_SKB_LOAD_BYTES: i32 = 26;
/// Of linux/if_tun.h: `_IOR('T', 224, int)`.
const TUNSETSTEERINGEBPF: libc::Ioctl = 0x8004_54e0_u32 as libc::Ioctl;

/// The prefixes that one table may have; it takes memory only for those that it has.
const MAX_PREFIXES: u32 = 1 << 20;

/// A prefix, and the shard that it is to have; `None` takes it out.
pub(crate) type Change = (IpNet, Option<ShardId>);

/// The program and its tables.
#[derive(Debug)]
pub struct TunSteering {
    program: OwnedFd,
    v4: OwnedFd,
    v6: OwnedFd,
    /// What the tables have.
    present: Mutex<BTreeMap<IpNet, ShardId>>,
    /// Whether a refusal was told of.
    told: AtomicBool,
}

impl TunSteering {
    /// Makes it with empty tables: everything goes to the first shard.
    ///
    /// # Errors
    /// What the kernel says, for one without CAP_BPF.
    pub fn load() -> io::Result<Self> {
        let v4 = make_table(4)?;
        let v6 = make_table(16)?;
        Ok(Self {
            program: load(&program(&v4, &v6))?,
            v4,
            v6,
            present: Mutex::default(),
            told: AtomicBool::new(false),
        })
    }

    /// Has the kernel choose between the queues of this device.
    pub(super) fn attach(&self, tun: &Tun) -> io::Result<()> {
        let program: libc::c_int = self.program.as_raw_fd();
        // SAFETY: TUNSETSTEERINGEBPF reads an int, which outlives the call.
        let set =
            unsafe { libc::ioctl(tun.as_raw_fd(), TUNSETSTEERINGEBPF as _, &raw const program) };
        check(set).map(drop)
    }

    /// Returns what is to be changed in the tables so that they say what is given, by the shard whose
    /// packets they are afterwards.
    pub(crate) fn changes(
        &self,
        desired: impl Iterator<Item = (IpNet, ShardId)>,
    ) -> BTreeMap<ShardId, Vec<Change>> {
        let desired: BTreeMap<IpNet, ShardId> = desired.collect();
        let present = self.present.lock().unwrap_or_else(PoisonError::into_inner);
        let mut changes: BTreeMap<ShardId, Vec<Change>> = BTreeMap::new();
        for (prefix, shard) in &desired {
            if present.get(prefix) != Some(shard) {
                let change = (*prefix, Some(*shard));
                changes.entry(*shard).or_default().push(change);
            }
        }
        for prefix in present.keys().filter(|net| !desired.contains_key(net)) {
            let wider = std::iter::successors(prefix.supernet(), IpNet::supernet);
            let heir = wider.into_iter().find_map(|net| desired.get(&net).copied());
            let changes = changes.entry(heir.unwrap_or_default()).or_default();
            changes.push((*prefix, None));
        }
        changes
    }

    /// Carries changes out. What the kernel refuses costs speed alone: it is told of once, and is among
    /// the next changes again.
    pub(crate) fn carry_out(&self, changes: &[Change]) {
        let mut present = self.present.lock().unwrap_or_else(PoisonError::into_inner);
        for (prefix, shard) in changes {
            match (self.change(prefix, *shard), shard) {
                (Ok(()), Some(shard)) => {
                    present.insert(*prefix, *shard);
                }
                (Ok(()), None) => {
                    present.remove(prefix);
                }
                (Err(error), _) if !self.told.swap(true, Ordering::Relaxed) => {
                    tracing::warn!(%error, %prefix, "cannot tell the kernel the shard of a prefix; its packets are handed over");
                }
                (Err(_), _) => {}
            }
        }
    }

    fn change(&self, prefix: &IpNet, shard: Option<ShardId>) -> io::Result<()> {
        // struct bpf_lpm_trie_key.
        let mut key = u32::from(prefix.prefix_len()).to_ne_bytes().to_vec();
        let table = match prefix {
            IpNet::V4(net) => {
                key.extend(net.network().octets());
                &self.v4
            }
            IpNet::V6(net) => {
                key.extend(net.network().octets());
                &self.v6
            }
        };
        let value = shard.map(|shard| u32::from(shard.number()));
        let attributes = ElementAttributes {
            table: table.as_raw_fd() as u32,
            padding: 0,
            key: key.as_ptr() as u64,
            value: value
                .as_ref()
                .map_or(0, |value| std::ptr::from_ref(value) as u64),
            flags: 0,
        };
        let command = match shard {
            Some(_) => BPF_MAP_UPDATE_ELEM,
            None => BPF_MAP_DELETE_ELEM,
        };
        // SAFETY: of the sizes that the table was made with, the key and, where the command reads one,
        // the value outlive the call.
        unsafe { bpf(command, &attributes) }.map(drop)
    }
}

#[repr(C)]
struct TableAttributes {
    kind: u32,
    key_len: u32,
    value_len: u32,
    max_entries: u32,
    flags: u32,
}

#[repr(C)]
struct ElementAttributes {
    table: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
struct ProgramAttributes {
    kind: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_len: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
}

/// # Safety
/// The attributes are those of the command, and all that they point to outlives the call.
unsafe fn bpf<T>(command: libc::c_long, attributes: &T) -> io::Result<libc::c_int> {
    // SAFETY: the caller's promise; the kernel takes what is missing of its own `bpf_attr` for zero.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_ref(attributes),
            mem::size_of::<T>(),
        )
    };
    check(result as libc::c_int)
}

fn owned(descriptor: libc::c_int) -> OwnedFd {
    // SAFETY: the kernel has just made it, close-on-exec, and nobody else knows of it.
    unsafe { OwnedFd::from_raw_fd(descriptor) }
}

fn make_table(address_len: u32) -> io::Result<OwnedFd> {
    let attributes = TableAttributes {
        kind: BPF_MAP_TYPE_LPM_TRIE,
        key_len: 4 + address_len,
        value_len: 4,
        max_entries: MAX_PREFIXES,
        flags: BPF_F_NO_PREALLOC,
    };
    // SAFETY: they are BPF_MAP_CREATE's, and point to nothing.
    unsafe { bpf(BPF_MAP_CREATE, &attributes) }.map(owned)
}

fn load(program: &[Instruction]) -> io::Result<OwnedFd> {
    let license = c"GPL";
    let attributes = ProgramAttributes {
        kind: BPF_PROG_TYPE_SOCKET_FILTER,
        instruction_count: program.len() as u32,
        instructions: program.as_ptr() as u64,
        license: license.as_ptr() as u64,
        log_level: 0,
        log_len: 0,
        log: 0,
        kernel_version: 0,
        flags: 0,
    };
    // SAFETY: they are BPF_PROG_LOAD's; the program and the licence outlive the call.
    unsafe { bpf(BPF_PROG_LOAD, &attributes) }.map(owned)
}

/// `struct bpf_insn`; the registers are the destination's in the low half and the source's.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct Instruction {
    code: u8,
    registers: u8,
    offset: i16,
    immediate: i32,
}

const fn step(code: u8, to: u8, from: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction {
        code,
        registers: to | from << 4,
        offset,
        immediate,
    }
}

const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;
/// 64-bit operations with a constant, or with a register.
const MOVE: u8 = 0xb7;
const MOVE_REGISTER: u8 = 0xbf;
const ADD: u8 = 0x07;
const SHIFT_RIGHT: u8 = 0x77;
/// A jump over as many instructions as the offset says.
const JUMP_IF: u8 = 0x15;
const JUMP_IF_NOT: u8 = 0x55;
/// Words of 32 bits: into memory a constant; into a register what is there.
const STORE: u8 = 0x62;
const LOAD: u8 = 0x61;
/// A byte of the packet into register 0, by the context in register 6; without it the program ends
/// with 0.
const LOAD_PACKET: u8 = 0x30;
/// A constant of 64 bits, in two instructions.
const LOAD_WIDE: u8 = 0x18;

/// The register of the stack's end.
const STACK: u8 = 10;
/// Where on the stack the key is.
const KEY_AT: i32 = -20;

fn program(v4: &OwnedFd, v6: &OwnedFd) -> Vec<Instruction> {
    let of_v4 = look_up(v4, 16, 4);
    let mut program = vec![
        step(MOVE_REGISTER, 6, 1, 0, 0),
        step(LOAD_PACKET, 0, 0, 0, 0),
        step(SHIFT_RIGHT, 0, 0, 0, 4),
        step(JUMP_IF_NOT, 0, 0, of_v4.len() as i16, 4),
    ];
    program.extend(of_v4);
    let of_v6 = look_up(v6, 24, 16);
    program.push(step(JUMP_IF_NOT, 0, 0, of_v6.len() as i16, 6));
    program.extend(of_v6);
    program.extend(end_with_none());
    program
}

/// Ends the program with the shard of the address, of so many bytes, at this place of the packet.
fn look_up(table: &OwnedFd, at: i32, len: i32) -> Vec<Instruction> {
    let mut out = vec![
        step(STORE, STACK, 0, KEY_AT as i16, 8 * len),
        step(MOVE_REGISTER, 1, 6, 0, 0),
        step(MOVE, 2, 0, 0, at),
        step(MOVE_REGISTER, 3, STACK, 0, 0),
        step(ADD, 3, 0, 0, KEY_AT + 4),
        step(MOVE, 4, 0, 0, len),
        step(CALL, 0, 0, 0, BPF_FUNC_SKB_LOAD_BYTES),
        // The packet is shorter.
        step(JUMP_IF, 0, 0, 2, 0),
    ];
    out.extend(end_with_none());
    out.extend([
        step(LOAD_WIDE, 1, BPF_PSEUDO_MAP_FD, 0, table.as_raw_fd()),
        step(0, 0, 0, 0, 0),
        step(MOVE_REGISTER, 2, STACK, 0, 0),
        step(ADD, 2, 0, 0, KEY_AT),
        step(CALL, 0, 0, 0, BPF_FUNC_MAP_LOOKUP_ELEM),
        step(JUMP_IF_NOT, 0, 0, 2, 0),
    ]);
    out.extend(end_with_none());
    out.extend([step(LOAD, 0, 0, 0, 0), step(EXIT, 0, 0, 0, 0)]);
    out
}

fn end_with_none() -> [Instruction; 2] {
    [step(MOVE, 0, 0, 0, 0), step(EXIT, 0, 0, 0, 0)]
}

#[cfg(test)]
mod tests;
