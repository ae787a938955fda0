//! The look at what is put on the sockets, and at the same before it is sealed.

use std::ops::AddAssign;
use std::sync::LazyLock;

use memchr::memmem::Finder;
use warren_e2e::MARKER;

static FINDER: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(MARKER));

/// What the messages that were looked at are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Inspection {
    pub(super) looked_at: u64,
    /// WireGuard messages by type, 1 to 4.
    pub(super) messages: [u64; 4],
    /// Messages that contain the marker which all pods put into all they send.
    pub(super) with_marker: u64,
    /// Messages without the marker that are no WireGuard messages.
    pub(super) foreign: u64,
}

impl Inspection {
    pub(super) fn look(&mut self, message: &[u8]) {
        self.looked_at += 1;
        if FINDER.find(message).is_some() {
            self.with_marker += 1;
        } else if let Some(kind) = wireguard_type(message) {
            self.messages[kind - 1] += 1;
        } else {
            self.foreign += 1;
        }
    }

    /// Everything that is not known to be sealed.
    pub(super) fn in_clear(&self) -> u64 {
        self.with_marker + self.foreign
    }
}

impl AddAssign for Inspection {
    fn add_assign(&mut self, other: Self) {
        self.looked_at += other.looked_at;
        self.with_marker += other.with_marker;
        self.foreign += other.foreign;
        for (sum, more) in self.messages.iter_mut().zip(other.messages) {
            *sum += more;
        }
    }
}

/// The type of a WireGuard message, by the form that section 5.4 of its paper gives to each.
fn wireguard_type(message: &[u8]) -> Option<usize> {
    match (message.first_chunk()?, message.len()) {
        ([1, 0, 0, 0], 148) => Some(1),
        ([2, 0, 0, 0], 92) => Some(2),
        ([3, 0, 0, 0], 64) => Some(3),
        ([4, 0, 0, 0], 32..) => Some(4),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clear_text_is_seen_even_behind_a_wireguard_header() {
        let mut seen = Inspection::default();
        seen.look(&[b"\x04\0\0\0".as_slice(), &[9; 40], MARKER.as_bytes()].concat());
        seen.look(&[0x45; 100]);
        seen.look(&[]);
        assert_eq!(seen.in_clear(), 3);
        assert_eq!((seen.with_marker, seen.foreign), (1, 2));
    }

    #[test]
    fn only_well_formed_messages_count_as_wireguard() {
        let message = |kind: u8, len: usize| {
            let mut bytes = vec![0; len];
            bytes[0] = kind;
            bytes
        };
        let mut seen = Inspection::default();
        for (kind, len) in [(1, 148), (2, 92), (3, 64), (4, 32), (4, 1500)] {
            seen.look(&message(kind, len));
        }
        assert_eq!((seen.messages, seen.in_clear()), ([1, 1, 1, 2], 0));
        for (kind, len) in [(0, 32), (1, 147), (2, 93), (3, 65), (4, 31), (5, 148)] {
            seen.look(&message(kind, len));
        }
        assert_eq!(seen.in_clear(), 6);
    }
}
