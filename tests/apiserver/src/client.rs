//! Who calls the API server, and how a test does.

use anyhow::Result;
use warren_lab::Host;

/// Somebody with a token that the API server was started with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The user's name, `system:node:node1` for one.
    pub user: String,
    /// The user's groups.
    pub groups: Vec<String>,
}

impl Identity {
    /// Someone who may do everything.
    pub fn admin() -> Self {
        Self::new("admin", &["system:masters"])
    }

    /// The kubelet of a node.
    pub fn kubelet(node: &str) -> Self {
        Self::new(&format!("system:node:{node}"), &["system:nodes"])
    }

    /// Someone else.
    pub fn new(user: &str, groups: &[&str]) -> Self {
        Self {
            user: user.to_owned(),
            groups: groups.iter().map(|&group| group.to_owned()).collect(),
        }
    }

    /// The token; not a secret, for the control plane is reached from the lab alone.
    pub fn token(&self) -> String {
        format!("token-of-{}", self.user.replace(':', "-"))
    }

    /// The line of `--token-auth-file`.
    pub(crate) fn line(&self) -> String {
        let (token, user, groups) = (self.token(), &self.user, self.groups.join(","));
        format!("{token},{user},{user},\"{groups}\"\n")
    }
}

/// Runs a future on a thread in the host's network namespace, where the control plane's clients are.
///
/// # Errors
/// Those of the namespace, of the runtime, and of the future.
pub fn block_on<T: Send>(host: &Host, work: impl AsyncFnOnce() -> Result<T> + Send) -> Result<T> {
    host.in_netns(|| {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?
            .block_on(work())
    })?
}
