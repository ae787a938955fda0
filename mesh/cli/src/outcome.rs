//! What a command takes from the process, and what it gives back to it.

use std::io::{ErrorKind, IsTerminal, Write};
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::text::{Style, clean};

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

/// What a command prints and how it ends. It may hold the private key that a person asked for.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Outcome {
    /// For stdout.
    pub stdout: String,
    /// For stderr.
    pub stderr: String,
    /// The exit code.
    pub code: u8,
}

impl Outcome {
    /// Adds a message for stderr, cleaned and with the program's name before it.
    pub fn complain(&mut self, message: &impl ToString) {
        self.stderr.push_str("warren: ");
        self.stderr.push_str(&clean(&message.to_string()));
        self.stderr.push('\n');
    }

    /// Prints it and returns the exit code; 1 when stdout cannot be written.
    pub fn print(&self) -> ExitCode {
        // Nothing is left to tell it to when stderr is gone.
        let _ = std::io::stderr().write_all(self.stderr.as_bytes());
        let mut stdout = std::io::stdout().lock();
        match stdout
            .write_all(self.stdout.as_bytes())
            .and_then(|()| stdout.flush())
        {
            Ok(()) => ExitCode::from(self.code),
            // The reader, such as `head`, has seen enough.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => ExitCode::from(self.code),
            Err(error) => {
                let _ = writeln!(std::io::stderr(), "warren: write to stdout: {error}");
                ExitCode::FAILURE
            }
        }
    }
}
