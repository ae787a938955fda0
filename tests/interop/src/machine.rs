//! Where an end runs: a host of the lab, or a virtual machine behind one.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, bail};
use warren_lab::{Host, Proc};

use crate::Result;
use crate::guest::{Guest, Running};
use crate::protocol::Answer;

/// How long a command may take; TCP transfers through an emulated kernel are the slowest.
const LIMIT: Duration = Duration::from_secs(90);

/// A machine on which commands run.
#[derive(Debug)]
pub enum Machine {
    /// A host of the lab.
    Host(Host),
    /// A virtual machine.
    Guest(Guest),
}

/// A command that goes on; it is killed when dropped.
#[derive(Debug)]
pub enum Background {
    /// On a host of the lab.
    Host(Proc),
    /// In a virtual machine.
    Guest(Running),
}

impl Machine {
    /// Runs a command to its end and gives its output whatever its code.
    ///
    /// # Errors
    ///
    /// When it cannot be started or does not end.
    pub fn try_run(&self, argv: &[&str]) -> Result<Answer> {
        match self {
            Self::Host(host) => {
                let mut command = Command::new(argv.first().context("an empty command")?);
                let output = host.output(command.args(&argv[1..]), LIMIT)?;
                Ok(Answer {
                    code: output.status.code(),
                    stdout: output.stdout,
                    stderr: output.stderr,
                })
            }
            Self::Guest(guest) => guest.start(argv)?.finish(LIMIT),
        }
    }

    /// Runs a command that must succeed and gives its standard output.
    ///
    /// # Errors
    ///
    /// As [`try_run`](Self::try_run), and for another code than 0 with all that it printed.
    pub fn run(&self, argv: &[&str]) -> Result<String> {
        let answer = self.try_run(argv)?;
        if answer.code != Some(0) {
            bail!("on {}: `{}`: {answer:?}", self.name(), argv.join(" "));
        }
        Ok(answer.stdout)
    }

    /// Runs a shell script (`sh -ec`) that must succeed and gives its standard output.
    ///
    /// # Errors
    ///
    /// As [`run`](Self::run).
    pub fn sh(&self, script: &str) -> Result<String> {
        self.run(&["sh", "-ec", script])
    }

    /// Starts a command that goes on until it is dropped.
    ///
    /// # Errors
    ///
    /// When it cannot be started.
    pub fn spawn(&self, argv: &[&str]) -> Result<Background> {
        Ok(match self {
            Self::Host(host) => Background::Host(host.spawn_argv(argv)?),
            Self::Guest(guest) => Background::Guest(guest.start(argv)?),
        })
    }

    /// The path of a program of this workspace as this machine sees it.
    ///
    /// # Errors
    ///
    /// When it has not been built.
    pub fn program(&self, name: &str) -> Result<String> {
        Ok(match self {
            Self::Host(_) => warren_lab::bin(name)?.display().to_string(),
            Self::Guest(_) => format!("/bin/{name}"),
        })
    }

    /// Sets the MTU of the cable to it, in bytes; on a host that is its `eth0`, done by the link.
    pub(crate) fn set_cable_mtu(&self, mtu_bytes: u32) -> Result {
        match self {
            Self::Host(_) => Ok(()),
            Self::Guest(guest) => guest.set_cable_mtu(mtu_bytes),
        }
    }

    /// What messages call it.
    pub fn name(&self) -> &str {
        match self {
            Self::Host(host) => host.name(),
            Self::Guest(_) => "the virtual machine",
        }
    }
}

impl Background {
    /// The last that it said, for messages.
    pub fn describe(&self) -> String {
        match self {
            Self::Host(process) => process.describe(),
            Self::Guest(_) => "(a command in the virtual machine)".into(),
        }
    }

    /// Waits for its end and gives its standard output, with standard error on a host.
    ///
    /// # Errors
    ///
    /// When it goes on for longer than `limit` or fails.
    pub fn finish(self, limit: Duration) -> Result<String> {
        match self {
            Self::Host(process) => {
                if !process.wait_timeout(limit)?.success() {
                    bail!("{}", process.describe());
                }
                Ok(process.log())
            }
            Self::Guest(running) => {
                let answer = running.finish(limit)?;
                if answer.code != Some(0) {
                    bail!("in the virtual machine: {answer:?}");
                }
                Ok(answer.stdout)
            }
        }
    }
}
