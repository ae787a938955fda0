//! warren-tunnel beside every other implementation of WireGuard.
//!
//! A [`Bench`] is two machines on a switch: on one runs warren-tunnel, on the other what an
//! [`Implementation`] says, be it a program on a host of the lab or the kernel of a virtual
//! machine. A scenario is written once against the bench's two [`End`]s and run for each of
//! [`implementations`]. What they run is installed or built by `tests/interop/prepare`.
//!
//! What it refuses to do: configure an end by anything but the stock `wg` and `ip`.

mod bench;
mod end;
mod flood;
mod guest;
mod implementation;
mod machine;
pub mod protocol;

pub use bench::{Bench, Side, with_bench};
pub use end::{End, Outer, PeerDump, PeerSettings, Stream};
pub use flood::{Flood, FloodPace};
pub use implementation::{Counting, Implementation, Moving, implementations};
pub use machine::{Background, Machine};

/// A result whose error names what was done.
pub type Result<T = ()> = anyhow::Result<T>;
