//! WireGuard keys: their types, their text forms, and the file of a private key.
//!
//! Three kinds of key exist and none can be mistaken for another:
//!
//! - [`PrivateKey`]: a clamped X25519 scalar, never zero;
//! - [`PublicKey`]: an X25519 point that is of no small order, so that a Diffie-Hellman
//!   exchange with it always depends on the private key;
//! - [`PresharedKey`]: 32 symmetric bytes, of which all zero means "none".
//!
//! Secret keys are wiped when dropped, compared in constant time, have a `Debug` that shows
//! nothing, and no `Display`. Text is taken only in the one canonical form that `wg` writes:
//! 44 characters of padded base64, or 64 hexadecimal digits as in the configuration protocol
//! of <https://www.wireguard.com/xplatform/>.
//!
//! The crate does not encrypt, does not speak Noise, and without the feature `file` does no
//! I/O except asking the kernel for random bytes. With that feature, the module `file` loads
//! and creates the file of a private key, and `directory` closes its directory to others.

#![forbid(unsafe_code)]

#[cfg(feature = "file")]
pub mod directory;
mod error;
#[cfg(feature = "file")]
pub mod file;
mod preshared;
mod private;
mod public;
mod text;

pub use error::KeyError;
pub use preshared::PresharedKey;
pub use private::PrivateKey;
pub use public::PublicKey;

/// The length of every WireGuard key, in bytes.
pub const KEY_LEN: usize = 32;

/// The length of a key in base64, in characters.
pub const BASE64_LEN: usize = 44;

/// The length of a key in hexadecimal, in characters.
pub const HEX_LEN: usize = 64;
