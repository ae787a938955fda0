//! What a command gives back to the process.

use std::io::{ErrorKind, Write};
use std::process::ExitCode;

use crate::text::clean;

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
    /// Adds a message for stderr, cleaned and with the program's name before it, which `kubectl warren` shares.
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
