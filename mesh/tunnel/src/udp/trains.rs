//! Which datagrams leave together: those to one endpoint and of one length, with a shorter one at the
//! end, which is what the kernel splits by itself (`UDP_SEGMENT`).

use std::net::{IpAddr, SocketAddr};

use crate::message::is_data;
use crate::outbox::{MAX_MESSAGES, Way};

/// The most datagrams of one train; the kernel's own limit before Linux 6.9.
pub(super) const MAX_DATAGRAMS: usize = 64;
/// The most bytes of one train: what fits a UDP datagram over either family, 65,535 less headers.
const MAX_BYTES: usize = 65_487;
/// The places at which the newest train to an endpoint is looked for; a power of 2.
const PLACES: usize = 32;
/// Stands for no train and no datagram.
const NONE: usize = usize::MAX;

/// Datagrams that are handed to the kernel as one.
#[derive(Debug)]
pub(super) struct Train {
    pub(super) way: Way,
    /// The length of each datagram but the last in bytes.
    pub(super) segment_len: usize,
    /// How many datagrams there are.
    pub(super) count: usize,
    head: usize,
    tail: usize,
    bytes: usize,
    grows: bool,
}

/// All trains of one round of the loop. No datagram is passed by a later one to the same endpoint.
#[derive(Debug)]
pub(super) struct Trains {
    trains: Vec<Train>,
    /// The datagram that follows each one in its train.
    next: Vec<usize>,
}

impl Trains {
    /// Takes the memory for all that an outbox can hold.
    pub(super) fn new() -> Self {
        Self {
            trains: Vec::with_capacity(MAX_MESSAGES),
            next: Vec::with_capacity(MAX_MESSAGES),
        }
    }

    /// Makes the trains anew, of datagrams that are known by their number here; each alone where
    /// `may_grow` says no for its endpoint.
    pub(super) fn plan<'a>(
        &mut self,
        datagrams: impl Iterator<Item = (Way, &'a [u8])>,
        may_grow: impl Fn(&SocketAddr) -> bool,
    ) {
        self.trains.clear();
        self.next.clear();
        let mut newest = [NONE; PLACES];
        for (number, (way, datagram)) in datagrams.enumerate() {
            self.next.push(NONE);
            let place = &mut newest[place(&way.endpoint.address)];
            if let Some(train) = self.trains.get_mut(*place)
                && train.takes(&way, datagram)
            {
                self.next[train.tail] = number;
                train.append(datagram.len(), number);
                continue;
            }
            *place = self.trains.len();
            self.trains.push(Train {
                way,
                segment_len: datagram.len(),
                count: 1,
                head: number,
                tail: number,
                bytes: datagram.len(),
                grows: way.rides && is_data(datagram) && may_grow(&way.endpoint.address),
            });
        }
    }

    pub(super) fn as_slice(&self) -> &[Train] {
        &self.trains
    }

    /// The numbers of a train's datagrams, in order.
    pub(super) fn datagrams(&self, train: &Train) -> impl Iterator<Item = usize> + '_ {
        let first = Some(train.head);
        std::iter::successors(first, |number| {
            Some(self.next[*number]).filter(|next| *next != NONE)
        })
    }
}

impl Train {
    /// Whether the datagram may be its next one. Only data rides in trains: what receives them
    /// looks at the first datagram alone to tell data from handshakes.
    #[inline]
    fn takes(&self, way: &Way, datagram: &[u8]) -> bool {
        self.grows
            && self.way == *way
            && datagram.len() <= self.segment_len
            && self.bytes + datagram.len() <= MAX_BYTES
            && is_data(datagram)
    }

    #[inline]
    fn append(&mut self, len: usize, number: usize) {
        self.tail = number;
        self.count += 1;
        self.bytes += len;
        self.grows = len == self.segment_len && self.count < MAX_DATAGRAMS;
    }
}

#[inline]
fn place(address: &SocketAddr) -> usize {
    let low = match address.ip() {
        IpAddr::V4(address) => address.to_bits(),
        IpAddr::V6(address) => address.to_bits() as u32 ^ (address.to_bits() >> 64) as u32,
    };
    let mixed = (low ^ u32::from(address.port())).wrapping_mul(0x9e37_79b1);
    mixed as usize >> 16 & (PLACES - 1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::source::Endpoint;

    fn way(n: u8, rides: bool) -> Way {
        Way {
            rides,
            ..Way::from(Endpoint::from(SocketAddr::from(([192, 0, 2, n], 51_871))))
        }
    }

    fn datagram(kind: u8, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        bytes[0] = kind;
        bytes
    }

    fn plan(datagrams: &[(Way, Vec<u8>)]) -> Vec<Vec<usize>> {
        let mut trains = Trains::new();
        let given = datagrams.iter().map(|(way, bytes)| (*way, &bytes[..]));
        trains.plan(given, |address| {
            address.ip() != IpAddr::from([192, 0, 2, 9])
        });
        let numbers = trains.as_slice().iter().map(|train| {
            let numbers: Vec<usize> = trains.datagrams(train).collect();
            assert_eq!(numbers.len(), train.count);
            numbers
        });
        numbers.collect()
    }

    proptest! {
        #[test]
        fn the_kernel_can_split_every_train_and_none_is_passed(
            datagrams in prop::collection::vec(
                (0u8..4, prop_oneof![9 => Just(true), 1 => Just(false)], prop_oneof![9 => Just(4u8), 1 => Just(1)],
                    prop_oneof![3 => Just(1452usize), 1 => 32usize..1452]),
                0..300,
            )
        ) {
            let datagrams: Vec<_> = datagrams
                .into_iter()
                .map(|(n, rides, kind, len)| (way(n, rides), datagram(kind, len)))
                .collect();
            let trains = plan(&datagrams);
            let mut all: Vec<usize> = trains.concat();
            for train in &trains {
                let (first, last) = (&datagrams[train[0]], &datagrams[train[train.len() - 1]]);
                prop_assert!(train.len() <= 64);
                prop_assert!(train.iter().map(|n| datagrams[*n].1.len()).sum::<usize>() <= 65_487);
                for n in train {
                    let (way, bytes) = &datagrams[*n];
                    prop_assert_eq!(*way, first.0);
                    prop_assert!(bytes.len() == first.1.len() || bytes == &last.1);
                    prop_assert!(bytes.len() <= first.1.len());
                    if train.len() > 1 {
                        prop_assert!(way.rides && bytes[0] == 4);
                    }
                }
            }
            for (at, n) in all.iter().enumerate() {
                for later in &all[at + 1..] {
                    let same = datagrams[*n].0.endpoint == datagrams[*later].0.endpoint;
                    prop_assert!(n < later || !same, "{} is passed by {}", later, n);
                }
            }
            all.sort_unstable();
            prop_assert_eq!(all, (0..datagrams.len()).collect::<Vec<_>>());
        }
    }

    #[test]
    fn equal_datagrams_ride_together_also_between_those_to_others() {
        let datagrams: Vec<_> = (0..8)
            .map(|n| (way(n % 2, true), datagram(4, 1452)))
            .collect();
        assert_eq!(plan(&datagrams), [[0, 2, 4, 6], [1, 3, 5, 7]]);
    }

    #[test]
    fn where_the_way_takes_no_trains_each_goes_alone() {
        let datagrams = vec![(way(9, true), datagram(4, 1452)); 3];
        assert_eq!(plan(&datagrams), [[0], [1], [2]]);
    }
}
