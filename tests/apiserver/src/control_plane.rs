//! The programs of a control plane, started and stopped.

use std::fmt::Write as _;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use k8s_openapi::api::core::v1::Namespace;
use kube::config::{KubeConfigOptions, Kubeconfig};
use warren_lab::{Host, Proc};

use crate::certificates;
use crate::client::{Identity, block_on};
use crate::programs::program;

/// The API server's port.
const PORT: u16 = 6443;
/// Where etcd listens.
const ETCD: &str = "127.0.0.1:2379";
/// How long the control plane may take to come up; CI machines are slow and shared.
const UP_LIMIT: Duration = Duration::from_secs(120);

/// How a control plane is set up.
#[derive(Clone, Debug)]
pub struct Options {
    /// The host's addresses that clients use, the first one advertised.
    pub addresses: Vec<IpAddr>,
    /// The cluster's pod ranges, at most one a family.
    pub cluster_cidrs: Vec<String>,
    /// The prefix lengths of a Node's podCIDRs: IPv4, IPv6.
    pub node_mask_sizes: (u8, u8),
    /// The ranges of Services, at most one a family.
    pub service_cidrs: Vec<String>,
    /// Who has a token, beside the admin.
    pub identities: Vec<Identity>,
    /// The controllers that run.
    pub controllers: Vec<&'static str>,
    /// Further flags of kube-apiserver.
    pub apiserver_flags: Vec<String>,
    /// Further addresses that the API server's certificate is good for, such as its Service's.
    pub also_reached_by: Vec<IpAddr>,
    /// Users with their groups for whom `USER.crt` and `USER.key` are in the directory from the start.
    pub certificates: Vec<(&'static str, &'static [&'static str])>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            addresses: vec![IpAddr::from([192, 0, 2, 250])],
            cluster_cidrs: vec!["10.244.0.0/16".into(), "fd00:244::/48".into()],
            node_mask_sizes: (24, 64),
            service_cidrs: vec!["10.96.0.0/16".into(), "fd00:96::/112".into()],
            identities: Vec::new(),
            controllers: vec![
                "node-ipam-controller",
                "serviceaccount-controller",
                "serviceaccount-token-controller",
                "root-ca-certificate-publisher-controller",
                "namespace-controller",
                "garbage-collector-controller",
            ],
            apiserver_flags: Vec::new(),
            also_reached_by: Vec::new(),
            certificates: Vec::new(),
        }
    }
}

/// A running control plane; it ends with its lab.
pub struct ControlPlane {
    host: Host,
    directory: PathBuf,
    options: Options,
    ca_pem: String,
    etcd: Option<Proc>,
    apiserver: Option<Proc>,
    controllers: Option<Proc>,
}

impl ControlPlane {
    /// Starts a control plane on a host, and waits until it answers and gives tokens. Addresses that
    /// the host does not have are put on its loopback.
    ///
    /// # Errors
    /// What did not start in time, with its log's end.
    pub fn start(host: &Host, options: Options) -> Result<Self> {
        let directory = Self::directory_on(host);
        fs::create_dir_all(directory.join("etcd")).context("make the control plane's directory")?;
        let mut own = options.addresses.clone();
        own.extend([IpAddr::from([127, 0, 0, 1]), "::1".parse::<IpAddr>()?]);
        own.extend(&options.also_reached_by);
        let ca_pem = certificates::write(&directory, &own)?;
        for (user, groups) in &options.certificates {
            certificates::write_client(&directory, user, groups)?;
        }
        let mut tokens = Identity::admin().line();
        for identity in &options.identities {
            tokens.write_str(&identity.line())?;
        }
        fs::write(directory.join("tokens.csv"), tokens).context("write the tokens")?;
        let present = host.run(&["ip", "-o", "addr"])?.stdout;
        for address in &options.addresses {
            if !present.contains(&format!(" {address}/")) {
                host.run(&["ip", "addr", "add", &address.to_string(), "dev", "lo"])?;
            }
        }
        // The API server asks the default route for the address to advertise its endpoint by.
        if host
            .run(&["ip", "route", "show", "default"])?
            .stdout
            .is_empty()
        {
            host.run(&["ip", "route", "add", "default", "dev", "lo"])?;
        }
        let mut plane = Self {
            host: host.clone(),
            directory,
            options,
            ca_pem,
            etcd: None,
            apiserver: None,
            controllers: None,
        };
        plane.write_kubeconfig("admin", &Identity::admin().token())?;
        plane.start_etcd()?;
        plane.start_apiserver()?;
        plane.start_controllers()?;
        Ok(plane)
    }

    /// The host that it runs on; use [`block_on`] with it to be its client.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// The directory that a control plane on this host has; there before it, for flags that name its files.
    pub fn directory_on(host: &Host) -> PathBuf {
        host.dir().join("kubernetes")
    }

    /// The directory of its files: `ca.crt`, `NAME.kubeconfig`, `etcd`.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The URL by which other hosts reach it.
    pub fn url(&self) -> String {
        format!("https://{}", self.address())
    }

    /// Where it listens, as its own host sees it.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::new(self.options.addresses[0], PORT)
    }

    /// The certificate of its authority in PEM.
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// Makes a certificate of its authority for a server of this name; both in PEM, the key last.
    ///
    /// # Errors
    /// Those of the authority's files, and of a name that is none.
    pub fn serving_certificate(&self, name: &str) -> Result<(String, String)> {
        certificates::serving(&self.directory, name)
    }

    /// Writes `NAME.kubeconfig` for a token and returns its path.
    ///
    /// # Errors
    /// The file's.
    pub fn write_kubeconfig(&self, name: &str, token: &str) -> Result<PathBuf> {
        self.write_kubeconfig_by(name, token, self.address())
    }

    /// As [`ControlPlane::write_kubeconfig`], by another way to the API server, whose certificate is
    /// good for `address`.
    ///
    /// # Errors
    /// The file's.
    pub fn write_kubeconfig_by(
        &self,
        name: &str,
        token: &str,
        address: SocketAddr,
    ) -> Result<PathBuf> {
        let path = self.directory.join(format!("{name}.kubeconfig"));
        let kubeconfig = self.kubeconfig(&serde_json::json!({ "token": token }), address);
        fs::write(&path, kubeconfig.to_string())
            .with_context(|| format!("write {}", path.display()))?;
        Ok(path)
    }

    /// A client with a token, to be made and used inside [`block_on`].
    ///
    /// # Errors
    /// Those of the configuration.
    pub async fn client(&self, token: &str) -> Result<kube::Client> {
        self.client_of(serde_json::json!({ "token": token })).await
    }

    /// A client with a certificate of the control plane's authority, as a kubelet has one.
    ///
    /// # Errors
    /// Those of the files and of the configuration.
    pub async fn client_by_certificate(&self, user: &str, groups: &[&str]) -> Result<kube::Client> {
        let (certificate, key) = certificates::write_client(&self.directory, user, groups)?;
        let user = serde_json::json!({"client-certificate": certificate, "client-key": key});
        self.client_of(user).await
    }

    /// A client that is who a kubeconfig's `user` says.
    ///
    /// # Errors
    /// Those of the configuration.
    pub async fn client_of(&self, user: serde_json::Value) -> Result<kube::Client> {
        let kubeconfig: Kubeconfig =
            serde_json::from_value(self.kubeconfig(&user, self.address()))?;
        let config =
            kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
        Ok(kube::Client::try_from(config)?)
    }

    /// A client that may do everything.
    ///
    /// # Errors
    /// Those of the configuration.
    pub async fn admin(&self) -> Result<kube::Client> {
        self.client(&Identity::admin().token()).await
    }

    /// Kills the API server, and with it every connection to it.
    pub fn stop_apiserver(&mut self) {
        if let Some(proc) = self.apiserver.take() {
            proc.kill();
        }
    }

    /// Kills all of the control plane; the data of etcd stays.
    pub fn stop(&mut self) {
        for proc in [&mut self.controllers, &mut self.apiserver, &mut self.etcd] {
            if let Some(proc) = proc.take() {
                proc.kill();
            }
        }
    }

    /// Makes etcd forget all history before a resourceVersion: an API server that starts after this
    /// answers a watch from an older one with 410 Gone.
    ///
    /// # Errors
    /// What etcd answers.
    pub fn compact(&self, version: &str) -> Result<()> {
        let body = serde_json::json!({"revision": version, "physical": true}).to_string();
        let answer = self.host.in_netns(|| -> Result<String> {
            let mut stream = TcpStream::connect(ETCD).context("connect to etcd")?;
            let length = body.len();
            write!(
                stream,
                "POST /v3/kv/compaction HTTP/1.0\r\nHost: etcd\r\nContent-Length: {length}\r\n\r\n{body}"
            )?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        })??;
        let ok = answer
            .lines()
            .next()
            .is_some_and(|line| line.contains(" 200 "));
        anyhow::ensure!(ok, "compact etcd: {answer}");
        Ok(())
    }

    /// Keeps a copy of etcd's data as it is now, to be put back by [`ControlPlane::restore`]. All is
    /// stopped meanwhile.
    ///
    /// # Errors
    /// What did not start again, and the files'.
    pub fn snapshot(&mut self) -> Result<()> {
        self.stop();
        self.copy_data("etcd", "etcd.snapshot")?;
        self.resume()
    }

    /// Puts the data of the last [`ControlPlane::snapshot`] back, as an operator does after a loss;
    /// all is started anew.
    ///
    /// # Errors
    /// What did not start again, and the files'.
    pub fn restore(&mut self) -> Result<()> {
        self.stop();
        self.copy_data("etcd.snapshot", "etcd")?;
        self.resume()
    }

    fn copy_data(&self, from: &str, to: &str) -> Result<()> {
        let to = self.directory.join(to);
        if to.exists() {
            fs::remove_dir_all(&to).with_context(|| format!("remove {}", to.display()))?;
        }
        let from = self.directory.join(from);
        let (from, to) = (from.display().to_string(), to.display().to_string());
        self.host.run(&["cp", "-a", &from, &to])?;
        Ok(())
    }

    /// Starts what is stopped, and waits for it.
    ///
    /// # Errors
    /// What did not start in time, with its log's end.
    pub fn resume(&mut self) -> Result<()> {
        if self.etcd.is_none() {
            self.start_etcd()?;
        }
        if self.apiserver.is_none() {
            self.start_apiserver()?;
        }
        if self.controllers.is_none() {
            self.start_controllers()?;
        }
        Ok(())
    }

    fn kubeconfig(&self, user: &serde_json::Value, address: SocketAddr) -> serde_json::Value {
        serde_json::json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "lab", "cluster": {
                "server": format!("https://{address}"),
                "certificate-authority": self.directory.join("ca.crt"),
            }}],
            "users": [{"name": "user", "user": user}],
            "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "user"}}],
            "current-context": "lab",
        })
    }

    fn start_etcd(&mut self) -> Result<()> {
        let mut command = Command::new(program("etcd"));
        command
            .arg("--data-dir")
            .arg(self.directory.join("etcd"))
            .args(["--listen-client-urls", "http://127.0.0.1:2379"])
            .args(["--advertise-client-urls", "http://127.0.0.1:2379"])
            .args(["--listen-peer-urls", "http://127.0.0.1:2380"])
            .args(["--initial-advertise-peer-urls", "http://127.0.0.1:2380"])
            .args(["--initial-cluster", "default=http://127.0.0.1:2380"])
            // A lab's data need not outlive the machine.
            .args(["--unsafe-no-fsync", "--log-level", "warn"]);
        self.etcd = Some(self.host.spawn(&mut command)?);
        Ok(())
    }

    fn start_apiserver(&mut self) -> Result<()> {
        let file = |name: &str| self.directory.join(name).display().to_string();
        let mut command = Command::new(program("kube-apiserver"));
        command
            .arg("--etcd-servers=http://127.0.0.1:2379")
            .arg(format!("--secure-port={PORT}"))
            .arg("--bind-address=::")
            .arg(format!("--advertise-address={}", self.options.addresses[0]))
            .arg(format!("--tls-cert-file={}", file("server.crt")))
            .arg(format!("--tls-private-key-file={}", file("server.key")))
            .arg(format!("--client-ca-file={}", file("ca.crt")))
            .arg(format!("--token-auth-file={}", file("tokens.csv")))
            .arg("--authorization-mode=Node,RBAC")
            .arg("--enable-admission-plugins=NodeRestriction")
            .arg("--allow-privileged=true")
            .arg("--service-account-issuer=https://kubernetes.default.svc")
            .arg(format!(
                "--service-account-key-file={}",
                file("service-accounts.pub")
            ))
            .arg(format!(
                "--service-account-signing-key-file={}",
                file("service-accounts.key")
            ))
            .arg(format!(
                "--service-cluster-ip-range={}",
                self.options.service_cidrs.join(",")
            ))
            .arg("--profiling=false")
            .args(&self.options.apiserver_flags);
        let proc = self.host.spawn(&mut command)?;
        let deadline = Instant::now() + UP_LIMIT;
        loop {
            let ready = block_on(&self.host, async || {
                // Made by the API server itself, once it may write.
                let namespaces: kube::Api<Namespace> = kube::Api::all(self.admin().await?);
                Ok(namespaces.get("default").await.is_ok())
            });
            if matches!(ready, Ok(true)) {
                break;
            }
            if !proc.is_running() || Instant::now() > deadline {
                bail!("the API server does not come up: {}", proc.describe());
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        self.apiserver = Some(proc);
        Ok(())
    }

    fn start_controllers(&mut self) -> Result<()> {
        let kubeconfig = self.directory.join("admin.kubeconfig");
        let (v4, v6) = self.options.node_mask_sizes;
        let families = |v6: bool| {
            let texts = self.options.cluster_cidrs.iter();
            texts.filter(|cidr| cidr.contains(':') == v6).count() > 0
        };
        let mut command = Command::new(program("kube-controller-manager"));
        command
            .arg("--kubeconfig")
            .arg(&kubeconfig)
            .arg("--authentication-kubeconfig")
            .arg(&kubeconfig)
            .arg("--authorization-kubeconfig")
            .arg(&kubeconfig)
            .arg(format!(
                "--controllers={}",
                self.options.controllers.join(",")
            ))
            .arg("--allocate-node-cidrs=true")
            .arg(format!(
                "--cluster-cidr={}",
                self.options.cluster_cidrs.join(",")
            ))
            .arg(format!(
                "--service-cluster-ip-range={}",
                self.options.service_cidrs.join(",")
            ))
            .arg("--root-ca-file")
            .arg(self.directory.join("ca.crt"))
            .arg("--service-account-private-key-file")
            .arg(self.directory.join("service-accounts.key"))
            .args([
                "--use-service-account-credentials=true",
                "--leader-elect=false",
            ]);
        match (families(false), families(true)) {
            (true, true) => {
                command.arg(format!("--node-cidr-mask-size-ipv4={v4}"));
                command.arg(format!("--node-cidr-mask-size-ipv6={v6}"));
            }
            (v4_only, _) => {
                let size = if v4_only { v4 } else { v6 };
                command.arg(format!("--node-cidr-mask-size={size}"));
            }
        }
        self.controllers = Some(self.host.spawn(&mut command)?);
        Ok(())
    }
}
