//! Two tunnels back to back on a network and a clock that a test drives, for hours in seconds.
//!
//! The engines are those that ship, boringtun included, which reads the clock by itself: the linker
//! sends every reading of it to [`clock`]. Time stands still until [`World::run`] moves it to the
//! next thing that happens, on the calling thread only.

#![allow(clippy::unwrap_used)] // a harness of tests

pub mod clock;
mod hub;
mod world;

pub use hub::{Hub, Peers, Sent};
pub use world::{Carried, Path, Side, World};
