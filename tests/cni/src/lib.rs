//! What the tests of `warren-cni` share: a node that is protected by the agent's own rules, the
//! plugin's process, the schemas of results, and the programs of others.
//!
//! ```text
//!   pod (own netns)            node (own netns)                     outside (own netns)
//!   eth0 10.244.1.x/32         wrn....  | warren0 |  uplink -------- eth0 192.0.2.9/24
//!        fd00:0:0:1::x/128              | .1 ::1  |  192.0.2.1            2001:db8::9/64
//!          \_______ veth _______/                    2001:db8::1
//! ```
//!
//! `warren0` is a veth here, and a thread stands in for `warren-tunnel`'s status socket: the tunnel
//! itself is not under test.

#![allow(
    clippy::unwrap_used,
    missing_docs,
    reason = "a failed step is a failed test, and this crate is read by its tests only"
)]

pub mod ns;
pub mod schema;
pub mod tools;
pub mod world;

pub use ns::Ns;
pub use world::{Reply, World};

/// Whether namespaces can be made; says so when not, and fails where a skip is not allowed.
pub fn require_root() -> bool {
    nix::unistd::geteuid().is_root() || skip("it makes network namespaces, which needs root")
}

/// Says that a test is skipped; where no skip is allowed, it fails.
pub fn skip(reason: &str) -> bool {
    assert!(
        std::env::var_os("CI").is_none(),
        "skipped: {reason}; CI may not skip it"
    );
    eprintln!("skipped: {reason}");
    false
}

/// Ends a test where namespaces cannot be made.
#[macro_export]
macro_rules! world {
    () => {
        match $crate::require_root() {
            true => $crate::World::new(),
            false => return,
        }
    };
}
