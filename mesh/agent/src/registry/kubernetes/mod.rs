//! The registry that is the Node objects of a Kubernetes cluster.
//!
//! ```text
//!   API server --watch--> Event<Watched> --> Told --> RegistryEvent
//!       ^   ^                  ^
//!       |   +---- Checks ------+  after each start of a watch, and after errors
//!       +---- own record, condition, Events: each written when it differs, and only then
//! ```
//!
//! What is away, slow, or in trouble takes no node away: the last view holds until a full list says
//! otherwise. Nothing here waits for the API server longer than [`PATIENCE`].

mod checks;
mod client;
mod condition;
mod error;
mod events;
mod job;
mod object;
mod record;
mod told;

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::StreamExt;
use futures::stream::BoxStream;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client};
use tokio::time::Instant;
use warren_core::NodeName;
use warren_core::consts::EVENTS_FILE;

pub use client::KubernetesError;
pub(crate) use error::describe;

use self::checks::{Checks, Finding};
use self::client::WatchStarts;
use self::condition::ConditionWriter;
use self::events::EventWriter;
use self::object::Watched;
use self::record::RecordWriter;
use self::told::Told;
use super::{Announcement, NodeRegistry, OwnRecord, RegistryError, RegistryReport};
use crate::config::Config;

/// The field manager of what this program writes.
pub(crate) const FIELD_MANAGER: &str = "warren-agent";
/// How long publishing may hold up a reconcile; what takes longer goes on by itself.
const PATIENCE: Duration = Duration::from_millis(300);

/// A client by a kubeconfig, or as the pod's service account.
///
/// # Errors
/// When neither is of use; nothing is asked yet.
pub(crate) async fn kubernetes_client(
    kubeconfig: Option<&Path>,
) -> Result<Client, KubernetesError> {
    Ok(client::connect(kubeconfig).await?.client)
}

type Stream = BoxStream<'static, watcher::Result<Event<Watched>>>;

/// The Nodes of a cluster.
pub struct KubernetesRegistry {
    own_name: NodeName,
    url: String,
    nodes: Api<Watched>,
    stream: Stream,
    starts: WatchStarts,
    checks: Checks,
    told: Told,
    record: RecordWriter,
    condition: ConditionWriter,
    events: EventWriter,
    trouble: Option<Trouble>,
    reported: Vec<String>,
    queue: VecDeque<RegistryReport>,
}

/// What is wrong with the API server's answers.
#[derive(Debug)]
struct Trouble {
    text: String,
    /// Whether an answer to anything at all ends it; a refusal to be watched does not end so.
    ends_with_any_answer: bool,
}

impl std::fmt::Debug for KubernetesRegistry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KubernetesRegistry")
            .field("url", &self.url)
            .field("own_name", &self.own_name)
            .field("trouble", &self.trouble)
            .finish_non_exhaustive()
    }
}

/// What the registry is opened with.
#[derive(Clone, Debug)]
pub struct Options {
    /// This node's name.
    pub own_name: NodeName,
    /// A kubeconfig file; `None` means the pod's service account.
    pub kubeconfig: Option<PathBuf>,
    /// Where is kept which Events were written.
    pub events_file: PathBuf,
}

impl Options {
    /// What the agent's configuration says.
    pub fn of(config: &Config) -> Self {
        Self {
            own_name: config.node_name.clone(),
            kubeconfig: config.kubeconfig.clone(),
            events_file: config.state_dir.join(EVENTS_FILE),
        }
    }
}

impl KubernetesRegistry {
    /// A registry that has asked nothing yet: the API server need not be there.
    ///
    /// # Errors
    /// [`KubernetesError`] when it is not known whom to ask, or as whom.
    pub async fn open(options: Options) -> Result<Self, KubernetesError> {
        let client::Connection {
            client,
            url,
            starts,
        } = client::connect(options.kubeconfig.as_deref()).await?;
        let nodes: Api<Watched> = Api::all(client.clone());
        Ok(Self {
            stream: watch(&nodes),
            checks: Checks::new(nodes.clone()),
            told: Told::new(&options.own_name),
            record: RecordWriter::new(nodes.clone()),
            condition: ConditionWriter::new(nodes.clone()),
            events: Self::event_writer(client, &options),
            own_name: options.own_name,
            url,
            nodes,
            starts,
            trouble: None,
            reported: Vec::new(),
            queue: VecDeque::new(),
        })
    }

    fn event_writer(client: Client, options: &Options) -> EventWriter {
        EventWriter::new(client, &options.own_name, options.events_file.clone())
    }

    fn handle_stream(&mut self, item: Option<watcher::Result<Event<Watched>>>) {
        match item {
            Some(Ok(event)) => {
                // `Init` comes before anything was asked.
                if !matches!(event, Event::Init) {
                    self.trouble = None;
                }
                if let Event::Apply(node) | Event::InitApply(node) = &event
                    && node.object.metadata.name == self.own_name.as_str()
                {
                    let listed = matches!(event, Event::InitApply(_));
                    self.record.handle_node(&node.object, listed);
                    self.condition.handle_node(&node.object, listed);
                }
                if let Event::Delete(node) = &event
                    && node.object.metadata.name == self.own_name.as_str()
                {
                    self.record.handle_gone();
                    self.condition.handle_gone();
                }
                let done = matches!(event, Event::InitDone);
                for event in self.told.handle(event) {
                    self.queue.push_back(RegistryReport::Event(event));
                }
                if done && !self.told.has_own() {
                    self.record.handle_gone();
                    self.condition.handle_gone();
                }
            }
            Some(Err(error)) => {
                self.checks.handle_error(Instant::now());
                if let Some(trouble) = Trouble::of(&self.url, &error) {
                    self.trouble = Some(trouble);
                }
            }
            // The watcher never ends by itself.
            None => self.stream = watch(&self.nodes),
        }
    }

    fn handle_finding(&mut self, finding: Finding) {
        match finding {
            Finding::Well => {
                self.trouble = self.trouble.take().filter(|t| !t.ends_with_any_answer);
            }
            Finding::Trouble(cause) => {
                self.trouble.get_or_insert_with(|| Trouble {
                    text: away(&self.url, &cause),
                    ends_with_any_answer: true,
                });
            }
            Finding::WentBack { version, watched } => {
                tracing::warn!(
                    version,
                    watched,
                    "the cluster's data is older than what was watched last: was etcd restored \
                     from a snapshot? listing all nodes anew"
                );
                self.told.begin_anew();
                self.stream = watch(&self.nodes);
            }
        }
    }

    /// Reports what is wrong when that has changed.
    fn report_troubles(&mut self) {
        let mut troubles: Vec<String> = self.trouble.iter().map(|t| t.text.clone()).collect();
        troubles.extend(self.told.trouble());
        troubles.extend(self.condition.trouble());
        troubles.extend(self.events.trouble());
        if troubles != self.reported {
            self.reported.clone_from(&troubles);
            self.queue.push_back(RegistryReport::Troubles(troubles));
        }
    }
}

impl NodeRegistry for KubernetesRegistry {
    async fn next(&mut self) -> RegistryReport {
        loop {
            self.report_troubles();
            if let Some(report) = self.queue.pop_front() {
                return report;
            }
            tokio::select! {
                item = self.stream.next() => self.handle_stream(item),
                finding = self.checks.next(&self.starts) => self.handle_finding(finding),
                () = self.record.work() => {}
                () = self.condition.work() => {}
                () = self.events.work() => {}
            }
        }
    }

    async fn publish(&mut self, own: &OwnRecord) -> Result<bool, RegistryError> {
        if !self.told.is_synced() {
            // What is there is not known: it may well be just this.
            return Ok(false);
        }
        self.record.publish(own, PATIENCE).await
    }

    fn announce(&mut self, announcement: Announcement) {
        if self.told.is_synced() {
            self.events.announce(announcement.notes);
            self.condition.announce(announcement.not_ready);
        }
    }
}

impl Trouble {
    fn of(url: &str, error: &watcher::Error) -> Option<Self> {
        let (what, cause, ends_with_any_answer) = match error {
            // A watch that breaks or is too old is begun anew; if that fails, another error says so.
            watcher::Error::WatchFailed(_) => return None,
            watcher::Error::WatchError(status) if status.code == 410 => return None,
            watcher::Error::WatchStartFailed(kube::Error::Api(s)) if s.code == 410 => return None,
            watcher::Error::InitialListFailed(e) => ("list nodes", error::describe(e), !refused(e)),
            watcher::Error::WatchStartFailed(e) => ("watch nodes", error::describe(e), !refused(e)),
            watcher::Error::WatchError(status) => ("watch nodes", status.message.clone(), false),
            watcher::Error::NoResourceVersion => ("watch nodes", error.to_string(), false),
        };
        Some(Self {
            text: away(url, &format!("{what}: {cause}")),
            ends_with_any_answer,
        })
    }
}

/// Whether the API server answered, and said no.
fn refused(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(_))
}

fn away(url: &str, cause: &str) -> String {
    format!("Kubernetes API server {url}: {cause}; the last view holds")
}

fn watch(nodes: &Api<Watched>) -> Stream {
    let config = watcher::Config::default();
    watcher::watcher(nodes.clone(), config)
        .default_backoff()
        .boxed()
}
