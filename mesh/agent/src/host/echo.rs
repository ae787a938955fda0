//! Which of the kernel's events are echoes of changes of ours: else each of them would have the whole
//! node looked at.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use ipnet::IpNet;

/// How long an echo may take. One that never comes must not hide somebody else's change for longer.
const LIMIT: Duration = Duration::from_secs(1);

/// The events of routes that are to come: one for each change, by table and destination.
#[derive(Debug, Default)]
pub(super) struct Echoes {
    expected: BTreeMap<(u32, IpNet), Expected>,
}

#[derive(Debug)]
struct Expected {
    count: u32,
    until: Instant,
}

impl Echoes {
    /// A route was changed: one event of it will come.
    pub(super) fn expect(&mut self, table: u32, dst: IpNet, now: Instant) {
        self.expected.retain(|_, expected| expected.until > now);
        let expected = self.expected.entry((table, dst)).or_insert(Expected {
            count: 0,
            until: now,
        });
        expected.count += 1;
        expected.until = now + LIMIT;
    }

    /// An event of a route came: tells whether it was to be expected, and expects one less.
    pub(super) fn take(&mut self, table: u32, dst: IpNet, now: Instant) -> bool {
        let key = (table, dst);
        let Some(expected) = self.expected.get_mut(&key).filter(|e| e.until > now) else {
            return false;
        };
        expected.count -= 1;
        if expected.count == 0 {
            self.expected.remove(&key);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_change_has_one_echo_and_no_more() {
        let (net, now) = ("10.244.2.0/24".parse().unwrap(), Instant::now());
        let mut echoes = Echoes::default();
        assert!(!echoes.take(254, net, now));
        echoes.expect(254, net, now);
        echoes.expect(254, net, now);
        assert!(!echoes.take(255, net, now), "another table's");
        assert!(echoes.take(254, net, now) && echoes.take(254, net, now));
        assert!(!echoes.take(254, net, now), "somebody else's");
    }

    #[test]
    fn an_echo_that_never_came_hides_nothing_later() {
        let (net, now) = ("10.244.2.0/24".parse().unwrap(), Instant::now());
        let mut echoes = Echoes::default();
        echoes.expect(254, net, now);
        assert!(!echoes.take(254, net, now + LIMIT));
    }
}
