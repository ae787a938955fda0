//! What was gathered from the cluster, before it is judged.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Pod;
use warren_core::kubernetes::NodeObject;
use warren_core::status::AgentStatus;
use warren_text::finding::Finding;

/// What somebody answered, or why there is no answer, in one line for people.
pub type Answer<T> = Result<T, String>;

/// The label that says what of Warren a pod is.
const COMPONENT: &str = "app.kubernetes.io/component";
/// The label by which the DaemonSet's controller says which template a pod was made of.
const TEMPLATE_GENERATION: &str = "pod-template-generation";

/// What `status` is made of.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Facts {
    /// The API server's URL.
    pub api: String,
    /// The namespace of Warren's DaemonSets.
    pub namespace: String,
    /// All Nodes.
    pub nodes: Vec<NodeObject>,
    /// Warren's pods.
    pub pods: Vec<WarrenPod>,
    /// What each Node's agent says, by the Node's name.
    pub agents: BTreeMap<String, Answer<AgentStatus>>,
}

/// What `doctor` is made of besides.
#[derive(Clone, Debug, PartialEq)]
pub struct DoctorFacts {
    /// What `status` is made of.
    pub facts: Facts,
    /// The API server's version, major and minor.
    pub server: Answer<(u32, u32)>,
    /// All DaemonSets of the cluster.
    pub daemon_sets: Answer<Vec<DaemonSetFacts>>,
    /// What the agents' service account may do, by what is asked.
    pub rights: Vec<(Right, Answer<bool>)>,
    /// How the API server answers to writes that the policies must deny; none without a Node to try
    /// them on.
    pub trials: Vec<(Trial, Answer<TrialEnd>)>,
    /// What `warren doctor` finds on each Node, by its name.
    pub doctors: BTreeMap<String, Answer<Vec<Finding>>>,
}

/// What of Warren a pod is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Component {
    /// The mesh controller.
    Agent,
    /// The data plane.
    Tunnel,
}

impl Component {
    /// The label's value, and the name of the pod's container.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::Tunnel => "tunnel",
        }
    }

    /// The name of its DaemonSet.
    pub fn daemon_set(self) -> &'static str {
        match self {
            Self::Agent => "warren-agent",
            Self::Tunnel => "warren-tunnel",
        }
    }
}

/// One pod of Warren's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WarrenPod {
    /// Its name.
    pub name: String,
    /// The Node that it is bound to.
    pub node: Option<String>,
    /// What it is.
    pub component: Component,
    /// Whether its container of the component's name runs.
    pub running: bool,
    /// Whether it is ready.
    pub ready: bool,
    /// Whether it is being deleted.
    pub ending: bool,
    /// How it is, in one line.
    pub state: String,
    /// The generation of the DaemonSet's template that it was made of.
    pub template_generation: Option<String>,
}

impl WarrenPod {
    /// What matters of a pod; nothing of one that is none of Warren's daemons.
    pub fn of(pod: &Pod) -> Option<Self> {
        let labels = pod.metadata.labels.as_ref()?;
        let component = [Component::Agent, Component::Tunnel]
            .into_iter()
            .find(|c| {
                labels
                    .get(COMPONENT)
                    .is_some_and(|label| label == c.as_str())
            })?;
        let status = pod.status.as_ref();
        let containers = status.and_then(|s| s.container_statuses.as_ref());
        let container = containers
            .into_iter()
            .flatten()
            .find(|c| c.name == component.as_str());
        let state = container.and_then(|c| c.state.as_ref());
        let mut conditions = status
            .and_then(|s| s.conditions.as_ref())
            .into_iter()
            .flatten();
        Some(Self {
            name: pod.metadata.name.clone()?,
            node: pod.spec.as_ref().and_then(|spec| spec.node_name.clone()),
            component,
            running: state.is_some_and(|state| state.running.is_some()),
            ready: conditions.any(|c| c.type_ == "Ready" && c.status == "True"),
            ending: pod.metadata.deletion_timestamp.is_some(),
            state: state_of(pod),
            template_generation: labels.get(TEMPLATE_GENERATION).cloned(),
        })
    }
}

/// The phase, and why the first container that does not run does not, init containers included.
fn state_of(pod: &Pod) -> String {
    let status = pod.status.as_ref();
    let phase = status.and_then(|s| s.phase.clone());
    let phase = phase.unwrap_or_else(|| "not started".to_owned());
    let lists = status.map(|s| [&s.init_container_statuses, &s.container_statuses]);
    let containers = lists.into_iter().flatten().flatten().flatten();
    let mut causes = containers.filter_map(|container| {
        let state = container.state.as_ref()?;
        let waiting = state
            .waiting
            .as_ref()
            .map(|w| (w.reason.clone(), w.message.clone()));
        let ended = state.terminated.as_ref().filter(|t| t.exit_code != 0);
        let ended = ended.map(|t| {
            let code = format!("exit code {}", t.exit_code);
            (Some(t.reason.clone().unwrap_or(code)), t.message.clone())
        });
        let (reason, message) = waiting.or(ended)?;
        let texts: Vec<String> = [reason, message].into_iter().flatten().collect();
        Some(format!(
            "container {}: {}",
            container.name,
            texts.join(": ")
        ))
    });
    let unscheduled = status.and_then(|s| {
        let conditions = s.conditions.as_ref()?.iter();
        let mut failed = conditions.filter(|c| c.type_ == "PodScheduled" && c.status == "False");
        failed.next()?.message.clone()
    });
    match causes.next().or(unscheduled) {
        Some(cause) => format!("{phase}, {cause}"),
        None => phase,
    }
}

impl Facts {
    /// The pod of a component on a node: one that runs and stays, if there is any.
    pub fn pod(&self, component: Component, node: &str) -> Option<&WarrenPod> {
        let on_node =
            |pod: &&WarrenPod| pod.component == component && pod.node.as_deref() == Some(node);
        let pods = self.pods.iter().filter(on_node);
        pods.max_by_key(|pod| (pod.running, !pod.ending, pod.ready))
    }
}

/// What matters of a DaemonSet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DaemonSetFacts {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// `OnDelete` or `RollingUpdate`.
    pub strategy: String,
    /// On how many nodes a pod should run.
    pub desired: i32,
    /// On how many one is ready.
    pub ready: i32,
    /// On how many one of the present template runs.
    pub updated: i32,
    /// The generation of the present template, as the pods' label tells it.
    pub template_generation: Option<String>,
    /// Whether its controller has seen its present form.
    pub observed: bool,
}

/// Something that the agents' service account must be allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Right {
    /// What is done.
    pub verb: &'static str,
    /// To what.
    pub resource: &'static str,
    /// The part of it.
    pub subresource: Option<&'static str>,
    /// The API group of it.
    pub group: &'static str,
    /// In which namespace.
    pub namespace: Option<&'static str>,
}

impl Right {
    /// All that an agent must be allowed, as deploy/manifests/rbac.yaml gives it.
    pub const ALL: [Self; 7] = [
        Self::of_nodes("get", None),
        Self::of_nodes("list", None),
        Self::of_nodes("watch", None),
        Self::of_nodes("patch", None),
        Self::of_nodes("patch", Some("status")),
        Self::of_events("create"),
        Self::of_events("patch"),
    ];

    const fn of_nodes(verb: &'static str, subresource: Option<&'static str>) -> Self {
        Self {
            verb,
            resource: "nodes",
            subresource,
            group: "",
            namespace: None,
        }
    }

    const fn of_events(verb: &'static str) -> Self {
        Self {
            verb,
            resource: "events",
            subresource: None,
            group: "events.k8s.io",
            namespace: Some("default"),
        }
    }
}

impl std::fmt::Display for Right {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.verb, self.resource)?;
        if let Some(subresource) = self.subresource {
            write!(f, "/{subresource}")?;
        }
        if let Some(namespace) = self.namespace {
            write!(f, " in {namespace}")?;
        }
        Ok(())
    }
}

/// A write that a policy must deny, tried as a dry run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trial {
    /// A token of warren-agent that is bound to no node sets an annotation.
    AgentWithoutNode,
    /// A kubelet sets one of Warren's annotations on its own Node.
    KubeletSetsAnnotation,
}

impl Trial {
    /// Both.
    pub const ALL: [Self; 2] = [Self::AgentWithoutNode, Self::KubeletSetsAnnotation];

    /// The policy that must deny it.
    pub fn policy(self) -> &'static str {
        match self {
            Self::AgentWithoutNode => "warren-agent",
            Self::KubeletSetsAnnotation => "warren-annotations",
        }
    }

    /// Words of the policy's answer (deploy/manifests/admission.yaml).
    pub fn denial(self) -> &'static str {
        match self {
            Self::AgentWithoutNode => "the token of warren-agent is bound to no node",
            Self::KubeletSetsAnnotation => "may not set, change or remove the annotation",
        }
    }
}

/// How a trial ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TrialEnd {
    /// It was denied by the policy.
    Denied,
    /// It would have been done.
    Allowed,
}
