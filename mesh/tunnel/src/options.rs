//! The daemon's options: by flag or by environment, parsed once.

use std::path::PathBuf;

use clap::{Parser, ValueEnum};
use warren_core::consts;

/// The userspace WireGuard data plane of Warren. Configure it with `wg`, or let warren-agent do so.
#[derive(Clone, Debug, Parser)]
#[command(name = "warren-tunnel", version)]
pub struct Options {
    /// The interface, a TUN device that stays when the daemon ends.
    #[arg(env = "WARREN_INTERFACE", default_value = consts::INTERFACE)]
    pub interface: String,

    /// The UDP port, 0 for any free one [default: the one last used, at first 51871].
    #[arg(long, env = "WARREN_LISTEN_PORT", value_name = "PORT")]
    pub listen_port: Option<u16>,

    /// Where the private key and the peers last applied are kept (made with mode 0700).
    #[arg(long, env = "WARREN_STATE_DIR", value_name = "DIR", default_value = consts::STATE_DIR)]
    pub state_dir: PathBuf,

    /// Where the status socket and the lock are (made with mode 0700).
    #[arg(long, env = "WARREN_RUN_DIR", value_name = "DIR", default_value = consts::RUN_DIR)]
    pub run_dir: PathBuf,

    /// Where the UAPI socket INTERFACE.sock is; the stock `wg` looks only in the default.
    #[arg(long, env = "WARREN_UAPI_DIR", value_name = "DIR", default_value = consts::UAPI_DIR)]
    pub uapi_dir: PathBuf,

    /// The private key's file, made if it is missing [default: STATE_DIR/private.key].
    #[arg(long, env = "WARREN_KEY_FILE", value_name = "FILE")]
    pub key_file: Option<PathBuf>,

    /// Keep neither key nor peers: a new key each start, nothing is written to STATE_DIR.
    #[arg(long, env = "WARREN_EPHEMERAL", conflicts_with = "key_file")]
    pub ephemeral: bool,

    /// How the log looks on stderr.
    #[arg(long, env = "WARREN_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,

    /// What is logged, as `level` or `target=level,...` (levels: error, warn, info, debug, trace).
    #[arg(
        long,
        env = "WARREN_LOG",
        value_name = "FILTER",
        default_value = "info"
    )]
    pub log: String,
}

/// How the log looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

impl Options {
    /// The private key's file.
    pub fn key_file(&self) -> PathBuf {
        self.key_file
            .clone()
            .unwrap_or_else(|| self.state_dir.join("private.key"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound_and_errors_name_key_value_and_what_is_allowed() {
        Options::command().debug_assert();
        let error = Options::try_parse_from(["warren-tunnel", "--log-format", "xml"]).unwrap_err();
        let text = error.to_string();
        for part in ["--log-format", "xml", "text", "json"] {
            assert!(text.contains(part), "{text}");
        }
        assert!(Options::try_parse_from(["warren-tunnel", "--listen-port", "65536"]).is_err());
    }
}
