//! The control plane itself.
//!
//! ```text
//!  host control-plane: etcd, kube-apiserver, kube-controller-manager; 192.0.2.250 on its loopback
//! ```

use std::time::Duration;

use anyhow::{Result, bail};
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kube::api::PostParams;
use warren_apiserver::{ControlPlane, Options, block_on, skip_reason};
use warren_lab::Lab;

#[test]
fn a_new_node_is_given_a_range_of_each_family() -> Result<()> {
    if let Some(reason) = skip_reason() {
        assert!(std::env::var_os("CI").is_none(), "skipped in CI: {reason}");
        eprintln!("skipped: {reason}");
        return Ok(());
    }
    let lab = Lab::new("control-plane")?;
    let plane = ControlPlane::start(&lab.host("control-plane")?, Options::default())?;
    block_on(plane.host(), async || {
        let nodes: Api<Node> = Api::all(plane.admin().await?);
        let node = serde_json::from_value(serde_json::json!({"metadata": {"name": "node1"}}))?;
        nodes.create(&PostParams::default(), &node).await?;
        for _ in 0..600 {
            let spec = nodes.get("node1").await?.spec.unwrap_or_default();
            if let Some(cidrs) = spec.pod_cidrs {
                assert_eq!(cidrs, ["10.244.0.0/24", "fd00:244::/64"]);
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        bail!("no podCIDRs in time")
    })
}
