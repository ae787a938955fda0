//! Lets all that is linked into the simulator read the clock that the simulator drives.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-link-arg=-Wl,--wrap=clock_gettime");
}
