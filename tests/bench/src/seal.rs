//! What ring itself takes to seal a GB in packets of 1,440 bytes: no tunnel can send for less.

use std::hint::black_box;
use std::time::{Duration, Instant};

use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};

/// The bytes of a packet: TCP's full segments on an underlay of 1,500 bytes.
const PACKET: usize = 1440;
/// Of those, TCP's payload.
const PAYLOAD: usize = 1388;

/// Processor seconds for each GB of TCP's payload: the best of many tries, each shorter than a turn
/// of another program.
pub(crate) fn cpu_s_per_gb() -> f64 {
    let tries = (0..500).filter_map(|_| seconds_a_packet(Duration::from_millis(1)));
    tries.fold(f64::INFINITY, f64::min) / PAYLOAD as f64 * 1e9
}

fn seconds_a_packet(time: Duration) -> Option<f64> {
    let key = LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, &[7; 32]).ok()?);
    let mut packet = vec![7; PACKET];
    let start = Instant::now();
    let mut count = 0u64;
    while start.elapsed() < time {
        for _ in 0..64 {
            let mut nonce = [0; 12];
            nonce[4..].copy_from_slice(&count.to_le_bytes());
            let nonce = Nonce::assume_unique_for_key(nonce);
            let sealed = key.seal_in_place_separate_tag(nonce, Aad::empty(), &mut packet);
            black_box(sealed.ok()?.as_ref());
            count += 1;
        }
    }
    Some(start.elapsed().as_secs_f64() / count as f64)
}
