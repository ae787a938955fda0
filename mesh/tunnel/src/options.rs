//! The daemon's options: by flag or by environment, parsed once.

use std::path::PathBuf;
use std::time::Duration;

use clap::builder::RangedU64ValueParser;
use clap::{Parser, ValueEnum};
use warren_core::consts;

use crate::offload::Offloads;
use crate::shards::MAX_SHARDS;
use crate::spin::MAX_SPIN;

/// The userspace WireGuard data plane of Warren. Configure it with `wg`, or let warren-agent do so.
///
/// Without INTERFACE it is the daemon of a Warren node: in the foreground, with a key and peers
/// that outlive it. With INTERFACE it does what wireguard-go does.
#[derive(Clone, Debug, Parser)]
#[command(name = "warren-tunnel", version, after_long_help = AFTER_HELP)]
pub struct Options {
    /// Be a drop-in for wireguard-go: make INTERFACE, go to the background, keep nothing.
    ///
    /// The interface has no key until `wg` sets one, any free UDP port, and is down. The process
    /// ends when its interface or its UAPI socket is removed, and the interface goes with it.
    /// This is what wg-quick wants: WG_QUICK_USERSPACE_IMPLEMENTATION=warren-tunnel wg-quick up wg0
    #[arg(value_name = "INTERFACE", id = "transient")]
    pub transient: Option<String>,

    /// Stay in the foreground; without INTERFACE it always does.
    #[arg(short, long)]
    pub foreground: bool,

    /// A node's interface, a TUN device that stays when the daemon ends.
    #[arg(
        long,
        env = "WARREN_INTERFACE",
        value_name = "NAME",
        default_value = consts::INTERFACE
    )]
    pub interface: String,

    /// The UDP port, 0 for any free one [default: the one last used, at first 51871].
    #[arg(long, env = "WARREN_LISTEN_PORT", value_name = "PORT")]
    pub listen_port: Option<u16>,

    /// Where the private key and the peers last applied are kept (made with mode 0700).
    #[arg(
        long,
        env = "WARREN_STATE_DIR",
        value_name = "DIR",
        default_value = consts::STATE_DIR,
        conflicts_with = "transient"
    )]
    pub state_dir: PathBuf,

    /// Where the status socket and the lock are (made with mode 0700).
    #[arg(long, env = "WARREN_RUN_DIR", value_name = "DIR", default_value = consts::RUN_DIR)]
    pub run_dir: PathBuf,

    /// Where the UAPI socket INTERFACE.sock is; the stock `wg` looks only in the default.
    #[arg(long, env = "WARREN_UAPI_DIR", value_name = "DIR", default_value = consts::UAPI_DIR)]
    pub uapi_dir: PathBuf,

    /// The private key's file, made if it is missing [default: STATE_DIR/private.key].
    #[arg(
        long,
        env = "WARREN_KEY_FILE",
        value_name = "FILE",
        conflicts_with = "transient"
    )]
    pub key_file: Option<PathBuf>,

    /// Keep neither key nor peers: a new key each start, nothing is written to STATE_DIR.
    #[arg(long, env = "WARREN_EPHEMERAL", conflicts_with = "key_file")]
    pub ephemeral: bool,

    /// How many threads move packets, each for its own peers, 1 to 16 [default: half the processors, 1
    /// to 4]. With CAP_BPF each of several reads its own part of the TUN, else one reads for all.
    #[arg(
        long,
        env = "WARREN_SHARDS",
        value_name = "NUMBER",
        value_parser = clap::value_parser!(u8).range(1..=i64::from(MAX_SHARDS)),
        conflicts_with = "transient"
    )]
    pub shards: Option<u8>,

    /// Do without super-packets at the TUN (IFF_VNET_HDR): a call for each packet.
    #[arg(long, env = "WARREN_NO_TSO")]
    pub no_tso: bool,

    /// Do without super-packets of UDP at the TUN; those of TCP stay.
    #[arg(long, env = "WARREN_NO_USO")]
    pub no_uso: bool,

    /// Do without trains of datagrams to the network (UDP_SEGMENT).
    #[arg(long, env = "WARREN_NO_UDP_SEGMENT")]
    pub no_udp_segment: bool,

    /// Do without trains of datagrams from the network (UDP_GRO).
    #[arg(long, env = "WARREN_NO_UDP_GRO")]
    pub no_udp_gro: bool,

    /// Poll for up to so long before the packet loop sleeps, where packets come that close; 0 is never.
    ///
    /// Round trips become shorter, for nothing waits for a thread to wake; a stream of small packets
    /// takes a whole core. 60 is a good value, 200 the most. At rest it costs nothing.
    #[arg(
        long,
        env = "WARREN_SPIN",
        value_name = "MICROSECONDS",
        default_value_t = 0,
        value_parser = RangedU64ValueParser::<u64>::new().range(..=MAX_SPIN.as_micros() as u64)
    )]
    pub spin: u64,

    /// How the log looks on stderr.
    #[arg(long, env = "WARREN_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,

    /// What is logged, as `level` or `target=level,...` (levels: error, warn, info, debug, trace)
    /// [default: info; with INTERFACE what LOG_LEVEL says, else error].
    #[arg(long, env = "WARREN_LOG", value_name = "FILTER")]
    pub log: Option<String>,
}

/// More shards are asked for by whoever has the processors for them and the traffic.
const MOST_BY_DEFAULT: u8 = 4;

const AFTER_HELP: &str = "\
Environment, with INTERFACE only, as of wireguard-go:
  WG_PROCESS_FOREGROUND=1  stay in the foreground
  WG_TUN_FD=N              use this open TUN device (IFF_TUN and IFF_NO_PI)
  WG_UAPI_FD=N             use this listening Unix socket
  LOG_LEVEL                verbose, debug, error or silent; with one of the first three a process
                           in the background keeps its standard output and error";

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

    /// How many shards there are to be on a machine where this many threads run at once.
    pub fn shards(&self, processors: usize) -> u8 {
        let half = u8::try_from(processors / 2).unwrap_or(u8::MAX);
        self.shards.unwrap_or(half.clamp(1, MOST_BY_DEFAULT))
    }

    /// The offloads that may be used; those of them are that the kernel has.
    pub fn offloads(&self) -> Offloads {
        Offloads {
            tso: !self.no_tso,
            uso: !self.no_uso,
            udp_segment: !self.no_udp_segment,
            udp_gro: !self.no_udp_gro,
        }
    }

    /// How long the packet loop polls at most before it sleeps; zero is never.
    pub fn spin(&self) -> Duration {
        Duration::from_micros(self.spin)
    }

    /// What is logged. `level` is the value of `LOG_LEVEL`, which counts as in wireguard-go: only
    /// for a transient interface, and anything unknown is `error`.
    pub fn log_filter(&self, level: Option<&str>) -> String {
        let default = match (&self.transient, level) {
            (None, _) => "info",
            (Some(_), Some("verbose" | "debug")) => "debug",
            (Some(_), Some("silent")) => "off",
            (Some(_), _) => "error",
        };
        self.log.clone().unwrap_or_else(|| default.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn parse(arguments: &[&str]) -> Options {
        Options::try_parse_from([&["warren-tunnel"], arguments].concat()).unwrap()
    }

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

    #[test]
    fn an_interface_alone_is_what_wg_quick_gives_and_it_keeps_nothing() {
        assert_eq!(parse(&["wg0"]).transient.as_deref(), Some("wg0"));
        assert!(parse(&["-f", "wg0"]).foreground);
        let node = parse(&["--state-dir", "/x"]);
        assert_eq!((node.transient, &*node.interface), (None, "warren0"));
        for kept in [["--state-dir", "/x"], ["--key-file", "/x"]] {
            let error = Options::try_parse_from(["warren-tunnel", "wg0", kept[0], kept[1]]);
            let text = error.unwrap_err().to_string();
            assert!(
                text.contains(kept[0]) && text.contains("INTERFACE"),
                "{text}"
            );
        }
    }

    #[test]
    fn one_shard_on_two_processors_and_more_on_more_or_when_asked_for() {
        for (processors, shards) in [(1, 1), (2, 1), (3, 1), (4, 2), (8, 4), (500, 4)] {
            assert_eq!(parse(&[]).shards(processors), shards, "{processors}");
        }
        for shards in ["1", "16"] {
            let asked = parse(&["--shards", shards]).shards(2);
            assert_eq!(asked.to_string(), shards);
        }
        for wrong in ["0", "17", "x"] {
            let refused = Options::try_parse_from(["warren-tunnel", "--shards", wrong]);
            assert!(refused.unwrap_err().to_string().contains("--shards"));
        }
    }

    #[test]
    fn it_spins_only_where_it_is_asked_to_and_never_for_long() {
        assert_eq!(parse(&[]).spin(), Duration::ZERO);
        assert_eq!(parse(&["--spin", "60"]).spin(), Duration::from_micros(60));
        assert_eq!(parse(&["wg0", "--spin", "200"]).spin(), MAX_SPIN);
        let error = Options::try_parse_from(["warren-tunnel", "--spin", "201"]).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("--spin") && text.contains("200"), "{text}");
    }

    #[test]
    fn log_level_counts_for_a_transient_interface_alone() {
        let (node, wg) = (parse(&[]), parse(&["wg0"]));
        assert_eq!(node.log_filter(Some("debug")), "info");
        assert_eq!(wg.log_filter(None), "error");
        assert_eq!(wg.log_filter(Some("verbose")), "debug");
        assert_eq!(wg.log_filter(Some("silent")), "off");
        assert_eq!(wg.log_filter(Some("nonsense")), "error");
        let asked = parse(&["wg0", "--log", "trace"]);
        assert_eq!(asked.log_filter(Some("silent")), "trace");
    }
}
