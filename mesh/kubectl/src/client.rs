//! Whom to ask, and as whom.

use std::error::Error;
use std::time::Duration;

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

use crate::args::{Limit, Target};

/// How long to wait for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Clients of one cluster.
#[derive(Clone)]
pub struct Connection {
    config: Config,
    /// A client as the user.
    pub client: Client,
    /// The API server's URL.
    pub url: String,
    /// How long a request may take.
    pub limit: Limit,
}

impl Connection {
    /// Finds the cluster as kubectl does. Nothing is asked yet.
    ///
    /// # Errors
    /// The kubeconfig, or what it names, is of no use; the message says which.
    pub async fn new(target: &Target, limit: Limit) -> Result<Self, String> {
        let mut config = find(target).await?;
        config.connect_timeout = Some(CONNECT_TIMEOUT);
        if let Some(user) = &target.as_user {
            config.auth_info.impersonate = Some(user.clone());
            config.auth_info.impersonate_groups = Some(target.as_groups.clone());
        }
        let url = config.cluster_url.to_string();
        Ok(Self {
            client: client(config.clone())?,
            config,
            url: url.trim_end_matches('/').to_owned(),
            limit,
        })
    }

    /// A client as somebody else, in place of whom the user impersonates.
    ///
    /// # Errors
    /// The client could not be made.
    pub fn impersonate(&self, user: &str, groups: &[&str]) -> Result<Client, String> {
        let mut config = self.config.clone();
        let groups = groups.iter().map(|&group| group.to_owned());
        config.auth_info.impersonate = Some(user.to_owned());
        config.auth_info.impersonate_groups = Some(groups.collect());
        client(config)
    }

    /// Waits for an answer as long as one may take.
    ///
    /// # Errors
    /// What the API server or the way to it said, in one line.
    pub async fn ask<T>(&self, answer: impl Future<Output = kube::Result<T>>) -> Result<T, String> {
        let answer = async { answer.await.map_err(|error| describe(&error)) };
        within(self.limit, answer).await
    }
}

/// Waits for something as long as it may take.
pub(crate) async fn within<T>(
    limit: Limit,
    work: impl Future<Output = Result<T, String>>,
) -> Result<T, String> {
    match limit.0 {
        None => work.await,
        Some(time) => tokio::time::timeout(time, work)
            .await
            .unwrap_or_else(|_| Err(format!("no answer within {time:?} (--request-timeout)"))),
    }
}

async fn find(target: &Target) -> Result<Config, String> {
    let options = KubeConfigOptions {
        context: target.context.clone(),
        cluster: target.cluster.clone(),
        user: target.user.clone(),
    };
    if let Some(path) = &target.kubeconfig {
        let bad = |error: &dyn Error| format!("kubeconfig {}: {}", path.display(), chain(error));
        let read = Kubeconfig::read_from(path).map_err(|error| bad(&error))?;
        let config = Config::from_custom_kubeconfig(read, &options).await;
        return config.map_err(|error| bad(&error));
    }
    match Config::from_kubeconfig(&options).await {
        Ok(config) => Ok(config),
        // In a pod there is none.
        Err(error) => Config::incluster().map_err(|_| {
            let cause = chain(&error);
            format!("kubeconfig: {cause}; give --kubeconfig or set KUBECONFIG")
        }),
    }
}

fn client(config: Config) -> Result<Client, String> {
    Client::try_from(config).map_err(|error| format!("make a client: {}", describe(&error)))
}

/// An error of the API's client in one line.
pub(crate) fn describe(error: &kube::Error) -> String {
    match error {
        // kube prints a refusal twice, the second time as Rust does.
        kube::Error::Api(status) => status.message.clone(),
        error => chain(error),
    }
}

/// The causes from the outermost to the innermost, each said once.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let next = cause.to_string();
        if !text.contains(&next) {
            text = format!("{text}: {next}");
        }
        source = cause.source();
    }
    text
}
