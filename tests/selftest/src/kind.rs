//! Which WireGuard is at which end.

use std::sync::OnceLock;

use warren_lab::{Lab, Skipped as _};

use crate::Result;

/// An implementation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `warren-tunnel` as a drop-in: `warren-tunnel wg0`.
    Ours,
    /// `ip link add wg0 type wireguard`.
    Kernel,
}

/// The kinds of the first and the second device of a scenario.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Roles {
    /// Of the end that a scenario looks at.
    pub first: Kind,
    /// Of the other one.
    pub second: Kind,
}

/// Names what both devices are, to try scenarios where the kernel has no WireGuard: `ours` or `kernel`.
const BOTH: &str = "WARREN_SELFTEST_BOTH";

impl Roles {
    /// `warren-tunnel` first.
    pub const OURS_FIRST: Self = Self {
        first: Kind::Ours,
        second: Kind::Kernel,
    };
    /// The kernel's first.
    pub const KERNEL_FIRST: Self = Self {
        first: Kind::Kernel,
        second: Kind::Ours,
    };

    fn asked_for(self) -> Self {
        let both = |kind| Self {
            first: kind,
            second: kind,
        };
        match std::env::var(BOTH).as_deref() {
            Ok("ours") => both(Kind::Ours),
            Ok("kernel") => both(Kind::Kernel),
            _ => self,
        }
    }
}

/// Runs a scenario, or tells why it is skipped.
///
/// # Panics
///
/// When it fails; when it is skipped and the environment variable `CI` is set.
pub fn run(scenario: fn(Roles) -> Result, roles: Roles) {
    if warren_lab::skip_reason().is_some() {
        return <()>::skipped();
    }
    let roles = roles.asked_for();
    if [roles.first, roles.second].contains(&Kind::Kernel)
        && let Some(missing) = kernel_lacks_wireguard()
    {
        assert!(
            std::env::var_os("CI").is_none(),
            "a test cannot run in CI: {missing}"
        );
        eprintln!("skipped: {missing}");
        return;
    }
    if let Err(error) = scenario(roles) {
        panic!("{roles:?}: {error:#}");
    }
}

/// Tells, by trying once a process, why there can be no device of the kernel's.
fn kernel_lacks_wireguard() -> Option<&'static str> {
    static MISSING: OnceLock<Option<String>> = OnceLock::new();
    let missing = MISSING.get_or_init(|| {
        let tried =
            Lab::new("look").and_then(|lab| lab.host("look")?.sh("ip link add wg0 type wireguard"));
        let why = "this kernel makes no WireGuard device (make test-selftest boots one that does)";
        tried.err().map(|error| format!("{why}: {error}"))
    });
    missing.as_deref()
}
