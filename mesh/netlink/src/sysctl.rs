//! Kernel settings under `/proc/sys`.
//!
//! Keys are separated by slashes, `net/ipv4/conf/eth0.5/rp_filter`, for interface names may hold
//! dots. Keys under `net` belong to the calling thread's network namespace: use
//! [`Netns::run`](crate::Netns::run) for another.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Component, Path, PathBuf};

/// Where the kernel offers its settings.
pub const PROC_SYS: &str = "/proc/sys";

/// The settings under a directory that is `/proc/sys`, or another mount of it: in a container the
/// usual one is read-only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    root: PathBuf,
}

impl Settings {
    /// The settings below this directory.
    pub fn below(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Reads a setting, without the line's end.
    ///
    /// # Errors
    /// As [`read()`].
    pub fn read(&self, key: &str) -> io::Result<String> {
        let path = self.path_of(key)?;
        let text = fs::read_to_string(&path).map_err(|error| named("read", &path, error))?;
        Ok(text.trim_end().to_owned())
    }

    /// Writes a setting.
    ///
    /// # Errors
    /// As [`write()`].
    pub fn write(&self, key: &str, value: &str) -> io::Result<()> {
        let path = self.path_of(key)?;
        // Never created: a missing file means a missing interface or feature.
        let mut file = OpenOptions::new()
            .write(true)
            .open(&path)
            .map_err(|error| named("write", &path, error))?;
        // The kernel parses each write on its own, so the value goes in a single one.
        let written = file
            .write(value.as_bytes())
            .map_err(|error| named("write", &path, error))?;
        if written < value.len() {
            return Err(named("write", &path, io::ErrorKind::WriteZero.into()));
        }
        Ok(())
    }

    /// Lists a directory of settings, such as one of interfaces.
    ///
    /// # Errors
    /// As [`read()`].
    pub fn names(&self, key: &str) -> io::Result<Vec<String>> {
        let path = self.path_of(key)?;
        let entries = fs::read_dir(&path).map_err(|error| named("read", &path, error))?;
        entries
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect()
    }

    fn path_of(&self, key: &str) -> io::Result<PathBuf> {
        let relative = Path::new(key);
        let plain = relative
            .components()
            .all(|part| matches!(part, Component::Normal(_)));
        if key.is_empty() || !plain {
            let message = format!(
                "sysctl key {key:?}: want a path below {}, such as net/core",
                self.root.display()
            );
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        Ok(self.root.join(relative))
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self::below(PROC_SYS)
    }
}

/// Reads a setting, without the line's end.
///
/// # Errors
/// Invalid input for a key that leaves `/proc/sys`; not found for a setting or an interface that
/// does not exist. The message names the file.
pub fn read(key: &str) -> io::Result<String> {
    Settings::default().read(key)
}

/// Writes a setting.
///
/// # Errors
/// As [`read`]; read-only file system where a container runtime protects `/proc/sys`; invalid input
/// for a value the kernel refuses.
pub fn write(key: &str, value: &str) -> io::Result<()> {
    Settings::default().write(key, value)
}

/// Writes a setting unless it has that value already; returns whether it was written.
///
/// It works on a read-only `/proc/sys` as long as nothing needs to change.
///
/// # Errors
/// As [`read`] and [`write()`].
pub fn write_if_different(key: &str, value: &str) -> io::Result<bool> {
    if read(key)? == value {
        return Ok(false);
    }
    write(key, value)?;
    Ok(true)
}

fn named(operation: &str, path: &Path, error: io::Error) -> io::Error {
    io::Error::new(
        error.kind(),
        format!("{operation} {}: {error}", path.display()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_never_leaves_proc_sys() {
        for key in ["", "/etc/passwd", "../self/environ", "net/../../x", "./net"] {
            assert_eq!(
                Settings::default().path_of(key).unwrap_err().kind(),
                io::ErrorKind::InvalidInput,
                "{key}"
            );
        }
    }

    #[test]
    fn dots_in_an_interface_name_stay() {
        let settings = Settings::default();
        let path = settings.path_of("net/ipv4/conf/eth0.5/rp_filter").unwrap();
        assert_eq!(path, Path::new("/proc/sys/net/ipv4/conf/eth0.5/rp_filter"));
    }
}
