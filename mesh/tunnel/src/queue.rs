//! Packets that wait for a handshake, in one pool of memory for all peers.
//!
//! The pool is cut into cells. A packet takes as many as it needs, and the cells of a peer's packets
//! are one chain, oldest first: nothing is allocated for a packet, and the pool never grows.

use crate::drops::{DropReason, Drops};

/// The packets that one peer may have waiting; as many as boringtun and wireguard-go are used to.
pub(crate) const MAX_PACKETS: usize = 256;

/// The bytes of a cell: a packet wastes 64 of them on average.
const CELL: usize = 128;
/// Stands for no cell.
const NONE: u32 = u32::MAX;

/// The memory that may be taken by what waits on the whole device: without it, a thousand peers in a
/// black hole hold hundreds of megabytes. What was never used of it is not resident.
#[derive(Debug)]
pub(crate) struct QueuePool {
    cells: Box<[u8]>,
    /// The cell after each one, in its queue or in the list of free ones.
    next: Box<[u32]>,
    /// The length of the packet that begins in a cell.
    lengths: Box<[u32]>,
    /// The first of those that were used and are free again.
    free: u32,
    /// From this one on none was ever used.
    unused: u32,
    cells_left: usize,
    used_bytes: usize,
}

/// One peer's waiting packets, oldest first.
#[derive(Debug)]
pub(crate) struct WaitingQueue {
    head: u32,
    tail: u32,
    packets: usize,
}

impl QueuePool {
    /// Takes memory for so many bytes, in whole cells.
    pub(crate) fn new(limit_bytes: usize) -> Self {
        let cells = (limit_bytes / CELL).min(NONE as usize - 1);
        Self {
            cells: vec![0; cells * CELL].into(),
            next: vec![0; cells].into(),
            lengths: vec![0; cells].into(),
            free: NONE,
            unused: 0,
            cells_left: cells,
            used_bytes: 0,
        }
    }

    /// The bytes of all packets in it.
    pub(crate) fn used_bytes(&self) -> usize {
        self.used_bytes
    }

    fn take_cell(&mut self) -> u32 {
        self.cells_left -= 1;
        if self.free == NONE {
            self.unused += 1;
            return self.unused - 1;
        }
        let cell = self.free;
        self.free = self.next[cell as usize];
        cell
    }

    fn give_cell(&mut self, cell: u32) {
        self.cells_left += 1;
        self.next[cell as usize] = self.free;
        self.free = cell;
    }

    fn cell(&mut self, cell: u32) -> &mut [u8] {
        let start = cell as usize * CELL;
        &mut self.cells[start..start + CELL]
    }
}

impl WaitingQueue {
    /// Makes an empty queue, which has no cells.
    pub(crate) fn new() -> Self {
        Self {
            head: NONE,
            tail: NONE,
            packets: 0,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.packets == 0
    }

    /// Keeps a packet; at the peer's limit in place of its oldest one.
    pub(crate) fn push(&mut self, packet: &[u8], pool: &mut QueuePool, drops: &mut Drops) {
        if self.packets >= MAX_PACKETS {
            self.pop(pool);
            drops.count(DropReason::QueueFull);
        }
        if cells_of(packet.len()) > pool.cells_left {
            drops.count(DropReason::QueueBudget);
            return;
        }
        let first = self.append_cell(pool);
        pool.lengths[first as usize] = packet.len() as u32;
        let (head, rest) = packet.split_at(packet.len().min(CELL));
        pool.cell(first)[..head.len()].copy_from_slice(head);
        for part in rest.chunks(CELL) {
            let cell = self.append_cell(pool);
            pool.cell(cell)[..part.len()].copy_from_slice(part);
        }
        pool.used_bytes += packet.len();
        self.packets += 1;
    }

    /// Copies the oldest packet to where there is room for any, and returns its length.
    pub(crate) fn peek(&self, pool: &mut QueuePool, packet: &mut [u8]) -> Option<usize> {
        if self.is_empty() {
            return None;
        }
        let len = pool.lengths[self.head as usize] as usize;
        let mut cell = self.head;
        for part in packet[..len].chunks_mut(CELL) {
            part.copy_from_slice(&pool.cell(cell)[..part.len()]);
            cell = pool.next[cell as usize];
        }
        Some(len)
    }

    /// Lets the oldest packet go.
    pub(crate) fn pop(&mut self, pool: &mut QueuePool) {
        if self.is_empty() {
            return;
        }
        let len = pool.lengths[self.head as usize] as usize;
        for _ in 0..cells_of(len) {
            let cell = self.head;
            self.head = pool.next[cell as usize];
            pool.give_cell(cell);
        }
        pool.used_bytes -= len;
        self.packets -= 1;
        if self.is_empty() {
            *self = Self::new();
        }
    }

    /// Drops everything for the reason.
    pub(crate) fn clear(&mut self, reason: DropReason, pool: &mut QueuePool, drops: &mut Drops) {
        let packets = self.packets as u64;
        while !self.is_empty() {
            self.pop(pool);
        }
        if packets > 0 {
            drops.count_many(reason, packets);
        }
    }

    fn append_cell(&mut self, pool: &mut QueuePool) -> u32 {
        let cell = pool.take_cell();
        pool.next[cell as usize] = NONE;
        match self.tail {
            NONE => self.head = cell,
            tail => pool.next[tail as usize] = cell,
        }
        self.tail = cell;
        cell
    }
}

fn cells_of(len: usize) -> usize {
    len.div_ceil(CELL).max(1)
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    fn oldest(queue: &WaitingQueue, pool: &mut QueuePool) -> Option<Vec<u8>> {
        let mut room = vec![0; 65_535];
        let len = queue.peek(pool, &mut room)?;
        Some(room[..len].to_vec())
    }

    #[test]
    fn the_oldest_packet_of_a_full_peer_goes_and_the_budget_holds() {
        let mut pool = QueuePool::new(CELL * (MAX_PACKETS + 3));
        let mut drops = Drops::default();
        let (mut one, mut other) = (WaitingQueue::new(), WaitingQueue::new());
        for n in 0..=MAX_PACKETS {
            one.push(&[n as u8; 3], &mut pool, &mut drops);
        }
        assert_eq!(drops.get(DropReason::QueueFull), 1);
        assert_eq!(pool.used_bytes(), MAX_PACKETS * 3);
        other.push(&[0; 3 * CELL + 1], &mut pool, &mut drops);
        assert_eq!(drops.get(DropReason::QueueBudget), 1);
        assert!(other.is_empty());
        other.push(&[0; 3 * CELL], &mut pool, &mut drops);
        assert_eq!(drops.get(DropReason::QueueBudget), 1);
        assert_eq!(oldest(&one, &mut pool), Some(vec![1; 3]));
        one.clear(DropReason::PeerGone, &mut pool, &mut drops);
        assert_eq!(drops.get(DropReason::PeerGone), MAX_PACKETS as u64);
        assert_eq!(pool.used_bytes(), 3 * CELL);
    }

    proptest! {
        #[test]
        fn each_peer_has_its_packets_in_order_and_the_pool_is_as_large_as_it_was(
            inputs in proptest::collection::vec((0..4usize, 0..5u8, 0..1500usize, any::<u8>()), 0..300),
        ) {
            let limit = 40 * CELL;
            let mut pool = QueuePool::new(limit);
            let memory = (pool.cells.as_ptr(), pool.next.as_ptr());
            let mut drops = Drops::default();
            let mut queues = [(); 4].map(|()| WaitingQueue::new());
            let mut naive = [(); 4].map(|()| VecDeque::<Vec<u8>>::new());
            for (n, what, len, fill) in inputs {
                let (queue, naive) = (&mut queues[n], &mut naive[n]);
                match what {
                    0 => {
                        queue.pop(&mut pool);
                        naive.pop_front();
                    }
                    1 if fill < 20 => {
                        queue.clear(DropReason::PeerGone, &mut pool, &mut drops);
                        naive.clear();
                    }
                    _ => {
                        let packet = vec![fill; len];
                        let refused = drops.get(DropReason::QueueBudget);
                        queue.push(&packet, &mut pool, &mut drops);
                        if drops.get(DropReason::QueueBudget) == refused {
                            naive.push_back(packet);
                        }
                    }
                }
                prop_assert_eq!(oldest(queue, &mut pool), naive.front().cloned());
            }
            let cells: usize = naive.iter().flatten().map(|packet| cells_of(packet.len())).sum();
            let bytes: usize = naive.iter().flatten().map(Vec::len).sum();
            prop_assert_eq!((pool.cells_left, pool.used_bytes()), (40 - cells, bytes));
            for (queue, naive) in queues.iter_mut().zip(naive) {
                for packet in naive {
                    prop_assert_eq!(oldest(queue, &mut pool), Some(packet));
                    queue.pop(&mut pool);
                }
                prop_assert!(queue.is_empty());
            }
            prop_assert_eq!((pool.cells.as_ptr(), pool.next.as_ptr()), memory);
        }
    }
}
