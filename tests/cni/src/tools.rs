//! The programs of others that the plugin is tried with.

use std::path::{Path, PathBuf};

/// Where Debian's containernetworking-plugins are.
pub const REFERENCE_PLUGINS: &str = "/usr/lib/cni";

/// A program that `tests/cni/prepare` builds, if it did.
pub fn prepared(name: &str) -> Option<PathBuf> {
    let dir = std::env::var_os("WARREN_CNI_DIR").map(PathBuf::from);
    let cache = || {
        let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
        let home = || Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache"));
        cache.or_else(home).map(|dir| dir.join("warren/cni"))
    };
    let path = dir.or_else(cache)?.join("bin").join(name);
    path.exists().then_some(path)
}

/// Where a program is, searched as the shell does and in the system's own directories.
pub fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default();
    let dirs = path.split(':').map(Path::new);
    let system = ["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(Path::new);
    dirs.chain(system)
        .map(|dir| dir.join(name))
        .find(|path| path.exists())
}

/// A directory with `warren-cni` and the reference plugins that are asked for, as a runtime has it.
pub fn plugin_dir(dir: &Path, reference: &[&str]) -> PathBuf {
    let bin = dir.join("bin");
    std::fs::create_dir_all(&bin).unwrap();
    let link = |from: &Path, name: &str| {
        let _ = std::fs::remove_file(bin.join(name));
        std::os::unix::fs::symlink(from, bin.join(name)).unwrap();
    };
    link(&warren_lab::bin("warren-cni").unwrap(), "warren-cni");
    for name in reference {
        link(&Path::new(REFERENCE_PLUGINS).join(name), name);
    }
    bin
}
