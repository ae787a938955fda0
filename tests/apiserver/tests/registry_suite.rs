//! The suite that every registry passes, against the real API server.
//!
//! ```text
//!  host control-plane: etcd, kube-apiserver <-- proxy on the loopback <-- registry
//!                                           <-- the test, as an admin
//! ```

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod cluster;
#[path = "../../../mesh/agent/tests/registry_suite/mod.rs"]
mod registry_suite;

use anyhow::Result;
use cluster::{Cluster, Empty};
use warren_apiserver::skip_reason;

#[test]
fn passes_the_suite() -> Result<()> {
    if let Some(reason) = skip_reason() {
        assert!(std::env::var_os("CI").is_none(), "skipped in CI: {reason}");
        eprintln!("skipped: {reason}");
        return Ok(());
    }
    let cluster = Cluster::start("registry-suite", Vec::new())?;
    cluster.block_on(async || registry_suite::run(|| Empty::new(&cluster)).await);
    Ok(())
}
