//! Lets the tests, and all that is linked into them, read the clock that `src/clock.rs` drives.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-link-arg-tests=-Wl,--wrap=clock_gettime");
}
