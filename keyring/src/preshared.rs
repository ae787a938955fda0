//! The preshared key of a pair of peers.

use std::fmt;

use subtle::{Choice, ConstantTimeEq};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::{KEY_LEN, KeyError, text};

/// A symmetric key that two peers mix into their handshakes; wiped when dropped, compared in
/// constant time, with a `Debug` that shows nothing and no `Display`.
///
/// WireGuard's protocol has no word for "no preshared key" other than the key of zero bytes,
/// which therefore is a value of this type: see [`PresharedKey::is_zero`].
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct PresharedKey([u8; KEY_LEN]);

impl PresharedKey {
    /// The key of zero bytes, which means "none".
    pub const ZERO: Self = Self([0; KEY_LEN]);

    /// Makes a new key of the kernel's random bytes.
    ///
    /// # Errors
    /// [`KeyError::Random`] when the kernel gives none, which no retry cures.
    pub fn generate() -> Result<Self, KeyError> {
        let mut key = Self::ZERO;
        getrandom::fill(&mut key.0).map_err(KeyError::Random)?;
        Ok(key)
    }

    /// Takes a key's bytes; any 32 bytes are a key.
    pub fn from_bytes(bytes: [u8; KEY_LEN]) -> Self {
        let bytes = Zeroizing::new(bytes);
        Self(*bytes)
    }

    /// Parses the base64 form, as `wg genpsk` prints it, without its newline.
    ///
    /// # Errors
    /// [`KeyError::Base64Length`] and [`KeyError::Base64Encoding`] for another text.
    pub fn from_base64(text: &str) -> Result<Self, KeyError> {
        Ok(Self(*text::from_base64(text)?))
    }

    /// Parses the hexadecimal form of UAPI; letters may have either case.
    ///
    /// # Errors
    /// [`KeyError::HexLength`] and [`KeyError::HexEncoding`] for another text.
    pub fn from_hex(text: &str) -> Result<Self, KeyError> {
        Ok(Self(*text::from_hex(text)?))
    }

    /// Returns the base64 form, as `wg genpsk` prints it, without a newline.
    pub fn to_base64(&self) -> Zeroizing<String> {
        text::to_base64(&self.0)
    }

    /// Returns the hexadecimal form of UAPI, in lower case.
    pub fn to_hex(&self) -> Zeroizing<String> {
        text::to_hex(&self.0)
    }

    /// Returns the bytes.
    pub fn as_bytes(&self) -> &[u8; KEY_LEN] {
        &self.0
    }

    /// Tells whether this is the key of zero bytes, which means "none".
    pub fn is_zero(&self) -> bool {
        self.0.ct_eq(&[0; KEY_LEN]).into()
    }
}

impl ConstantTimeEq for PresharedKey {
    fn ct_eq(&self, other: &Self) -> Choice {
        self.0.ct_eq(&other.0)
    }
}

impl PartialEq for PresharedKey {
    fn eq(&self, other: &Self) -> bool {
        self.ct_eq(other).into()
    }
}

impl Eq for PresharedKey {}

impl fmt::Debug for PresharedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PresharedKey(redacted)")
    }
}
