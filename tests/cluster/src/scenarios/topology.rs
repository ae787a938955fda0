//! The pods and Services that traffic is tried with: on each node a probe in a pod and one in the node's
//! network, and Services of every sort that lead to the one or the other.

use std::collections::BTreeMap;
use std::net::IpAddr;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::probe::{Asker, HOST_PORT, PORT, PodProbe, PodSpec, both_families};

/// The namespace of all of it.
pub const NAMESPACE: &str = "traffic";
/// A port of each node that leads to the pod on it, by the `portmap` plugin.
pub const NODE_HOST_PORT: u16 = 9080;
/// The Service that all pods are behind.
pub const ALL: &str = "all";
/// The same, each client staying with one pod.
pub const STICKY: &str = "sticky";

/// The node port, on every node, of the Service that leads to the pod of node `number`.
pub fn node_port(number: u8, is_local: bool) -> u16 {
    let base = if is_local { 30100 } else { 30000 };
    base + u16::from(number)
}

/// The pods of one node.
#[derive(Clone, Debug)]
pub struct Member {
    /// The node's name.
    pub node: String,
    /// Its number, from 1.
    pub number: u8,
    /// Its addresses: IPv4, IPv6.
    pub node_addresses: [IpAddr; 2],
    /// The addresses that the node has among its pods: IPv4, IPv6.
    pub tunnel_addresses: [IpAddr; 2],
    /// The pod's addresses: IPv4, IPv6.
    pub pod_addresses: [IpAddr; 2],
    /// A process on the node.
    pub on_host: Asker,
    /// The probe in the pod.
    pub in_pod: Asker,
}

impl Member {
    /// The pod's name.
    pub fn pod(&self) -> String {
        format!("pod-{}", self.number)
    }

    /// The name of the pod in the node's network.
    pub fn host_pod(&self) -> String {
        format!("host-{}", self.number)
    }
}

/// All of it.
#[derive(Clone, Debug)]
pub struct Topology {
    /// The nodes' pods, in the order of the nodes.
    pub members: Vec<Member>,
    /// The addresses of the Services by name: IPv4, IPv6.
    pub services: BTreeMap<String, [IpAddr; 2]>,
}

/// From a pod that is ready to its Services' EndpointSlices, and from those to a kube-proxy.
const NEWS: std::time::Duration = std::time::Duration::from_secs(3);

impl Topology {
    /// Makes the pods and Services of these nodes, unless they are there, and waits for them.
    ///
    /// # Errors
    /// What does not come up.
    pub fn deploy(cluster: &Cluster, nodes: &[&str]) -> Result<Self> {
        let mut objects = vec![
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}),
            service(ALL, &json!({"app": "probe"}), 80, PORT, json!({})),
            service(
                STICKY,
                &json!({"app": "probe"}),
                80,
                PORT,
                json!({"sessionAffinity": "ClientIP"}),
            ),
        ];
        for node in nodes {
            objects.extend(node_objects(node, number_of(node)?));
        }
        cluster.apply(&objects)?;
        for node in nodes {
            for kind in ["pod", "host"] {
                let name = format!("{kind}-{}", number_of(node)?);
                cluster.wait_pod_ready(NAMESPACE, &name)?;
            }
        }
        // The news of the last pod has reached every kube-proxy after that, and waits there for its turn.
        std::thread::sleep(NEWS);
        for node in nodes {
            cluster.wait_proxy(node)?;
        }
        Self::find(cluster, nodes)
    }

    /// Finds what [`Topology::deploy`] has made.
    ///
    /// # Errors
    /// Those of kubectl.
    pub fn find(cluster: &Cluster, nodes: &[&str]) -> Result<Self> {
        let members: Result<Vec<Member>> = nodes.iter().map(|node| member(cluster, node)).collect();
        let list = cluster.get(&["services", "-n", NAMESPACE])?;
        let mut services = BTreeMap::new();
        for service in list["items"].as_array().into_iter().flatten() {
            let texts = service["spec"]["clusterIPs"].as_array();
            let addresses: Vec<IpAddr> = texts
                .into_iter()
                .flatten()
                .filter_map(|text| text.as_str()?.parse().ok())
                .collect();
            // A headless one has none.
            if let Ok(both) = both_families(&addresses) {
                let name = service["metadata"]["name"].as_str().unwrap_or_default();
                services.insert(name.to_owned(), both);
            }
        }
        Ok(Self {
            members: members?,
            services,
        })
    }

    /// A Service's address.
    ///
    /// # Errors
    /// There is no such Service.
    pub fn service(&self, name: &str, family: usize) -> Result<IpAddr> {
        let found = self.services.get(name);
        Ok(found.with_context(|| format!("no Service {name}"))?[family])
    }
}

fn number_of(node: &str) -> Result<u8> {
    let digits = node.trim_start_matches(|c: char| !c.is_ascii_digit());
    digits
        .parse()
        .with_context(|| format!("the number of {node}"))
}

fn member(cluster: &Cluster, node: &str) -> Result<Member> {
    let number = number_of(node)?;
    let place = cluster.node(node);
    let pod_addresses = cluster.pod_addresses(NAMESPACE, &format!("pod-{number}"))?;
    let object = cluster.get(&["node", node])?;
    let cidrs = object["spec"]["podCIDRs"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    let first = |cidr: &Value| {
        let net: ipnet::IpNet = cidr.as_str()?.parse().ok()?;
        net.hosts().find(|address| *address != net.network())
    };
    let tunnel: Vec<IpAddr> = cidrs.iter().filter_map(first).collect();
    Ok(Member {
        node: node.to_owned(),
        number,
        node_addresses: place.addresses,
        tunnel_addresses: both_families(&tunnel)?,
        pod_addresses,
        on_host: Asker::Host(place.host.clone()),
        in_pod: Asker::Pod(PodProbe::new(&place.host, pod_addresses[0])),
    })
}

fn node_objects(node: &str, number: u8) -> Vec<Value> {
    let (pod, host) = (format!("pod-{number}"), format!("host-{number}"));
    let (selects_pod, selects_host) = (json!({"pod-of": node}), json!({"host-of": node}));
    let pod_spec = PodSpec {
        name: &pod,
        node,
        labels: selects_pod.clone(),
        host_network: false,
        host_port: Some(NODE_HOST_PORT),
    };
    let host_spec = PodSpec {
        name: &host,
        labels: selects_host.clone(),
        host_network: true,
        host_port: None,
        ..pod_spec.clone()
    };
    let port_of = |is_local| {
        let policy = if is_local { "Local" } else { "Cluster" };
        json!({
            "type": "NodePort",
            "externalTrafficPolicy": policy,
            "nodePort": node_port(number, is_local),
        })
    };
    vec![
        pod_spec.object(NAMESPACE),
        host_spec.object(NAMESPACE),
        service(&format!("on-{number}"), &selects_pod, 80, PORT, json!({})),
        service(
            &format!("headless-{number}"),
            &selects_pod,
            PORT,
            PORT,
            json!({"clusterIP": "None"}),
        ),
        service(
            &format!("port-{number}"),
            &selects_pod,
            80,
            PORT,
            port_of(false),
        ),
        service(
            &format!("local-{number}"),
            &selects_pod,
            80,
            PORT,
            port_of(true),
        ),
        service(
            &format!("on-host-{number}"),
            &selects_host,
            80,
            HOST_PORT,
            json!({}),
        ),
    ]
}

/// A Service of both families and both protocols; `more` is added to its spec, `nodePort` to its ports.
fn service(name: &str, selects: &Value, port: u16, target: u16, mut more: Value) -> Value {
    let node_port = more
        .as_object_mut()
        .and_then(|more| more.remove("nodePort"));
    let ports: Vec<Value> = ["TCP", "UDP"]
        .into_iter()
        .map(|protocol| {
            let name = protocol.to_lowercase();
            let mut entry =
                json!({"name": name, "protocol": protocol, "port": port, "targetPort": target});
            if let Some(node_port) = &node_port {
                entry["nodePort"] = node_port.clone();
            }
            entry
        })
        .collect();
    let mut spec =
        json!({"selector": selects, "ports": ports, "ipFamilyPolicy": "RequireDualStack"});
    for (key, value) in more.as_object().into_iter().flatten() {
        spec[key] = value.clone();
    }
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": spec,
    })
}
