//! The probe: the program in the test's pods, and how it is asked.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use warren_lab::Host;

use crate::cluster::Cluster;
use crate::places::prepared;
use crate::run;

/// The port of HTTP and UDP of a probe in a pod.
pub const PORT: u16 = 8080;
/// The port of a probe in a node's network.
pub const HOST_PORT: u16 = 8081;
/// The port of the webhook that a probe serves.
pub const WEBHOOK_PORT: u16 = 8443;
/// What checks with [`Check::secret`] and streams carry, and no underlay may show.
pub const MARKER: &str = "warren-cluster-marker-5d0c41";

/// How long all checks of one asker may take together.
const CHECKS_LIMIT: Duration = Duration::from_secs(120);

/// One question, asked `times` times.
#[derive(Clone, Debug, Serialize)]
pub struct Check {
    /// Names it in the result.
    pub id: String,
    /// How it is asked.
    pub kind: Kind,
    /// `host:port`, or a name for [`Kind::Dns`].
    pub to: String,
    /// How often; 0 is once.
    pub times: u32,
    /// Whether its packets carry [`MARKER`].
    pub secret: bool,
}

/// How a question is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Who answers on a TCP connection.
    Tcp,
    /// Who answers a datagram.
    Udp,
    /// Whose certificate it is.
    Tls,
    /// Which addresses a name has.
    Dns,
}

/// Who answered, and as whom it saw the asker.
#[derive(Clone, Debug, Deserialize)]
pub struct Answer {
    /// The answering probe's name.
    pub server: String,
    /// The asker's address there; empty where the server does not tell.
    pub client: String,
}

/// What came of a check.
#[derive(Clone, Debug, Deserialize)]
pub struct CheckResult {
    /// The check's.
    pub id: String,
    /// The answers, of the times that it succeeded.
    #[serde(deserialize_with = "nothing_is_empty")]
    pub answers: Vec<Answer>,
    /// A name's addresses.
    #[serde(deserialize_with = "nothing_is_empty")]
    pub addresses: Vec<String>,
    /// What went wrong, once for each time that it did.
    #[serde(deserialize_with = "nothing_is_empty")]
    pub errors: Vec<String>,
    /// The time it took, in milliseconds.
    pub millis: u64,
}

/// Who asks.
#[derive(Clone, Debug)]
pub enum Asker {
    /// A process in a host's network.
    Host(Host),
    /// The probe in a pod, ordered by its node.
    Pod(PodProbe),
}

impl Asker {
    /// Runs checks, all at once.
    ///
    /// # Errors
    /// When the probe cannot be run or ordered; what a check comes to is in its result.
    pub fn check(&self, checks: &[Check]) -> Result<Vec<CheckResult>> {
        let input = serde_json::to_vec(checks)?;
        let answer = match self {
            Self::Host(host) => run::ask(
                host,
                prepared("bin/probe"),
                &["check"],
                &input,
                CHECKS_LIMIT,
            )?,
            Self::Pod(pod) => pod.order("POST", "check", &input)?,
        };
        serde_json::from_str(&answer).context("parse the probe's results")
    }
}

/// A probe in a pod, as its node reaches it: by the pod's address, without any other node or the API server.
#[derive(Clone, Debug)]
pub struct PodProbe {
    node: Host,
    address: IpAddr,
}

impl PodProbe {
    /// The probe of this address on this node.
    pub fn new(node: &Host, address: IpAddr) -> Self {
        Self {
            node: node.clone(),
            address,
        }
    }

    /// Sends an HTTP request to it.
    ///
    /// # Errors
    /// Those of the way to it; an answer that is none of 200, with its text.
    pub fn order(&self, method: &str, path: &str, body: &[u8]) -> Result<String> {
        let url = format!("http://{}:{PORT}/{path}", bracketed(self.address));
        let arguments = ["call", method, &url];
        run::ask(
            &self.node,
            prepared("bin/probe"),
            &arguments,
            body,
            CHECKS_LIMIT,
        )
    }

    /// Starts a stream of numbered datagrams to an echo, `rate` a second.
    ///
    /// # Errors
    /// Those of [`PodProbe::order`].
    pub fn start_stream(&self, to: &str, rate: u32) -> Result<Stream> {
        let id = to.replace(['[', ']', ':'], "-");
        let order = json!({"to": to, "rate": rate}).to_string();
        self.order("POST", &format!("stream?id={id}"), order.as_bytes())?;
        Ok(Stream {
            probe: self.clone(),
            id,
        })
    }
}

/// A stream that goes on in a pod.
#[derive(Debug)]
pub struct Stream {
    probe: PodProbe,
    id: String,
}

impl Stream {
    /// What it has seen so far.
    ///
    /// # Errors
    /// Those of [`PodProbe::order`].
    pub fn account(&self) -> Result<Account> {
        let answer = self
            .probe
            .order("GET", &format!("stream?id={}", self.id), b"")?;
        Ok(serde_json::from_str(&answer)?)
    }

    /// Ends it, waits for what is on its way, and tells what it has seen.
    ///
    /// # Errors
    /// Those of [`PodProbe::order`].
    pub fn stop(self) -> Result<Account> {
        let answer = self
            .probe
            .order("DELETE", &format!("stream?id={}", self.id), b"")?;
        Ok(serde_json::from_str(&answer)?)
    }
}

/// What a stream has seen.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Account {
    /// Datagrams that were sent.
    pub sent: u64,
    /// Those whose echo has returned.
    pub returned: u64,
    /// Echoes beyond the first of a datagram.
    pub duplicates: u64,
    /// Datagrams that the kernel refused to send.
    pub unsent: u64,
    /// Those that have not returned within ten seconds.
    pub lost: u64,
    /// The longest time without any return, in milliseconds.
    pub gap_millis: u64,
    /// When the first of the lost ones were sent, in milliseconds since the start.
    pub lost_at_millis: Vec<u64>,
}

/// A pod with a probe on a node.
#[derive(Clone, Debug)]
pub struct PodSpec<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its node.
    pub node: &'a str,
    /// Its labels beside `app: probe`.
    pub labels: Value,
    /// Whether it is in the node's network, on [`HOST_PORT`].
    pub host_network: bool,
    /// A port of the node that leads to it, TCP and UDP.
    pub host_port: Option<u16>,
}

impl PodSpec<'_> {
    /// The object, in a namespace.
    pub fn object(&self, namespace: &str) -> Value {
        let port = if self.host_network { HOST_PORT } else { PORT };
        let mut labels = self.labels.clone();
        if !self.host_network {
            labels["app"] = json!("probe");
        }
        let ports: Vec<Value> = ["TCP", "UDP"]
            .into_iter()
            .map(|protocol| {
                let mut entry = json!({"containerPort": port, "protocol": protocol});
                if let Some(host_port) = self.host_port {
                    entry["hostPort"] = json!(host_port);
                }
                entry
            })
            .collect();
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": self.name, "namespace": namespace, "labels": labels},
            "spec": {
                "nodeName": self.node,
                "hostNetwork": self.host_network,
                "dnsPolicy": if self.host_network { "ClusterFirstWithHostNet" } else { "ClusterFirst" },
                "terminationGracePeriodSeconds": 1,
                "automountServiceAccountToken": false,
                "containers": [
                    {
                        "name": "probe",
                        "image": "warren.test/probe:1",
                        "args": ["serve", format!("-port={port}")],
                        "env": [{"name": "PROBE_NAME", "value": self.name}],
                        "ports": ports,
                        "readinessProbe": {"httpGet": {"path": "/readyz", "port": port}, "periodSeconds": 1},
                        "livenessProbe": {
                            "httpGet": {"path": "/healthz", "port": port},
                            "periodSeconds": 5, "timeoutSeconds": 5, "failureThreshold": 5,
                        },
                    },
                    {
                        "name": "shell",
                        "image": "warren.test/busybox:1",
                        "command": ["/bin/sh", "-c", "echo started; while sleep 1; do :; done"],
                    },
                ],
            },
        })
    }
}

/// An address as it stands before a port.
pub fn bracketed(address: IpAddr) -> String {
    match address {
        IpAddr::V4(v4) => v4.to_string(),
        IpAddr::V6(v6) => format!("[{v6}]"),
    }
}

/// The addresses of a Pod's status, or of another list of objects with `ip`: IPv4, IPv6.
///
/// # Errors
/// One of the families is missing.
pub fn both_families(addresses: &[IpAddr]) -> Result<[IpAddr; 2]> {
    let of = |v6: bool| addresses.iter().copied().find(|a| a.is_ipv6() == v6);
    match (of(false), of(true)) {
        (Some(v4), Some(v6)) => Ok([v4, v6]),
        _ => anyhow::bail!("not an address of each family: {addresses:?}"),
    }
}

impl Cluster {
    /// The addresses of a Pod: IPv4, IPv6.
    ///
    /// # Errors
    /// Those of kubectl; a family without an address.
    pub fn pod_addresses(&self, namespace: &str, name: &str) -> Result<[IpAddr; 2]> {
        let pod = self.get(&["pod", "-n", namespace, name])?;
        let list = pod["status"]["podIPs"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        let addresses: Result<Vec<IpAddr>, _> = list
            .iter()
            .map(|entry| entry["ip"].as_str().unwrap_or_default().parse())
            .collect();
        both_families(&addresses?).with_context(|| format!("pod {name}"))
    }
}

/// Go writes a list that was never begun as `null`.
fn nothing_is_empty<'de, D, T>(from: D) -> std::result::Result<Vec<T>, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Deserialize<'de>,
{
    Ok(Option::deserialize(from)?.unwrap_or_default())
}
