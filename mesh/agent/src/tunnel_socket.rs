//! The tunnel's own socket: lines `key=value` that tell what UAPI has no words for.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::time::timeout;

const TIMEOUT: Duration = Duration::from_secs(1);
/// Larger than any answer.
const MAX_ANSWER: u64 = 64 * 1024;
/// How the keys of drop counters start; what follows is the reason.
const DROP_PREFIX: &str = "drop_";
/// The most reasons that become metrics.
const MAX_REASONS: usize = 100;

/// The socket's path; it need not be there.
#[derive(Clone, Debug)]
pub struct TunnelSocket(pub PathBuf);

impl TunnelSocket {
    /// Packets that the tunnel dropped, by reason; nothing when it does not answer.
    pub async fn drops(&self) -> BTreeMap<String, u64> {
        let read = async {
            let stream = UnixStream::connect(&self.0).await?;
            let mut text = String::new();
            stream.take(MAX_ANSWER).read_to_string(&mut text).await?;
            std::io::Result::Ok(text)
        };
        match timeout(TIMEOUT, read).await {
            Ok(Ok(text)) => parse_drops(&text),
            _ => BTreeMap::new(),
        }
    }
}

fn parse_drops(text: &str) -> BTreeMap<String, u64> {
    let counters = text.lines().filter_map(|line| {
        let (key, value) = line.split_once('=')?;
        let reason = key.strip_prefix(DROP_PREFIX)?;
        Some((reason.to_owned(), value.trim().parse().ok()?))
    });
    counters.take(MAX_REASONS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_drop_counters_become_metrics() {
        let text = "version=1\ndrop_no_route=3\ndrop_replayed=0\ndrop_odd=x\nnonsense\n";
        let drops = parse_drops(text);
        assert_eq!(
            drops.into_iter().collect::<Vec<_>>(),
            [("no_route".to_owned(), 3), ("replayed".to_owned(), 0),]
        );
    }
}
