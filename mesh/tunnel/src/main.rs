//! `warren-tunnel`: the userspace WireGuard data plane of Warren.

use std::io::{IsTerminal, stderr};
use std::process::ExitCode;

use clap::Parser;
use tracing_subscriber::EnvFilter;
use warren_tunnel::daemon;
use warren_tunnel::options::{LogFormat, Options};

fn main() -> ExitCode {
    let options = Options::parse();
    if let Err(error) = start_log(&options) {
        eprintln!("warren-tunnel: {error:#}");
        return ExitCode::FAILURE;
    }
    match daemon::run(options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// boringtun says ERROR for normal expiry: it is not heard unless it is asked for.
fn start_log(options: &Options) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(format!("boringtun=off,{}", options.log)).map_err(|error| {
        anyhow::anyhow!(
            "--log {:?}: {error}; allowed: error, warn, info, debug, trace, or target=level,...",
            options.log
        )
    })?;
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(stderr)
        .with_ansi(stderr().is_terminal());
    match options.log_format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().init(),
    }
    Ok(())
}
