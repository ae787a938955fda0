//! The values of UAPI, as strict as wireguard-go reads them.

use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use ipnet::IpNet;
use warren_keyring::{KeyError, PresharedKey, PrivateKey, PublicKey};

use super::UapiError;

/// Splits the text of a message into its lines' keys and values, up to the empty line.
///
/// Text after the empty line is refused by [`Lines::end`].
pub(super) struct Lines<'a> {
    rest: &'a str,
    number: usize,
}

impl<'a> Lines<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self {
            rest: text,
            number: 0,
        }
    }

    /// Returns the next line's key and value, or nothing at the empty line or the end.
    pub(super) fn next(&mut self) -> Result<Option<(&'a str, &'a str)>, UapiError> {
        let (line, rest) = self.rest.split_once('\n').unwrap_or((self.rest, ""));
        self.rest = rest;
        self.number += 1;
        if line.is_empty() {
            return Ok(None);
        }
        line.split_once('=')
            .map(Some)
            .ok_or(UapiError::NotKeyValue { line: self.number })
    }

    /// Refuses text after the end of the message.
    pub(super) fn end(self) -> Result<(), UapiError> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(UapiError::Trailing)
        }
    }
}

/// The reference takes nothing but `true`: what is not wanted is left out.
pub(super) fn flag(key: &'static str, value: &str) -> Result<bool, UapiError> {
    if value == "true" {
        return Ok(true);
    }
    Err(UapiError::value(
        key,
        value,
        "`true`, or leave the line out",
    ))
}

pub(super) fn boolean(key: &'static str, value: &str) -> Result<bool, UapiError> {
    match value {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err(UapiError::value(key, value, "`true` or `false`")),
    }
}

pub(super) fn protocol_version(key: &'static str, value: &str) -> Result<(), UapiError> {
    if value == "1" {
        return Ok(());
    }
    Err(UapiError::value(key, value, "`1`"))
}

pub(super) fn port(key: &'static str, value: &str) -> Result<u16, UapiError> {
    number(value).ok_or_else(|| UapiError::value(key, value, "a port from 0 to 65535"))
}

/// Decimal alone: `wg` takes `0x` forms from people, and sends decimal.
pub(super) fn mark(key: &'static str, value: &str) -> Result<u32, UapiError> {
    number(value).ok_or_else(|| UapiError::value(key, value, "a decimal from 0 to 4294967295"))
}

pub(super) fn seconds(key: &'static str, value: &str) -> Result<u16, UapiError> {
    number(value).ok_or_else(|| UapiError::value(key, value, "seconds from 0 to 65535"))
}

pub(super) fn nanoseconds(key: &'static str, value: &str) -> Result<u32, UapiError> {
    number(value)
        .filter(|nanoseconds| *nanoseconds < 1_000_000_000)
        .ok_or_else(|| UapiError::value(key, value, "nanoseconds from 0 to 999999999"))
}

pub(super) fn count(key: &'static str, value: &str) -> Result<u64, UapiError> {
    number(value).ok_or_else(|| UapiError::value(key, value, "a decimal of at most 64 bits"))
}

/// Takes either sign, for the protocol's text does not fix it: wireguard-go answers negative
/// numbers, others positive ones.
pub(super) fn errno(key: &'static str, value: &str) -> Result<i32, UapiError> {
    number::<i32>(value.strip_prefix('-').unwrap_or(value))
        .map(|magnitude| -magnitude)
        .ok_or_else(|| UapiError::value(key, value, "a decimal of at most 31 bits"))
}

pub(super) fn endpoint(key: &'static str, value: &str) -> Result<SocketAddr, UapiError> {
    value
        .parse()
        .map_err(|_| UapiError::value(key, value, "IPV4:PORT or [IPV6]:PORT"))
}

/// Clears the host bits, as the reference does when it stores the prefix.
pub(super) fn prefix(key: &'static str, value: &str) -> Result<IpNet, UapiError> {
    parse_prefix(value)
        .ok_or_else(|| UapiError::value(key, value, "ADDRESS/LENGTH (-ADDRESS/LENGTH removes)"))
}

/// All zero clears the key.
pub(super) fn private_key(key: &'static str, value: &str) -> Result<Option<PrivateKey>, UapiError> {
    match PrivateKey::from_hex(value) {
        Ok(private_key) => Ok(Some(private_key)),
        Err(KeyError::ZeroPrivateKey) => Ok(None),
        Err(source) => Err(UapiError::Key { key, source }),
    }
}

pub(super) fn public_key(key: &'static str, value: &str) -> Result<PublicKey, UapiError> {
    PublicKey::from_hex(value).map_err(|source| UapiError::Key { key, source })
}

pub(super) fn preshared_key(key: &'static str, value: &str) -> Result<PresharedKey, UapiError> {
    PresharedKey::from_hex(value).map_err(|source| UapiError::Key { key, source })
}

/// Decimal digits and nothing else: `FromStr` would take a leading `+`.
fn number<T: FromStr>(value: &str) -> Option<T> {
    if !value.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    value.parse().ok()
}

fn parse_prefix(value: &str) -> Option<IpNet> {
    let (address, length) = value.split_once('/')?;
    // As Go's netip.ParsePrefix: one form for each length.
    if length.len() > 1 && length.starts_with('0') {
        return None;
    }
    let address: IpAddr = address.parse().ok()?;
    Some(IpNet::new(address, number(length)?).ok()?.trunc())
}
