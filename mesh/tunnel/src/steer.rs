//! Which of the sockets of a port the kernel puts a datagram into: a filter program over its first
//! bytes and its source (SO_REUSEPORT with classic BPF).
//!
//! ```text
//! data message ------------------------------------------> the socket for data
//! response, cookie --------------------------------------> Answers
//! initiation with a MAC2 that is not zero ---------------> Claims     each of these has several
//! initiation of a peer's address ------------------------> Peers      sockets, and a keyed hash of
//! any other initiation ----------------------------------> Strangers  the source chooses
//! what is none of these by type and length --------------> Strangers
//! ```
//!
//! With several shards each has a socket for data and its own `Answers`, chosen by the receiver index;
//! all else is the first one's:
//!
//! ```text
//! data of shard 0, 1, ... | Answers of 0, Claims, Peers, Strangers | Answers of 1 | Answers of 2 ...
//! ```
//!
//! The kernel authenticates nothing, so anybody can fill any of these sockets. What it is for: a
//! flood of one kind leaves the others their room, and so does one from a single source to most
//! sources of its own kind. Who has a cookie, or answers us, does not share with those who have
//! proven nothing; a peer whose address is known does not share with strangers.

use std::io;
use std::net::IpAddr;

use socket2::{Domain, Socket};

use crate::message::{DATA_OVERHEAD, INITIATION_LEN, MAC2_LEN};
use crate::shards::{TOP_BYTE_MASK, TOP_BYTE_SHIFT};
use crate::sys::attach_program;

/// The most addresses of peers that a program knows. With more peers each program knows others of
/// them. The kernel's limits are 4,096 instructions, and 20 KiB in all by default before Linux 6.9.
const MAX_KNOWN: usize = 512;
/// How many addresses are compared one after the other at the end of a search.
const RUN: usize = 8;
/// Types as the program reads them: the first four bytes in network order.
const INITIATION: u32 = 0x0100_0000;
const RESPONSE: u32 = 0x0200_0000;
const COOKIE_REPLY: u32 = 0x0300_0000;
const DATA: u32 = 0x0400_0000;
/// Where in the program's scratch memory the hash is.
const HASH_AT: u32 = 0;
/// The instructions that end a program at a lane.
const LEAF: u8 = 4;

/// A kind of datagram that has sockets of its own, beside data messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Responses and cookie replies: they answer initiations of ours, or claim to.
    Answers,
    /// Initiations that claim to carry the cookie of their source.
    Claims,
    /// Initiations from the addresses of peers.
    Peers,
    /// All others, and rubbish.
    Strangers,
}

impl Kind {
    const ALL: [Self; 4] = [Self::Answers, Self::Claims, Self::Peers, Self::Strangers];

    /// How many sockets it has, as a power of 2.
    const fn bits(self) -> u32 {
        match self {
            Self::Answers => 1,
            Self::Claims | Self::Peers => 2,
            // A stranger shares one with a flood in one try of 32, in two tries on end hardly ever.
            Self::Strangers => 5,
        }
    }

    /// The first of its sockets among those that are not for data.
    fn first(self) -> u32 {
        let before = Self::ALL.into_iter().take_while(|kind| *kind != self);
        before.map(|kind| 1 << kind.bits()).sum()
    }

    /// The kind that a socket is for.
    #[cfg(test)]
    pub(crate) fn of(lane: usize) -> Option<Self> {
        let belongs = |kind: &Self| {
            let first = kind.first() as usize;
            (first..first + (1 << kind.bits())).contains(&lane)
        };
        Self::ALL.into_iter().find(belongs)
    }
}

/// How many sockets the first shard has for what is no data message.
pub(crate) fn lanes() -> u32 {
    Kind::ALL.into_iter().map(|kind| 1 << kind.bits()).sum()
}

/// How many each other shard has.
pub(crate) const fn answer_lanes() -> u32 {
    1 << Kind::Answers.bits()
}

/// By what datagrams are dealt out.
#[derive(Clone, Debug)]
pub(crate) struct Deal {
    /// How many shards there are.
    pub(crate) shards: u8,
    /// What nobody outside shall guess, or he could choose whose handshakes share a socket with his.
    pub(crate) secret: u32,
    /// The addresses of peers.
    pub(crate) known: Vec<IpAddr>,
}

impl Default for Deal {
    fn default() -> Self {
        Self {
            shards: 1,
            secret: 0,
            known: Vec::new(),
        }
    }
}

/// Has the kernel choose between the sockets of a port: the first bound are those for data.
pub(crate) fn attach(domain: Domain, socket: &Socket, deal: &Deal) -> io::Result<()> {
    let mut program = program(domain, deal);
    attach_program(socket, libc::SO_ATTACH_REUSEPORT_CBPF, &mut program)
}

type Program = Vec<libc::sock_filter>;

fn program(domain: Domain, deal: &Deal) -> Program {
    const MAC2_AT: u32 = (INITIATION_LEN - MAC2_LEN) as u32;
    let mut program = Program::new();
    let out = &mut program;
    // A load beyond the end would end the program with 0, the socket for data: lengths come first.
    load_len(out);
    let data_len = data_leaf_len(deal.shards);
    jump(out, libc::BPF_JGE, DATA_OVERHEAD as u32, 0, 2 + data_len);
    load(out, 0);
    jump(out, libc::BPF_JEQ, DATA, 0, data_len);
    data_leaf(out, deal.shards);
    put_hash(out, domain, deal.secret);
    step(out, libc::BPF_ST, HASH_AT);
    load_len(out);
    jump(out, libc::BPF_JGE, DATA_OVERHEAD as u32, LEAF, 0);
    leaf(out, deal, Kind::Strangers);
    load(out, 0);
    for (answer, receiver) in [(RESPONSE, 8), (COOKIE_REPLY, 4)] {
        jump(out, libc::BPF_JEQ, answer, 0, answer_leaf_len(deal));
        answer_leaf(out, deal, receiver);
    }
    jump(out, libc::BPF_JEQ, INITIATION, LEAF, 0);
    leaf(out, deal, Kind::Strangers);
    load_len(out);
    jump(out, libc::BPF_JEQ, INITIATION_LEN as u32, LEAF, 0);
    leaf(out, deal, Kind::Strangers);
    for word in 0..MAC2_LEN as u32 / 4 {
        load(out, MAC2_AT + 4 * word);
        jump(out, libc::BPF_JEQ, 0, LEAF, 0);
        leaf(out, deal, Kind::Claims);
    }
    let known = hashes(domain, deal);
    if !known.is_empty() {
        step(out, libc::BPF_LD | libc::BPF_MEM, HASH_AT);
        let mut misses = Vec::new();
        search(out, deal, &known, &mut misses);
        for miss in misses {
            land(out, miss);
        }
    }
    leaf(out, deal, Kind::Strangers);
    program
}

/// Compares the hash with those of the peers, which are sorted; on a miss it jumps to what follows.
fn search(out: &mut Program, deal: &Deal, hashes: &[u32], misses: &mut Vec<usize>) {
    if hashes.len() <= RUN {
        for (n, hash) in hashes.iter().enumerate() {
            let hit = (hashes.len() - n) as u8;
            jump(out, libc::BPF_JEQ, *hash, hit, 0);
        }
        misses.push(out.len());
        step(out, libc::BPF_JMP | libc::BPF_JA, 0);
        leaf(out, deal, Kind::Peers);
        return;
    }
    let (low, high) = hashes.split_at(hashes.len() / 2);
    jump(out, libc::BPF_JGE, high[0], 0, 1);
    let to_high = out.len();
    step(out, libc::BPF_JMP | libc::BPF_JA, 0);
    search(out, deal, low, misses);
    land(out, to_high);
    search(out, deal, high, misses);
}

/// Lets the jump at this place lead to what follows.
fn land(out: &mut Program, jump: usize) {
    out[jump].k = (out.len() - jump - 1) as u32;
}

/// What [`source_hash`] computes.
fn put_hash(out: &mut Program, domain: Domain, secret: u32) {
    let compute = |out: &mut Program, operation, k| {
        step(out, libc::BPF_ALU | operation | libc::BPF_K, k);
    };
    let source = libc::SKF_NET_OFF as u32 + if domain == Domain::IPV6 { 8 } else { 12 };
    load(out, source);
    compute(out, libc::BPF_MUL, secret | 1);
    if domain == Domain::IPV6 {
        step(out, libc::BPF_MISC | libc::BPF_TAX, 0);
        load(out, source + 4);
        step(out, libc::BPF_ALU | libc::BPF_ADD | libc::BPF_X, 0);
        compute(out, libc::BPF_MUL, secret | 1);
    }
    compute(out, libc::BPF_XOR, secret.rotate_left(16));
    compute(out, libc::BPF_MUL, 0x9e37_79b1);
}

/// A keyed hash of an address of the family; of IPv6 of its /64, for who has one address of it has
/// all of them. Two IPv4 addresses never have the same.
fn source_hash(domain: Domain, source: IpAddr, secret: u32) -> Option<u32> {
    let mixed = match source {
        IpAddr::V4(address) if domain == Domain::IPV4 => address.to_bits().wrapping_mul(secret | 1),
        IpAddr::V6(address) if domain == Domain::IPV6 => {
            let network = (address.to_bits() >> 64) as u64;
            let (high, low) = ((network >> 32) as u32, network as u32);
            let high = high.wrapping_mul(secret | 1);
            low.wrapping_add(high).wrapping_mul(secret | 1)
        }
        _ => return None,
    };
    Some((mixed ^ secret.rotate_left(16)).wrapping_mul(0x9e37_79b1))
}

/// The hashes of as many peers as a program may know; which ones depends on the secret.
fn hashes(domain: Domain, deal: &Deal) -> Vec<u32> {
    let known = deal.known.iter();
    let mut hashes: Vec<u32> = known
        .filter_map(|address| source_hash(domain, *address, deal.secret))
        .collect();
    hashes.sort_unstable();
    hashes.dedup();
    hashes.truncate(MAX_KNOWN);
    hashes
}

/// Ends the program: the lane is chosen by the hash's top bits.
fn leaf(out: &mut Program, deal: &Deal, kind: Kind) {
    step(out, libc::BPF_LD | libc::BPF_MEM, HASH_AT);
    let shift = u32::BITS - kind.bits();
    step(out, libc::BPF_ALU | libc::BPF_RSH | libc::BPF_K, shift);
    let first = u32::from(deal.shards) + kind.first();
    step(out, libc::BPF_ALU | libc::BPF_ADD | libc::BPF_K, first);
    step(out, libc::BPF_RET | libc::BPF_A, 0);
}

/// The shard of a receiver index at this place of the datagram, which is long enough; one that there is
/// not stands for nobody's index, which any may drop.
fn load_shard(out: &mut Program, receiver: u32) {
    let top_byte = receiver + 3;
    step(out, libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, top_byte);
    let shift = libc::BPF_ALU | libc::BPF_RSH | libc::BPF_K;
    step(out, shift, TOP_BYTE_SHIFT);
    let mask = libc::BPF_ALU | libc::BPF_AND | libc::BPF_K;
    step(out, mask, TOP_BYTE_MASK);
}

/// The instructions of [`data_leaf`].
fn data_leaf_len(shards: u8) -> u8 {
    if shards == 1 { 1 } else { 6 }
}

/// Ends the program at the socket for data of the shard that the datagram is for.
fn data_leaf(out: &mut Program, shards: u8) {
    if shards > 1 {
        load_shard(out, 4);
        jump(out, libc::BPF_JGE, shards.into(), 1, 0);
        step(out, libc::BPF_RET | libc::BPF_A, 0);
    }
    step(out, libc::BPF_RET | libc::BPF_K, 0);
}

/// The instructions of [`answer_leaf`].
fn answer_leaf_len(deal: &Deal) -> u8 {
    if deal.shards == 1 {
        LEAF
    } else {
        // The shard, a look whether there is one, the first one's; and the others'.
        3 + 1 + 1 + LEAF + 7
    }
}

/// Ends the program at an `Answers` of the shard that the datagram is for.
fn answer_leaf(out: &mut Program, deal: &Deal, receiver: u32) {
    let shards = u32::from(deal.shards);
    if shards == 1 {
        return leaf(out, deal, Kind::Answers);
    }
    load_shard(out, receiver);
    jump(out, libc::BPF_JGE, shards, 1, 0);
    jump(out, libc::BPF_JGT, 0, LEAF, 0);
    leaf(out, deal, Kind::Answers);
    // The others' follow all that is the first one's: shards + lanes + (shard - 1) * answer_lanes.
    let compute = |out: &mut Program, operation, k| {
        step(out, libc::BPF_ALU | operation | libc::BPF_K, k);
    };
    compute(out, libc::BPF_LSH, Kind::Answers.bits());
    step(out, libc::BPF_MISC | libc::BPF_TAX, 0);
    step(out, libc::BPF_LD | libc::BPF_MEM, HASH_AT);
    compute(out, libc::BPF_RSH, u32::BITS - Kind::Answers.bits());
    step(out, libc::BPF_ALU | libc::BPF_ADD | libc::BPF_X, 0);
    compute(out, libc::BPF_ADD, shards + lanes() - answer_lanes());
    step(out, libc::BPF_RET | libc::BPF_A, 0);
}

fn load(out: &mut Program, at: u32) {
    step(out, libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, at);
}

/// Loads the length of the datagram without its headers.
fn load_len(out: &mut Program) {
    step(out, libc::BPF_LD | libc::BPF_W | libc::BPF_LEN, 0);
}

fn jump(out: &mut Program, comparison: u32, k: u32, jt: u8, jf: u8) {
    out.push(libc::sock_filter {
        code: (libc::BPF_JMP | comparison | libc::BPF_K) as u16,
        jt,
        jf,
        k,
    });
}

fn step(out: &mut Program, code: u32, k: u32) {
    out.push(libc::sock_filter {
        code: code as u16,
        jt: 0,
        jf: 0,
        k,
    });
}
