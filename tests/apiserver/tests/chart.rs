//! The chart as people install it, by the real helm, at an API server that has no kubelets.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use serde_json::{Value, json};
use warren_apiserver::{
    AGENT, ControlPlane, Options, block_on, program, send, set_policies_in_force, skip_reason,
};
use warren_lab::{Lab, Output};

const LIMIT: Duration = Duration::from_secs(60);
const NAMESPACE: &str = "warren-system";
const CIDRS: &str = "clusterCIDRs={10.244.0.0/16,fd00:244::/48}";

struct Cluster {
    plane: ControlPlane,
    _lab: Lab,
}

impl Cluster {
    /// A control plane with the controllers that make pods, or why there is none here.
    fn start(name: &str) -> Result<Option<Self>> {
        let helm = program("helm");
        let missing = (!helm.is_file())
            .then(|| format!("{} is missing: run tests/helm/prepare", helm.display()));
        if let Some(reason) = skip_reason().or(missing) {
            assert!(std::env::var_os("CI").is_none(), "skipped in CI: {reason}");
            eprintln!("skipped: {reason}");
            return Ok(None);
        }
        let lab = Lab::new(name)?;
        let mut options = Options::default();
        options
            .controllers
            .extend(["daemonset-controller", "job-controller"]);
        let plane = ControlPlane::start(&lab.host("control-plane")?, options)?;
        Ok(Some(Self { plane, _lab: lab }))
    }

    /// The command that runs helm in the namespace, with a home of its own.
    fn helm(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(program("helm"));
        command
            .arg("--kubeconfig")
            .arg(self.plane.directory().join("admin.kubeconfig"))
            .args(["--namespace", NAMESPACE])
            .args(arguments)
            .env("HOME", self.plane.directory());
        command
    }

    fn helm_says(&self, arguments: &[&str]) -> Result<Output> {
        Ok(self.plane.host().output(&mut self.helm(arguments), LIMIT)?)
    }

    fn request(&self, method: &str, path: &str, body: Option<Value>) -> Result<Value> {
        block_on(self.plane.host(), async || {
            let admin = self.plane.admin().await?;
            send(&admin, method, path, body.as_ref())
                .await?
                .map_err(anyhow::Error::msg)
        })
    }

    fn daemon_set(&self, name: &str) -> Result<Value> {
        let path = format!("/apis/apps/v1/namespaces/{NAMESPACE}/daemonsets/{name}");
        self.request("GET", &path, None)
    }

    /// The pods of one component.
    fn pods(&self, component: &str) -> Result<Vec<Value>> {
        let label = format!("app.kubernetes.io/component%3D{component}");
        let path = format!("/api/v1/namespaces/{NAMESPACE}/pods?labelSelector={label}");
        Ok(self.request("GET", &path, None)?["items"]
            .as_array()
            .cloned()
            .unwrap_or_default())
    }

    /// Everything in the cluster with our label, as `KIND name`.
    fn ours(&self) -> Result<Vec<String>> {
        let mut found = Vec::new();
        for (group, kinds) in [
            ("/api/v1", &["serviceaccounts", "configmaps", "pods"][..]),
            ("/apis/apps/v1", &["daemonsets"]),
            ("/apis/batch/v1", &["jobs"]),
            (
                "/apis/rbac.authorization.k8s.io/v1",
                &[
                    "clusterroles",
                    "clusterrolebindings",
                    "roles",
                    "rolebindings",
                ],
            ),
            (
                "/apis/admissionregistration.k8s.io/v1",
                &[
                    "validatingadmissionpolicies",
                    "validatingadmissionpolicybindings",
                ],
            ),
        ] {
            for kind in kinds {
                let path = format!("{group}/{kind}?labelSelector=app.kubernetes.io/name%3Dwarren");
                let list = self.request("GET", &path, None)?;
                for item in list["items"].as_array().into_iter().flatten() {
                    found.push(format!("{kind} {}", item["metadata"]["name"]));
                }
            }
        }
        Ok(found)
    }

    fn until<T>(&self, what: &str, look: impl Fn() -> Result<Option<T>>) -> Result<T> {
        let deadline = Instant::now() + LIMIT;
        loop {
            match look() {
                Ok(Some(found)) => return Ok(found),
                other if Instant::now() > deadline => {
                    bail!("not in time: {what}: {:?}", other.err());
                }
                _ => std::thread::sleep(Duration::from_millis(200)),
            }
        }
    }
}

fn chart() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/chart")
}

fn path_of(pod: &Value) -> String {
    let name = pod["metadata"]["name"].as_str().unwrap();
    format!("/api/v1/namespaces/{NAMESPACE}/pods/{name}")
}

/// Topology: a control plane alone, with one Node that no kubelet serves: the test says what a kubelet would.
#[test]
fn helm_installs_upgrades_and_uninstalls_the_chart() -> Result<()> {
    let Some(cluster) = Cluster::start("chart")? else {
        return Ok(());
    };
    let chart = chart().display().to_string();
    let node = json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": "node1", "labels": {"kubernetes.io/os": "linux"}},
        "status": {"conditions": [{"type": "Ready", "status": "True"}]},
    });
    cluster.request("POST", "/api/v1/nodes", Some(node))?;
    let space = |standard: &str| json!({"metadata": {"name": NAMESPACE, "labels": {"pod-security.kubernetes.io/enforce": standard}}});
    cluster.request("POST", "/api/v1/namespaces", Some(space("restricted")))?;

    // Pods in the host's network would be refused one by one, with nobody who sees it.
    let install = ["install", "warren", &chart, "--set", CIDRS];
    let refused = cluster.helm_says(&install)?;
    let expected = "namespace warren-system enforces the pod security standard \"restricted\", which refuses pods in \
                    the host's network:\n\n  kubectl label --overwrite namespace warren-system \
                    pod-security.kubernetes.io/enforce=privileged\n";
    assert!(refused.stderr.contains(expected), "{}", refused.stderr);
    assert_eq!(cluster.ours()?, [""; 0]);
    cluster.request(
        "PATCH",
        &format!("/api/v1/namespaces/{NAMESPACE}"),
        Some(space("privileged")),
    )?;

    let installed = cluster.helm_says(&install)?;
    assert!(installed.status.success(), "{}", installed.stderr);
    // The API server warns of fields that it does not know.
    assert!(
        !installed.stderr.to_lowercase().contains("warn"),
        "{}",
        installed.stderr
    );
    assert!(
        installed
            .stdout
            .contains("exec ds/warren-agent -- warren status"),
        "{}",
        installed.stdout
    );
    block_on(cluster.plane.host(), async || {
        set_policies_in_force(&cluster.plane, AGENT, true).await
    })?;
    // Pods are made of the templates: admission takes them.
    for component in ["agent", "tunnel"] {
        let made = || Ok(cluster.pods(component)?.pop());
        let pod = cluster.until(component, made)?;
        assert_eq!(pod["spec"]["priorityClassName"], "system-node-critical");
        assert_eq!(pod["spec"]["hostNetwork"], true);
    }

    // What concerns the agents replaces them, and leaves the tunnels.
    let upgrade = [
        "upgrade",
        "warren",
        &chart,
        "--reset-then-reuse-values",
        "--set",
        "logLevel=debug",
    ];
    let upgraded = cluster.helm_says(&upgrade)?;
    assert!(upgraded.status.success(), "{}", upgraded.stderr);
    let generation = |name: &str| {
        Ok::<_, anyhow::Error>(cluster.daemon_set(name)?["metadata"]["generation"].clone())
    };
    assert_eq!(generation("warren-agent")?, 2);
    assert_eq!(generation("warren-tunnel")?, 1);

    let mut uninstall = cluster.helm(&["uninstall", "warren", "--timeout", "2m"]);
    let uninstall = cluster.plane.host().spawn(&mut uninstall)?;
    // On the node: Warren is off.
    let pod = cluster.until("the node's pod", || Ok(cluster.pods("uninstall")?.pop()))?;
    let ready = json!({"status": {"conditions": [{"type": "Ready", "status": "True"}]}});
    cluster.request("PATCH", &format!("{}/status", path_of(&pod)), Some(ready))?;
    // The Job waits for it, as another test shows with the real program.
    let pod = cluster.until("the Job's pod", || {
        Ok(cluster.pods("uninstall-wait")?.pop())
    })?;
    assert!(
        uninstall.is_running(),
        "helm does not wait: {}",
        uninstall.log()
    );
    let remaining = cluster.ours()?;
    assert!(
        !remaining.contains(&"daemonsets \"warren-agent\"".to_owned()),
        "{remaining:?}"
    );
    let done = json!({"status": {"phase": "Succeeded"}});
    cluster.request("PATCH", &format!("{}/status", path_of(&pod)), Some(done))?;
    cluster.until("helm's end", || Ok((!uninstall.is_running()).then_some(())))?;
    let text = uninstall.log();
    assert!(text.contains("release \"warren\" uninstalled"), "{text}");
    // What a kubelet would have ended by now.
    for pod in
        cluster.request("GET", &format!("/api/v1/namespaces/{NAMESPACE}/pods"), None)?["items"]
            .as_array()
            .unwrap()
    {
        let now = json!({"gracePeriodSeconds": 0});
        // The garbage collector may be sooner.
        let _ = cluster.request("DELETE", &path_of(pod), Some(now));
    }
    cluster.until("nothing of ours is left", || {
        Ok(cluster.ours()?.is_empty().then_some(()))
    })?;
    Ok(())
}
