//! Programs run on hosts.

use std::ffi::OsStr;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use warren_lab::{Host, Output};

/// Runs a program on a host with standard input, whatever its code.
///
/// # Errors
/// Those of the lab.
pub fn call<S: AsRef<OsStr>>(
    host: &Host,
    program: impl AsRef<OsStr>,
    arguments: &[S],
    input: &[u8],
    limit: Duration,
) -> Result<Output> {
    let mut command = Command::new(program);
    command.args(arguments);
    Ok(host.output_with_input(&mut command, input, limit)?)
}

/// As [`call`], and gives what it printed.
///
/// # Errors
/// Those of the lab; another code than 0, with all it printed.
pub fn ask<S: AsRef<OsStr>>(
    host: &Host,
    program: impl AsRef<OsStr>,
    arguments: &[S],
    input: &[u8],
    limit: Duration,
) -> Result<String> {
    let mut command = Command::new(program);
    command.args(arguments);
    let output = host.output_with_input(&mut command, input, limit)?;
    Ok(host.check(&command, output)?.stdout)
}
