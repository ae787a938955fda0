//! What can be wrong with a request or an answer.

use std::fmt;

use warren_keyring::KeyError;

/// The errors of UAPI as they are on the wire: Linux' numbers, negated as wireguard-go does.
pub mod errno {
    /// Input or output failed.
    pub const EIO: i32 = -5;
    /// A value or a key is not allowed.
    pub const EINVAL: i32 = -22;
    /// The text is not of this protocol.
    pub const EPROTO: i32 = -71;
    /// The listening port cannot be had.
    pub const EADDRINUSE: i32 = -98;
}

/// Why a request or an answer was refused. No message shows any part of a secret key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UapiError {
    /// The first line is no operation.
    #[error("parse UAPI request: the first line must be `get=1` or `set=1`")]
    Operation,
    /// A line has no `=`. The line is not shown, as it may be a piece of a key.
    #[error("parse UAPI: line {line} after the first has no `=`; each line is `key=value`")]
    NotKeyValue {
        /// The line's number, from 1, the line of the operation not counted.
        line: usize,
    },
    /// A key that does not exist, or not in this place.
    #[error("parse UAPI request: {key} is no key of a {section}{}", section.hint())]
    UnknownKey {
        /// Where it was found.
        section: Section,
        /// The key as it may be shown.
        key: ShownKey,
    },
    /// A value that its key does not allow.
    #[error("parse UAPI: {key}={value:?} is not allowed; give {allowed}")]
    Value {
        /// The key.
        key: &'static str,
        /// The value; never that of a secret key. Cut after 64 characters.
        value: String,
        /// What is allowed.
        allowed: &'static str,
    },
    /// A private, public or preshared key that is none. Its value is not shown.
    #[error("parse UAPI: {key}: {source}")]
    Key {
        /// The key of the line.
        key: &'static str,
        /// What is wrong with the value.
        source: KeyError,
    },
    /// Text after the end of the request or of the answer.
    #[error("parse UAPI: there is text after the end of the message")]
    Trailing,
    /// An answer without its `errno=`: the connection broke, or the server is none of UAPI.
    #[error("parse UAPI answer: it ends before its `errno=`; did the device go away?")]
    Incomplete,
    /// An answer that says that the device refused the request.
    #[error("the device refused the UAPI request: errno={errno}; its log says why")]
    Refused {
        /// The error, negative.
        errno: i32,
    },
}

impl UapiError {
    /// Returns what to answer by [`answer_errno`](super::answer_errno): negative, one of
    /// [`errno`] unless it came from another device.
    pub fn errno(&self) -> i32 {
        match self {
            Self::Operation | Self::NotKeyValue { .. } | Self::Incomplete => errno::EPROTO,
            Self::UnknownKey { .. } | Self::Value { .. } | Self::Key { .. } | Self::Trailing => {
                errno::EINVAL
            }
            Self::Refused { errno } => *errno,
        }
    }

    pub(super) fn value(key: &'static str, value: &str, allowed: &'static str) -> Self {
        Self::Value {
            key,
            value: value.chars().take(SHOWN_VALUE).collect(),
            allowed,
        }
    }
}

const SHOWN_VALUE: usize = 64;

/// The part of a request that a line is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Section {
    /// Before the first `public_key`.
    Device,
    /// After a `public_key`.
    Peer,
}

impl Section {
    fn hint(self) -> &'static str {
        match self {
            Self::Device => "; a peer's keys come after its public_key",
            Self::Peer => "; the device's keys come before the first public_key",
        }
    }
}

impl fmt::Display for Section {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Device => "device",
            Self::Peer => "peer",
        })
    }
}

/// The unknown key of a line, if it looks like a key's name. Base64 ends in `=`, so that a stray
/// line with nothing but a secret is split into a "key" and an empty value: that is not shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShownKey(Option<String>);

impl ShownKey {
    pub(super) fn new(key: &str) -> Self {
        let is_name = (1..=MAX_NAME).contains(&key.len())
            && key
                .bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte == b'_');
        Self(is_name.then(|| key.to_owned()))
    }
}

impl fmt::Display for ShownKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some(key) => write!(f, "`{key}`"),
            None => f.write_str("(a text that looks like no key)"),
        }
    }
}

/// The longest key that exists, `persistent_keepalive_interval`, has 29 characters.
const MAX_NAME: usize = 32;
