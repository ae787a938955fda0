//! How far the nodes are, as the API server tells it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{ContainerStatus, Node, Pod};

/// How many names a line may hold.
const NAMES: usize = 10;

/// Which nodes Warren is off, and which not yet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// It is off these.
    done: BTreeSet<String>,
    /// Not yet off these, and what is known of the cause.
    waiting: BTreeMap<String, String>,
    /// Their kubelets do not answer: nothing can be done there now.
    away: BTreeSet<String>,
    /// How many pods are still to be made.
    unmade: usize,
}

impl Progress {
    /// What a DaemonSet, its pods and all Nodes say.
    pub fn of(set: &DaemonSet, pods: &[Pod], nodes: &[Node]) -> Self {
        let mut progress = Self::default();
        let silent: BTreeSet<&str> = nodes
            .iter()
            .filter(|node| is_silent(node))
            .filter_map(|node| node.metadata.name.as_deref())
            .collect();
        for pod in pods {
            let Some(node) = node_of(pod) else { continue };
            if is_ready(pod) {
                progress.done.insert(node.to_owned());
            } else if silent.contains(node) {
                progress.away.insert(node.to_owned());
            } else {
                progress.waiting.insert(node.to_owned(), cause(pod));
            }
        }
        let status = set.status.as_ref();
        let is_current =
            status.and_then(|status| status.observed_generation) >= set.metadata.generation;
        let wanted = status.map_or(0, |status| status.desired_number_scheduled);
        let wanted = usize::try_from(wanted).unwrap_or(0);
        let made = progress.done.len() + progress.away.len() + progress.waiting.len();
        // Until its controller has seen it, there is one pod at least to be made.
        progress.unmade = if status.is_some() && is_current {
            wanted.saturating_sub(made)
        } else {
            wanted.saturating_sub(made).max(1)
        };
        progress
    }

    /// Whether there is nothing to wait for.
    pub fn is_complete(&self) -> bool {
        self.unmade == 0 && self.waiting.is_empty()
    }

    /// What is to be said of the nodes that Warren is still on, a line each.
    pub fn left(&self) -> Vec<String> {
        let waiting = self.waiting.iter();
        let waiting = waiting.map(|(node, cause)| format!("not off node {node}: {cause}"));
        let away = self.away.iter().map(|node| {
            format!(
                "not off node {node}, which does not answer; when it is back, see \"A node was away\" in \
                 docs/operations.md"
            )
        });
        waiting.chain(away).collect()
    }
}

impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "off {} nodes", self.done.len())?;
        if self.unmade > 0 {
            write!(f, ", {} pods to be made", self.unmade)?;
        }
        if !self.waiting.is_empty() {
            let names: Vec<&str> = self.waiting.keys().map(String::as_str).collect();
            write!(f, ", waiting for {}", shortened(&names))?;
        }
        if !self.away.is_empty() {
            let names: Vec<&str> = self.away.iter().map(String::as_str).collect();
            write!(f, ", no answer from {}", shortened(&names))?;
        }
        Ok(())
    }
}

fn shortened(names: &[&str]) -> String {
    let shown = names[..names.len().min(NAMES)].join(", ");
    match names.len().saturating_sub(NAMES) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

/// The node-lifecycle controller says so of a node whose kubelet is silent.
fn is_silent(node: &Node) -> bool {
    let conditions = node.status.as_ref().and_then(|s| s.conditions.as_ref());
    let mut conditions = conditions.into_iter().flatten();
    conditions.any(|c| c.type_ == "Ready" && c.status == "Unknown")
}

/// The node that a pod is bound to, or that its DaemonSet made it for.
fn node_of(pod: &Pod) -> Option<&str> {
    let spec = pod.spec.as_ref()?;
    if let Some(node) = &spec.node_name {
        return Some(node);
    }
    let affinity = spec.affinity.as_ref()?.node_affinity.as_ref()?;
    let required = affinity
        .required_during_scheduling_ignored_during_execution
        .as_ref()?;
    let mut fields = required
        .node_selector_terms
        .iter()
        .flat_map(|term| term.match_fields.iter().flatten());
    let name = fields.find(|field| field.key == "metadata.name")?;
    name.values.as_ref()?.first().map(String::as_str)
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|s| s.conditions.as_ref());
    let mut conditions = conditions.into_iter().flatten();
    pod.metadata.deletion_timestamp.is_none()
        && conditions.any(|c| c.type_ == "Ready" && c.status == "True")
}

/// Why a pod is not ready, as far as its status tells.
fn cause(pod: &Pod) -> String {
    let Some(status) = &pod.status else {
        return "its pod has not run yet".to_owned();
    };
    let containers = [&status.init_container_statuses, &status.container_statuses];
    let containers = || containers.into_iter().flatten().flatten();
    let ended = containers().find_map(last_words);
    let waits = containers().find_map(|container| {
        let waiting = container.state.as_ref()?.waiting.as_ref()?;
        let reason = waiting.reason.as_deref()?;
        (reason != "PodInitializing").then(|| match &waiting.message {
            Some(message) => format!("{reason}: {message}"),
            None => reason.to_owned(),
        })
    });
    let unscheduled = || {
        let conditions = status.conditions.iter().flatten();
        let mut scheduled = conditions.filter(|c| c.type_ == "PodScheduled" && c.status == "False");
        scheduled.next().and_then(|c| c.message.clone())
    };
    ended
        .or(waits)
        .or_else(unscheduled)
        .unwrap_or_else(|| "its pod is not done yet".to_owned())
}

/// What a container said when it failed.
fn last_words(container: &ContainerStatus) -> Option<String> {
    let states = [&container.state, &container.last_state];
    states.into_iter().flatten().find_map(|state| {
        let ended = state
            .terminated
            .as_ref()
            .filter(|ended| ended.exit_code != 0)?;
        let words = ended.message.as_deref().unwrap_or_default().trim();
        Some(match words {
            "" => format!("exit code {}", ended.exit_code),
            words => words.replace('\n', "; "),
        })
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn set(wanted: i32, observed: i64) -> DaemonSet {
        let set = json!({
            "metadata": {"generation": 1},
            "status": {"observedGeneration": observed, "desiredNumberScheduled": wanted, "currentNumberScheduled": 0,
                "numberMisscheduled": 0, "numberReady": 0},
        });
        serde_json::from_value(set).unwrap()
    }

    fn node(name: &str, ready: &str) -> Node {
        let conditions = json!([{"type": "Ready", "status": ready}]);
        let node = json!({"metadata": {"name": name}, "status": {"conditions": conditions}});
        serde_json::from_value(node).unwrap()
    }

    fn pod(node: &str, status: Value) -> Pod {
        let pod = json!({"spec": {"nodeName": node, "containers": []}, "status": status});
        serde_json::from_value(pod).unwrap()
    }

    fn ready(node: &str) -> Pod {
        let conditions = json!([{"type": "Ready", "status": "True"}]);
        pod(node, json!({"conditions": conditions}))
    }

    fn failed(node: &str, message: &str) -> Pod {
        let containers = json!([{
            "name": "uninstall", "image": "", "imageID": "", "ready": false, "restartCount": 3,
            "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 40s restarting"}},
            "lastState": {"terminated": {"exitCode": 1, "message": message}},
        }]);
        pod(node, json!({"initContainerStatuses": containers}))
    }

    #[test]
    fn nodes_are_waited_for_unless_they_do_not_answer() {
        let nodes = [node("a", "True"), node("b", "False"), node("c", "Unknown")];
        let silent = pod("c", json!({"phase": "Pending"}));
        let pods = [ready("a"), pod("b", json!({})), silent.clone()];
        let progress = Progress::of(&set(3, 1), &pods, &nodes);
        assert!(!progress.is_complete());
        assert_eq!(
            progress.to_string(),
            "off 1 nodes, waiting for b, no answer from c"
        );
        let progress = Progress::of(&set(3, 1), &[ready("a"), ready("b"), silent], &nodes);
        assert!(progress.is_complete());
        let left = progress.left();
        assert_eq!(left.len(), 1);
        assert!(left[0].starts_with("not off node c, which does not answer"));
    }

    #[test]
    fn nothing_is_complete_before_the_controller_has_made_all_pods() {
        let nodes = [node("a", "True")];
        let unseen: DaemonSet =
            serde_json::from_value(json!({"metadata": {"generation": 1}})).unwrap();
        for set in [unseen, set(0, 0), set(2, 1)] {
            let progress = Progress::of(&set, &[ready("a")], &nodes);
            assert!(!progress.is_complete(), "{progress}");
            assert!(progress.to_string().ends_with("1 pods to be made"));
        }
        assert!(Progress::of(&set(0, 1), &[], &[]).is_complete());
    }

    #[test]
    fn a_pod_that_is_being_deleted_is_not_done() {
        let mut pod = ready("a");
        pod.metadata.deletion_timestamp =
            serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap();
        assert!(!Progress::of(&set(1, 1), &[pod], &[]).is_complete());
    }

    #[test]
    fn the_cause_is_what_the_container_said_or_what_is_known_of_its_pod() {
        let unscheduled: Pod = serde_json::from_value(json!({
            "spec": {"containers": [], "affinity": {"nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
                    {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["c"]}]},
                ]},
            }}},
            "status": {"conditions": [
                {"type": "PodScheduled", "status": "False", "message": "Too many pods"},
            ]},
        }))
        .unwrap();
        let waiting = json!({"waiting": {"reason": "ErrImagePull", "message": "not found"}});
        let container = json!({"name": "uninstall", "image": "", "imageID": "", "ready": false,
            "restartCount": 0, "state": waiting});
        let unpulled = pod("b", json!({"initContainerStatuses": [container]}));
        let pods = [failed("a", "warren: x\nwarren: y\n"), unpulled, unscheduled];
        let progress = Progress::of(&set(3, 1), &pods, &[]);
        assert_eq!(
            progress.left(),
            [
                "not off node a: warren: x; warren: y",
                "not off node b: ErrImagePull: not found",
                "not off node c: Too many pods",
            ]
        );
    }
}
