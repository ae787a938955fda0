//! Files that others read at any moment: written whole or not at all.

use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

/// Why a file of the agent's own could not be read or written.
#[derive(Debug, Error)]
pub enum FileError {
    /// The system refused.
    #[error("{operation} {}: {source}", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The content is no document of that type.
    #[error("parse {}: {source}; move it away to start without it", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// The file is larger than anything that the agent writes.
    #[error("read {}: larger than {limit} bytes", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The limit in bytes.
        limit: u64,
    },
}

impl FileError {
    pub(crate) fn io(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io {
            operation,
            path: path.to_owned(),
            source,
        }
    }
}

/// Makes a directory and those above it, with this mode where they are new.
///
/// # Errors
/// [`FileError::Io`].
pub fn make_dir(path: &Path, mode: u32) -> Result<(), FileError> {
    let made = DirBuilder::new().recursive(true).mode(mode).create(path);
    made.map_err(FileError::io("make directory", path))
}

/// Replaces a file by new content: written beside it under a hidden name, synced, renamed, and the
/// directory synced.
///
/// # Errors
/// [`FileError::Io`]; the old content is then still there.
pub fn replace(path: &Path, content: &[u8], mode: u32) -> Result<(), FileError> {
    let dir = path.parent().unwrap_or(Path::new("/"));
    let mut file = tempfile::Builder::new()
        .prefix(".tmp-")
        .permissions(Permissions::from_mode(mode))
        .tempfile_in(dir)
        .map_err(FileError::io("make a file in", dir))?;
    file.write_all(content)
        .map_err(FileError::io("write", file.path()))?;
    // The umask took bits away when the file was made.
    let chmod = file.as_file().set_permissions(Permissions::from_mode(mode));
    chmod.map_err(FileError::io("set the mode of", path))?;
    file.as_file()
        .sync_all()
        .map_err(FileError::io("sync", path))?;
    file.persist(path)
        .map_err(|e| FileError::io("rename to", path)(e.error))?;
    let synced = File::open(dir).and_then(|dir| dir.sync_all());
    synced.map_err(FileError::io("sync directory", dir))
}

/// Replaces a file by a JSON document, readable by people.
///
/// # Errors
/// [`FileError::Io`]; the old content is then still there.
pub fn replace_json(path: &Path, document: &impl Serialize, mode: u32) -> Result<(), FileError> {
    replace(path, &to_json(path, document)?, mode)
}

/// A JSON document for a file, readable by people.
///
/// # Errors
/// [`FileError::Content`] for what JSON has no form for.
pub fn to_json(path: &Path, document: &impl Serialize) -> Result<Vec<u8>, FileError> {
    ended(path, serde_json::to_vec_pretty(document))
}

/// A JSON document in one line.
///
/// # Errors
/// As [`to_json`].
pub fn to_json_line(path: &Path, document: &impl Serialize) -> Result<Vec<u8>, FileError> {
    ended(path, serde_json::to_vec(document))
}

fn ended(path: &Path, text: serde_json::Result<Vec<u8>>) -> Result<Vec<u8>, FileError> {
    let mut text = text.map_err(|source| FileError::Content {
        path: path.to_owned(),
        source,
    })?;
    text.push(b'\n');
    Ok(text)
}

/// Reads a file of at most `limit` bytes; `None` when there is none.
///
/// # Errors
/// [`FileError::Io`], also for what is no regular file, and [`FileError::TooLarge`] for a larger
/// one.
pub fn read_limited(path: &Path, limit: u64) -> Result<Option<Vec<u8>>, FileError> {
    // Opening a FIFO waits for its writer otherwise, and with it would wait the whole agent.
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(nix::libc::O_NONBLOCK | nix::libc::O_NOCTTY)
        .open(path);
    let file = match opened {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(FileError::io("open", path)(e)),
    };
    let meta = file.metadata().map_err(FileError::io("read", path))?;
    if !meta.is_file() {
        let cause = io::Error::new(io::ErrorKind::InvalidInput, "no regular file; remove it");
        return Err(FileError::io("read", path)(cause));
    }
    let mut content = Vec::new();
    file.take(limit + 1)
        .read_to_end(&mut content)
        .map_err(FileError::io("read", path))?;
    if content.len() as u64 > limit {
        return Err(FileError::TooLarge {
            path: path.to_owned(),
            limit,
        });
    }
    Ok(Some(content))
}

/// The entries of a directory; none where there is no directory.
///
/// # Errors
/// [`FileError::Io`].
pub fn list(dir: &Path) -> Result<Vec<PathBuf>, FileError> {
    let entries = match std::fs::read_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(FileError::io("list", dir))?,
    };
    let paths = entries.map(|entry| entry.map(|entry| entry.path()));
    paths
        .collect::<io::Result<_>>()
        .map_err(FileError::io("list", dir))
}

/// Reads a JSON document of at most `limit` bytes; `None` when there is no file.
///
/// # Errors
/// Those of [`read_limited`], and [`FileError::Content`] for other content.
pub fn read_json<T: DeserializeOwned>(path: &Path, limit: u64) -> Result<Option<T>, FileError> {
    let Some(content) = read_limited(path, limit)? else {
        return Ok(None);
    };
    let parsed = serde_json::from_slice(&content);
    parsed.map(Some).map_err(|source| FileError::Content {
        path: path.to_owned(),
        source,
    })
}
