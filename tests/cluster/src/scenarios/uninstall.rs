//! `helm uninstall`.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use serde_json::Value;

use super::World;
use super::topology::NAMESPACE;
use crate::cluster::PATIENCE;
use crate::node::Node;
use crate::warren;

/// Lists what Warren's tables in ARCHITECTURE.md name, as far as it is on a node.
const TRACES: &str = r#"
ip -o link | grep -oE '(warren|wrn)[0-9a-z]*' | sort -u | sed 's/^/link /' || true
nft list tables | grep warren || true
for family in -4 -6; do
    ip $family rule | grep -E '^5187:' || true
    for protocol in 151 152; do ip $family route show table all proto $protocol; done
done
for path in /var/lib/warren /run/warren /run/wireguard/warren0.sock /etc/cni/net.d/10-warren.conflist \
    /opt/cni/bin/warren-cni; do
    [ ! -e "$path" ] || echo "file $path"
done
"#;

/// What is Warren's is gone from nodes and Nodes, and the plugins of others are where they were.
pub(super) fn leaves_no_trace(world: &mut World) -> Result<()> {
    let cluster = &world.cluster;
    let nodes: Vec<&Node> = cluster.nodes.iter().collect();
    let mut plugins = Vec::new();
    for node in &nodes {
        // The check can fail: now all of it is there.
        let traces = traces(node)?;
        ensure!(
            traces.len() > 10,
            "{} is found to have {traces:?} only",
            node.name()
        );
        plugins.push(others_plugins(node)?);
    }
    cluster.kubectl(&["delete", "namespace", NAMESPACE, "--timeout=120s"])?;
    warren::uninstall(cluster)?;
    for (node, plugins) in nodes.iter().zip(plugins) {
        let left = traces(node)?;
        ensure!(left.is_empty(), "left on {}: {left:?}", node.name());
        ensure!(
            others_plugins(node)? == plugins,
            "{}: plugins of others",
            node.name()
        );
        let object = cluster.get(&["node", node.name()])?;
        let annotations = object["metadata"]["annotations"].to_string();
        ensure!(
            !annotations.contains("warren.network/"),
            "{}: {annotations}",
            node.name()
        );
    }
    // Pods of a hook that is deleted take a moment to end.
    let what = "nothing in the namespace";
    cluster.wait(what, PATIENCE, || {
        let left = cluster.get(&["all", "-n", warren::NAMESPACE])?;
        ensure!(left["items"] == Value::Array(Vec::new()), "left: {left}");
        Ok(true)
    })?;
    Ok(())
}

fn traces(node: &Node) -> Result<Vec<String>> {
    let output = node.host.sh(TRACES)?;
    Ok(output.stdout.lines().map(str::to_owned).collect())
}

fn others_plugins(node: &Node) -> Result<BTreeSet<String>> {
    let names = node.host.run(&["ls", "/opt/cni/bin"])?.stdout;
    let others = names.lines().filter(|name| *name != "warren-cni");
    Ok(others.map(str::to_owned).collect())
}
