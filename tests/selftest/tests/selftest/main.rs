//! The scenarios, a file for each topic. Each is run with either implementation in the first role.
//!
//! All of them in a virtual machine: `make test-selftest`. On a machine whose kernel has WireGuard:
//! `cargo test -p warren-selftest`. With `WARREN_SELFTEST_BOTH=ours` or `kernel` both ends are the same.

/// Makes tests of scenarios, for either order of the implementations.
macro_rules! scenarios {
    ($($scenario:ident)*) => {$(
        mod $scenario {
            #[test]
            fn ours_first() {
                warren_selftest::run(super::$scenario, warren_selftest::Roles::OURS_FIRST);
            }

            #[test]
            fn kernel_first() {
                warren_selftest::run(super::$scenario, warren_selftest::Roles::KERNEL_FIRST);
            }
        }
    )*};
}

mod configuration;
mod keys;
mod nat;
mod nested;
mod roaming;
mod routing;
mod sources;
mod teardown;
mod traffic;
