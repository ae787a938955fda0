//! Packets that wait for a handshake, under one budget for all peers.

use std::collections::VecDeque;

use crate::drops::{DropReason, Drops};

/// The packets that one peer may have waiting; as many as boringtun and wireguard-go are used to.
pub(crate) const MAX_PACKETS: usize = 256;

/// The bytes that may wait on the whole device: without it, a thousand peers in a black hole hold
/// hundreds of megabytes.
#[derive(Debug)]
pub(crate) struct QueueBudget {
    pub(crate) limit_bytes: usize,
    pub(crate) used_bytes: usize,
}

/// One peer's waiting packets, oldest first.
#[derive(Debug, Default)]
pub(crate) struct WaitingQueue(VecDeque<Box<[u8]>>);

impl WaitingQueue {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Keeps a packet; at the peer's limit in place of its oldest one.
    pub(crate) fn push(&mut self, packet: &[u8], budget: &mut QueueBudget, drops: &mut Drops) {
        if self.0.len() >= MAX_PACKETS && self.pop(budget).is_some() {
            drops.count(DropReason::QueueFull);
        }
        if budget.used_bytes + packet.len() > budget.limit_bytes {
            drops.count(DropReason::QueueBudget);
            return;
        }
        budget.used_bytes += packet.len();
        self.0.push_back(packet.into());
    }

    pub(crate) fn pop(&mut self, budget: &mut QueueBudget) -> Option<Box<[u8]>> {
        let packet = self.0.pop_front()?;
        budget.used_bytes -= packet.len();
        if self.0.is_empty() {
            self.0 = VecDeque::new();
        }
        Some(packet)
    }

    /// Gives a packet back that could not be sent after all.
    pub(crate) fn unpop(&mut self, packet: Box<[u8]>, budget: &mut QueueBudget) {
        budget.used_bytes += packet.len();
        self.0.push_front(packet);
    }

    /// Drops everything for the reason.
    pub(crate) fn clear(
        &mut self,
        reason: DropReason,
        budget: &mut QueueBudget,
        drops: &mut Drops,
    ) {
        let packets = self.0.len() as u64;
        budget.used_bytes -= self.0.iter().map(|packet| packet.len()).sum::<usize>();
        self.0 = VecDeque::new();
        if packets > 0 {
            drops.count_many(reason, packets);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_packet_of_a_full_peer_goes_and_the_budget_holds() {
        let mut budget = QueueBudget {
            limit_bytes: 1000,
            used_bytes: 0,
        };
        let mut drops = Drops::default();
        let (mut one, mut other) = (WaitingQueue::default(), WaitingQueue::default());
        for n in 0..=MAX_PACKETS {
            one.push(&[n as u8; 3], &mut budget, &mut drops);
        }
        assert_eq!(drops.get(DropReason::QueueFull), 1);
        assert_eq!(budget.used_bytes, MAX_PACKETS * 3);
        other.push(&[0; 500], &mut budget, &mut drops);
        assert_eq!(drops.get(DropReason::QueueBudget), 1);
        assert!(other.is_empty());
        assert_eq!(one.pop(&mut budget).as_deref(), Some(&[1; 3][..]));
        one.clear(DropReason::PeerGone, &mut budget, &mut drops);
        assert_eq!(drops.get(DropReason::PeerGone), MAX_PACKETS as u64 - 1);
        assert_eq!(budget.used_bytes, 0);
    }
}
