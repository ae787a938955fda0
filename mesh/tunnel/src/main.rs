//! `warren-tunnel`: the userspace WireGuard data plane of Warren.

mod interpose;

use std::io::{IsTerminal, stderr};
use std::process::ExitCode;

use clap::Parser;
use tracing_subscriber::EnvFilter;
use warren_tunnel::options::{LogFormat, Options};
use warren_tunnel::{daemon, transient};

fn main() -> ExitCode {
    let options = Options::parse();
    if let Err(error) = start_log(&options) {
        eprintln!("warren-tunnel: {error:#}");
        return ExitCode::FAILURE;
    }
    let ended = match options.transient.clone() {
        Some(interface) => transient::run(&options, &interface),
        None => daemon::run(options),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// boringtun says ERROR for normal expiry: it is not heard unless it is asked for.
fn start_log(options: &Options) -> anyhow::Result<()> {
    let level = std::env::var("LOG_LEVEL").ok();
    let filter = options.log_filter(level.as_deref());
    let filter = EnvFilter::try_new(format!("boringtun=off,{filter}")).map_err(|error| {
        anyhow::anyhow!(
            "--log {filter:?}: {error}; allowed: error, warn, info, debug, trace, or target=level,..."
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
