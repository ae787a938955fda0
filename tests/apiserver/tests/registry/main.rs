//! The registry of Kubernetes' Nodes against the real API server: the suite that every registry
//! passes, what can happen to the server ([`faults`]) and on the way to it ([`away`]), and what is written there ([`writes`]).
//!
//! ```text
//!  host control-plane: etcd, kube-apiserver <-- proxy on the loopback <-- registry
//!                                           <-- the test, as an admin
//! ```

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod away;
mod cluster;
mod faults;
#[path = "../../../../mesh/agent/tests/registry_suite/mod.rs"]
mod registry_suite;
mod writes;

use anyhow::Result;
use cluster::{Cluster, Empty};
use warren_apiserver::{Identity, skip_reason};
use warren_lab::Host;

/// Starts a cluster for a test that knows these identities, unless it cannot run here.
fn start(
    name: &str,
    identities: Vec<Identity>,
    flags: impl FnOnce(&Host) -> Result<Vec<String>>,
) -> Result<Option<Cluster>> {
    if let Some(reason) = skip_reason() {
        assert!(std::env::var_os("CI").is_none(), "skipped in CI: {reason}");
        eprintln!("skipped: {reason}");
        return Ok(None);
    }
    Cluster::start(name, identities, flags).map(Some)
}

#[test]
fn passes_the_suite() -> Result<()> {
    let Some(cluster) = start("registry-suite", Vec::new(), |_| Ok(Vec::new()))? else {
        return Ok(());
    };
    cluster.block_on(async || registry_suite::run(|| Empty::new(&cluster)).await);
    Ok(())
}
