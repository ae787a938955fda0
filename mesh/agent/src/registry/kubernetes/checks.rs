//! Looking whether the API server answers, and whether its data is as new as what was watched.
//!
//! A watch that begins at a version that the data has not reached yet, because etcd was restored from
//! an older snapshot, is silent until it has: what changes meanwhile is not told, and no error is
//! either. So the data's version is asked for after each start of a watch, which is once in five
//! minutes at rest.

use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use kube::Api;
use kube::api::ListParams;
use tokio::time::{Instant, sleep_until, timeout};

use super::client::WatchStarts;
use super::error::describe;
use super::object::Watched;

/// How long an answer may take.
const LIMIT: Duration = Duration::from_secs(10);
/// How long to wait after an error of the watch.
const FIRST: Duration = Duration::from_millis(500);
/// The longest time between questions while there is no answer.
const LAST: Duration = Duration::from_secs(30);

/// What a look found.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Finding {
    /// It answers.
    Well,
    /// It does not, and why.
    Trouble(String),
    /// Its data is older than what was watched.
    WentBack {
        /// The version of the data.
        version: u64,
        /// The version that the watch was begun at.
        watched: u64,
    },
}

/// When to look, and a look that is under way.
pub(super) struct Checks {
    nodes: Api<Watched>,
    due: Option<Instant>,
    failures: u32,
    running: Option<BoxFuture<'static, Result<Option<u64>, String>>>,
}

impl Checks {
    pub(super) fn new(nodes: Api<Watched>) -> Self {
        Self {
            nodes,
            due: None,
            failures: 0,
            running: None,
        }
    }

    /// The watch met an error.
    pub(super) fn handle_error(&mut self, now: Instant) {
        self.due.get_or_insert(now + FIRST);
    }

    /// Waits for the next finding. Dropping the future loses nothing.
    pub(super) async fn next(&mut self, starts: &WatchStarts) -> Finding {
        loop {
            if let Some(running) = &mut self.running {
                let answer = running.await;
                self.running = None;
                return self.judge(answer, starts.version());
            }
            let due = self.due;
            tokio::select! {
                () = starts.begun() => {}
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {}
            }
            self.due = None;
            self.running = Some(look(self.nodes.clone()));
        }
    }

    fn judge(&mut self, answer: Result<Option<u64>, String>, watched: u64) -> Finding {
        match answer {
            Ok(version) => {
                self.failures = 0;
                match version {
                    Some(version) if version < watched => Finding::WentBack { version, watched },
                    _ => Finding::Well,
                }
            }
            Err(cause) => {
                self.failures = self.failures.saturating_add(1);
                let wait = FIRST * 2u32.pow(self.failures.min(10));
                self.due = Some(Instant::now() + wait.min(LAST));
                Finding::Trouble(cause)
            }
        }
    }
}

/// The version of the cluster's data now: of a list that must be as new as the data itself.
fn look(nodes: Api<Watched>) -> BoxFuture<'static, Result<Option<u64>, String>> {
    async move {
        let least = ListParams::default().limit(1);
        match timeout(LIMIT, nodes.list(&least)).await {
            Ok(Ok(list)) => {
                let version = list.metadata.resource_version;
                Ok(version.and_then(|text| text.parse().ok()))
            }
            Ok(Err(e)) => Err(describe(&e)),
            Err(_) => Err(format!("no answer in {} s", LIMIT.as_secs())),
        }
    }
    .boxed()
}
