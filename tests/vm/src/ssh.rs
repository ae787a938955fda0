//! The way into a machine: ssh from its host, over one connection that stays.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, bail};
use warren_guest::CONTROL_GUEST;
use warren_lab::{Host, Output, Proc, poll_until};

use crate::Result;
use crate::places::prepared;

/// How long the first connection may take: without acceleration a key exchange takes a second where nothing else runs.
const CONNECT: Duration = Duration::from_secs(300);

/// Runs commands in a machine.
#[derive(Debug)]
pub(crate) struct Ssh {
    host: Host,
    /// The process that keeps the connection; none while the machine is off.
    master: Option<Proc>,
}

impl Ssh {
    pub(crate) fn new(host: Host) -> Self {
        Self { host, master: None }
    }

    /// Connects to a machine that has just come up.
    pub(crate) fn connect(&mut self) -> Result {
        self.disconnect();
        let mut command = self.command();
        command.args(["-M", "-N"]).arg(target());
        let master = self.host.spawn(&mut command)?;
        let ready = || self.socket().exists() || !master.is_running();
        poll_until(CONNECT, "a connection by ssh", ready).with_context(|| master.describe())?;
        if !master.is_running() {
            bail!("{}", master.describe());
        }
        self.master = Some(master);
        Ok(())
    }

    /// Forgets the connection to a machine that is gone.
    pub(crate) fn disconnect(&mut self) {
        self.master = None;
        // A master that is killed leaves its socket.
        let _ = std::fs::remove_file(self.socket());
    }

    /// Runs a shell script (`sh -e`) to its end and gives its output whatever its code.
    pub(crate) fn try_sh(&self, script: &str, limit: Duration) -> Result<Output> {
        self.with_input("sh -es", script.as_bytes(), limit)
    }

    /// Runs a command line with bytes on its standard input.
    pub(crate) fn with_input(&self, line: &str, input: &[u8], limit: Duration) -> Result<Output> {
        let mut command = self.command();
        command.arg(target()).arg(line);
        Ok(self.host.output_with_input(&mut command, input, limit)?)
    }

    /// Starts a command line that goes on; its output is the process's log.
    pub(crate) fn spawn(&self, line: &str) -> Result<Proc> {
        let mut command = self.command();
        command.arg("-n").arg(target()).arg(line);
        Ok(self.host.spawn(&mut command)?)
    }

    fn socket(&self) -> PathBuf {
        self.host.dir().join("ssh")
    }

    fn command(&self) -> Command {
        let mut command = Command::new("ssh");
        command.args(["-F", "none", "-i"]).arg(prepared("ssh/key"));
        for option in [
            "BatchMode=yes",
            // A machine on the control link of its own host alone.
            "StrictHostKeyChecking=no",
            "UserKnownHostsFile=/dev/null",
            "LogLevel=ERROR",
            "ConnectTimeout=60",
        ] {
            command.args(["-o", option]);
        }
        command.arg("-o");
        command.arg(format!("ControlPath={}", self.socket().display()));
        command
    }
}

fn target() -> String {
    format!("root@{CONTROL_GUEST}")
}
