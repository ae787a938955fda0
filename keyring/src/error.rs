//! What can be wrong with a key.

use crate::{BASE64_LEN, HEX_LEN};

/// Why a key was refused. No variant holds any part of the key, so the message may be logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The base64 text is not 44 characters long.
    #[error(
        "parse key: {found} bytes of base64 where a WireGuard key has {BASE64_LEN}; \
         give one line of `wg genkey`, `wg pubkey` or `wg genpsk`"
    )]
    Base64Length {
        /// The length found, in bytes.
        found: usize,
    },
    /// The text of 44 bytes is not padded, canonical base64 of 32 bytes.
    #[error(
        "parse key: not canonical base64 of 32 bytes; \
         give one line of `wg genkey`, `wg pubkey` or `wg genpsk`"
    )]
    Base64Encoding,
    /// The hexadecimal text is not 64 characters long.
    #[error("parse key: {found} bytes of hexadecimal where a WireGuard key has {HEX_LEN}")]
    HexLength {
        /// The length found, in bytes.
        found: usize,
    },
    /// The text of 64 bytes has something else than hexadecimal digits.
    #[error("parse key: not hexadecimal; only the digits 0-9, a-f and A-F are allowed")]
    HexEncoding,
    /// A private key of 32 zero bytes, which WireGuard uses to say "no key".
    #[error("parse private key: all bytes are zero; make a key by `wg genkey`")]
    ZeroPrivateKey,
    /// A public key of small order: anyone can compute the shared secret of any exchange with it.
    #[error(
        "parse public key: a point of low order, with which nothing would be secret; \
         derive it from a private key by `wg pubkey`"
    )]
    LowOrder,
    /// The kernel gave no random bytes.
    #[error("generate key: the kernel gives no random bytes: {0}; is getrandom(2) filtered away?")]
    Random(getrandom::Error),
}
