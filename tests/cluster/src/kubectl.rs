//! kubectl, as an administrator on node1 runs it.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use serde_json::{Value, json};
use warren_apiserver::program;
use warren_lab::Output;

use crate::cluster::{Cluster, PATIENCE};
use crate::run;

/// How long one call may take, those that wait for something aside.
const CALL_LIMIT: Duration = Duration::from_secs(60);
/// Pause between two questions whether something is so.
const PAUSE: Duration = Duration::from_millis(200);

impl Cluster {
    /// Runs kubectl and gives what it printed.
    ///
    /// # Errors
    /// What it says.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        let all = self.kubectl_arguments(arguments);
        run::ask(self.plane.host(), program("kubectl"), &all, b"", PATIENCE)
    }

    /// Runs kubectl, whatever its code.
    ///
    /// # Errors
    /// Those of the lab.
    pub fn try_kubectl(&self, arguments: &[&str]) -> Result<Output> {
        let all = self.kubectl_arguments(arguments);
        run::call(self.plane.host(), program("kubectl"), &all, b"", CALL_LIMIT)
    }

    /// Its arguments with those that say which cluster and who.
    pub fn kubectl_arguments(&self, arguments: &[&str]) -> Vec<String> {
        let kubeconfig = self.plane.directory().join("admin.kubeconfig");
        let mut all = vec![format!("--kubeconfig={}", kubeconfig.display())];
        all.extend(arguments.iter().map(|&argument| argument.to_owned()));
        all
    }

    /// One object, or a list.
    ///
    /// # Errors
    /// What kubectl says.
    pub fn get(&self, arguments: &[&str]) -> Result<Value> {
        let arguments = [&["get", "-o", "json"], arguments].concat();
        Ok(serde_json::from_str(&self.kubectl(&arguments)?)?)
    }

    /// Applies objects.
    ///
    /// # Errors
    /// What kubectl says.
    pub fn apply(&self, objects: &[Value]) -> Result<()> {
        let output = self.try_apply(objects)?;
        if !output.success() {
            bail!("kubectl apply: {}", output.stderr);
        }
        Ok(())
    }

    /// Applies objects, and gives what kubectl says whatever its code.
    ///
    /// # Errors
    /// Those of the lab.
    pub fn try_apply(&self, objects: &[Value]) -> Result<Output> {
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects}).to_string();
        let arguments = self.kubectl_arguments(&["apply", "-f", "-"]);
        let (host, list) = (self.plane.host(), list.as_bytes());
        run::call(host, program("kubectl"), &arguments, list, CALL_LIMIT)
    }

    /// Waits until a question is answered by yes.
    ///
    /// # Errors
    /// `what` was not so in time; the question's last error with it.
    pub fn wait(
        &self,
        what: &str,
        limit: Duration,
        mut question: impl FnMut() -> Result<bool>,
    ) -> Result<Duration> {
        let start = Instant::now();
        loop {
            let answer = question();
            if matches!(answer, Ok(true)) {
                return Ok(start.elapsed());
            }
            if start.elapsed() > limit {
                let last = answer.err().map(|e| format!(": {e:#}")).unwrap_or_default();
                bail!("{what}: not within {limit:?}{last}");
            }
            let dead: Vec<String> = self.nodes.iter().flat_map(|n| n.dead_daemons()).collect();
            if !dead.is_empty() {
                bail!("{what}: daemons have ended: {}", dead.join("\n"));
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// Waits until the Nodes of these names are Ready, or until none of them is.
    ///
    /// # Errors
    /// They are not in time.
    pub fn wait_nodes_ready(&self, names: &[&str], ready: bool) -> Result<Duration> {
        let what = format!("nodes {names:?} ready: {ready}");
        self.wait(&what, PATIENCE, || {
            let states = self.ready_states()?;
            let state = |name: &&str| states.iter().find(|(known, _)| known == name);
            Ok(names
                .iter()
                .all(|name| state(name).is_some_and(|(_, is)| *is == ready)))
        })
    }

    /// All Nodes, each with whether it is Ready.
    ///
    /// # Errors
    /// What kubectl says.
    pub fn ready_states(&self) -> Result<Vec<(String, bool)>> {
        let nodes = self.get(&["nodes"])?;
        let items = nodes["items"].as_array().cloned().unwrap_or_default();
        let state = |node: &Value| {
            let name = node["metadata"]["name"].as_str().unwrap_or_default();
            (name.to_owned(), condition(node, "Ready") == Some("True"))
        };
        Ok(items.iter().map(state).collect())
    }

    /// Waits until a Pod is Ready and gives it.
    ///
    /// # Errors
    /// It is not in time; then with what `kubectl describe` says of it.
    pub fn wait_pod_ready(&self, namespace: &str, name: &str) -> Result<Value> {
        let mut pod = Value::Null;
        let waited = self.wait(&format!("pod {namespace}/{name}"), PATIENCE, || {
            pod = self.get(&["pod", "-n", namespace, name])?;
            Ok(condition(&pod, "Ready") == Some("True"))
        });
        if let Err(e) = waited {
            let told = self.try_kubectl(&["describe", "pod", "-n", namespace, name])?;
            return Err(e.context(told.stdout));
        }
        Ok(pod)
    }
}

/// The status of a condition of an object.
pub(crate) fn condition<'a>(object: &'a Value, kind: &str) -> Option<&'a str> {
    let conditions = object["status"]["conditions"].as_array()?;
    let found = conditions.iter().find(|c| c["type"] == kind)?;
    found["status"].as_str()
}
