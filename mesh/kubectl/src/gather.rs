//! Asks the API server, and through it each agent.

use std::collections::BTreeMap;

use futures::StreamExt;
use futures::stream;
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec,
};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Resource};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use warren_core::consts::annotation;
use warren_core::kubernetes::NodeObject;
use warren_core::status::AgentStatus;
use warren_text::finding::Finding;

use crate::client::{Connection, within};
use crate::exec::{Printed, exec};
use crate::facts::{
    Answer, Component, DaemonSetFacts, DoctorFacts, Facts, Right, Trial, TrialEnd, WarrenPod,
};

/// How many agents are asked at once.
const AT_ONCE: usize = 16;
/// How many objects are asked for at once.
const PAGE: u32 = 500;
/// What all pods of Warren's have.
const SELECTOR: &str = "app.kubernetes.io/name=warren";
/// A value that no Node has, so that the write of a trial would be a change.
const TRIAL_VALUE: &str = "dry-run";

/// Gathers what `status` is made of.
///
/// # Errors
/// Nodes or pods cannot be listed. An agent that cannot be asked is no error.
pub async fn status(connection: &Connection, namespace: &str) -> Result<Facts, String> {
    let mut facts = objects(connection, namespace).await?;
    facts.agents = ask_agents(
        connection,
        &facts,
        &["warren", "status", "--json"],
        parse_status,
    )
    .await;
    Ok(facts)
}

/// Gathers what `doctor` is made of.
///
/// # Errors
/// Nodes or pods cannot be listed.
pub async fn doctor(
    connection: &Connection,
    namespace: &str,
    probe: bool,
) -> Result<DoctorFacts, String> {
    let facts = status(connection, namespace).await?;
    let mut command = vec!["warren", "doctor", "--json"];
    if !probe {
        command.push("--no-probe");
    }
    let node = facts.nodes.first().map(|node| node.metadata.name.clone());
    let (doctors, server, daemon_sets, rights, trials) = tokio::join!(
        ask_agents(connection, &facts, &command, parse_findings),
        server_version(connection),
        daemon_sets(connection),
        rights(connection, namespace),
        trials(connection, namespace, node.as_deref()),
    );
    Ok(DoctorFacts {
        facts,
        server,
        daemon_sets,
        rights,
        trials,
        doctors,
    })
}

async fn objects(connection: &Connection, namespace: &str) -> Result<Facts, String> {
    let nodes: Api<Node> = Api::all(connection.client.clone());
    let pods: Api<Pod> = Api::namespaced(connection.client.clone(), namespace);
    let (nodes, pods) = tokio::try_join!(
        list(connection, &nodes, ListParams::default()),
        list(connection, &pods, ListParams::default().labels(SELECTOR)),
    )?;
    let nodes: Result<Vec<NodeObject>, String> = nodes
        .into_iter()
        .map(|node| {
            serde_json::to_value(node)
                .and_then(serde_json::from_value)
                .map_err(|error| format!("read a Node: {error}"))
        })
        .collect();
    let mut nodes = nodes?;
    nodes.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
    let mut pods: Vec<WarrenPod> = pods.iter().filter_map(WarrenPod::of).collect();
    pods.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(Facts {
        api: connection.url.clone(),
        namespace: namespace.to_owned(),
        nodes,
        pods,
        agents: BTreeMap::new(),
    })
}

/// Lists objects page by page.
async fn list<K>(
    connection: &Connection,
    api: &Api<K>,
    params: ListParams,
) -> Result<Vec<K>, String>
where
    K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned,
{
    let mut params = params.limit(PAGE);
    let mut items = Vec::new();
    loop {
        let page = connection.ask(api.list(&params)).await;
        let page = page.map_err(|e| format!("list {}: {e}", K::plural(&())))?;
        items.extend(page.items);
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = params.continue_token(&token),
            None => return Ok(items),
        }
    }
}

/// Runs a command in each Node's agent.
async fn ask_agents<T>(
    connection: &Connection,
    facts: &Facts,
    command: &[&str],
    parse: fn(&Printed) -> Answer<T>,
) -> BTreeMap<String, Answer<T>> {
    let pods: Api<Pod> = Api::namespaced(connection.client.clone(), &facts.namespace);
    let (pods, command) = (&pods, command);
    let asked = facts.nodes.iter().map(|node| async move {
        let name = node.metadata.name.clone();
        let answer = match agent_of(facts, &name) {
            Ok(pod) => {
                let work = exec(pods, &pod.name, Component::Agent.as_str(), command);
                within(connection.limit, work).await.and_then(|p| parse(&p))
            }
            Err(cause) => Err(cause),
        };
        (name, answer)
    });
    stream::iter(asked)
        .buffer_unordered(AT_ONCE)
        .collect()
        .await
}

/// The pod in which a Node's agent runs.
fn agent_of<'a>(facts: &'a Facts, node: &str) -> Answer<&'a WarrenPod> {
    let pod = facts.pod(Component::Agent, node).ok_or_else(|| {
        format!(
            "no pod of warren-agent is on this node (namespace {})",
            facts.namespace
        )
    })?;
    if pod.running {
        Ok(pod)
    } else {
        Err(format!("pod {} does not run: {}", pod.name, pod.state))
    }
}

/// `warren status --json` prints the document whether all is well or not.
fn parse_status(printed: &Printed) -> Answer<AgentStatus> {
    parse(printed, "warren status")
}

fn parse_findings(printed: &Printed) -> Answer<Vec<Finding>> {
    #[derive(Deserialize)]
    struct Document {
        findings: Vec<Finding>,
    }
    parse(printed, "warren doctor").map(|document: Document| document.findings)
}

fn parse<T: DeserializeOwned>(printed: &Printed, command: &str) -> Answer<T> {
    if printed.stdout.trim().is_empty() {
        let said = printed.stderr.lines().find(|line| !line.trim().is_empty());
        let said = said.unwrap_or(match printed.failure.as_str() {
            "" => "it printed nothing",
            failure => failure,
        });
        return Err(format!("{command}: {said}"));
    }
    serde_json::from_str(&printed.stdout).map_err(|error| {
        format!("{command} printed no document: {error}; is kubectl-warren of the agents' version?")
    })
}

async fn server_version(connection: &Connection) -> Answer<(u32, u32)> {
    let info = connection
        .ask(connection.client.apiserver_version())
        .await?;
    // Some say "30+".
    let number = |text: &str| {
        let digits: String = text.chars().take_while(char::is_ascii_digit).collect();
        digits.parse().ok()
    };
    number(&info.major)
        .zip(number(&info.minor))
        .ok_or_else(|| format!("the version \"{}.{}\" is no number", info.major, info.minor))
}

async fn daemon_sets(connection: &Connection) -> Answer<Vec<DaemonSetFacts>> {
    let api: Api<DaemonSet> = Api::all(connection.client.clone());
    let sets = list(connection, &api, ListParams::default()).await?;
    Ok(sets.iter().map(daemon_set).collect())
}

fn daemon_set(set: &DaemonSet) -> DaemonSetFacts {
    /// Where the API server keeps the generation of a DaemonSet's template.
    const GENERATION: &str = "deprecated.daemonset.template.generation";
    let status = set.status.clone().unwrap_or_default();
    let strategy = set.spec.update_strategy.as_ref();
    let annotations = set.metadata.annotations.as_ref();
    DaemonSetFacts {
        namespace: set.metadata.namespace.clone().unwrap_or_default(),
        name: set.metadata.name.clone().unwrap_or_default(),
        strategy: strategy.and_then(|s| s.type_.clone()).unwrap_or_default(),
        desired: status.desired_number_scheduled,
        ready: status.number_ready,
        updated: status.updated_number_scheduled.unwrap_or_default(),
        template_generation: annotations.and_then(|a| a.get(GENERATION).cloned()),
        observed: status.observed_generation >= set.metadata.generation,
    }
}

async fn rights(connection: &Connection, namespace: &str) -> Vec<(Right, Answer<bool>)> {
    let api: Api<SubjectAccessReview> = Api::all(connection.client.clone());
    let mut answers = Vec::new();
    for right in Right::ALL {
        let text = |text: &str| Some(text.to_owned());
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: Some(agent_user(namespace)),
                groups: Some(agent_groups(namespace)),
                resource_attributes: Some(ResourceAttributes {
                    verb: text(right.verb),
                    resource: text(right.resource),
                    subresource: right.subresource.and_then(text),
                    group: text(right.group),
                    namespace: right.namespace.and_then(text),
                    ..ResourceAttributes::default()
                }),
                ..SubjectAccessReviewSpec::default()
            },
            ..SubjectAccessReview::default()
        };
        let params = PostParams::default();
        let answer = connection.ask(api.create(&params, &review)).await;
        let allowed = answer.map(|review| review.status.is_some_and(|status| status.allowed));
        answers.push((right, allowed));
    }
    answers
}

async fn trials(
    connection: &Connection,
    namespace: &str,
    node: Option<&str>,
) -> Vec<(Trial, Answer<TrialEnd>)> {
    let Some(node) = node else {
        return Vec::new();
    };
    let mut ends = Vec::new();
    for trial in Trial::ALL {
        ends.push((trial, try_write(connection, namespace, node, trial).await));
    }
    ends
}

async fn try_write(
    connection: &Connection,
    namespace: &str,
    node: &str,
    trial: Trial,
) -> Answer<TrialEnd> {
    let client = match trial {
        Trial::AgentWithoutNode => {
            let groups = agent_groups(namespace);
            let groups: Vec<&str> = groups.iter().map(String::as_str).collect();
            connection.impersonate(&agent_user(namespace), &groups)
        }
        Trial::KubeletSetsAnnotation => {
            connection.impersonate(&format!("system:node:{node}"), &["system:nodes"])
        }
    }?;
    let nodes: Api<Node> = Api::all(client);
    let params = PatchParams {
        dry_run: true,
        ..PatchParams::default()
    };
    let change = json!({"metadata": {"annotations": {annotation::MTU: TRIAL_VALUE}}});
    let end = connection
        .ask(nodes.patch(node, &params, &Patch::Merge(change)))
        .await;
    match end {
        Ok(_) => Ok(TrialEnd::Allowed),
        Err(cause) if cause.contains(trial.denial()) => Ok(TrialEnd::Denied),
        Err(cause) => Err(cause),
    }
}

fn agent_user(namespace: &str) -> String {
    format!("system:serviceaccount:{namespace}:warren-agent")
}

fn agent_groups(namespace: &str) -> Vec<String> {
    vec![
        "system:serviceaccounts".to_owned(),
        format!("system:serviceaccounts:{namespace}"),
        "system:authenticated".to_owned(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn printed(stdout: &str, stderr: &str, failure: &str) -> Printed {
        Printed {
            stdout: stdout.to_owned(),
            stderr: stderr.to_owned(),
            failure: failure.to_owned(),
        }
    }

    #[test]
    fn an_agents_answer_is_its_document_or_the_cause_why_there_is_none() {
        let said = |p: &Printed| parse_findings(p).unwrap_err();
        assert_eq!(
            said(&printed(
                "",
                "\nwarren: read the agent's status\nmore",
                "exit 1"
            )),
            "warren doctor: warren: read the agent's status"
        );
        assert_eq!(said(&printed(" \n", "", "exit 1")), "warren doctor: exit 1");
        assert_eq!(
            said(&printed("", "", "")),
            "warren doctor: it printed nothing"
        );
        assert!(said(&printed("{}", "", "")).contains("printed no document"));
        // An exit code of 1 is a finding, not a failure.
        let document = r#"{"errors":1,"warnings":0,"findings":[{"check":"agent","severity":"error",
            "finding":"a","meaning":"b","action":"c"}]}"#;
        let found = parse_findings(&printed(document, "", "exit 1")).unwrap();
        assert_eq!(found[0].check, "agent");
    }
}
