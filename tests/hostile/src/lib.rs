//! Bad traffic against the real `warren-tunnel` on hosts of a lab.
//!
//! Job: make what an attacker would send ([`forge`], [`mutate`], the program `hostile-flood`),
//! what a peer that lies would seal ([`sealer`]), and what a bad network does (the program
//! `hostile-relay`), be a thousand peers at once (`hostile-crowd`), and measure what is left of honest traffic ([`node`], [`flow`]).
//!
//! It refuses to stand in for the tunnel: what is attacked is always the program that ships.
//!
//! The sizes follow the environment variable `WARREN_LONG`: without it each test takes seconds. In CI
//! (`CI` is set) goodput is printed and not judged: a machine that others share would fail it.

pub mod crowd;
pub mod flow;
pub mod forge;
pub mod mutate;
pub mod node;
pub mod random;
pub mod sealer;

/// Tells whether the long forms are asked for (`WARREN_LONG` is set).
pub fn is_long() -> bool {
    std::env::var_os("WARREN_LONG").is_some_and(|value| !value.is_empty())
}

/// Tells whether a measured goodput is judged, and not only printed.
pub fn judges_goodput() -> bool {
    std::env::var_os("CI").is_none()
}
