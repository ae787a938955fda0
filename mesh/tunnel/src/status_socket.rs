//! The read-only socket for what UAPI has no words for: `key=value` lines, then the end.
//!
//! | key | meaning |
//! |---|---|
//! | `version`, `interface`, `pid` | this daemon |
//! | `public_key`, `listen_port`, `peers` | the device; the key is left out while there is none |
//! | `key_written_seconds` | Unix time at which the private key's file was written; left out where the key is of no file, or was changed by UAPI since |
//! | `mtu_bytes` | the TUN's MTU; left out while there is no TUN |
//! | `uptime_seconds` | since the start |
//! | `offload` | the offloads in use, with commas between them: `tso`, `uso`, `udp_segment`, `udp_gro`; or `none` |
//! | `shards`, `tun_queues` | the threads that move packets; the TUN queues that they read: one each, or one where the kernel does not deal out to several |
//! | `shard` | with several of them, a line for each: `0 peers=3 tun_rx_frames=9 udp_rx_messages=8 handed_over=7`: its own peers, what it has read from the TUN and from the network, what of that it has handed over to others |
//! | `spin_us` | how long the packet loop polls at most before it sleeps, in microseconds; 0 is never |
//! | `spins_in_time`, `spins_in_vain` | polls during which something came, and those before a sleep all the same |
//! | `tun_rx_packets`, `tun_tx_packets` | inner packets read from the TUN, accepted for it |
//! | `tun_rx_frames`, `tun_tx_frames` | how often the TUN was read, written to: what the kernel counts at the interface, a super-packet once |
//! | `path_probes` | questions about the path's largest packet, and answers to ours, taken from peers |
//! | `tun_errors` | packets that the TUN did not take, failed reads |
//! | `udp_rx_datagrams`, `udp_tx_datagrams` | outer datagrams received, made |
//! | `udp_rx_messages`, `udp_tx_messages` | as often as the kernel moved them, a train of datagrams counted once |
//! | `udp_tx_fragmented` | of those made, the ones that do not arrive in one piece and leave, or are forwarded, in fragments |
//! | `udp_send_errors` | datagrams not sent; of those `udp_send_unreachable`, `udp_send_refused`, `udp_send_too_large`, `udp_send_no_buffers` |
//! | `udp_receive_errors` | failed receives |
//! | `udp_receive_overflows`, `udp_handshake_overflows` | data messages and others that the kernel dropped, the receive buffer being full |
//! | `handshakes`, `roamed` | handshakes completed; endpoints that followed their peer |
//! | `queue_bytes` | packets that wait for handshakes, all peers together |
//! | `drop_<reason>` | dropped packets, a line for every [`DropReason`](crate::DropReason) |
//! | `peer` | the way to a peer of which there is something to tell, a line for each: [`warren_core::peer_path`] |

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::os::unix::net::UnixListener;
use std::thread;
use std::time::{Duration, Instant};

use warren_keyring::PublicKey;

use crate::control::Control;
use crate::shard::ShardStatus;

/// How long a client may take to read.
const PATIENCE: Duration = Duration::from_secs(1);

/// The key that the daemon started with, and since when there is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyFile {
    /// The key in the file.
    pub public_key: PublicKey,
    /// When the file was written, since the Unix epoch.
    pub written: Duration,
}

/// What does not change while the daemon runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fixed {
    /// Name of the interface.
    pub interface: String,
    /// The private key's file; none with `--ephemeral`.
    pub key_file: Option<KeyFile>,
}

/// Answers every connection with the present state, for ever.
///
/// # Errors
/// What the kernel says about the thread.
pub fn serve(listener: UnixListener, control: Control, fixed: Fixed) -> io::Result<()> {
    let started = Instant::now();
    thread::Builder::new()
        .name("status".into())
        .spawn(move || {
            for client in listener.incoming() {
                let Ok(mut client) = client else {
                    thread::sleep(Duration::from_millis(100));
                    continue;
                };
                let Ok(status) = control.status() else { return };
                let text = render(&status, &fixed, started.elapsed());
                // A client that does not read gets no answer.
                if client.set_write_timeout(Some(PATIENCE)).is_ok() {
                    let _ = client.write_all(text.as_bytes());
                }
            }
        })?;
    Ok(())
}

/// Writes the lines of the table above.
pub fn render(status: &ShardStatus, fixed: &Fixed, uptime: Duration) -> String {
    let mut text = String::with_capacity(2048);
    let mut line = |key: &str, value: &dyn std::fmt::Display| {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{key}={value}");
    };
    line("version", &env!("CARGO_PKG_VERSION"));
    line("interface", &fixed.interface);
    line("pid", &std::process::id());
    if let Some(public_key) = &status.public_key {
        line("public_key", public_key);
    }
    let key_file = fixed.key_file.as_ref();
    if let Some(key_file) = key_file.filter(|f| Some(f.public_key) == status.public_key) {
        line("key_written_seconds", &key_file.written.as_secs());
    }
    line("listen_port", &status.listen_port);
    line("peers", &status.peers);
    if let Some(mtu_bytes) = status.mtu_bytes {
        line("mtu_bytes", &mtu_bytes);
    }
    line("uptime_seconds", &uptime.as_secs());
    line("offload", &status.offloads);
    line("shards", &status.shards.len());
    let queues = status.shards.iter().filter(|shard| shard.reads_tun);
    line("tun_queues", &queues.count());
    if status.shards.len() > 1 {
        for shard in &status.shards {
            line("shard", shard);
        }
    }
    line("spin_us", &status.spin_limit.as_micros());
    line("spins_in_time", &status.spin.in_time);
    line("spins_in_vain", &status.spin.in_vain);
    let counters = &status.counters;
    line("tun_rx_packets", &counters.tun_rx_packets);
    line("tun_tx_packets", &counters.tun_tx_packets);
    line("tun_rx_frames", &status.frames.tun_rx);
    line("tun_tx_frames", &status.frames.tun_tx);
    line("path_probes", &counters.path_probes);
    line("tun_errors", &status.tun_errors);
    line("udp_rx_datagrams", &counters.udp_rx_datagrams);
    line("udp_tx_datagrams", &counters.udp_tx_datagrams);
    line("udp_rx_messages", &status.frames.udp_rx);
    line("udp_tx_messages", &status.frames.udp_tx);
    line("udp_tx_fragmented", &counters.udp_tx_fragmented);
    line("udp_send_errors", &status.udp.send_errors);
    line("udp_send_unreachable", &status.udp.send_unreachable);
    line("udp_send_refused", &status.udp.send_refused);
    line("udp_send_too_large", &status.udp.send_too_large);
    line("udp_send_no_buffers", &status.udp.send_no_buffers);
    line("udp_receive_errors", &status.udp.receive_errors);
    line("udp_receive_overflows", &status.udp.receive_overflows);
    line("udp_handshake_overflows", &status.udp.handshake_overflows);
    line("handshakes", &counters.handshakes);
    line("roamed", &counters.roamed);
    line("queue_bytes", &status.waiting_bytes);
    for (reason, packets) in counters.drops.iter() {
        line(&format!("drop_{}", reason.as_str()), &packets);
    }
    for path in &status.peer_paths {
        line("peer", path);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::offload::Offloads;
    use crate::shard::ShardSummary;
    use crate::{Counters, DropReason, ShardId};
    use warren_core::peer_path::{PeerPath, Unheard};
    use warren_keyring::PrivateKey;

    #[test]
    fn every_drop_reason_has_a_line_and_every_line_a_value() {
        let mut path = PeerPath::new(PrivateKey::generate().unwrap().public_key());
        path.unheard = Some(Unheard {
            handshakes: 2,
            first: Duration::from_millis(6001),
            last: Duration::from_millis(1001),
        });
        let key = PrivateKey::generate().unwrap().public_key();
        let mut status = ShardStatus {
            newest_stamp: std::time::Duration::ZERO,
            public_key: Some(key),
            listen_port: 51871,
            peers: 3,
            shards: ShardId::first(2)
                .map(|shard| ShardSummary {
                    shard,
                    peers: 1 + usize::from(shard.number()),
                    reads_tun: shard == ShardId::LEAD,
                    tun_rx_frames: 9,
                    udp_rx_messages: 8,
                    handed_over: 7,
                })
                .collect(),
            mtu_bytes: Some(1420),
            waiting_bytes: 7,
            counters: Counters::default(),
            udp: Default::default(),
            tun_errors: 0,
            offloads: Offloads::NONE,
            spin_limit: Duration::from_micros(60),
            spin: Default::default(),
            frames: Default::default(),
            peer_paths: vec![path.clone()],
        };
        let fixed = Fixed {
            interface: "warren0".to_owned(),
            key_file: Some(KeyFile {
                public_key: key,
                written: Duration::from_secs(1_800_000_000),
            }),
        };
        let text = render(&status, &fixed, Duration::from_secs(90));
        assert!(text.contains("\nkey_written_seconds=1800000000\n"));
        assert!(
            text.lines()
                .all(|line| line.split_once('=').is_some_and(|(_, v)| !v.is_empty()))
        );
        assert!(text.contains("\nuptime_seconds=90\n"));
        assert!(text.contains("\nqueue_bytes=7\n"));
        assert!(text.contains("\nshards=2\ntun_queues=1\nshard=0 peers=1 "));
        assert!(
            text.contains("\nshard=1 peers=2 tun_rx_frames=9 udp_rx_messages=8 handed_over=7\n")
        );
        assert!(text.contains("\nspin_us=60\n"));
        let told = text.lines().find_map(|line| line.strip_prefix("peer="));
        assert_eq!(told.unwrap().parse::<PeerPath>().unwrap(), path);
        for reason in DropReason::ALL {
            assert!(text.contains(&format!("\ndrop_{}=0\n", reason.as_str())));
        }
        status.public_key = Some(PrivateKey::generate().unwrap().public_key());
        let text = render(&status, &fixed, Duration::from_secs(90));
        assert!(!text.contains("key_written_seconds"));
    }
}
