//! Where the Kubernetes programs are.

use std::path::PathBuf;

/// What a control plane is made of, and what applies manifests to it.
const NEEDED: [&str; 4] = [
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kubectl",
];

/// The path of a program that `tests/kubernetes/prepare` builds.
pub fn program(name: &str) -> PathBuf {
    directory().join("bin").join(name)
}

/// Why tests against an API server cannot run here, if they cannot.
pub fn skip_reason() -> Option<String> {
    if let Some(reason) = warren_lab::skip_reason() {
        return Some(reason.to_string());
    }
    NEEDED
        .iter()
        .map(|name| program(name))
        .find(|path| !path.is_file())
        .map(|path| {
            format!(
                "{} is missing: run tests/kubernetes/prepare",
                path.display()
            )
        })
}

fn directory() -> PathBuf {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    if let Some(directory) = set("WARREN_KUBERNETES_DIR") {
        return directory.into();
    }
    let cache = set("XDG_CACHE_HOME").map_or_else(
        || PathBuf::from(set("HOME").unwrap_or_default()).join(".cache"),
        PathBuf::from,
    );
    cache.join("warren/kubernetes")
}
