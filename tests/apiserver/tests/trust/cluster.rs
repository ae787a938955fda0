//! A control plane with two Nodes, and changes of Nodes that are tried in every form.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use kube::Client;
use serde_json::{Value, json};
use warren_apiserver::{
    AGENT, ControlPlane, Form, Identity, Options, Outcome, agent_pod, apply_shipped, send,
    set_policies_in_force, skip_reason, token, write,
};
use warren_core::consts::annotation;
use warren_lab::{Lab, patience};

/// The user that tokens of `warren-agent` speak for.
pub(crate) const AGENT_USER: &str = "system:serviceaccount:warren-system:warren-agent";
pub(crate) const NODES: &str = "/api/v1/nodes";
pub(crate) const KEY: &str = "6iBM1ZdgaC3UbiRvTci4D5V2nxPvMTPz7pUvsmH4I2Y=";

/// Long enough for a slow, shared machine.
const RBAC_LIMIT: Duration = Duration::from_secs(60);

/// A control plane with our manifests, node1 and node2; gone when dropped.
pub(crate) struct Cluster {
    pub(crate) plane: ControlPlane,
    _lab: Lab,
}

impl Cluster {
    /// Starts it, or says why it cannot run here.
    pub(crate) fn start(name: &str, identities: Vec<Identity>) -> Result<Option<Self>> {
        if let Some(reason) = skip_reason() {
            assert!(std::env::var_os("CI").is_none(), "skipped in CI: {reason}");
            eprintln!("skipped: {reason}");
            return Ok(None);
        }
        let lab = Lab::new(name)?;
        let options = Options {
            identities,
            // Nobody allocates podCIDRs, so that the first one to set them could choose.
            controllers: vec![
                "serviceaccount-controller",
                "serviceaccount-token-controller",
                "validatingadmissionpolicy-status-controller",
            ],
            ..Options::default()
        };
        let plane = ControlPlane::start(&lab.host("control-plane")?, options)?;
        Ok(Some(Self { plane, _lab: lab }))
    }

    /// Applies what is shipped, waits for its policies, and makes the Nodes. Inside `block_on`.
    pub(crate) async fn set_up(&self) -> Result<Client> {
        apply_shipped(&self.plane)?;
        self.set_up_for(AGENT).await
    }

    /// The same for a service account in another namespace, whose manifests are applied.
    pub(crate) async fn set_up_for(&self, account: (&str, &str)) -> Result<Client> {
        set_policies_in_force(&self.plane, account, true).await?;
        let admin = self.plane.admin().await?;
        for name in ["node1", "node2"] {
            create(&admin, &node(name)).await?;
        }
        Ok(admin)
    }

    /// A client with the token of a service account's Pod on a node.
    pub(crate) async fn on_node(&self, account: (&str, &str), node: &str) -> Result<Client> {
        let admin = self.plane.admin().await?;
        let pod = agent_pod(&admin, account, &format!("on-{node}"), Some(node)).await?;
        let token = token(&admin, account, Some(pod)).await?;
        self.plane.client(&token).await
    }
}

/// A Node as its kubelet, an agent and an operator have left it.
pub(crate) fn node(name: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "labels": {"kubernetes.io/os": "linux", "pool": "a"},
            "annotations": {
                "example.com/owner": "ops",
                annotation::PUBLIC_KEY: KEY,
                annotation::NEXT_PUBLIC_KEY: KEY,
                annotation::FORCE_ENDPOINT: "192.0.2.1:51871",
            },
        },
        "status": {
            "addresses": [{"type": "InternalIP", "address": "192.0.2.1"}],
            "capacity": {"cpu": "2000m", "memory": "4096Mi"},
            "conditions": [
                condition("MemoryPressure", "False"),
                condition("DiskPressure", "False"),
                condition("PIDPressure", "False"),
                condition("Ready", "True"),
            ],
        },
    })
}

pub(crate) fn condition(kind: &str, status: &str) -> Value {
    json!({
        "type": kind, "status": status, "reason": "Test", "message": "a test",
        "lastHeartbeatTime": "2026-01-01T00:00:00Z", "lastTransitionTime": "2026-01-01T00:00:00Z",
    })
}

/// Puts a condition in the place of the one of its type, or beside the others.
pub(crate) fn set_condition(node: &mut Value, new: Value) {
    let conditions = &mut node["status"]["conditions"];
    if conditions.is_null() {
        *conditions = json!([]);
    }
    if let Some(conditions) = conditions.as_array_mut() {
        match conditions.iter_mut().find(|old| old["type"] == new["type"]) {
            Some(old) => *old = new,
            None => conditions.push(new),
        }
    }
}

pub(crate) fn remove_condition(node: &mut Value, kind: &str) {
    if let Some(conditions) = node["status"]["conditions"].as_array_mut() {
        conditions.retain(|condition| condition["type"] != kind);
    }
}

pub(crate) fn set_annotation(node: &mut Value, key: &str, value: &str) {
    node["metadata"]["annotations"][key] = json!(value);
}

pub(crate) fn remove_annotation(node: &mut Value, key: &str) {
    if let Some(annotations) = node["metadata"]["annotations"].as_object_mut() {
        annotations.remove(key);
    }
}

pub(crate) async fn create(client: &Client, object: &Value) -> Result<Value> {
    accepted(send(client, "POST", NODES, Some(object)).await?)
}

pub(crate) async fn get(admin: &Client, name: &str) -> Result<Value> {
    accepted(send(admin, "GET", &format!("{NODES}/{name}"), None).await?)
}

pub(crate) fn accepted(outcome: Outcome) -> Result<Value> {
    outcome.map_err(|message| anyhow!("refused: {message}"))
}

/// Gives a user more than our RBAC does, all of Nodes at least, so that it is the policies that deny.
pub(crate) async fn grant(admin: &Client, name: &str, user: &str, rules: Value) -> Result<()> {
    let group = "/apis/rbac.authorization.k8s.io/v1";
    let role = json!({"metadata": {"name": name}, "rules": rules});
    let binding = json!({
        "metadata": {"name": name},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}],
    });
    for (kind, object) in [("clusterroles", role), ("clusterrolebindings", binding)] {
        accepted(send(admin, "POST", &format!("{group}/{kind}"), Some(&object)).await?)?;
    }
    wait_may_change_nodes(admin, user).await
}

/// Waits until the API server's RBAC lets a user change Nodes: it hears of roles and bindings by and by, of those that
/// it made itself at its start too.
pub(crate) async fn wait_may_change_nodes(admin: &Client, user: &str) -> Result<()> {
    const REVIEWS: &str = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
    let action = json!({"verb": "patch", "resource": "nodes"});
    let review = json!({"spec": {"user": user, "resourceAttributes": action}});
    let deadline = Instant::now() + patience(RBAC_LIMIT);
    loop {
        let answer = accepted(send(admin, "POST", REVIEWS, Some(&review)).await?)?;
        if answer["status"]["allowed"] == true {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "{user} may not: {answer}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Everything that can be done to Nodes.
pub(crate) fn all_of_nodes() -> Value {
    json!([{"apiGroups": [""], "resources": ["nodes", "nodes/status"], "verbs": ["*"]}])
}

/// A change of one Node, by way of `nodes` or `nodes/status`.
pub(crate) struct Change {
    pub(crate) node: &'static str,
    pub(crate) of_status: bool,
    pub(crate) make: Box<dyn Fn(&mut Value) + Send + Sync>,
    /// What the policy says to it, if it is to deny it.
    pub(crate) denial: String,
}

impl Change {
    /// Of `nodes/NODE`.
    pub(crate) fn of(
        node: &'static str,
        denial: impl Into<String>,
        make: impl Fn(&mut Value) + Send + Sync + 'static,
    ) -> Self {
        Self {
            node,
            of_status: false,
            make: Box::new(make),
            denial: denial.into(),
        }
    }

    /// The same by way of `nodes/NODE/status`.
    pub(crate) fn by_status(self) -> Self {
        Self {
            of_status: true,
            ..self
        }
    }

    /// Writes it in a form, if that form can: the Node before, and the answer.
    async fn write(
        &self,
        (client, admin): (&Client, &Client),
        form: Form,
        dry_run: bool,
    ) -> Result<Option<(Value, Outcome)>> {
        let old = get(admin, self.node).await?;
        let mut new = old.clone();
        (self.make)(&mut new);
        assert_ne!(old, new, "{}: the change is none", self.denial);
        if form == Form::Apply && removes(&old, &new) {
            return Ok(None);
        }
        let end = if self.of_status { "/status" } else { "" };
        let path = format!("{NODES}/{}{end}", self.node);
        let answer = write(client, &path, form, (&old, &new), dry_run).await?;
        Ok(Some((old, answer)))
    }

    /// Expects that a policy denies it in every form with exactly its message, and that nothing changes.
    pub(crate) async fn is_denied(&self, clients: (&Client, &Client), policy: &str) -> Result<()> {
        let expected = denied(self.node, policy, &self.denial);
        for form in Form::ALL {
            for dry_run in [false, true] {
                let Some((old, answer)) = self.write(clients, form, dry_run).await? else {
                    continue;
                };
                let message = answer.err().unwrap_or_else(|| "accepted".into());
                assert_eq!(message, expected, "{form:?}, dry run: {dry_run}");
                assert_eq!(get(clients.1, self.node).await?, old, "{form:?}");
            }
        }
        Ok(())
    }

    /// Expects that in every form it is accepted and changes nothing.
    pub(crate) async fn has_no_effect(&self, clients: (&Client, &Client)) -> Result<()> {
        for form in Form::ALL {
            if let Some((mut old, answer)) = self.write(clients, form, false).await? {
                accepted(answer).with_context(|| format!("{form:?}: {}", self.denial))?;
                let mut new = get(clients.1, self.node).await?;
                // Who applied what is noted all the same.
                for node in [&mut old, &mut new] {
                    node["metadata"]["managedFields"].take();
                    node["metadata"]["resourceVersion"].take();
                }
                assert_eq!(new, old, "{form:?}: {}", self.denial);
            }
        }
        Ok(())
    }

    /// Expects that it would be accepted in every form, and changes nothing.
    pub(crate) async fn would_be_accepted(&self, clients: (&Client, &Client)) -> Result<()> {
        for form in Form::ALL {
            if let Some((_, answer)) = self.write(clients, form, true).await? {
                accepted(answer).with_context(|| format!("{form:?}: {}", self.denial))?;
            }
        }
        Ok(())
    }
}

/// The name that the API server made of `generateName`, as its refusal has it.
pub(crate) fn generated_name(answer: &Outcome) -> &str {
    let message = answer.as_ref().err().map_or("", String::as_str);
    let name = message.split('"').nth(1).unwrap_or_default();
    assert!(name.starts_with("node-"), "no generated name: {answer:?}");
    name
}

/// What the API server says when a policy denies a write of a Node.
pub(crate) fn denied(node: &str, policy: &str, denial: &str) -> String {
    format!(
        "nodes \"{node}\" is forbidden: ValidatingAdmissionPolicy '{policy}' with binding '{policy}' denied \
         request: {denial}"
    )
}

fn removes(old: &Value, new: &Value) -> bool {
    match (old, new) {
        (Value::Object(old), Value::Object(new)) => old
            .iter()
            .any(|(key, old)| new.get(key).is_none_or(|new| removes(old, new))),
        (Value::Array(old), Value::Array(new)) => old.len() > new.len(),
        _ => false,
    }
}
