//! Logs: to stderr, or to the file that the configuration names; never to stdout, which belongs to
//! the answer.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt;

use tracing::Level;
use tracing::subscriber::DefaultGuard;

use crate::config::{LogLevel, NetConf};
use crate::error::Error;

/// Starts logging as the configuration says; it ends with the guard.
pub(crate) fn start(conf: &NetConf) -> Result<DefaultGuard, Error> {
    let Some(path) = &conf.log_file else {
        return Ok(to_stderr(conf));
    };
    let file = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)
        .map_err(|cause| Error::LogFile {
            path: path.clone(),
            cause,
        })?;
    let builder = tracing_subscriber::fmt()
        .with_max_level(level(conf))
        .with_ansi(false);
    let subscriber = builder.with_writer(file).finish();
    Ok(tracing::subscriber::set_default(subscriber))
}

/// Starts logging to stderr, whatever file the configuration names.
pub(crate) fn to_stderr(conf: &NetConf) -> DefaultGuard {
    let builder = tracing_subscriber::fmt()
        .with_max_level(level(conf))
        .with_ansi(false);
    let subscriber = builder.with_writer(io::stderr).finish();
    tracing::subscriber::set_default(subscriber)
}

fn level(conf: &NetConf) -> Level {
    match conf.log_level {
        LogLevel::Error => Level::ERROR,
        LogLevel::Warn => Level::WARN,
        LogLevel::Info => Level::INFO,
        LogLevel::Debug => Level::DEBUG,
        LogLevel::Trace => Level::TRACE,
    }
}
