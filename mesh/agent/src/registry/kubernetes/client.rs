//! Whom to ask, as whom, and a note of each watch that is begun.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::Request;
use kube::client::{Body, ClientBuilder};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use thiserror::Error;
use tokio::sync::Notify;
use tower::util::MapRequestLayer;

use super::error::describe;

/// How long to wait for a connection; a node's API server is near.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Why it is not known whom to ask, or as whom.
#[derive(Debug, Error)]
pub enum KubernetesError {
    /// The kubeconfig is of no use.
    #[error("kubeconfig {}: {cause}", path.display())]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        cause: String,
    },
    /// There is no service account.
    #[error(
        "registry=kubernetes: no service account in this environment: {cause}; outside of a pod set \
         kubeconfig"
    )]
    ServiceAccount {
        /// What is missing.
        cause: String,
    },
    /// The client could not be made of it.
    #[error("make a client of the Kubernetes API: {cause}")]
    Client {
        /// What is wrong.
        cause: String,
    },
}

/// A client, and what is known of it.
pub(super) struct Connection {
    pub(super) client: Client,
    /// The API server's URL.
    pub(super) url: String,
    pub(super) starts: WatchStarts,
}

/// The resourceVersion that the last watch was begun at, and a sign for each.
#[derive(Clone, Debug, Default)]
pub(super) struct WatchStarts(Arc<Starts>);

#[derive(Debug, Default)]
struct Starts {
    version: AtomicU64,
    begun: Notify,
}

impl WatchStarts {
    /// Waits until a watch has been begun since the last call.
    pub(super) async fn begun(&self) {
        self.0.begun.notified().await;
    }

    /// Where the last watch was begun; 0 when there was none.
    pub(super) fn version(&self) -> u64 {
        self.0.version.load(Ordering::Relaxed)
    }

    fn note(&self, query: Option<&str>) {
        let parameters = || query.unwrap_or_default().split('&');
        let value = |name: &str| {
            let mut pairs = parameters().filter_map(|pair| pair.split_once('='));
            pairs.find_map(|(key, value)| (key == name).then_some(value))
        };
        if !matches!(value("watch"), Some("true" | "1")) {
            return;
        }
        // Since Kubernetes 1.35 documented to be decimal and ordered, and in fact always so.
        let version = value("resourceVersion").and_then(|text| text.parse().ok());
        self.0
            .version
            .store(version.unwrap_or(0), Ordering::Relaxed);
        self.0.begun.notify_one();
    }
}

/// A client by a kubeconfig, or as the pod's service account. Nothing is asked yet.
pub(super) async fn connect(kubeconfig: Option<&Path>) -> Result<Connection, KubernetesError> {
    let mut config = match kubeconfig {
        Some(path) => {
            let bad = |cause: String| KubernetesError::Kubeconfig {
                path: path.to_owned(),
                cause,
            };
            let read = Kubeconfig::read_from(path).map_err(|e| bad(describe(&e)))?;
            let options = KubeConfigOptions::default();
            let config = Config::from_custom_kubeconfig(read, &options).await;
            config.map_err(|e| bad(describe(&e)))?
        }
        None => Config::incluster().map_err(|e| KubernetesError::ServiceAccount {
            cause: describe(&e),
        })?,
    };
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    let url = config.cluster_url.to_string();
    let starts = WatchStarts::default();
    let noted = starts.clone();
    let layer = MapRequestLayer::new(move |request: Request<Body>| {
        noted.note(request.uri().query());
        request
    });
    let builder = ClientBuilder::try_from(config).map_err(|e| KubernetesError::Client {
        cause: describe(&e),
    })?;
    Ok(Connection {
        client: builder.with_layer(&layer).build(),
        url: url.trim_end_matches('/').to_owned(),
        starts,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_of_watches_is_noted_and_of_nothing_else() {
        let starts = WatchStarts::default();
        starts.note(Some("limit=500&resourceVersion=7"));
        starts.note(None);
        assert_eq!(starts.version(), 0);
        starts.note(Some("&watch=true&timeoutSeconds=290&resourceVersion=12345"));
        assert_eq!(starts.version(), 12345);
    }
}
