//! The writer of messages that may hold secret keys.

use std::fmt::{Display, Write as _};

use zeroize::Zeroizing;

/// More than a device's own lines can take, the operation and the empty line included.
pub(super) const DEVICE_ROOM: usize = 192;
/// More than a peer's lines can take, its prefixes not included.
pub(super) const PEER_ROOM: usize = 480;
/// More than the line of a prefix can take.
pub(super) const PREFIX_ROOM: usize = 64;

/// A message in the making. All room is taken first: a string that grows is copied, and the
/// copy it leaves behind is not wiped.
pub(super) struct Writer(Zeroizing<String>);

impl Writer {
    pub(super) fn with_room(bytes: usize) -> Self {
        Self(Zeroizing::new(String::with_capacity(bytes)))
    }

    /// Writes a line of a value without secrets.
    pub(super) fn field(&mut self, key: &str, value: impl Display) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.0, "{key}={value}");
    }

    /// Writes a line by copying its value, which formatting might buffer elsewhere.
    pub(super) fn secret(&mut self, key: &str, value: &Zeroizing<String>) {
        self.0.push_str(key);
        self.0.push('=');
        self.0.push_str(value);
        self.0.push('\n');
    }

    pub(super) fn empty_line(&mut self) {
        self.0.push('\n');
    }

    pub(super) fn finish(self) -> Zeroizing<String> {
        self.0
    }
}
