//! The private key of a node.

use std::fmt;

use subtle::{Choice, ConstantTimeEq};
use x25519_dalek::StaticSecret;
use zeroize::{ZeroizeOnDrop, Zeroizing};

use crate::{KEY_LEN, KeyError, PublicKey, text};

/// An X25519 private key: clamped, never zero, wiped when dropped, compared in constant time.
///
/// There is no `Display`, and `Debug` shows only that there is a key; the text forms are asked
/// for by name and come in a [`Zeroizing`] string.
#[derive(Clone)]
pub struct PrivateKey(StaticSecret);

impl PrivateKey {
    /// Makes a new key of the kernel's random bytes.
    ///
    /// # Errors
    /// [`KeyError::Random`] when the kernel gives none, which no retry cures.
    pub fn generate() -> Result<Self, KeyError> {
        let mut bytes = Zeroizing::new([0u8; KEY_LEN]);
        getrandom::fill(bytes.as_mut_slice()).map_err(KeyError::Random)?;
        Ok(Self::clamped(&bytes))
    }

    /// Takes a key's bytes and clamps them, as `wg` does, so that equal keys are equal bytes.
    ///
    /// # Errors
    /// [`KeyError::ZeroPrivateKey`] for 32 zero bytes, WireGuard's form of "no key".
    pub fn from_bytes(bytes: [u8; KEY_LEN]) -> Result<Self, KeyError> {
        Self::from_secret(&Zeroizing::new(bytes))
    }

    /// Parses the base64 form, as `wg genkey` prints it, without its newline.
    ///
    /// # Errors
    /// [`KeyError::Base64Length`] and [`KeyError::Base64Encoding`] for another text,
    /// [`KeyError::ZeroPrivateKey`] as [`PrivateKey::from_bytes`].
    pub fn from_base64(text: &str) -> Result<Self, KeyError> {
        Self::from_secret(&*text::from_base64(text)?)
    }

    /// Parses the hexadecimal form of UAPI; letters may have either case.
    ///
    /// # Errors
    /// [`KeyError::HexLength`] and [`KeyError::HexEncoding`] for another text,
    /// [`KeyError::ZeroPrivateKey`] as [`PrivateKey::from_bytes`].
    pub fn from_hex(text: &str) -> Result<Self, KeyError> {
        Self::from_secret(&*text::from_hex(text)?)
    }

    /// Returns the base64 form, as `wg genkey` prints it, without a newline.
    pub fn to_base64(&self) -> Zeroizing<String> {
        text::to_base64(self.as_bytes())
    }

    /// Returns the hexadecimal form of UAPI, in lower case.
    pub fn to_hex(&self) -> Zeroizing<String> {
        text::to_hex(self.as_bytes())
    }

    /// Returns the clamped bytes.
    pub fn as_bytes(&self) -> &[u8; KEY_LEN] {
        self.0.as_bytes()
    }

    /// Returns the key as the type that the Noise layer takes; it too is wiped when dropped.
    pub fn to_x25519(&self) -> StaticSecret {
        self.0.clone()
    }

    /// Derives the public key.
    pub fn public_key(&self) -> PublicKey {
        PublicKey::of_private(&self.0)
    }

    fn from_secret(bytes: &[u8; KEY_LEN]) -> Result<Self, KeyError> {
        if bool::from(bytes.ct_eq(&[0; KEY_LEN])) {
            return Err(KeyError::ZeroPrivateKey);
        }
        Ok(Self::clamped(bytes))
    }

    /// Clamps as RFC 7748, section 5, "decodeScalar25519" says. x25519-dalek clamps only when it
    /// multiplies; `wg genkey` prints clamped keys and so do we.
    fn clamped(bytes: &[u8; KEY_LEN]) -> Self {
        let mut scalar = Zeroizing::new(*bytes);
        scalar[0] &= 248;
        scalar[31] &= 127;
        scalar[31] |= 64;
        Self(StaticSecret::from(*scalar))
    }
}

impl ZeroizeOnDrop for PrivateKey {}

// `StaticSecret` wipes itself in its `Drop`, which it has only with its feature `zeroize`.
const _: () = assert!(std::mem::needs_drop::<StaticSecret>());

impl ConstantTimeEq for PrivateKey {
    fn ct_eq(&self, other: &Self) -> Choice {
        self.as_bytes().ct_eq(other.as_bytes())
    }
}

impl PartialEq for PrivateKey {
    fn eq(&self, other: &Self) -> bool {
        self.ct_eq(other).into()
    }
}

impl Eq for PrivateKey {}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(redacted)")
    }
}
