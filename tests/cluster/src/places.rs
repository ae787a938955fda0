//! Where the programs and images are that the cluster runs.

use std::path::{Path, PathBuf};

use warren_apiserver::program;
use warren_lab::{Privilege, hierarchies, privilege};

/// The programs that `tests/kubernetes/prepare` builds for a cluster.
const KUBERNETES: [&str; 7] = [
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-proxy",
    "kube-scheduler",
    "kubectl",
    "kubelet",
];
/// The images that `tests/cluster/prepare` makes: `warren.test/NAME:1`.
pub const IMAGES: [&str; 3] = ["probe", "busybox", "coredns"];
/// Debian's programs; containerd and runc, and what they are looked at with.
const DEBIAN: [&str; 3] = ["containerd", "ctr", "runc"];
/// Debian's reference plugins.
pub const REFERENCE_PLUGINS: &str = "/usr/lib/cni";

/// The path of a file that `tests/cluster/prepare` makes.
pub fn prepared(name: &str) -> PathBuf {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    let directory = set("WARREN_CLUSTER_DIR").map_or_else(
        || {
            let home = || PathBuf::from(set("HOME").unwrap_or_default()).join(".cache");
            let cache = set("XDG_CACHE_HOME").map_or_else(home, PathBuf::from);
            cache.join("warren/cluster")
        },
        PathBuf::from,
    );
    directory.join(name)
}

/// The path of a Debian program, if it is installed.
pub fn installed(name: &str) -> Option<PathBuf> {
    ["/usr/sbin", "/usr/bin", "/sbin", "/bin"]
        .map(|directory| Path::new(directory).join(name))
        .into_iter()
        .find(|path| path.is_file())
}

/// Why a cluster cannot run on this machine, if it cannot.
pub fn skip_reason() -> Option<String> {
    match privilege() {
        Privilege::Root => {}
        Privilege::UserNamespaces => return Some("a kubelet needs root".into()),
        Privilege::None { missing } => return Some(missing),
    }
    if hierarchies().is_empty() {
        return Some("the nodes need control groups of version 1, and there are none".into());
    }
    if let Some(name) = DEBIAN.iter().find(|name| installed(name).is_none()) {
        return Some(format!("{name} is missing: run tests/install-deps"));
    }
    let programs = KUBERNETES.map(program).into_iter();
    let images = IMAGES.map(|name| prepared(&format!("images/{name}.tar")));
    programs
        .chain(images)
        .find(|path| !path.is_file())
        .map(|path| format!("{} is missing: run tests/cluster/prepare", path.display()))
}
