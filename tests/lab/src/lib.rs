//! Network hosts for tests: namespaces joined by links, with routers, faults and captures.
//!
//! A [`Lab`] holds hosts, each a set of network, mount, PID, UTS and IPC namespaces, joined by veth
//! pairs and switches that all live inside the lab's own namespaces. Nothing of it is visible
//! in the machine's own namespaces, and nothing of it outlives the test process, however that ends,
//! unless [`Lab::detach`] asks for it.
//!
//! What it refuses to do: simulate. Programs are the real ones, packets go through the kernel.
//!
//! ```no_run
//! use warren_lab::Lab;
//!
//! fn main() -> Result<(), warren_lab::LabError> {
//!     let lab = Lab::new("example")?;
//!     let (node1, node2) = (lab.host("node1")?, lab.host("node2")?);
//!     let lan = lab.bridge("lan")?;
//!     lab.connect(node1.end("eth0").addr("10.0.1.1/24").addr("fd01::1/64"), lan.port())?;
//!     let cable = lab.connect(node2.end("eth0").addr("10.0.1.2/24").addr("fd01::2/64"), lan.port())?;
//!     node1.run(&["ping", "-c1", "10.0.1.2"])?;
//!     cable.cut()?;
//!     assert!(!node1.try_run(&["ping", "-c1", "-W1", "10.0.1.2"])?.success());
//!     Ok(())
//! }
//! ```

mod capture;
mod cgroup;
mod directory;
mod error;
mod holder;
mod host;
mod lab;
mod link;
mod nat;
mod privilege;
mod process;
mod space;
mod util;

pub use capture::{
    Allow, Capture, ClearTextRules, Count, Family, KEPT_PACKETS, LinkReport, Offence, Report, Tap,
    WireGuardKind,
};
pub use cgroup::{Hierarchy, hierarchies};
pub use error::{LabError, Result};
pub use host::{Bridge, Host, Pod};
pub use lab::{Detached, Lab};
pub use link::{Direction, End, Link};
pub use nat::NatRouter;
pub use nix::sys::signal::Signal;
pub use privilege::{Privilege, Skipped, enter_user_namespace_if_needed, privilege, skip_reason};
pub use process::{Output, Proc};
pub use space::{COMMAND_LIMIT, Space};
pub use util::{bin, patience, poll_for, poll_until};
