//! Sealing and opening: by ring, by boringtun, by the engine.

use std::hint::black_box;
use std::time::Duration;

use boringtun::noise::TunnResult;
use criterion::{BenchmarkId, Criterion, Throughput};
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use warren_tunnel::Now;

use crate::cpu_time::{CpuTime, cpu_time};
use crate::engines::{connected, packet};
use crate::tunn;

/// A small packet, and TCP's full segments on an underlay of 1,500 bytes.
const LENGTHS: [usize; 2] = [64, 1440];
/// Packets that are sealed before they are opened: what is opened is not what was just in the cache.
const BATCH: u64 = 128;

/// Times one packet from plain text to datagram.
pub(crate) fn measure_sealing(criterion: &mut Criterion<CpuTime>) {
    let mut group = criterion.benchmark_group("seal");
    for len in LENGTHS {
        group.throughput(Throughput::Bytes(len as u64));
        let (key, mut bytes, mut counter) = (key(), vec![7; len], 0);
        group.bench_function(BenchmarkId::new("ring", len), |bencher| {
            bencher.iter(|| {
                counter += 1;
                let tag = key.seal_in_place_separate_tag(nonce(counter), Aad::empty(), &mut bytes);
                black_box(tag.unwrap().as_ref().len())
            });
        });
        let inner = packet("10.1.0.1", "10.2.0.1", len, 7);
        let (mut a, _) = tunn::connected();
        let mut room = vec![0; len + 256];
        group.bench_function(BenchmarkId::new("boringtun", len), |bencher| {
            bencher.iter(|| match a.encapsulate(&inner, &mut room) {
                TunnResult::WriteToNetwork(message) => message.len(),
                other => panic!("not sealed: {other:?}"),
            });
        });
        let now = Now::read();
        let (mut a, _) = connected(now);
        group.bench_function(BenchmarkId::new("engine", len), |bencher| {
            bencher.iter(|| {
                a.engine.handle_tun_packet(now, &inner, &mut a.out);
                if a.out.is_full() {
                    a.out.clear();
                }
            });
        });
        let counters = a.engine.counters();
        assert_eq!(counters.drops.total(), 0, "{counters:?}");
    }
}

/// Times one datagram to plain text.
pub(crate) fn measure_opening(criterion: &mut Criterion<CpuTime>) {
    let mut group = criterion.benchmark_group("open");
    for len in LENGTHS {
        group.throughput(Throughput::Bytes(len as u64));
        let (key, mut counter) = (key(), 0);
        group.bench_function(BenchmarkId::new("ring", len), |bencher| {
            bencher.iter_custom(|count| {
                in_batches(count, |batch| {
                    let first = counter + 1;
                    let sealed = (0..batch).map(|_| {
                        counter += 1;
                        let mut bytes = vec![7; len];
                        let sealed =
                            key.seal_in_place_append_tag(nonce(counter), Aad::empty(), &mut bytes);
                        sealed.unwrap();
                        bytes
                    });
                    let mut sealed: Vec<_> = sealed.collect();
                    let start = cpu_time();
                    for (counter, bytes) in (first..).zip(&mut sealed) {
                        let opened = key.open_in_place(nonce(counter), Aad::empty(), bytes);
                        assert_eq!(opened.unwrap().len(), len);
                    }
                    cpu_time() - start
                })
            });
        });
        let inner = packet("10.1.0.1", "10.2.0.1", len, 7);
        let (mut a, mut b) = tunn::connected();
        let mut room = vec![0; len + 256];
        group.bench_function(BenchmarkId::new("boringtun", len), |bencher| {
            bencher.iter_custom(|count| {
                in_batches(count, |batch| {
                    let sealed = (0..batch).map(|_| tunn::sent(a.encapsulate(&inner, &mut room)));
                    let sealed: Vec<_> = sealed.collect();
                    let start = cpu_time();
                    for datagram in &sealed {
                        let opened = b.decapsulate(None, datagram, &mut room);
                        assert!(matches!(opened, TunnResult::WriteToTunnelV4(..)));
                    }
                    cpu_time() - start
                })
            });
        });
        let now = Now::read();
        let (mut a, mut b) = connected(now);
        group.bench_function(BenchmarkId::new("engine", len), |bencher| {
            bencher.iter_custom(|count| {
                in_batches(count, |batch| {
                    let sealed = (0..batch).flat_map(|_| a.tun(now, &inner));
                    let sealed: Vec<_> = sealed.collect();
                    let start = cpu_time();
                    for (_, datagram) in &sealed {
                        let from = a.address;
                        b.engine.handle_datagram(now, from, datagram, &mut b.out);
                        if b.out.is_full() {
                            b.out.clear();
                        }
                    }
                    cpu_time() - start
                })
            });
        });
        let counters = b.engine.counters();
        assert_eq!(counters.drops.total(), 0, "{counters:?}");
    }
}

/// Does a number of times what is done to batches, and adds up what of that is to be timed.
fn in_batches(count: u64, mut work: impl FnMut(u64) -> Duration) -> Duration {
    let whole = (0..count / BATCH).map(|_| BATCH);
    let rest = Some(count % BATCH).filter(|rest| *rest > 0);
    whole.chain(rest).map(&mut work).sum()
}

fn key() -> LessSafeKey {
    LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, &[7; 32]).unwrap())
}

fn nonce(counter: u64) -> Nonce {
    let mut bytes = [0; 12];
    bytes[4..].copy_from_slice(&counter.to_le_bytes());
    Nonce::assume_unique_for_key(bytes)
}
