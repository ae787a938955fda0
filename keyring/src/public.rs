//! The public key that names a peer.

use std::fmt;
use std::str::FromStr;

use x25519_dalek::StaticSecret;

use crate::{KEY_LEN, KeyError, text};

/// An X25519 public key, which is a peer's name all over WireGuard.
///
/// INVARIANT: never a point of low order, in whatever encoding: every constructor refuses those.
///
/// `Display` and `Debug` print base64, and so does serde with the feature `serde`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey([u8; KEY_LEN]);

impl PublicKey {
    /// Takes a key's bytes as they are on the wire.
    ///
    /// # Errors
    /// [`KeyError::LowOrder`] for the zero key and all other points of low order.
    pub fn from_bytes(bytes: [u8; KEY_LEN]) -> Result<Self, KeyError> {
        if is_low_order(&bytes) {
            return Err(KeyError::LowOrder);
        }
        Ok(Self(bytes))
    }

    /// Parses the base64 form, as `wg pubkey` prints it, without its newline.
    ///
    /// # Errors
    /// [`KeyError::Base64Length`] and [`KeyError::Base64Encoding`] for another text,
    /// [`KeyError::LowOrder`] as [`PublicKey::from_bytes`].
    pub fn from_base64(text: &str) -> Result<Self, KeyError> {
        Self::from_bytes(*text::from_base64(text)?)
    }

    /// Parses the hexadecimal form of UAPI; letters may have either case.
    ///
    /// # Errors
    /// [`KeyError::HexLength`] and [`KeyError::HexEncoding`] for another text,
    /// [`KeyError::LowOrder`] as [`PublicKey::from_bytes`].
    pub fn from_hex(text: &str) -> Result<Self, KeyError> {
        Self::from_bytes(*text::from_hex(text)?)
    }

    /// Returns the base64 form, as `wg pubkey` prints it, without a newline.
    pub fn to_base64(&self) -> String {
        std::mem::take(&mut *text::to_base64(&self.0))
    }

    /// Returns the hexadecimal form of UAPI, in lower case.
    pub fn to_hex(&self) -> String {
        std::mem::take(&mut *text::to_hex(&self.0))
    }

    /// Returns the bytes as they are on the wire.
    pub fn as_bytes(&self) -> &[u8; KEY_LEN] {
        &self.0
    }

    /// Returns the key as the type that the Noise layer takes.
    pub fn to_x25519(self) -> x25519_dalek::PublicKey {
        x25519_dalek::PublicKey::from(self.0)
    }

    /// The clamped multiple of the base point, which has prime order: never of low order.
    pub(crate) fn of_private(secret: &StaticSecret) -> Self {
        Self(x25519_dalek::PublicKey::from(secret).to_bytes())
    }
}

impl TryFrom<[u8; KEY_LEN]> for PublicKey {
    type Error = KeyError;

    fn try_from(bytes: [u8; KEY_LEN]) -> Result<Self, KeyError> {
        Self::from_bytes(bytes)
    }
}

impl FromStr for PublicKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        Self::from_base64(text)
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&text::to_base64(&self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(feature = "serde")]
impl serde::Serialize for PublicKey {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&text::to_base64(&self.0))
    }
}

#[cfg(feature = "serde")]
impl<'de> serde::Deserialize<'de> for PublicKey {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Base64;

        impl serde::de::Visitor<'_> for Base64 {
            type Value = PublicKey;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a WireGuard public key of 44 base64 characters")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<PublicKey, E> {
                PublicKey::from_base64(text).map_err(E::custom)
            }
        }

        deserializer.deserialize_str(Base64)
    }
}

/// Tells whether the bytes encode a point of order 1, 2, 4 or 8 on Curve25519 or on its twist.
///
/// X25519 ignores the highest bit (RFC 7748, section 5) and takes what is left modulo
/// p = 2^255 - 19. So p and p + 1 are second encodings of 0 and 1; the other points have none.
fn is_low_order(bytes: &[u8; KEY_LEN]) -> bool {
    let mut masked = *bytes;
    masked[31] &= 0x7f;
    LOW_ORDER.contains(&masked)
}

#[rustfmt::skip]
const LOW_ORDER: [[u8; KEY_LEN]; 7] = [
    // 0, of order 2 (and the point at infinity).
    [0; KEY_LEN],
    // 1, of order 4.
    {
        let mut one = [0; KEY_LEN];
        one[0] = 1;
        one
    },
    // The two points of order 8.
    [0xe0, 0xeb, 0x7a, 0x7c, 0x3b, 0x41, 0xb8, 0xae, 0x16, 0x56, 0xe3, 0xfa, 0xf1, 0x9f, 0xc4, 0x6a,
     0xda, 0x09, 0x8d, 0xeb, 0x9c, 0x32, 0xb1, 0xfd, 0x86, 0x62, 0x05, 0x16, 0x5f, 0x49, 0xb8, 0x00],
    [0x5f, 0x9c, 0x95, 0xbc, 0xa3, 0x50, 0x8c, 0x24, 0xb1, 0xd0, 0xb1, 0x55, 0x9c, 0x83, 0xef, 0x5b,
     0x04, 0x44, 0x5c, 0xc4, 0x58, 0x1c, 0x8e, 0x86, 0xd8, 0x22, 0x4e, 0xdd, 0xd0, 0x9f, 0x11, 0x57],
    // p - 1, of order 4 on the twist.
    near_p(0xec),
    // p, which is 0 again, and p + 1, which is 1 again.
    near_p(0xed),
    near_p(0xee),
];

/// The number that ends like p but for its lowest byte.
const fn near_p(lowest: u8) -> [u8; KEY_LEN] {
    let mut bytes = [0xff; KEY_LEN];
    bytes[0] = lowest;
    bytes[31] = 0x7f;
    bytes
}
