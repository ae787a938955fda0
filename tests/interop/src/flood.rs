//! Forged initiations whose MAC1 is right: what anyone can send who knows a public key.

use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context as _;
use blake2::digest::KeyInit;
use blake2::digest::Mac as _;
use blake2::digest::consts::U16;
use blake2::{Blake2s256, Blake2sMac, Digest as _};
use warren_lab::Host;

use crate::Result;

/// Where MAC1 begins in an initiation (WireGuard paper, section 5.4.2).
const MAC1_AT: usize = 116;
const INITIATION_LEN: usize = 148;
const COOKIE_LEN: usize = 64;

/// How fast a flood is.
#[derive(Debug, Clone, Copy)]
pub struct FloodPace {
    /// Initiations sent at once.
    pub burst: u32,
    /// Time between bursts, and between looks whether the answers to the last one have ended: on a
    /// busy machine an emulated kernel would be seconds behind otherwise, and its answers too late
    /// for anybody.
    pub pause: Duration,
}

/// A flood under way; it ends when dropped.
#[derive(Debug)]
pub struct Flood {
    stop: Arc<AtomicBool>,
    cookies: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Flood {
    /// Floods an endpoint from a host of its own.
    ///
    /// # Errors
    ///
    /// When no socket can be had.
    pub fn start(
        host: &Host,
        endpoint: &str,
        public_key: &[u8; 32],
        pace: FloodPace,
    ) -> Result<Self> {
        let any = if endpoint.starts_with('[') {
            "[::]:0"
        } else {
            "0.0.0.0:0"
        };
        let socket = host
            .in_netns(|| UdpSocket::bind(any))?
            .context("a socket for the flood")?;
        socket.connect(endpoint)?;
        socket.set_nonblocking(true)?;
        let key = Blake2s256::new()
            .chain_update(b"mac1----")
            .chain_update(public_key)
            .finalize();
        let mut flood = Self {
            stop: Arc::default(),
            cookies: Arc::default(),
            thread: None,
        };
        let (stop, cookies) = (Arc::clone(&flood.stop), Arc::clone(&flood.cookies));
        let mut random = [0; INITIATION_LEN];
        getrandom::fill(&mut random)?;
        flood.thread = Some(std::thread::spawn(move || {
            let mut answer = [0; INITIATION_LEN];
            for round in 0_u32.. {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                for number in 0..pace.burst {
                    let message = initiation(&random, round, number, &key);
                    // A full buffer or an ICMP error is part of a flood.
                    let _ = socket.send(&message);
                }
                loop {
                    std::thread::sleep(pace.pause);
                    let mut answers = 0;
                    while let Ok(len) = socket.recv(&mut answer) {
                        answers += 1;
                        if len == COOKIE_LEN && answer[0] == 3 {
                            cookies.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                    if answers == 0 || stop.load(Ordering::Relaxed) {
                        break;
                    }
                }
            }
        }));
        Ok(flood)
    }

    /// How many cookie replies came back so far.
    pub fn cookies(&self) -> u64 {
        self.cookies.load(Ordering::Relaxed)
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // Its panic would have shown already, and drops must not.
            let _ = thread.join();
        }
    }
}

fn initiation(random: &[u8; INITIATION_LEN], round: u32, number: u32, key: &[u8]) -> Vec<u8> {
    let mut message = random.to_vec();
    message[..4].copy_from_slice(&1_u32.to_le_bytes());
    message[4..8].copy_from_slice(&number.to_le_bytes());
    // Another ephemeral key each time, so that no result can be kept.
    message[8..12].copy_from_slice(&number.to_le_bytes());
    message[12..16].copy_from_slice(&round.to_le_bytes());
    let Ok(mut mac) = <Blake2sMac<U16> as KeyInit>::new_from_slice(key) else {
        unreachable!("a BLAKE2s key may have 32 bytes, and a hash has");
    };
    mac.update(&message[..MAC1_AT]);
    message[MAC1_AT..MAC1_AT + 16].copy_from_slice(&mac.finalize().into_bytes());
    message[MAC1_AT + 16..].fill(0);
    message
}
