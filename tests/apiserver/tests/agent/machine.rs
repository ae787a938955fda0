//! A machine with the real daemons, and the cluster that it is a node of.
//!
//! ```text
//!   control-plane 192.0.2.250        node1 192.0.2.1
//!   etcd, kube-apiserver,            warren-tunnel, warren-agent
//!   kube-controller-manager             |
//!   ====================================+== lan
//! ```

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use k8s_openapi::api::core::v1::{Event, Node};
use kube::Api;
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use warren_apiserver::{
    AGENT, ControlPlane, Options, agent_pod, apply_shipped, block_on, set_policies_in_force, token,
};
use warren_core::consts::annotation;
use warren_keyring::PublicKey;
use warren_lab::{Bridge, Host, Lab, Link, Proc, bin};

/// How long anything may take; machines are slow and shared.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);
const ANSWER_LIMIT: Duration = Duration::from_secs(30);
const HTTP: &str = "127.0.0.1:9151";

/// The node, its daemons, and its cluster.
pub(crate) struct Machine {
    pub(crate) plane: ControlPlane,
    pub(crate) host: Host,
    tunnel: Option<Proc>,
    agent: Option<Proc>,
    /// Further flags of the agent.
    flags: Vec<&'static str>,
    /// The agent's, bound to its Pod and so to its Node.
    token: String,
    _network: (Bridge, [Link; 2]),
    _lab: Lab,
}

impl Machine {
    /// Makes both hosts and starts the control plane, with the manifests that are shipped in force; no
    /// Node is there, and no daemon.
    pub(crate) fn new(name: &str, flags: &[&'static str]) -> Result<Self> {
        let lab = Lab::new(name)?;
        let lan = lab.bridge("lan")?;
        let (server, host) = (lab.host("control-plane")?, lab.host("node1")?);
        let end = server.end("eth0").addr("192.0.2.250/24").via("192.0.2.1");
        let first = lab.connect(end, lan.port())?;
        let end = host.end("eth0").addr("192.0.2.1/24").via("192.0.2.250");
        let second = lab.connect(end, lan.port())?;
        let plane = ControlPlane::start(&server, Options::default())?;
        apply_shipped(&plane)?;
        let token = block_on(plane.host(), async || {
            set_policies_in_force(&plane, AGENT, true).await?;
            let admin = plane.admin().await?;
            let pod = agent_pod(&admin, AGENT, "agent", Some("node1")).await?;
            token(&admin, AGENT, Some(pod)).await
        })?;
        Ok(Self {
            plane,
            token,
            host,
            tunnel: None,
            agent: None,
            flags: flags.to_vec(),
            _network: (lan, [first, second]),
            _lab: lab,
        })
    }

    pub(crate) fn start_tunnel(&mut self) -> Result<()> {
        let mut command = Command::new(bin("warren-tunnel")?);
        command.arg("--state-dir").arg(self.state_dir());
        self.tunnel = Some(self.host.spawn(&mut command)?);
        Ok(())
    }

    pub(crate) fn stop_tunnel(&mut self) {
        if let Some(proc) = self.tunnel.take() {
            proc.kill();
        }
    }

    /// Starts the agent with its Pod's token, as a DaemonSet would but for the kubeconfig; in place of a
    /// running one.
    pub(crate) fn start_agent(&mut self) -> Result<()> {
        self.stop_agent();
        let kubeconfig = self.plane.write_kubeconfig("agent", &self.token)?;
        fs::create_dir_all(self.cni_dir())?;
        let mut command = Command::new(bin("warren-agent")?);
        command
            .args(["--registry", "kubernetes", "--kubeconfig"])
            .arg(kubeconfig)
            .args(["--cluster-cidrs", "10.244.0.0/16,fd00:244::/48"])
            .arg("--state-dir")
            .arg(self.state_dir())
            .arg("--cni-conf-dir")
            .arg(self.cni_dir())
            .args(&self.flags)
            .env("NODE_NAME", "node1");
        self.agent = Some(self.host.spawn(&mut command)?);
        Ok(())
    }

    pub(crate) fn stop_agent(&mut self) {
        if let Some(proc) = self.agent.take() {
            proc.kill();
        }
    }

    pub(crate) fn state_dir(&self) -> PathBuf {
        self.host.dir().join("state")
    }

    pub(crate) fn cni_dir(&self) -> PathBuf {
        self.host.dir().join("cni")
    }

    /// Runs `warren` there: its exit code, and all that it prints.
    pub(crate) fn warren(&self, args: &[&str]) -> Result<(i32, String)> {
        let mut command = Command::new(bin("warren")?);
        command.args(args);
        command.env("WARREN_STATE_DIR", self.state_dir());
        let out = self.host.output(&mut command, ANSWER_LIMIT)?;
        let code = out.status.code().unwrap_or(-1);
        Ok((code, format!("{}{}", out.stdout, out.stderr)))
    }

    /// The agent's status document.
    pub(crate) fn status(&self) -> Result<Value> {
        let (_, text) = self.warren(&["status", "--json"])?;
        serde_json::from_str(&text).with_context(|| format!("status: {text}"))
    }

    /// What the agent says of a peer; null when it has none of this name.
    pub(crate) fn peer(&self, name: &str) -> Result<Value> {
        let status = self.status()?;
        let peers = status["peers"].as_array().cloned().unwrap_or_default();
        let found = peers.into_iter().find(|peer| peer["node"] == name);
        Ok(found.unwrap_or_default())
    }

    /// Status and body of an answer over HTTP.
    pub(crate) fn http(&self, path: &str) -> Result<(u16, String)> {
        let answer = self.host.in_netns(|| -> Result<String> {
            let mut stream = TcpStream::connect(HTTP).context("connect to the agent")?;
            stream.set_read_timeout(Some(ANSWER_LIMIT))?;
            write!(stream, "GET {path} HTTP/1.0\r\nHost: agent\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        })??;
        let code = answer.split(' ').nth(1).and_then(|code| code.parse().ok());
        let body = answer
            .split_once("\r\n\r\n")
            .map(|(_, body)| body.to_owned());
        code.zip(body).ok_or_else(|| anyhow!("no HTTP: {answer}"))
    }

    /// The value of a metric, its labels with it.
    pub(crate) fn metric(&self, name: &str) -> Result<Option<f64>> {
        let (_, text) = self.http("/metrics")?;
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        Ok(line.and_then(|rest| rest.trim().parse().ok()))
    }

    /// Calls the API server as one who may do everything.
    pub(crate) fn admin<T: Send>(
        &self,
        call: impl AsyncFnOnce(kube::Client) -> Result<T> + Send,
    ) -> Result<T> {
        let plane = &self.plane;
        block_on(plane.host(), async || call(plane.admin().await?).await)
    }

    /// Makes a Node, as a kubelet does.
    pub(crate) fn add_node(&self, name: &str, address: &str, annotations: Value) -> Result<()> {
        let node = json!({
            "metadata": {"name": name, "annotations": annotations},
            "status": {"addresses": [{"type": "InternalIP", "address": address}]},
        });
        self.admin(async |client| {
            let nodes: Api<Node> = Api::all(client);
            let node = serde_json::from_value(node)?;
            nodes.create(&PostParams::default(), &node).await?;
            Ok(())
        })
    }

    /// Publishes a key on a Node, as its agent does.
    pub(crate) fn set_key(&self, name: &str, key: PublicKey) -> Result<()> {
        let patch = json!({"metadata": {"annotations": keyed(key)}});
        self.admin(async |client| {
            let nodes: Api<Node> = Api::all(client);
            let params = PatchParams::default();
            nodes.patch(name, &params, &Patch::Merge(patch)).await?;
            Ok(())
        })
    }

    pub(crate) fn node(&self, name: &str) -> Result<Node> {
        self.admin(async |client| Ok(Api::all(client).get(name).await?))
    }

    /// Status and reason of a Node's condition NetworkUnavailable.
    pub(crate) fn condition(&self) -> Result<(String, String)> {
        let status = self.node("node1")?.status.unwrap_or_default();
        let conditions = status.conditions.unwrap_or_default();
        let found = conditions
            .into_iter()
            .find(|c| c.type_ == "NetworkUnavailable");
        let found = found.map(|c| (c.status, c.reason.unwrap_or_default()));
        Ok(found.unwrap_or_default())
    }

    /// The messages of the Events on a Node of one reason.
    pub(crate) fn events(&self, node: &str, reason: &str) -> Result<Vec<String>> {
        let events = self.admin(async |client| {
            let events: Api<Event> = Api::namespaced(client, "default");
            Ok(events.list(&ListParams::default()).await?.items)
        })?;
        let found = events.into_iter().filter(|event| {
            event.involved_object.name.as_deref() == Some(node)
                && event.reason.as_deref() == Some(reason)
        });
        Ok(found.filter_map(|event| event.message).collect())
    }

    /// Waits until something is so.
    pub(crate) fn until(&self, what: &str, done: impl Fn(&Self) -> Result<bool>) -> Result<()> {
        let deadline = Instant::now() + LIMIT;
        loop {
            let now = done(self);
            if matches!(now, Ok(true)) {
                return Ok(());
            }
            if Instant::now() > deadline {
                let logs = [&self.tunnel, &self.agent].map(|p| p.as_ref().map(Proc::describe));
                let logs: Vec<String> = logs.into_iter().flatten().collect();
                bail!(
                    "not in time: {what}: {now:?}\n{:#?}\n{}",
                    self.status(),
                    logs.join("\n")
                );
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

/// The annotation of a key.
pub(crate) fn keyed(key: PublicKey) -> Value {
    json!({ annotation::PUBLIC_KEY: key.to_base64() })
}
