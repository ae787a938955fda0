//! The helper program that tests run inside hosts and pods.

fn main() {}
