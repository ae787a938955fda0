//! Who the peers of `hostile-crowd` are.

use anyhow::{Context as _, Result};
use warren_keyring::PrivateKey;

/// The port of a peer.
pub fn port(number: u16) -> u16 {
    20_000 + number
}

/// The key of a peer: no secret, and the same each time.
///
/// # Errors
/// None: the bytes are a key.
pub fn key(number: u16) -> Result<PrivateKey> {
    let mut bytes = [0x5a; 32];
    bytes[8..10].copy_from_slice(&number.to_be_bytes());
    PrivateKey::from_bytes(bytes).context("a key of the crowd")
}
