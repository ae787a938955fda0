//! The text of WireGuard's cross-platform configuration protocol (UAPI), which the stock `wg`
//! speaks: <https://www.wireguard.com/xplatform/#configuration-protocol>.
//!
//! The tunnel parses a [`Request`] and answers with [`Device::to_text`] and [`answer_errno`];
//! the agent and the command line write [`GET`] or [`SetRequest::to_text`] and parse the answer
//! by [`Device::parse`] or [`parse_set_answer`].
//!
//! ```text
//! client                          server
//! get=1                      ->
//! (empty line)               ->
//!                            <-   private_key=... public_key=... allowed_ip=...
//!                            <-   errno=0
//!                            <-   (empty line)
//! set=1                      ->
//! private_key=... and so on  ->
//! (empty line)               ->
//!                            <-   errno=0
//!                            <-   (empty line)
//! ```
//!
//! A request is taken whole or not at all, and as strictly as wireguard-go takes it. An answer's
//! unknown keys are passed over, as `wg` does, so that a client outlives a newer server.
//! Collecting the bytes up to the empty line is the caller's part, and so is wiping them: a
//! request and an answer may hold the private key.

mod device;
mod error;
mod set;
mod value;
mod writer;

pub use device::{Device, Peer};
pub use error::{Section, ShownKey, UapiError, errno};
pub use set::{AllowedIpUpdate, PeerUpdate, SetParser, SetRequest};

/// The whole request for a device's state, its final empty line included.
pub const GET: &str = "get=1\n\n";

/// What a client asks of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Tell the device's state.
    Get,
    /// Change the device.
    Set(SetRequest),
}

impl Request {
    /// Parses a whole request: its first line, the lines of its body, and the final empty line,
    /// which may be left out.
    ///
    /// # Errors
    /// [`UapiError::Operation`] when the first line is neither `get=1` nor `set=1`,
    /// [`UapiError::Trailing`] for text after the request, and all errors of
    /// [`SetRequest::parse`].
    pub fn parse(text: &str) -> Result<Self, UapiError> {
        let (operation, body) = text.split_once('\n').unwrap_or((text, ""));
        match operation {
            "get=1" if body.is_empty() || body == "\n" => Ok(Self::Get),
            "get=1" => Err(UapiError::Trailing),
            "set=1" => SetRequest::parse(body).map(Self::Set),
            _ => Err(UapiError::Operation),
        }
    }
}

/// Writes the last lines of an answer: the result, and the empty line.
///
/// Zero is success. Failures are negative, as [`UapiError::errno`] and [`errno`] have them and as
/// wireguard-go writes them: `wg set` shows the message of that error.
pub fn answer_errno(errno: i32) -> String {
    format!("errno={errno}\n\n")
}

/// Parses the answer to a [`SetRequest`].
///
/// # Errors
/// [`UapiError::Refused`] when the device refused the request; [`UapiError::Incomplete`],
/// [`UapiError::NotKeyValue`], [`UapiError::Value`] or [`UapiError::Trailing`] when the text is
/// no answer.
pub fn parse_set_answer(text: &str) -> Result<(), UapiError> {
    // The answer to `set` is that to `get` without a state.
    Device::parse(text).map(drop)
}
