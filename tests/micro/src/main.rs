//! `make bench-micro`: what the parts of the data plane cost, each alone in one thread.
//!
//! Job: time the route look-up, cutting and putting together of super-packets, sealing and opening,
//! by criterion. Sealing and opening are timed three times: ring's cipher alone, boringtun's session
//! around it, and the engine around that, which is what a packet costs us besides system calls. Times are the thread's processor time.
//!
//! It refuses to judge: `make bench` compares.

#![allow(clippy::unwrap_used)] // what cannot begin has nothing to time

mod coalesce;
mod cpu_time;
mod lookup;
mod seal;
mod segment;
mod super_packets;
mod tunn;

// The engines and the packets of the tunnel's own tests.
#[path = "../../../mesh/tunnel/tests/support/mod.rs"]
mod engines;
#[path = "../../../mesh/tunnel/tests/support/naive_offload.rs"]
mod naive;

use std::time::Duration;

use criterion::Criterion;

use cpu_time::CpuTime;

fn main() {
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .sample_size(50)
        .with_measurement(CpuTime)
        .configure_from_args();
    lookup::measure(&mut criterion);
    segment::measure(&mut criterion);
    coalesce::measure(&mut criterion);
    seal::measure_sealing(&mut criterion);
    seal::measure_opening(&mut criterion);
    criterion.final_summary();
}
