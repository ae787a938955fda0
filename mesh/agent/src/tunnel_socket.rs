//! The tunnel's own socket: lines `key=value` that tell what UAPI has no words for.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::time::timeout;
use warren_core::peer_path::PeerPath;
use warren_keyring::PublicKey;

const TIMEOUT: Duration = Duration::from_secs(1);
/// Larger than any answer: some 40,000 peers with something to tell of each.
const MAX_ANSWER: u64 = 16 * 1024 * 1024;
/// How the keys of drop counters start; what follows is the reason.
const DROP_PREFIX: &str = "drop_";
/// The key of the daemon's version, and the most characters that are taken of it.
const VERSION_KEY: &str = "version";
const MAX_VERSION: usize = 40;
/// The key of the Unix time at which the private key's file was written.
const KEY_WRITTEN_KEY: &str = "key_written_seconds";
/// The key of the counter of datagrams in fragments.
const FRAGMENTED_KEY: &str = "udp_tx_fragmented";
/// The key of the offloads in use.
const OFFLOAD_KEY: &str = "offload";
/// The keys of the number of threads that move packets, and of the TUN queues that they read.
const SHARDS_KEY: &str = "shards";
const QUEUES_KEY: &str = "tun_queues";
/// The key of the lines about peers.
const PEER_KEY: &str = "peer";
/// The most reasons that become metrics.
const MAX_REASONS: usize = 100;

/// The socket's path; it need not be there.
#[derive(Clone, Debug)]
pub struct TunnelSocket(pub PathBuf);

/// What the tunnel tells there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TunnelReport {
    /// Its version; not when it does not answer.
    pub version: Option<String>,
    /// When the file of the key that it runs with was written, since the Unix epoch.
    pub key_written: Option<Duration>,
    /// Packets that it dropped, by reason.
    pub drops: BTreeMap<String, u64>,
    /// Datagrams that it made too large to arrive in one piece.
    pub fragmented: u64,
    /// The kernel's offloads that it uses, as it names them.
    pub offload: Option<String>,
    /// The threads that move packets, and the TUN queues that they read; 0 where it does not tell.
    pub shards: u32,
    /// See `shards`.
    pub tun_queues: u32,
    /// The way to each peer of which there is something to tell.
    pub paths: BTreeMap<PublicKey, PeerPath>,
}

impl TunnelSocket {
    /// What the tunnel tells; nothing when it does not answer.
    pub async fn report(&self) -> TunnelReport {
        let read = async {
            let stream = UnixStream::connect(&self.0).await?;
            let mut text = String::new();
            stream.take(MAX_ANSWER).read_to_string(&mut text).await?;
            std::io::Result::Ok(text)
        };
        match timeout(TIMEOUT, read).await {
            Ok(Ok(text)) => TunnelReport::parse(&text),
            _ => TunnelReport::default(),
        }
    }
}

impl TunnelReport {
    /// How the tunnel moves packets, for people; nothing where it does not tell.
    pub fn how(&self) -> String {
        let mut how = String::new();
        if let Some(offload) = &self.offload {
            how += &format!(", offload {offload}");
        }
        if self.shards > 1 {
            how += &format!(", {} shards", self.shards);
        }
        if self.shards > 1 && self.tun_queues == 1 {
            how += " of which one reads the interface";
        }
        how
    }

    fn parse(text: &str) -> Self {
        let mut report = Self::default();
        for (key, value) in text.lines().filter_map(|line| line.split_once('=')) {
            if key == PEER_KEY {
                match value.parse::<PeerPath>() {
                    Ok(path) => drop(report.paths.insert(path.public_key, path)),
                    Err(e) => tracing::debug!(error = %e, "the tunnel's status"),
                }
            } else if key == VERSION_KEY {
                report.version = Some(value.trim().chars().take(MAX_VERSION).collect());
            } else if key == KEY_WRITTEN_KEY {
                report.key_written = value.trim().parse().ok().map(Duration::from_secs);
            } else if key == OFFLOAD_KEY {
                report.offload = Some(value.trim().to_owned());
            } else if key == SHARDS_KEY {
                report.shards = value.trim().parse().unwrap_or_default();
            } else if key == QUEUES_KEY {
                report.tun_queues = value.trim().parse().unwrap_or_default();
            } else if key == FRAGMENTED_KEY {
                report.fragmented = value.trim().parse().unwrap_or_default();
            } else if let Some(reason) = key.strip_prefix(DROP_PREFIX)
                && let Ok(packets) = value.trim().parse()
                && report.drops.len() < MAX_REASONS
            {
                report.drops.insert(reason.to_owned(), packets);
            }
        }
        report
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use warren_keyring::PrivateKey;

    #[test]
    fn the_version_and_the_age_of_the_key_are_told_or_absent() {
        let report = TunnelReport::parse("version=0.1.0\nkey_written_seconds=1800000000\n");
        assert_eq!(report.version.as_deref(), Some("0.1.0"));
        assert_eq!(report.key_written, Some(Duration::from_secs(1_800_000_000)));
        let older = TunnelReport::parse("pid=7\nkey_written_seconds=soon\n");
        assert_eq!((older.version, older.key_written), (None, None));
    }

    #[test]
    fn several_shards_are_told_and_whether_one_reads_for_all() {
        for (text, how) in [
            ("pid=7\n", ""),
            ("offload=tso\nshards=1\ntun_queues=1\n", ", offload tso"),
            (
                "offload=tso\nshards=4\ntun_queues=4\n",
                ", offload tso, 4 shards",
            ),
            (
                "offload=none\nshards=4\ntun_queues=1\n",
                ", offload none, 4 shards of which one reads the interface",
            ),
        ] {
            assert_eq!(TunnelReport::parse(text).how(), how);
        }
    }

    #[test]
    fn drop_counters_and_fragments_become_metrics_and_offloads_are_read() {
        let text = "version=1\noffload=tso,uso\nudp_tx_fragmented=5\ndrop_no_route=3\ndrop_replayed=0\ndrop_odd=x\nnonsense\n";
        let TunnelReport {
            drops,
            fragmented,
            offload,
            ..
        } = TunnelReport::parse(text);
        assert_eq!((fragmented, offload.as_deref()), (5, Some("tso,uso")));
        assert_eq!(
            drops.into_iter().collect::<Vec<_>>(),
            [("no_route".to_owned(), 3), ("replayed".to_owned(), 0),]
        );
    }

    #[test]
    fn a_line_that_is_not_understood_costs_no_other() {
        let key = PrivateKey::generate().unwrap().public_key();
        let text = format!("peer=nonsense\npeer={key} unheard=2 new_fact=7\ndrop_no_route=3\n");
        let report = TunnelReport::parse(&text);
        assert_eq!(report.paths[&key].unheard.unwrap().handshakes, 2);
        assert_eq!(report.drops.len(), 1);
    }
}
