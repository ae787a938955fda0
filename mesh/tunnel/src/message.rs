//! The outside of WireGuard's messages (WireGuard paper, section 5.4): type, length, indices.

/// Length of a handshake initiation in bytes.
pub(crate) const INITIATION_LEN: usize = 148;
/// Length of a handshake response in bytes.
pub(crate) const RESPONSE_LEN: usize = 92;
/// Length of a cookie reply in bytes.
pub(crate) const COOKIE_REPLY_LEN: usize = 64;
/// Length of the MAC that ends a handshake message and proves a cookie, in bytes.
pub(crate) const MAC2_LEN: usize = 16;
/// Bytes that a data message adds to what it carries: the header of 16 and the tag of 16.
pub(crate) const DATA_OVERHEAD: usize = 32;

/// What a datagram claims to be. Nothing in it is authenticated yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Message {
    Initiation,
    Response { receiver: u32 },
    CookieReply { receiver: u32 },
    Data { receiver: u32 },
}

impl Message {
    /// Recognises a message by its type, its reserved bytes and its length.
    #[inline]
    pub(crate) fn parse(datagram: &[u8]) -> Option<Self> {
        match (word(datagram, 0)?, datagram.len()) {
            (4, DATA_OVERHEAD..) => Some(Self::Data {
                receiver: word(datagram, 4)?,
            }),
            (1, INITIATION_LEN) => Some(Self::Initiation),
            (2, RESPONSE_LEN) => Some(Self::Response {
                receiver: word(datagram, 8)?,
            }),
            (3, COOKIE_REPLY_LEN) => Some(Self::CookieReply {
                receiver: word(datagram, 4)?,
            }),
            _ => None,
        }
    }
}

/// The index by which the sender of a handshake message wants to be addressed.
pub(crate) fn sender_index(handshake: &[u8]) -> u32 {
    word(handshake, 4).unwrap_or_default()
}

/// The ephemeral public key of an initiation or a response.
pub(crate) fn ephemeral_key(handshake: &[u8]) -> Option<[u8; 32]> {
    let start = match handshake.len() {
        INITIATION_LEN => 8,
        RESPONSE_LEN => 12,
        _ => return None,
    };
    handshake.get(start..start + 32)?.try_into().ok()
}

/// The counter of a data message.
#[inline]
pub(crate) fn counter(data: &[u8]) -> u64 {
    match data.get(8..16).and_then(|bytes| bytes.try_into().ok()) {
        Some(bytes) => u64::from_le_bytes(bytes),
        None => 0,
    }
}

/// Whether an outgoing message is data.
#[inline]
pub(crate) fn is_data(message: &[u8]) -> bool {
    message.first() == Some(&4)
}

/// Whether an outgoing message is an initiation.
pub(crate) fn is_initiation(message: &[u8]) -> bool {
    message.first() == Some(&1)
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u32, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        bytes[..4].copy_from_slice(&kind.to_le_bytes());
        bytes[4..8].copy_from_slice(&7u32.to_le_bytes());
        bytes[8..12].copy_from_slice(&9u32.to_le_bytes());
        bytes
    }

    #[test]
    fn only_the_exact_length_of_each_type_is_a_message() {
        assert_eq!(Message::parse(&message(1, 148)), Some(Message::Initiation));
        assert_eq!(
            Message::parse(&message(2, 92)),
            Some(Message::Response { receiver: 9 })
        );
        assert_eq!(
            Message::parse(&message(3, 64)),
            Some(Message::CookieReply { receiver: 7 })
        );
        assert_eq!(
            Message::parse(&message(4, 32)),
            Some(Message::Data { receiver: 7 })
        );
        assert_eq!(Message::parse(&message(1, 147)), None);
        assert_eq!(Message::parse(&message(2, 93)), None);
        assert_eq!(Message::parse(&message(4, 31)), None);
        assert_eq!(Message::parse(&message(5, 148)), None);
        assert_eq!(
            Message::parse(&message(0x0101, 148)),
            None,
            "reserved bytes must be zero"
        );
        assert_eq!(Message::parse(&[]), None);
        assert_eq!(Message::parse(&[4, 0, 0]), None);
    }
}
