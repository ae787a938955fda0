//! A cluster of Node objects, as kubelets, controllers and operators change them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::Result;
use k8s_openapi::api::core::v1::{Event, Node};
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use warren_agent::registry::{KubernetesOptions, KubernetesRegistry, OwnRecord};
use warren_apiserver::{ControlPlane, Identity, Options, Proxy, block_on};
use warren_core::{NodeName, NodeUid, NodeView};
use warren_lab::{Host, Lab};

use crate::registry_suite::Backend;

/// A control plane, and a way to it for registries under test that can be cut.
pub(crate) struct Cluster {
    pub(crate) plane: Mutex<ControlPlane>,
    host: Host,
    proxy: Proxy,
    files: tempfile::TempDir,
    opened: AtomicU32,
    _lab: Lab,
}

impl Cluster {
    /// One that knows these identities, and whose API server has further flags, made for its host.
    pub(crate) fn start(
        name: &str,
        identities: Vec<Identity>,
        flags: impl FnOnce(&Host) -> Result<Vec<String>>,
    ) -> Result<Self> {
        let lab = Lab::new(name)?;
        let host = lab.host("control-plane")?;
        let options = Options {
            // Ranges are given by the tests.
            controllers: vec!["serviceaccount-controller", "namespace-controller"],
            identities,
            apiserver_flags: flags(&host)?,
            ..Options::default()
        };
        let plane = ControlPlane::start(&host, options)?;
        Ok(Self {
            proxy: Proxy::start(&host, plane.address())?,
            plane: Mutex::new(plane),
            host,
            files: tempfile::tempdir()?,
            opened: AtomicU32::new(0),
            _lab: lab,
        })
    }

    /// Calls the API server as one who may do everything.
    pub(crate) fn admin<T: Send>(
        &self,
        call: impl AsyncFnOnce(kube::Client) -> Result<T> + Send,
    ) -> T {
        let plane = self.plane.lock().expect("no test thread panics with it");
        let done = block_on(&self.host, async || call(plane.admin().await?).await);
        done.expect("the API server answers the admin")
    }

    /// Runs a future where the API server is reached, on a thread of its own.
    pub(crate) fn block_on<T: Send>(&self, work: impl AsyncFnOnce() -> T + Send) -> T {
        block_on(&self.host, async || Ok(work().await)).expect("a runtime")
    }

    /// Waits for the API server behind it and lets registries through again, or cuts them off.
    pub(crate) fn set_open(&self, open: bool) {
        self.proxy.set_open(open);
    }

    /// The control plane, to do something to it.
    pub(crate) fn with_plane<T>(&self, work: impl FnOnce(&mut ControlPlane) -> Result<T>) -> T {
        let mut plane = self.plane.lock().expect("no test thread panics with it");
        work(&mut plane).expect("the control plane obeys")
    }

    /// Takes all Nodes and Events away.
    pub(crate) fn clear(&self) {
        self.set_open(true);
        self.admin(async |client| {
            let (all, list) = (DeleteParams::default(), ListParams::default());
            let nodes: Api<Node> = Api::all(client.clone());
            nodes.delete_collection(&all, &list).await?;
            let events: Api<Event> = Api::namespaced(client, "default");
            events.delete_collection(&all, &list).await?;
            Ok(())
        });
    }

    /// A registry whose state is at a place of its own.
    pub(crate) async fn registry(&self, own: &str) -> KubernetesRegistry {
        let number = self.opened.fetch_add(1, Ordering::Relaxed);
        self.registry_at(own, &format!("events-{number}.json"))
            .await
    }

    /// A registry that remembers in this file which Events it wrote.
    pub(crate) async fn registry_at(&self, own: &str, events: &str) -> KubernetesRegistry {
        self.registry_of(&Identity::admin(), own, events).await
    }

    /// A registry that asks as somebody.
    pub(crate) async fn registry_of(
        &self,
        identity: &Identity,
        own: &str,
        events: &str,
    ) -> KubernetesRegistry {
        let token = identity.token();
        let kubeconfig = {
            let plane = self.plane.lock().expect("no test thread panics with it");
            plane.write_kubeconfig_by("registry", &token, self.proxy.address())
        };
        let kubeconfig = kubeconfig.expect("a file");
        self.registry_by(kubeconfig, own, events).await
    }

    /// A registry that asks whom, and as whom, this kubeconfig says.
    pub(crate) async fn registry_by(
        &self,
        kubeconfig: PathBuf,
        own: &str,
        events: &str,
    ) -> KubernetesRegistry {
        let options = KubernetesOptions {
            own_name: NodeName::new(own).expect("a name"),
            kubeconfig: Some(kubeconfig),
            events_file: self.files.path().join(events),
        };
        KubernetesRegistry::open(options).await.expect("a client")
    }

    pub(crate) fn node(&self, name: &str) -> Option<Node> {
        self.admin(async |client| {
            let nodes: Api<Node> = Api::all(client);
            Ok(nodes.get_opt(name).await?)
        })
    }

    /// Removes the Events, as the API server itself does after an hour.
    pub(crate) fn forget_events(&self) {
        self.admin(async |client| {
            let events: Api<Event> = Api::namespaced(client, "default");
            let (all, list) = (DeleteParams::default(), ListParams::default());
            events.delete_collection(&all, &list).await?;
            Ok(())
        });
    }

    /// A kubeconfig by the way that can be cut, whose token is read from a file.
    pub(crate) fn kubeconfig_of_token_file(&self, token: &Path) -> Result<PathBuf> {
        let path = {
            let plane = self.plane.lock().expect("no test thread panics with it");
            plane.write_kubeconfig_by("token-file", "", self.proxy.address())?
        };
        let mut kubeconfig: Value = serde_json::from_slice(&std::fs::read(&path)?)?;
        kubeconfig["users"][0]["user"] = json!({"tokenFile": token});
        std::fs::write(&path, kubeconfig.to_string())?;
        Ok(path)
    }

    /// A client of the API server's as an admin, for the calling thread's runtime.
    pub(crate) async fn admin_client(&self) -> kube::Client {
        let token = Identity::admin().token();
        let made = {
            let plane = self.plane.lock().expect("no test thread panics with it");
            plane.write_kubeconfig("lossy-admin", &token)
        };
        let path = made.expect("a file");
        let read = kube::config::Kubeconfig::read_from(path).expect("a kubeconfig");
        let config = kube::Config::from_custom_kubeconfig(read, &Default::default()).await;
        kube::Client::try_from(config.expect("a configuration")).expect("a client")
    }

    /// Whether the API server refuses this token.
    pub(crate) fn refuses(&self, token: &str) -> bool {
        let plane = self.plane.lock().expect("no test thread panics with it");
        let asked = block_on(&self.host, async || {
            let nodes: Api<Node> = Api::all(plane.client(token).await?);
            Ok(nodes.list(&ListParams::default()).await)
        });
        let answer = asked.expect("the API server is asked");
        matches!(answer, Err(kube::Error::Api(status)) if status.code == 401)
    }

    /// A directory for files of the test's.
    pub(crate) fn files(&self) -> &Path {
        self.files.path()
    }

    /// The host of the control plane.
    pub(crate) fn host(&self) -> &Host {
        &self.host
    }

    pub(crate) fn events(&self) -> Vec<Event> {
        self.admin(async |client| {
            let events: Api<Event> = Api::namespaced(client, "default");
            Ok(events.list(&ListParams::default()).await?.items)
        })
    }
}

/// A cluster without Nodes.
pub(crate) struct Empty<'a>(&'a Cluster);

impl<'a> Empty<'a> {
    pub(crate) fn new(cluster: &'a Cluster) -> Self {
        cluster.clear();
        Self(cluster)
    }
}

impl Backend for Empty<'_> {
    type Registry = KubernetesRegistry;

    async fn open(&self, own: &str, _: &[NodeView]) -> KubernetesRegistry {
        self.0.registry(own).await
    }

    fn admit(&self, own: &OwnRecord) {
        self.put(&NodeView {
            name: own.name.to_string(),
            uid: NodeUid::default(),
            pod_cidrs: own.pod_cidrs.iter().map(ToString::to_string).collect(),
            addresses: own.addresses.iter().map(ToString::to_string).collect(),
            annotations: BTreeMap::new(),
        });
    }

    fn put(&self, view: &NodeView) -> NodeView {
        let stored = self.0.admin(async |client| {
            let nodes: Api<Node> = Api::all(client);
            let Some(mut node) = nodes.get_opt(&view.name).await? else {
                return Ok(nodes.create(&PostParams::default(), &object(view)?).await?);
            };
            let annotations = view.annotations.clone();
            if node.annotations() != &annotations {
                *node.annotations_mut() = annotations;
                node = nodes
                    .replace(&view.name, &PostParams::default(), &node)
                    .await?;
            }
            let wanted = object(view)?.status;
            let addresses = |node: &Node| node.status.as_ref().map(|s| s.addresses.clone());
            if addresses(&node) != wanted.as_ref().map(|s| s.addresses.clone()) {
                node.status = wanted;
                let params = PostParams::default();
                node = nodes.replace_status(&view.name, &params, &node).await?;
            }
            Ok(node)
        });
        view_of(&stored)
    }

    fn remove(&self, name: &str) {
        self.0.admin(async |client| {
            let nodes: Api<Node> = Api::all(client);
            nodes.delete(name, &DeleteParams::default()).await?;
            Ok(())
        });
    }

    fn get(&self, name: &str) -> Option<NodeView> {
        self.0.node(name).as_ref().map(view_of)
    }

    fn stamp(&self, name: &str) -> String {
        let node = self.0.node(name).expect("the node is there");
        node.resource_version().unwrap_or_default()
    }

    fn take_away(&self) {
        self.0.set_open(false);
    }

    fn bring_back(&self) {
        self.0.set_open(true);
    }
}

/// A node as a Node object; the API server gives it a uid.
pub(crate) fn object(view: &NodeView) -> Result<Node> {
    let addresses = view.addresses.iter();
    let addresses: Vec<Value> = addresses
        .map(|address| json!({"type": "InternalIP", "address": address}))
        .collect();
    let node = json!({
        "metadata": {"name": view.name, "annotations": view.annotations},
        "spec": {"podCIDRs": view.pod_cidrs, "podCIDR": view.pod_cidrs.first()},
        "status": {"addresses": addresses},
    });
    Ok(serde_json::from_value(node)?)
}

/// A Node with all its annotations.
fn view_of(node: &Node) -> NodeView {
    let addresses = node
        .status
        .iter()
        .flat_map(|s| s.addresses.iter().flatten());
    NodeView {
        name: node.name_any(),
        uid: NodeUid(node.uid().unwrap_or_default()),
        pod_cidrs: node
            .spec
            .iter()
            .flat_map(|s| s.pod_cidrs.clone().unwrap_or_default())
            .collect(),
        addresses: addresses.map(|a| a.address.clone()).collect(),
        annotations: node.annotations().clone(),
    }
}
