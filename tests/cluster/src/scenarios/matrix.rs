//! The matrix of traffic: who reaches whom in which way, and as whom it is seen there.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::IpAddr;

use anyhow::{Result, bail};

use super::expected::{Expected, Outcome};
use super::topology::{ALL, Member, NAMESPACE, NODE_HOST_PORT, STICKY, Topology, node_port};
use crate::cluster::{Cluster, NODES_MAX, OUTSIDE_PORT};
use crate::probe::{Asker, Check, HOST_PORT, Kind, PORT, bracketed};
use crate::settings::{API_SERVICE, DNS_SERVICE};

/// How often a Service is asked that must show all its pods: that it leaves out one of three has a chance
/// of 3 * (2/3)^60, less than one in ten thousand million.
const ALL_TIMES: u32 = 60;
const STICKY_TIMES: u32 = 8;

/// The ports that the matrix uses between nodes, and from outside, in clear.
pub fn ports_in_clear() -> impl Iterator<Item = u16> {
    let node_ports = (1..=NODES_MAX).flat_map(|n| [node_port(n, false), node_port(n, true)]);
    [HOST_PORT, OUTSIDE_PORT, NODE_HOST_PORT]
        .into_iter()
        .chain(node_ports)
}

/// The ways that are not the same in every cluster.
#[derive(Clone, Debug)]
pub struct Network {
    /// Whether the node's own packets to pods of other nodes have one of its addresses among the pods.
    pub is_warren: bool,
    /// The outside host's addresses: IPv4, IPv6.
    pub outside: [IpAddr; 2],
}

/// Tries all of it, and tells what is not as it must be.
///
/// # Errors
/// A table of what failed.
pub fn run(cluster: &Cluster, topology: &Topology, network: &Network) -> Result<usize> {
    let outside = Asker::Host(cluster.outside.clone());
    let mut work: Vec<(String, Asker, Vec<Expected>)> = Vec::new();
    for a in &topology.members {
        let (mut by_pod, mut by_host) = (Vec::new(), Vec::new());
        for b in &topology.members {
            for family in 0..2 {
                for kind in [Kind::Tcp, Kind::Udp] {
                    let pair = Pair {
                        topology,
                        network,
                        a,
                        b,
                        family,
                        kind,
                    };
                    by_pod.extend(pair.of_pod()?);
                    by_host.extend(pair.of_host()?);
                }
            }
        }
        by_pod.extend(from_pod_to_all(topology, network, a)?);
        work.push((format!("{} in a pod", a.node), a.in_pod.clone(), by_pod));
        work.push((format!("{} itself", a.node), a.on_host.clone(), by_host));
    }
    work.push(("outside".into(), outside, from_outside(topology, network)));
    judge_all(work)
}

/// One ordered pair of nodes, in one family and one protocol.
struct Pair<'a> {
    topology: &'a Topology,
    network: &'a Network,
    a: &'a Member,
    b: &'a Member,
    family: usize,
    kind: Kind,
}

impl Pair<'_> {
    fn is_own(&self) -> bool {
        self.a.number == self.b.number
    }

    fn row(
        &self,
        way: &str,
        (address, port): (IpAddr, u16),
        server: String,
        clients: Vec<IpAddr>,
    ) -> Expected {
        let (a, b) = (&self.a.node, &self.b.node);
        Expected {
            check: Check {
                id: format!(
                    "{a} to {b} {}, {}",
                    family_name(self.family, self.kind),
                    way
                ),
                kind: self.kind,
                to: format!("{}:{port}", bracketed(address)),
                times: 1,
                secret: true,
            },
            outcome: Outcome::Server(server, clients),
        }
    }

    /// What the pod on `a` asks of what is on `b`.
    fn of_pod(&self) -> Result<Vec<Expected>> {
        let Self {
            a,
            b,
            family,
            topology,
            ..
        } = *self;
        let (pod, host) = (b.pod(), b.host_pod());
        let own = vec![a.pod_addresses[family]];
        // One that reaches itself has a source that makes the answer come back by the node.
        let unless_itself = if self.is_own() {
            Vec::new()
        } else {
            own.clone()
        };
        let to_node = b.node_addresses[family];
        let mut rows = vec![
            self.row(
                "by address",
                (b.pod_addresses[family], PORT),
                pod.clone(),
                own.clone(),
            ),
            self.row(
                "by ClusterIP",
                (topology.service(&format!("on-{}", b.number), family)?, 80),
                pod.clone(),
                unless_itself.clone(),
            ),
            self.row(
                "to the node's network",
                (to_node, HOST_PORT),
                host.clone(),
                own.clone(),
            ),
            self.row(
                "to the node's network by ClusterIP",
                (
                    topology.service(&format!("on-host-{}", b.number), family)?,
                    80,
                ),
                host,
                own.clone(),
            ),
            self.row(
                "by a NodePort of policy Local on the pod's node",
                (to_node, node_port(b.number, true)),
                pod.clone(),
                unless_itself.clone(),
            ),
            self.row(
                "by hostPort",
                (to_node, NODE_HOST_PORT),
                pod.clone(),
                unless_itself,
            ),
        ];
        for through in &topology.members {
            rows.push(self.row(
                &format!("by NodePort of {}", through.node),
                (through.node_addresses[family], node_port(b.number, false)),
                pod.clone(),
                Vec::new(),
            ));
        }
        Ok(rows)
    }

    /// What a process on the node `a` asks of what is on `b`.
    fn of_host(&self) -> Result<Vec<Expected>> {
        let Self {
            a,
            b,
            family,
            topology,
            ..
        } = *self;
        let pod = b.pod();
        let as_node = match (self.network.is_warren, self.is_own()) {
            (true, _) => vec![a.tunnel_addresses[family]],
            (false, _) => Vec::new(),
        };
        let to_node = b.node_addresses[family];
        let clear = |mut row: Expected| {
            row.check.secret = false;
            row
        };
        let mut rows = vec![
            self.row(
                "by address",
                (b.pod_addresses[family], PORT),
                pod.clone(),
                as_node,
            ),
            self.row(
                "by ClusterIP",
                (topology.service(&format!("on-{}", b.number), family)?, 80),
                pod.clone(),
                Vec::new(),
            ),
            // Between nodes themselves nothing is encrypted.
            clear(self.row(
                "to the node's network",
                (to_node, HOST_PORT),
                b.host_pod(),
                vec![a.node_addresses[family]],
            )),
        ];
        for through in &topology.members {
            rows.push(clear(self.row(
                &format!("by NodePort of {}", through.node),
                (through.node_addresses[family], node_port(b.number, false)),
                pod.clone(),
                Vec::new(),
            )));
        }
        for row in &mut rows {
            row.check.id.insert_str(0, "the node ");
        }
        Ok(rows)
    }
}

/// What a pod asks of all nodes together, of the cluster, and of what is outside.
fn from_pod_to_all(topology: &Topology, network: &Network, a: &Member) -> Result<Vec<Expected>> {
    let node = &a.node;
    let all: BTreeSet<String> = topology.members.iter().map(Member::pod).collect();
    let mut rows = Vec::new();
    for family in 0..2 {
        for kind in [Kind::Tcp, Kind::Udp] {
            let mut add = |way: &str, to: String, times: u32, secret: bool, outcome: Outcome| {
                let id = format!("{node} {}, {way}", family_name(family, kind));
                let check = Check {
                    id,
                    kind,
                    to,
                    times,
                    secret,
                };
                rows.push(Expected { check, outcome });
            };
            let at = |address: IpAddr, port: u16| format!("{}:{port}", bracketed(address));
            let every = at(topology.service(ALL, family)?, 80);
            add(
                "all pods of a Service",
                every,
                ALL_TIMES,
                true,
                Outcome::All(all.clone()),
            );
            let sticky = at(topology.service(STICKY, family)?, 80);
            add(
                "session affinity",
                sticky,
                STICKY_TIMES,
                true,
                Outcome::Same,
            );
            let outside = at(network.outside[family], OUTSIDE_PORT);
            let as_node = vec![a.node_addresses[family]];
            let expected = Outcome::Server("outside".into(), as_node);
            add("to outside the mesh", outside, 1, false, expected);
        }
    }
    for b in &topology.members {
        let full = |name: &str| format!("{name}-{}.{NAMESPACE}.svc.cluster.local", b.number);
        for (name, addresses) in [
            ("headless", b.pod_addresses),
            (
                "on",
                [
                    topology.service(&format!("on-{}", b.number), 0)?,
                    topology.service(&format!("on-{}", b.number), 1)?,
                ],
            ),
        ] {
            rows.push(Expected {
                check: Check {
                    id: format!("{node} asks the DNS for {name}-{}", b.number),
                    kind: Kind::Dns,
                    to: full(name),
                    times: 1,
                    secret: false,
                },
                outcome: Outcome::Addresses(addresses.into_iter().collect()),
            });
        }
        for kind in [Kind::Tcp, Kind::Udp] {
            // By its short name, which takes the search list of the pod's resolv.conf.
            rows.push(Expected {
                check: Check {
                    id: format!("{node} to headless-{} by name, {kind:?}", b.number),
                    kind,
                    to: format!("headless-{}:{PORT}", b.number),
                    times: 1,
                    secret: true,
                },
                outcome: Outcome::Server(b.pod(), a.pod_addresses.to_vec()),
            });
        }
    }
    rows.push(Expected {
        check: Check {
            id: format!("{node} to the API server"),
            kind: Kind::Tls,
            to: format!("{API_SERVICE}:443"),
            times: 1,
            secret: false,
        },
        outcome: Outcome::Server("kube-apiserver".into(), Vec::new()),
    });
    rows.push(Expected {
        check: Check {
            id: format!("{node} asks the DNS for the API server"),
            kind: Kind::Dns,
            to: "kubernetes.default".into(),
            times: 1,
            secret: false,
        },
        outcome: Outcome::Addresses(API_SERVICE.parse().into_iter().collect()),
    });
    rows.push(Expected {
        check: Check {
            id: format!("{node} asks the DNS for itself by its Service"),
            kind: Kind::Dns,
            to: "kube-dns.kube-system".into(),
            times: 1,
            secret: false,
        },
        outcome: Outcome::Addresses(DNS_SERVICE.parse().into_iter().collect()),
    });
    Ok(rows)
}

/// What a host outside of the cluster asks of the nodes.
fn from_outside(topology: &Topology, network: &Network) -> Vec<Expected> {
    let mut rows = Vec::new();
    for b in &topology.members {
        for family in 0..2 {
            for kind in [Kind::Tcp, Kind::Udp] {
                let mut add = |way: String, at: &Member, port: u16, outcome: Outcome| {
                    let name = family_name(family, kind);
                    rows.push(Expected {
                        check: Check {
                            id: format!("outside to {} {name}, {way}", b.node),
                            kind,
                            to: format!("{}:{port}", bracketed(at.node_addresses[family])),
                            times: 1,
                            secret: false,
                        },
                        outcome,
                    });
                };
                let kept = Outcome::Server(b.pod(), vec![network.outside[family]]);
                let way = "by hostPort, its address kept";
                add(way.into(), b, NODE_HOST_PORT, kept.clone());
                for through in &topology.members {
                    let way = format!("by NodePort of {}", through.node);
                    let outcome = Outcome::Server(b.pod(), Vec::new());
                    add(way, through, node_port(b.number, false), outcome);
                    let way = format!("by a NodePort of policy Local of {}", through.node);
                    let outcome = if through.number == b.number {
                        kept.clone()
                    } else {
                        Outcome::Nobody
                    };
                    add(way, through, node_port(b.number, true), outcome);
                }
            }
        }
    }
    rows
}

fn family_name(family: usize, kind: Kind) -> String {
    format!("IPv{} {kind:?}", [4, 6][family])
}

fn judge_all(work: Vec<(String, Asker, Vec<Expected>)>) -> Result<usize> {
    let results: Vec<_> = std::thread::scope(|scope| {
        let asking: Vec<_> = work
            .iter()
            .map(|(_, asker, rows)| {
                let checks: Vec<Check> = rows.iter().map(|row| row.check.clone()).collect();
                scope.spawn(move || asker.check(&checks))
            })
            .collect();
        let joined = asking.into_iter().map(|thread| thread.join());
        joined
            .map(|done| done.unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    });
    let (mut count, mut failed, mut text) = (0, 0, String::new());
    for ((who, _, rows), results) in work.iter().zip(results) {
        let results = results.map_err(|e| e.context(format!("checks from {who}")))?;
        for (row, result) in rows.iter().zip(results) {
            count += 1;
            if let Err(why) = row.judge(&result) {
                failed += 1;
                writeln!(text, "  {} ({}): {why}", row.check.id, row.check.to)?;
            }
        }
    }
    if failed > 0 {
        bail!("{failed} of {count} ways are not as they must be:\n{text}");
    }
    Ok(count)
}
