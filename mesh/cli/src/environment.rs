//! What a command takes from the process.

use std::io::IsTerminal;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::text::Style;

/// What the output depends on besides the sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Environment {
    /// Unix time in seconds.
    pub now: u64,
    /// Whether to colour, as `wg` decides it.
    pub style: Style,
    /// Whether the human forms print `(hidden)` for secret keys. `WG_HIDE_KEYS=never` shows them.
    pub hide_keys: bool,
}

impl Environment {
    /// Reads the clock, `WG_COLOR_MODE`, `WG_HIDE_KEYS`, and whether stdout is a terminal.
    pub fn of_process() -> Self {
        let colour = match std::env::var("WG_COLOR_MODE").as_deref() {
            Ok("always") => true,
            Ok("never") => false,
            _ => std::io::stdout().is_terminal(),
        };
        Self {
            now: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |since| since.as_secs()),
            style: if colour {
                Style::COLOURED
            } else {
                Style::PLAIN
            },
            hide_keys: std::env::var("WG_HIDE_KEYS").as_deref() != Ok("never"),
        }
    }
}
