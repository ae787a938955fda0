//! Virtual machines on the hosts of a lab, by plain QEMU.
//!
//! ```text
//!   the lab's switch        the lab's host                              the machine
//!   ------------------ eth0 ---- br0 ---- tap0 ====================== the private network
//!                                         control0 192.168.255.1 ==== 192.168.255.2, the way in for the tests
//! ```
//!
//! A machine's cable is the host's link to the lab's switch, so that all a lab does with links is done with
//! machines too: cutting, losing, capturing. A machine is a process of its host, and ends with the lab.
//!
//! What it refuses to do: know what runs inside. Its main types are [`Qemu`], [`Card`] and [`Accel`].

mod accel;
mod cable;
mod qemu;

pub use accel::Accel;
pub use cable::{CONTROL_GUEST, CONTROL_HOST, Card, wire};
pub use qemu::Qemu;

/// A result whose error names what was done.
pub type Result<T = ()> = anyhow::Result<T>;
