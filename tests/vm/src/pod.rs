//! Pods in the machines.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;

use crate::Result;
use crate::cluster::Cluster;
use crate::machine::Machine;

/// How long the pings of one machine may take.
const PINGS: Duration = Duration::from_secs(300);

/// A pod: a network namespace in a machine, attached by the plugin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pod {
    /// The number of its machine.
    pub node: u8,
    /// The name of its namespace.
    pub name: String,
    /// Its addresses, one of each family of the mesh.
    pub addresses: Vec<String>,
}

impl Pod {
    /// Attaches a pod by the plugin with the configuration that the agent wrote.
    ///
    /// # Errors
    ///
    /// With the plugin's answer.
    pub fn attach(machine: &Machine, name: &str) -> Result<Self> {
        let answer = machine.json(&format!("pod add {name}"))?;
        Self::of_answer(machine.number, name, &answer)
    }

    /// The pod that a plugin's answer tells of.
    ///
    /// # Errors
    ///
    /// When the answer has no address.
    pub fn of_answer(node: u8, name: &str, answer: &Value) -> Result<Self> {
        let ips = answer["ips"].as_array().into_iter().flatten();
        let addresses: Option<Vec<String>> = ips
            .map(|ip| Some(ip["address"].as_str()?.split('/').next()?.to_owned()))
            .collect();
        let addresses = addresses.filter(|a| !a.is_empty());
        Ok(Self {
            node,
            name: name.to_owned(),
            addresses: addresses.with_context(|| format!("no addresses: {answer}"))?,
        })
    }
}

/// Pings every pod's every address from every other pod; all must answer all. Tells how many pairs that were.
///
/// # Errors
///
/// Naming the pairs that did not.
pub fn ping_all(cluster: &Cluster, pods: &[Pod]) -> Result<usize> {
    ping(cluster, pods, pods)
}

/// As [`ping_all`], but only from some pods to others.
///
/// # Errors
///
/// As [`ping_all`].
pub fn ping(cluster: &Cluster, sources: &[Pod], targets: &[Pod]) -> Result<usize> {
    let mut pairs = 0;
    for machine in &cluster.machines {
        // At once, for most of the time is waiting. The interval is also what `ping` waits for the last answer once one
        // has come.
        let mut script = String::from(
            "probe() { ip netns exec $1 ping -n -q -c 2 -i 2 -W 10 $3 | grep -q ' 2 received' || echo \"$1 $2 $3\"; }\n",
        );
        for from in sources.iter().filter(|p| p.node == machine.number) {
            for to in targets.iter().filter(|p| *p != from) {
                for address in &to.addresses {
                    pairs += 1;
                    let _ = writeln!(script, "probe {} {} {address} &", from.name, to.name);
                }
            }
        }
        script.push_str("wait");
        let failed = machine.sh_within(&script, PINGS)?;
        ensure!(
            failed.trim().is_empty(),
            "no answer on {}: {failed}",
            machine.name()
        );
    }
    if pairs == 0 {
        bail!("there are no pods to ping");
    }
    Ok(pairs)
}
