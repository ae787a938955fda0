//! What ring itself takes to seal a GB in packets of 1,440 bytes: no tunnel can send for less.

use std::hint::black_box;
use std::num::NonZero;
use std::thread::{self, ScopedJoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail};
use nix::time::{ClockId, clock_gettime};
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};

/// The bytes of a packet: TCP's full segments on an underlay of 1,500 bytes.
const PACKET: usize = 1440;
/// Of those, TCP's payload.
const PAYLOAD: usize = 1388;

/// How long it is measured.
const TIME: Duration = Duration::from_millis(300);

/// Processor seconds for each GB of TCP's payload, while all processors do the same: a tunnel's
/// sender has not its processor's neighbours to itself either.
///
/// # Errors
/// What the kernel says about a thread's processor time, or ring about sealing.
pub(crate) fn cpu_s_per_gb() -> Result<f64> {
    let processors = thread::available_parallelism().map_or(1, NonZero::get);
    let sealed = thread::scope(|scope| {
        let threads: Vec<_> = (0..processors)
            .map(|_| scope.spawn(seconds_and_packets))
            .collect();
        let ended = threads.into_iter().map(ScopedJoinHandle::join);
        ended
            .map(|ended| ended.unwrap_or_else(|_| bail!("a thread that seals has panicked")))
            .collect::<Result<Vec<_>>>()
    })?;
    let seconds: f64 = sealed.iter().map(|(seconds, _)| seconds).sum();
    let packets: u64 = sealed.iter().map(|(_, packets)| packets).sum();
    Ok(seconds / (packets as f64 * PAYLOAD as f64) * 1e9)
}

/// What a thread takes of its processor, and how much it seals in that time.
fn seconds_and_packets() -> Result<(f64, u64)> {
    let key = UnboundKey::new(&CHACHA20_POLY1305, &[7; 32]);
    let key = LessSafeKey::new(key.map_err(|_| anyhow!("ring refuses a key"))?);
    let mut packet = vec![7; PACKET];
    let (start, start_cpu) = (Instant::now(), cpu_time()?);
    let mut count = 0u64;
    while start.elapsed() < TIME {
        for _ in 0..64 {
            let mut nonce = [0; 12];
            nonce[4..].copy_from_slice(&count.to_le_bytes());
            let nonce = Nonce::assume_unique_for_key(nonce);
            let sealed = key.seal_in_place_separate_tag(nonce, Aad::empty(), &mut packet);
            black_box(sealed.map_err(|_| anyhow!("ring does not seal"))?.as_ref());
            count += 1;
        }
    }
    Ok(((cpu_time()? - start_cpu).as_secs_f64(), count))
}

/// The thread's own processor time.
fn cpu_time() -> Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?.into())
}
