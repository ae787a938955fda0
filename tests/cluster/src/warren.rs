//! Warren on the cluster, installed as a user would: by Helm, from the chart and the images of this checkout.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use serde_json::Value;
use warren_apiserver::program;

use crate::cluster::{Cluster, PATIENCE};
use crate::node::Node;
use crate::run;
use crate::settings::{CLUSTER_CIDRS, SERVICE_CIDRS};

/// The namespace and the release.
pub const NAMESPACE: &str = "warren-system";
const RELEASE: &str = "warren";
/// The UDP port between the nodes.
pub const PORT: u16 = 51871;
const IMAGES: [&str; 3] = ["warren-tunnel", "warren-agent", "warren-cni"];

/// One of Warren's two DaemonSets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Daemon {
    /// The controller.
    Agent,
    /// The data plane.
    Tunnel,
}

impl Daemon {
    /// The value of its pods' label `app.kubernetes.io/component`, and its container's name.
    pub fn component(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::Tunnel => "tunnel",
        }
    }

    /// The DaemonSet's name, and its program's.
    pub fn name(self) -> &'static str {
        match self {
            Self::Agent => "warren-agent",
            Self::Tunnel => "warren-tunnel",
        }
    }
}

/// Why Warren cannot be installed, if it cannot.
pub fn skip_reason() -> Option<String> {
    let missing = images().into_iter().find(|path| !path.is_file());
    if let Some(path) = missing {
        return Some(format!("{} is missing: run make image", path.display()));
    }
    let helm = program("helm");
    let told = || format!("{} is missing: run tests/helm/prepare", helm.display());
    (!helm.is_file()).then(told)
}

/// The images that `make image` makes.
pub fn images() -> [PathBuf; 3] {
    IMAGES.map(|name| checkout().join(format!("target/images/{name}.tar")))
}

/// Imports the images on a node, as its runtime would pull them.
///
/// # Errors
/// What `ctr` says.
pub fn import_images(node: &Node) -> Result<()> {
    images().iter().try_for_each(|image| node.import(image))
}

/// Installs the chart; does not wait for its pods.
///
/// # Errors
/// What helm says.
pub fn install(cluster: &Cluster) -> Result<()> {
    helm(
        cluster,
        &["install", RELEASE, &chart(), "--create-namespace"],
        &[],
    )
}

/// Upgrades the release to other values, those of [`install`] beside them.
///
/// # Errors
/// What helm says.
pub fn upgrade(cluster: &Cluster, values: &[&str]) -> Result<()> {
    helm(cluster, &["upgrade", RELEASE, &chart()], values)
}

/// Uninstalls the release and waits until it is gone.
///
/// # Errors
/// What helm says.
pub fn uninstall(cluster: &Cluster) -> Result<()> {
    let kubeconfig = cluster.plane.directory().join("admin.kubeconfig");
    let kubeconfig = kubeconfig.display().to_string();
    let arguments = [
        "uninstall",
        RELEASE,
        "--wait",
        "--namespace",
        NAMESPACE,
        "--kubeconfig",
        &kubeconfig,
    ];
    run::ask(
        cluster.plane.host(),
        program("helm"),
        &arguments,
        b"",
        PATIENCE * 2,
    )
    .map(drop)
}

fn helm(cluster: &Cluster, arguments: &[&str], values: &[&str]) -> Result<()> {
    let kubeconfig = cluster.plane.directory().join("admin.kubeconfig");
    let mut all: Vec<String> = arguments.iter().map(|&a| a.to_owned()).collect();
    all.extend(["--namespace".into(), NAMESPACE.into()]);
    all.extend(["--kubeconfig".into(), kubeconfig.display().to_string()]);
    let ranges = format!("clusterCIDRs={{{}}}", CLUSTER_CIDRS.join(","));
    let reserved = format!("reservedCIDRs={{{}}}", SERVICE_CIDRS.join(","));
    for value in [ranges.as_str(), reserved.as_str()].iter().chain(values) {
        all.extend(["--set".into(), (*value).to_owned()]);
    }
    run::ask(cluster.plane.host(), program("helm"), &all, b"", PATIENCE).map(drop)
}

fn chart() -> String {
    checkout().join("deploy/chart").display().to_string()
}

fn checkout() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The pods of a daemon by node, those that are going away left out.
///
/// # Errors
/// What kubectl says.
pub fn pods(cluster: &Cluster, daemon: Daemon) -> Result<BTreeMap<String, Value>> {
    let selector = format!("app.kubernetes.io/component={}", daemon.component());
    let list = cluster.get(&["pods", "-n", NAMESPACE, "-l", &selector])?;
    let items = list["items"].as_array().cloned().unwrap_or_default();
    let staying = items
        .into_iter()
        .filter(|pod| pod["metadata"]["deletionTimestamp"].is_null());
    Ok(staying
        .map(|pod| {
            let node = pod["spec"]["nodeName"].as_str().unwrap_or_default();
            (node.to_owned(), pod.clone())
        })
        .collect())
}

/// The name of a daemon's pod on a node.
///
/// # Errors
/// What kubectl says; there is none.
pub fn pod_name(cluster: &Cluster, daemon: Daemon, node: &str) -> Result<String> {
    let pods = pods(cluster, daemon)?;
    let pod = pods
        .get(node)
        .with_context(|| format!("no {} on {node}", daemon.name()))?;
    Ok(pod["metadata"]["name"]
        .as_str()
        .unwrap_or_default()
        .to_owned())
}

/// Waits until a DaemonSet has a Ready pod of its latest template on each node that it wants one on.
///
/// # Errors
/// It has not in time.
pub fn wait_rollout(cluster: &Cluster, daemon: Daemon) -> Result<()> {
    if daemon == Daemon::Agent {
        let resource = format!("daemonset/{}", daemon.name());
        let wait = [
            "rollout",
            "status",
            "-n",
            NAMESPACE,
            &resource,
            "--timeout=170s",
        ];
        return cluster.kubectl(&wait).map(drop);
    }
    // kubectl refuses to wait for a DaemonSet of type OnDelete.
    cluster
        .wait(daemon.name(), PATIENCE, || {
            let set = cluster.get(&["daemonset", "-n", NAMESPACE, daemon.name()])?;
            let status = &set["status"];
            let wanted = &status["desiredNumberScheduled"];
            Ok(
                set["metadata"]["generation"] == status["observedGeneration"]
                    && wanted.as_u64().is_some_and(|n| n > 0)
                    && status["numberReady"] == *wanted,
            )
        })
        .map(drop)
}

/// What `warren status --json` says in the agent's pod of a node.
///
/// # Errors
/// What kubectl and the command say.
pub fn status(cluster: &Cluster, node: &str) -> Result<Value> {
    let pod = pod_name(cluster, Daemon::Agent, node)?;
    let command = [
        "exec", "-n", NAMESPACE, &pod, "-c", "agent", "--", "warren", "status", "--json",
    ];
    Ok(serde_json::from_str(&cluster.kubectl(&command)?)?)
}

/// Waits until each of these nodes is well and has the others for peers, and nobody else.
///
/// # Errors
/// It is not so in time; the last statuses with it.
pub fn wait_mesh(cluster: &Cluster, nodes: &[&str]) -> Result<()> {
    let mut last = String::new();
    let waited = cluster.wait("a whole mesh", PATIENCE, || {
        for node in nodes {
            let status = status(cluster, node)?;
            let peers = status["peers"].as_array().cloned().unwrap_or_default();
            let is_peer = |name: &&&str| peers.iter().any(|peer| peer["node"] == **name);
            let known = nodes.iter().filter(is_peer).count();
            let is_whole = known + 1 == nodes.len() && peers.len() == known;
            if !is_whole || status["state"] != "ok" {
                last = format!("{node}: {status}");
                return Ok(false);
            }
        }
        Ok(true)
    });
    waited.map(drop).with_context(|| last)
}

/// Kills the program of a daemon on a node, as a crash does: its kubelet starts it again.
///
/// # Errors
/// Those of the lab; it does not run there.
pub fn crash(node: &Node, daemon: Daemon) -> Result<()> {
    let pids = pids(node, daemon)?;
    if pids.is_empty() {
        bail!("no {} runs on {}", daemon.name(), node.name());
    }
    let mut kill = vec!["kill".to_owned(), "-9".into()];
    kill.extend(pids);
    node.host.run(&kill)?;
    Ok(())
}

/// The processes of a daemon on a node, as the node numbers them.
///
/// # Errors
/// Those of the lab.
pub fn pids(node: &Node, daemon: Daemon) -> Result<Vec<String>> {
    let script = r#"for process in /proc/[0-9]*; do
        case $(readlink "$process/exe" || true) in */"$0") echo "${process#/proc/}" ;; esac
    done"#;
    let output = node.host.run(&["sh", "-c", script, daemon.name()])?;
    Ok(output.stdout.lines().map(str::to_owned).collect())
}
