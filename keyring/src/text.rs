//! The two text forms of 32 bytes: base64 as `wg` prints it, hexadecimal as UAPI has it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use crate::{BASE64_LEN, HEX_LEN, KEY_LEN, KeyError};

pub(crate) fn to_base64(bytes: &[u8; KEY_LEN]) -> Zeroizing<String> {
    // The room is there before the text: a string that grows leaves an unwiped copy behind.
    let mut text = Zeroizing::new(String::with_capacity(BASE64_LEN));
    STANDARD.encode_string(bytes, &mut text);
    text
}

pub(crate) fn from_base64(text: &str) -> Result<Zeroizing<[u8; KEY_LEN]>, KeyError> {
    if text.len() != BASE64_LEN {
        return Err(KeyError::Base64Length { found: text.len() });
    }
    // One byte more than a key: what 44 characters without padding would hold.
    let mut decoded = Zeroizing::new([0u8; KEY_LEN + 1]);
    match STANDARD.decode_slice(text, decoded.as_mut_slice()) {
        Ok(KEY_LEN) => {
            let mut key = Zeroizing::new([0u8; KEY_LEN]);
            key.copy_from_slice(&decoded[..KEY_LEN]);
            Ok(key)
        }
        Ok(_) | Err(_) => Err(KeyError::Base64Encoding),
    }
}

pub(crate) fn to_hex(bytes: &[u8; KEY_LEN]) -> Zeroizing<String> {
    let mut text = Zeroizing::new(String::with_capacity(HEX_LEN));
    for byte in bytes {
        text.push(hex_digit(byte >> 4));
        text.push(hex_digit(byte & 0xf));
    }
    text
}

pub(crate) fn from_hex(text: &str) -> Result<Zeroizing<[u8; KEY_LEN]>, KeyError> {
    if text.len() != HEX_LEN {
        return Err(KeyError::HexLength { found: text.len() });
    }
    let mut key = Zeroizing::new([0u8; KEY_LEN]);
    for (byte, pair) in key.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        *byte = (nibble(pair[0])? << 4) | nibble(pair[1])?;
    }
    Ok(key)
}

/// The digit of a nibble, by arithmetic: a table's cache lines would depend on the key.
fn hex_digit(nibble: u8) -> char {
    let is_letter = 9u8.wrapping_sub(nibble) >> 7;
    char::from(b'0' + nibble + is_letter * (b'a' - b'9' - 1))
}

fn nibble(digit: u8) -> Result<u8, KeyError> {
    match digit {
        b'0'..=b'9' => Ok(digit - b'0'),
        b'a'..=b'f' => Ok(digit - b'a' + 10),
        b'A'..=b'F' => Ok(digit - b'A' + 10),
        _ => Err(KeyError::HexEncoding),
    }
}
