//! One write at a time, tried again ever less often while it fails.

use std::time::Duration;

use futures::future::BoxFuture;
use tokio::time::{Instant, sleep_until, timeout};

use super::error::describe;

/// How long an answer to a write may take.
const LIMIT: Duration = Duration::from_secs(10);
/// How long to wait after the first failure; it doubles with each.
const FIRST_RETRY: Duration = Duration::from_millis(500);
/// The longest time between tries.
const LAST_RETRY: Duration = Duration::from_secs(60);

/// A write that is under way, or the last one's failure.
pub(super) struct Job<T> {
    running: Option<BoxFuture<'static, Result<T, JobError>>>,
    failures: u32,
    not_before: Instant,
}

/// Why a write failed.
#[derive(Debug)]
pub(super) enum JobError {
    /// The API server refused, or could not be asked.
    Kube(Box<kube::Error>),
    /// There was no answer in time.
    Timeout,
}

impl std::fmt::Display for JobError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Kube(e) => f.write_str(&describe(e)),
            Self::Timeout => write!(f, "no answer in {} s", LIMIT.as_secs()),
        }
    }
}

impl<T: Send + 'static> Job<T> {
    pub(super) fn new() -> Self {
        Self {
            running: None,
            failures: 0,
            not_before: Instant::now(),
        }
    }

    pub(super) fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// The time until which nothing is tried, if there is one.
    pub(super) fn wait(&self) -> Option<Duration> {
        let left = self.not_before.saturating_duration_since(Instant::now());
        (self.failures > 0 && !left.is_zero()).then_some(left)
    }

    /// Begins a write; one that is under way is given up.
    pub(super) fn start(&mut self, write: impl Future<Output = kube::Result<T>> + Send + 'static) {
        self.running = Some(Box::pin(async move {
            match timeout(LIMIT, write).await {
                Ok(done) => done.map_err(|e| JobError::Kube(Box::new(e))),
                Err(_) => Err(JobError::Timeout),
            }
        }));
    }

    /// Waits for the end of the write that is under way, for ever when there is none. Dropping the
    /// future loses nothing.
    pub(super) async fn done(&mut self) -> Result<T, JobError> {
        let Some(running) = &mut self.running else {
            return std::future::pending().await;
        };
        let result = running.await;
        self.running = None;
        self.failures = match &result {
            Ok(_) => 0,
            Err(_) => self.failures.saturating_add(1),
        };
        if result.is_err() {
            let wait = FIRST_RETRY * 2u32.pow(self.failures.saturating_sub(1).min(10));
            self.not_before = Instant::now() + wait.min(LAST_RETRY);
        }
        result
    }

    /// Lets the next write begin at once.
    pub(super) fn forgive(&mut self) {
        self.failures = 0;
        self.not_before = Instant::now();
    }

    /// Waits until a write may begin.
    pub(super) async fn ready(&self) {
        if self.failures > 0 {
            sleep_until(self.not_before).await;
        }
    }
}
