//! One node: its machine with containerd, a kubelet and kube-proxy.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use warren_apiserver::program;
use warren_lab::{Host, Link, Proc, poll_until};

use crate::machine;
use crate::places::{IMAGES, REFERENCE_PLUGINS, installed, prepared};
use crate::settings::{self, ProxySettings};

/// How long containerd may take to answer on a busy machine.
const CONTAINERD_LIMIT: Duration = Duration::from_secs(60);

/// What a node needs of the control plane; paths that all nodes see.
#[derive(Clone, Debug)]
pub(crate) struct Credentials {
    pub(crate) ca: PathBuf,
    pub(crate) kubelet: PathBuf,
    pub(crate) proxy: PathBuf,
}

/// A node of the cluster.
#[derive(Debug)]
pub struct Node {
    /// Its machine.
    pub host: Host,
    /// Its addresses: IPv4, IPv6.
    pub addresses: [IpAddr; 2],
    /// Its cable to the underlay.
    pub link: Link,
    credentials: Option<Credentials>,
    containerd: Option<Proc>,
    kubelet: Option<Proc>,
    proxy: Option<Proc>,
    proxy_settings: Option<ProxySettings>,
}

impl Node {
    pub(crate) fn new(host: Host, addresses: [IpAddr; 2], link: Link) -> Result<Self> {
        machine::set_up(&host)?;
        Ok(Self {
            host,
            addresses,
            link,
            credentials: None,
            containerd: None,
            kubelet: None,
            proxy: None,
            proxy_settings: None,
        })
    }

    /// Its name, of the host and of the Node.
    pub fn name(&self) -> &str {
        self.host.name()
    }

    /// A path on the node as the test sees it; of those that are the node's own.
    pub fn path(&self, path: &str) -> PathBuf {
        self.host
            .dir()
            .join("root")
            .join(path.trim_start_matches('/'))
    }

    /// Starts containerd and waits until it answers.
    ///
    /// # Errors
    /// Its log's end when it does not in time.
    pub fn start_containerd(&mut self) -> Result<()> {
        let config = self.host.dir().join("containerd.toml");
        fs::write(&config, settings::CONTAINERD).context("write containerd's configuration")?;
        let binary = installed("containerd").context("containerd is not installed")?;
        let arguments = ["--config".to_owned(), config.display().to_string()];
        let proc = machine::spawn(&self.host, &binary, &arguments)?;
        let answers = || self.host.try_run(&["ctr", "version"]);
        poll_until(CONTAINERD_LIMIT, "containerd", || {
            answers().is_ok_and(|output| output.success()) || !proc.is_running()
        })?;
        if !proc.is_running() {
            bail!("containerd ended: {}", proc.describe());
        }
        self.containerd = Some(proc);
        Ok(())
    }

    /// Imports the images of the test's own pods.
    ///
    /// # Errors
    /// What `ctr` says.
    pub fn import_own_images(&self) -> Result<()> {
        for name in IMAGES {
            self.import(&prepared(&format!("images/{name}.tar")))?;
        }
        Ok(())
    }

    /// Imports an image for the kubelet to find.
    ///
    /// # Errors
    /// What `ctr` says.
    pub fn import(&self, image: &Path) -> Result<()> {
        let image = image.display().to_string();
        self.host
            .run(&["ctr", "-n", "k8s.io", "images", "import", &image])?;
        Ok(())
    }

    /// Puts reference plugins where containerd looks for them, as a distribution of Kubernetes does.
    ///
    /// # Errors
    /// Those of the files.
    pub fn install_plugins(&self, names: &[&str]) -> Result<()> {
        for name in names {
            let from = Path::new(REFERENCE_PLUGINS).join(name);
            fs::copy(&from, self.path("/opt/cni/bin").join(name))
                .with_context(|| format!("copy {}", from.display()))?;
        }
        Ok(())
    }

    pub(crate) fn set_credentials(&mut self, credentials: Credentials) {
        self.credentials = Some(credentials);
    }

    fn credentials(&self) -> Result<&Credentials> {
        self.credentials.as_ref().context("no control plane yet")
    }

    /// Starts the kubelet, which registers the node.
    ///
    /// # Errors
    /// Those of the lab and of the files.
    pub fn start_kubelet(&mut self) -> Result<()> {
        let credentials = self.credentials()?;
        let config = self.host.dir().join("kubelet.json");
        let content = settings::kubelet(&credentials.ca.display().to_string());
        fs::write(&config, content.to_string()).context("write the kubelet's configuration")?;
        let addresses = self.addresses.map(|address| address.to_string()).join(",");
        let arguments = [
            format!("--config={}", config.display()),
            format!("--kubeconfig={}", credentials.kubelet.display()),
            format!("--hostname-override={}", self.name()),
            format!("--node-ip={addresses}"),
        ];
        self.kubelet = Some(machine::spawn(&self.host, &program("kubelet"), &arguments)?);
        Ok(())
    }

    /// Starts kube-proxy, or starts it anew with other settings; what the former one programmed is cleaned up.
    ///
    /// # Errors
    /// Those of the lab and of the files.
    pub fn start_proxy(&mut self, settings: ProxySettings) -> Result<()> {
        let binary = program("kube-proxy");
        if let Some(former) = self.proxy.take() {
            former.kill();
            if self.proxy_settings.is_some_and(|s| s.mode != settings.mode) {
                self.host
                    .run(&[binary.display().to_string(), "--cleanup".into()])?;
            }
        }
        let kubeconfig = self.credentials()?.proxy.display().to_string();
        let config = self.host.dir().join("kube-proxy.json");
        let content = settings::kube_proxy(self.name(), &kubeconfig, settings);
        fs::write(&config, content.to_string()).context("write kube-proxy's configuration")?;
        let arguments = [format!("--config={}", config.display())];
        self.proxy = Some(machine::spawn(&self.host, &binary, &arguments)?);
        self.proxy_settings = Some(settings);
        Ok(())
    }

    /// Kills the kubelet and starts it again; containers go on.
    ///
    /// # Errors
    /// Those of the lab and of the files.
    pub fn restart_kubelet(&mut self) -> Result<()> {
        self.stop_kubelet();
        self.start_kubelet()
    }

    /// Kills the kubelet.
    pub fn stop_kubelet(&mut self) {
        if let Some(proc) = self.kubelet.take() {
            proc.kill();
        }
    }

    /// Kills containerd and starts it again; containers go on.
    ///
    /// # Errors
    /// Its log's end when it does not answer in time.
    pub fn restart_containerd(&mut self) -> Result<()> {
        if let Some(proc) = self.containerd.take() {
            proc.kill();
        }
        self.start_containerd()
    }

    /// Kills all that runs on the node and boots it again, as when its power was cut: its disk stays, and
    /// its containerd, kubelet and kube-proxy are started.
    ///
    /// # Errors
    /// What does not come up.
    pub fn reboot(&mut self) -> Result<()> {
        self.power_off();
        self.host.reboot()?;
        machine::set_up(&self.host)?;
        self.start_containerd()?;
        if let Some(settings) = self.proxy_settings {
            self.start_proxy(settings)?;
        }
        self.start_kubelet()
    }

    fn power_off(&mut self) {
        for proc in [&mut self.kubelet, &mut self.proxy, &mut self.containerd] {
            if let Some(proc) = proc.take() {
                proc.kill();
            }
        }
    }

    /// The daemons that have ended although nobody ended them, with the ends of their logs.
    pub fn dead_daemons(&self) -> Vec<String> {
        let procs = [&self.kubelet, &self.proxy, &self.containerd];
        let dead = procs
            .into_iter()
            .flatten()
            .filter(|proc| !proc.is_running());
        dead.map(Proc::describe).collect()
    }
}
