//! Handshake messages with a valid MAC1, which needs nothing but the public key of the attacked
//! (WireGuard paper, section 5.4.4).

use blake2::digest::consts::U16;
use blake2::digest::{Digest, KeyInit, Mac};
use blake2::{Blake2s256, Blake2sMac};
use warren_keyring::PublicKey;

use crate::random::Random;

/// Length of an initiation in bytes.
pub const INITIATION_LEN: usize = 148;
/// Length of a response in bytes.
pub const RESPONSE_LEN: usize = 92;
/// Bytes of the two MACs that end both.
const MACS_LEN: usize = 32;
const MAC_LEN: usize = 16;

/// The forger of one device's MAC1.
#[derive(Clone, Debug)]
pub struct Forger {
    mac: Blake2sMac<U16>,
}

impl Forger {
    /// Makes the forger for the device with this key.
    pub fn new(key: &PublicKey) -> Self {
        let hash = Blake2s256::new()
            .chain_update(b"mac1----")
            .chain_update(key.as_bytes());
        let mac = KeyInit::new(&hash.finalize());
        Self { mac }
    }

    /// Fills `message` with an initiation that is random but for its type and its MAC1.
    pub fn initiation(&self, random: &mut Random, message: &mut [u8; INITIATION_LEN]) {
        random.fill(message);
        message[..4].copy_from_slice(&1u32.to_le_bytes());
        let end = INITIATION_LEN - MACS_LEN;
        let mac1 = self.mac1(&message[..end]);
        message[end..end + MAC_LEN].copy_from_slice(&mac1);
    }

    /// Tells whether a datagram is a handshake message with a valid MAC1, and so may be answered.
    pub fn may_be_answered(&self, datagram: &[u8]) -> bool {
        let kind = match datagram.len() {
            INITIATION_LEN => 1u32,
            RESPONSE_LEN => 2,
            _ => return false,
        };
        let end = datagram.len() - MACS_LEN;
        datagram[..4] == kind.to_le_bytes()
            && datagram[end..end + MAC_LEN] == self.mac1(&datagram[..end])
    }

    fn mac1(&self, message: &[u8]) -> [u8; MAC_LEN] {
        let mut mac = self.mac.clone();
        mac.update(message);
        mac.finalize().into_bytes().into()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use boringtun::noise::rate_limiter::RateLimiter;
    use boringtun::noise::{Tunn, TunnResult};
    use boringtun::x25519;
    use warren_keyring::PrivateKey;

    #[test]
    fn boringtun_accepts_what_is_forged_and_the_check_knows_a_real_initiation() {
        let key = PrivateKey::generate().unwrap().public_key();
        let forger = Forger::new(&key);
        let public = x25519::PublicKey::from(*key.as_bytes());
        let gate = RateLimiter::new(&public, 1000);
        let mut message = [0; INITIATION_LEN];
        forger.initiation(&mut Random::new(1), &mut message);
        assert!(gate.verify_packet(None, &message, &mut [0; 64]).is_ok());
        assert!(forger.may_be_answered(&message));
        message[60] ^= 1;
        assert!(!forger.may_be_answered(&message));
        assert!(gate.verify_packet(None, &message, &mut [0; 64]).is_err());
        let own = x25519::StaticSecret::from([7; 32]);
        let mut tunn = Tunn::new(own, public, None, None, 1, None);
        let mut buffer = [0; 256];
        let TunnResult::WriteToNetwork(real) = tunn.encapsulate(&[0; 20], &mut buffer) else {
            panic!("an initiation comes first");
        };
        assert!(forger.may_be_answered(real));
    }
}
