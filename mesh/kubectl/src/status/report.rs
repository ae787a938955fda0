//! The document: what `kubectl warren status -o json` prints (docs/kubectl.md), and what the page is
//! made of.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use serde::Serialize;
use warren_core::consts::annotation;
use warren_core::kubernetes::{NodeCondition, NodeObject};
use warren_core::status::{AgentStatus, NodeState};

use super::disagreements::{self, Disagreement};
use super::pairs::{self, PairState, Seen};
use crate::facts::{Answer, Facts};

/// The version of the document. Members may come with time; none changes its meaning.
const SCHEMA: u32 = 1;

/// The whole cluster.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// Version of the document: 1.
    pub schema: u32,
    /// The API server's URL.
    pub api: String,
    /// How the cluster is as a whole.
    pub state: State,
    /// Every Node, by name.
    pub nodes: Vec<NodeReport>,
    /// Nodes that others refuse or wait for.
    pub refused: Vec<Refusal>,
    /// Where Nodes and agents differ.
    pub disagreements: Vec<Disagreement>,
}

/// How a node, or the cluster, is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Nothing needs a person's attention.
    Ok,
    /// Something suffers.
    Degraded,
    /// Pods are not protected, or nothing goes to other nodes.
    Failed,
    /// The node's agent could not be asked. Of the whole cluster: no agent could.
    Unknown,
}

/// One node.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct NodeReport {
    /// The Node's name.
    pub node: String,
    /// How it is, as its agent says.
    pub state: State,
    /// Why it is not ok, the worst first.
    pub causes: Vec<String>,
    /// The Node's condition `NetworkUnavailable`; `null` where it has none.
    pub network_unavailable: Option<NodeCondition>,
    /// The key that the Node publishes.
    pub published_key: Option<String>,
    /// The key that its tunnel has.
    pub public_key: Option<String>,
    /// Age of the key's file in seconds.
    pub key_age_seconds: Option<u64>,
    /// Version of the agent.
    pub agent_version: Option<String>,
    /// Version of the tunnel.
    pub tunnel_version: Option<String>,
    /// The endpoints that its agent publishes.
    pub endpoints: Vec<SocketAddr>,
    /// What an operator set instead of them.
    pub force_endpoint: Option<String>,
    /// The Node's pod ranges.
    pub pod_cidrs: Vec<String>,
    /// Every other Node as this one sees it; empty where its agent could not be asked.
    pub peers: Vec<Seen>,
}

/// A node that others do not plan with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Refusal {
    /// The node.
    pub node: String,
    /// A stable word for the cause.
    pub reason: String,
    /// The cause for people.
    pub message: String,
    /// Whether it is merely not ready yet.
    pub waiting: bool,
    /// Who says so.
    pub refused_by: Vec<String>,
}

impl Report {
    /// Compares what all have said.
    pub fn of(facts: &Facts) -> Self {
        let seen = pairs::judge(facts);
        let nodes: Vec<NodeReport> = facts
            .nodes
            .iter()
            .map(|object| {
                let name = &object.metadata.name;
                let answer = facts.agents.get(name);
                node(object, answer, seen.get(name).cloned().unwrap_or_default())
            })
            .collect();
        let refused = refusals(facts);
        let disagreements = disagreements::find(facts);
        Self {
            schema: SCHEMA,
            api: facts.api.clone(),
            state: judge(&nodes, &refused, &disagreements),
            nodes,
            refused,
            disagreements,
        }
    }

    /// The versions that run, with how many times each.
    pub fn versions(&self, of: impl Fn(&NodeReport) -> Option<&String>) -> BTreeMap<String, usize> {
        let mut versions = BTreeMap::new();
        for version in self.nodes.iter().filter_map(of) {
            *versions.entry(version.clone()).or_default() += 1;
        }
        versions
    }
}

fn node(object: &NodeObject, answer: Option<&Answer<AgentStatus>>, peers: Vec<Seen>) -> NodeReport {
    let annotated = |key: &str| object.metadata.annotations.as_ref()?.get(key).cloned();
    let spec = object.spec.as_ref();
    let mut report = NodeReport {
        node: object.metadata.name.clone(),
        state: State::Unknown,
        causes: Vec::new(),
        network_unavailable: object.network_condition().cloned(),
        published_key: annotated(annotation::PUBLIC_KEY),
        public_key: None,
        key_age_seconds: None,
        agent_version: None,
        tunnel_version: None,
        endpoints: Vec::new(),
        force_endpoint: annotated(annotation::FORCE_ENDPOINT),
        pod_cidrs: spec.and_then(|s| s.pod_cidrs.clone()).unwrap_or_default(),
        peers,
    };
    match answer {
        Some(Ok(status)) => {
            report.state = match status.judge() {
                NodeState::Ok => State::Ok,
                NodeState::Degraded => State::Degraded,
                NodeState::Failed => State::Failed,
            };
            report.causes = status.causes();
            report.public_key = status.public_key.map(|key| key.to_base64());
            report.key_age_seconds = status.key_age_seconds;
            report.agent_version = Some(status.version.clone());
            report.tunnel_version = status.tunnel_version.clone();
            report.endpoints = status.endpoints.clone();
        }
        Some(Err(cause)) => report.causes.push(cause.clone()),
        None => report.causes.push("its agent was not asked".to_owned()),
    }
    report
}

fn refusals(facts: &Facts) -> Vec<Refusal> {
    let mut found: BTreeMap<(bool, &str, &str, &str), BTreeSet<&str>> = BTreeMap::new();
    for (by, status) in answered(facts) {
        for reject in &status.rejected {
            let key = (
                reject.waiting,
                reject.node.as_str(),
                reject.reason.as_str(),
                reject.message.as_str(),
            );
            found.entry(key).or_default().insert(by);
        }
    }
    let refusal =
        |((waiting, node, reason, message), by): ((bool, &str, &str, &str), BTreeSet<&str>)| {
            Refusal {
                node: node.to_owned(),
                reason: reason.to_owned(),
                message: message.to_owned(),
                waiting,
                refused_by: by.into_iter().map(str::to_owned).collect(),
            }
        };
    found.into_iter().map(refusal).collect()
}

/// The agents that answered.
pub(super) fn answered(facts: &Facts) -> impl Iterator<Item = (&str, &AgentStatus)> {
    let agents = facts.agents.iter();
    agents.filter_map(|(node, answer)| Some((node.as_str(), answer.as_ref().ok()?)))
}

fn judge(nodes: &[NodeReport], refused: &[Refusal], disagreements: &[Disagreement]) -> State {
    if !nodes.is_empty() && nodes.iter().all(|node| node.state == State::Unknown) {
        return State::Unknown;
    }
    if nodes.iter().any(|node| node.state == State::Failed) {
        return State::Failed;
    }
    let suffers = |seen: &Seen| matches!(seen.pair, PairState::Degraded | PairState::OneSided);
    let well = nodes
        .iter()
        .all(|node| node.state == State::Ok && !node.peers.iter().any(suffers))
        && refused.is_empty()
        && disagreements.is_empty();
    if well { State::Ok } else { State::Degraded }
}
