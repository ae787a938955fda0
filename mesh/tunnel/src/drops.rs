//! Why packets are dropped, and how often.

macro_rules! drop_reasons {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal,)+) => {
        /// Why a packet or a datagram was dropped. The names are stable: dashboards use them.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum DropReason {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl DropReason {
            /// Every reason, in the order of the status socket.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// Returns the stable name.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)+
                }
            }
        }
    };
}

drop_reasons! {
    /// A packet from the TUN is neither IPv4 nor IPv6, or its length is wrong.
    TunMalformed = "tun_malformed",
    /// One input became more than there is room for: a super-packet in forged pieces.
    OutboxFull = "outbox_full",
    /// No peer has the destination in its allowed IPs.
    NoRoute = "no_route",
    /// The peer has no endpoint yet.
    NoEndpoint = "no_endpoint",
    /// The peer's endpoint is reached through this very device, or a WireGuard's packet through so many tunnels
    /// that they may be a circle: sending there would never end.
    EndpointLoop = "endpoint_loop",
    /// The device has no private key.
    NoPrivateKey = "no_private_key",
    /// The peer has as many packets waiting for its handshake as one peer may have; the oldest goes.
    QueueFull = "queue_full",
    /// All peers together have as many bytes waiting for handshakes as the device allows.
    QueueBudget = "queue_budget",
    /// A waiting packet was given up with the handshake it waited for, after 90 s.
    HandshakeTimeout = "handshake_timeout",
    /// A packet, a super-packet counted once, or a handshake is another shard's, for which too much
    /// waits already.
    HandoverFull = "handover_full",
    /// A waiting packet's peer was removed, or its keys were changed.
    PeerGone = "peer_gone",
    /// A datagram is no WireGuard message: wrong type, reserved bytes or length.
    DatagramMalformed = "datagram_malformed",
    /// A handshake message's MAC1 is not for this device's key.
    BadMac1 = "bad_mac1",
    /// A handshake message carries a public key of low order.
    LowOrderKey = "low_order_key",
    /// A handshake message came while under load and was answered with a cookie.
    UnderLoad = "under_load",
    /// A handshake message came while under load, when its source, or all, had had their cookies.
    UnderLoadSilent = "under_load_silent",
    /// A handshake message proved its cookie, but one source, or all, had sent too many such.
    SourceFlood = "source_flood",
    /// A handshake message was admitted, but too many waited for their key exchange.
    HandshakeBacklog = "handshake_backlog",
    /// An initiation of somebody who is no peer, or who does not know our key.
    UnknownPeer = "unknown_peer",
    /// A message for a session index that nobody has.
    UnknownIndex = "unknown_index",
    /// An initiation whose timestamp is not later than the last one's.
    HandshakeReplayed = "handshake_replayed",
    /// An initiation less than 20 ms after the same peer's last one.
    HandshakeFlood = "handshake_flood",
    /// A handshake message that does not authenticate or answers nothing (also: wrong PSK).
    HandshakeRefused = "handshake_refused",
    /// A cookie reply that does not authenticate or answers nothing.
    CookieRefused = "cookie_refused",
    /// Data for a session that is no more.
    NoSession = "no_session",
    /// Data for a session older than 180 s.
    SessionExpired = "session_expired",
    /// Data that does not authenticate.
    DecryptFailed = "decrypt_failed",
    /// Data whose counter was seen before, or is too far behind.
    Replayed = "replayed",
    /// Authentic data that is neither IPv4 nor IPv6, or whose inner length is wrong.
    InnerMalformed = "inner_malformed",
    /// An inner source that nobody can have: loopback, multicast, unspecified, IPv4-mapped.
    MartianSource = "martian_source",
    /// An inner source whose longest match among the allowed IPs is not the peer that sent it.
    WrongSource = "wrong_source",
}

/// How often each reason applied since the start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drops([u64; DropReason::ALL.len()]);

impl Drops {
    /// Returns the number of packets dropped for the reason.
    pub fn get(&self, reason: DropReason) -> u64 {
        self.0[reason as usize]
    }

    /// Goes through all reasons and their counts, zeros included.
    pub fn iter(&self) -> impl Iterator<Item = (DropReason, u64)> + '_ {
        DropReason::ALL
            .iter()
            .map(|reason| (*reason, self.get(*reason)))
    }

    /// Returns the sum over all reasons.
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }

    /// Adds what another shard has counted.
    pub(crate) fn add(&mut self, other: &Self) {
        for (count, more) in self.0.iter_mut().zip(other.0) {
            *count += more;
        }
    }

    #[inline]
    pub(crate) fn count(&mut self, reason: DropReason) {
        self.count_many(reason, 1);
    }

    #[inline]
    pub(crate) fn count_many(&mut self, reason: DropReason, packets: u64) {
        self.0[reason as usize] += packets;
        tracing::trace!(reason = reason.as_str(), packets, "dropped");
    }
}

impl Default for Drops {
    fn default() -> Self {
        Self([0; DropReason::ALL.len()])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_its_own_name_and_counter() {
        let mut drops = Drops::default();
        let mut names = std::collections::BTreeSet::new();
        for (n, reason) in DropReason::ALL.iter().enumerate() {
            drops.count_many(*reason, n as u64 + 1);
            assert!(names.insert(reason.as_str()), "{} twice", reason.as_str());
        }
        for (n, (reason, count)) in drops.iter().enumerate() {
            assert_eq!(count, n as u64 + 1, "{}", reason.as_str());
        }
    }
}
