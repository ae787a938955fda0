//! Pods, attached and detached as a container runtime does it.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use warren_lab::{Output, Pod, bin};

use crate::node::Node;

const CNI_LIMIT: Duration = Duration::from_secs(60);

/// A pod with its addresses.
#[derive(Debug)]
pub struct MeshPod {
    /// The pod's namespaces.
    pub pod: Pod,
    /// Its name, with its node's.
    pub name: String,
    /// Its IPv4 address.
    pub v4: String,
    /// Its IPv6 address.
    pub v6: String,
    /// What ADD answered.
    pub result: Value,
    container_id: String,
}

impl MeshPod {
    pub(crate) fn attach(node: &Node, name: &str) -> Result<Self> {
        let pod = node.host.pod_netns(name)?;
        let container_id = format!("{}-{name}", node.name());
        let out = cni(node, "ADD", &container_id, Some(&pod))?;
        if !out.success() {
            pod.destroy()?;
            bail!("ADD of {container_id}: {}{}", out.stdout, out.stderr);
        }
        let result = out.json()?;
        let address = |v6: bool| {
            let ips = result["ips"].as_array().into_iter().flatten();
            let mut texts = ips.filter_map(|ip| ip["address"].as_str());
            let found = texts.find(|a| a.contains(':') == v6)?;
            found.split('/').next().map(str::to_owned)
        };
        let (Some(v4), Some(v6)) = (address(false), address(true)) else {
            bail!("ADD of {container_id} gave no address of each family: {result}");
        };
        Ok(Self {
            pod,
            name: format!("{}/{name}", node.name()),
            v4,
            v6,
            result,
            container_id,
        })
    }

    /// Both addresses.
    pub fn addresses(&self) -> [&str; 2] {
        [&self.v4, &self.v6]
    }

    /// The name and MAC of the pod's veth on its node.
    pub fn host_interface(&self) -> Option<&str> {
        let interfaces = self.result["interfaces"].as_array()?;
        interfaces
            .iter()
            .find(|i| i["sandbox"].as_str().unwrap_or("").is_empty())?["name"]
            .as_str()
    }

    /// Detaches it by DEL and ends its namespaces.
    pub fn detach(&self, node: &Node) -> Result<()> {
        let out = cni(node, "DEL", &self.container_id, Some(&self.pod))?;
        ensure!(
            out.success(),
            "DEL of {}: {}{}",
            self.name,
            out.stdout,
            out.stderr
        );
        self.pod.destroy()?;
        Ok(())
    }
}

/// Calls the plugin with the configuration that the agent wrote, as libcni builds it: the plugin's
/// own object with the list's name and version.
fn cni(node: &Node, verb: &str, container_id: &str, pod: Option<&Pod>) -> Result<Output> {
    let conflist: Value = serde_json::from_str(&node.read(&node.conflist_path())?)?;
    let mut config = conflist["plugins"][0].clone();
    let fields = config
        .as_object_mut()
        .context("the conflist's first plugin is no object")?;
    fields.insert("name".into(), conflist["name"].clone());
    fields.insert("cniVersion".into(), conflist["cniVersion"].clone());
    let plugin = bin(config["type"].as_str().context("the plugin has no type")?)?;
    let mut command = Command::new(&plugin);
    command
        .envs(node.env.clone())
        .env("CNI_COMMAND", verb)
        .env("CNI_CONTAINERID", container_id)
        .env("CNI_IFNAME", "eth0")
        .env(
            "CNI_PATH",
            plugin.parent().context("the plugin has no directory")?,
        );
    if let Some(pod) = pod {
        command.env("CNI_NETNS", pod.cni_netns());
    }
    Ok(node
        .host
        .output_with_input(&mut command, config.to_string().as_bytes(), CNI_LIMIT)?)
}
