//! Puts packets of one flow together, as the kernel's GRO does.
//!
//! A run grows by the packet that follows its last one without a gap and differs in nothing else
//! than what cutting the run up again restores: sequence number or length, IPv4 identification,
//! checksums, and FIN and PSH at the end. Whatever does not fit ends the run, so that packets of a
//! flow leave in the order in which they came. Checksums are taken for good, as the kernel's
//! WireGuard does: what authenticates is what the peer has sent.

mod run;

use run::{Flow, Run};

pub(crate) use run::MAX_PACKETS;

use super::virtio::Offload;

/// The places at which a run may be found again; a power of 2. Two flows that share one end each
/// other's runs, which costs speed and nothing else.
const PLACES: usize = 64;
/// The packets that there is memory for from the start.
const PACKETS: usize = 4096;
/// Stands for no packet.
const NONE: u32 = u32::MAX;

/// What is written to the TUN at once.
#[derive(Clone, Copy, Debug)]
pub struct Frame {
    run: usize,
    /// The packet that the frame begins with.
    pub head: u32,
    /// How many packets it is made of.
    pub packets: u32,
}

/// Puts packets together that lie in somebody else's memory and are known by their number there.
///
/// Push them all, in order; finish each frame; clear it for the next batch.
#[derive(Debug)]
pub struct Coalescer {
    runs: Vec<Run>,
    /// The packet that follows each one in its run.
    next: Vec<u32>,
    /// The newest run at each place, while it may grow.
    open: [u32; PLACES],
}

impl Coalescer {
    /// Makes one without packets.
    pub fn new() -> Self {
        Self {
            runs: Vec::with_capacity(PACKETS),
            next: Vec::with_capacity(PACKETS),
            open: [NONE; PLACES],
        }
    }

    /// Takes the next packet, whole and without anything behind it; it has the next number, counted
    /// from 0. `udp` says that the kernel can take frames of UDP apart again. `packet_at` gives the
    /// bytes of the packets before.
    #[inline]
    pub fn push<'a>(&mut self, packet: &[u8], udp: bool, packet_at: impl Fn(u32) -> &'a [u8]) {
        let number = self.next.len() as u32;
        self.next.push(NONE);
        let flow = match Flow::parse(packet, udp) {
            Ok(flow) => flow,
            Err(unknown) => {
                if unknown.may_be_of_any_flow {
                    self.open = [NONE; PLACES];
                }
                self.runs.push(Run::single(number));
                return;
            }
        };
        let place = flow.hash(packet) as usize % PLACES;
        if let Some(run) = self.runs.get_mut(self.open[place] as usize) {
            let head = packet_at(run.head);
            if flow.follows(packet, run, head) {
                self.next[run.tail as usize] = number;
                run.append(&flow, packet, head, number);
                if !run.may_grow() {
                    self.open[place] = NONE;
                }
                return;
            }
        }
        let run = Run::begin(&flow, packet, number);
        self.open[place] = if run.may_grow() {
            self.runs.len() as u32
        } else {
            NONE
        };
        self.runs.push(run);
    }

    /// Returns how many frames the packets make.
    #[inline]
    pub fn len(&self) -> usize {
        self.runs.len()
    }

    /// Tells whether there is no packet.
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// Returns a frame by its number, counted from 0; they leave in that order.
    #[inline]
    pub fn frame(&self, number: usize) -> Frame {
        let run = &self.runs[number];
        Frame {
            run: number,
            head: run.head,
            packets: run.packets,
        }
    }

    /// Turns the first packet of a frame into the head of a super-packet, where it is one, and
    /// returns what goes before it, with the length of all its headers in bytes.
    #[inline]
    pub fn finish(&self, frame: &Frame, head: &mut [u8]) -> (Offload, u16) {
        self.runs[frame.run].finish(head)
    }

    /// Goes through the packets of a frame behind its first one: the number of each, and where its
    /// payload begins.
    #[inline]
    pub fn followers(&self, frame: &Frame) -> impl Iterator<Item = (u32, usize)> + '_ {
        let payload_at = self.runs[frame.run].payload_at();
        let mut last = frame.head;
        std::iter::from_fn(move || {
            last = self.next[last as usize];
            (last != NONE).then_some((last, payload_at))
        })
    }

    /// Forgets all packets.
    pub fn clear(&mut self) {
        self.runs.clear();
        self.next.clear();
        self.open = [NONE; PLACES];
    }
}

impl Default for Coalescer {
    fn default() -> Self {
        Self::new()
    }
}
