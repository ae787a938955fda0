//! The device's own key, which all sessions share.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use boringtun::noise::handshake::parse_handshake_anon;
use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::noise::{Packet, Tunn};
use boringtun::x25519;
use warren_keyring::{PresharedKey, PrivateKey, PublicKey};

use crate::clock::{StampClock, with_realtime};
use crate::drops::DropReason;
use crate::gate::{Gate, Verdict};
use crate::message::{COOKIE_REPLY_LEN, ephemeral_key};
use crate::wiped::WipedBox;

/// The device's own key, and the gate that each handshake passes before it costs a key exchange.
pub(crate) struct Identity {
    pub(super) keys: Arc<Keys>,
    pub(crate) gate: Gate,
}

/// What sessions are made of that belong to one device.
pub(super) struct Keys {
    private: x25519::StaticSecret,
    public: x25519::PublicKey,
    /// boringtun insists on a gate of its own behind ours; this one is never under load.
    open_gate: Arc<RateLimiter>,
    stamps: StampClock,
}

impl Identity {
    pub(crate) fn new(private_key: &PrivateKey, peers: usize, stamps: StampClock) -> Self {
        let private = private_key.to_x25519();
        let public = private_key.public_key().to_x25519();
        let keys = Keys {
            open_gate: Arc::new(RateLimiter::new(&public, u64::MAX)),
            private,
            public,
            stamps,
        };
        Self {
            // Stamps do not go back, over restarts neither.
            gate: Gate::new(private_key, stamps.now().as_nanos(), peers),
            keys: Arc::new(keys),
        }
    }

    /// Checks an initiation or a response: MAC1, load, the order of its ephemeral key.
    pub(crate) fn judge(
        &mut self,
        now: Instant,
        source: IpAddr,
        handshake: &[u8],
        awaited: bool,
        cookie: &mut [u8; COOKIE_REPLY_LEN],
    ) -> Verdict {
        let verdict = self.gate.judge(now, source, handshake, awaited, cookie);
        let low_order = || {
            !matches!(
                ephemeral_key(handshake).map(PublicKey::from_bytes),
                Some(Ok(_))
            )
        };
        match verdict {
            Verdict::Admit(_) if low_order() => Verdict::Refuse(DropReason::LowOrderKey),
            verdict => verdict,
        }
    }

    /// Finds out by a key exchange who claims to have made an initiation. Nothing is proven but
    /// that whoever it was knows our key.
    pub(crate) fn initiator(&self, initiation: &[u8]) -> Result<PublicKey, DropReason> {
        let Ok(Packet::HandshakeInit(initiation)) = Tunn::parse_incoming_packet(initiation) else {
            return Err(DropReason::DatagramMalformed);
        };
        let half = parse_handshake_anon(&self.keys.private, &self.keys.public, &initiation)
            .map_err(|_| DropReason::UnknownPeer)?;
        PublicKey::from_bytes(half.peer_static_public).map_err(|_| DropReason::LowOrderKey)
    }
}

/// Makes boringtun's part of a session, whose stamps go on where those before have ended.
pub(super) fn make_tunn(
    keys: &Keys,
    peer: &PublicKey,
    preshared_key: Option<&PresharedKey>,
    index: u32,
) -> WipedBox<Tunn> {
    let tunn = || {
        Tunn::new(
            keys.private.clone(),
            peer.to_x25519(),
            preshared_key.map(|key| *key.as_bytes()),
            None,
            index,
            Some(Arc::clone(&keys.open_gate)),
        )
    };
    WipedBox::new(with_realtime(keys.stamps.now(), tunn))
}
