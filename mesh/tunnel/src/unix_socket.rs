//! Unix sockets in the file system: made for root alone, replaced when their owner is dead, removed
//! at the end.

use std::fs::{self, DirBuilder, Metadata, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

/// Why a socket could not be made.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Somebody answers on it.
    #[error("listen on {path}: already running, another process answers there; stop it first")]
    AlreadyRunning {
        /// The socket.
        path: PathBuf,
    },
    /// There is something else in its place.
    #[error("listen on {path}: there is a file that is no socket; remove it")]
    NoSocket {
        /// The file.
        path: PathBuf,
    },
    /// The file system refused.
    #[error("{operation} {path}: {source}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// The file of a listening socket; dropping it removes the file, unless it is another's by now.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    identity: (u64, i64, i64),
}

/// Listens on a path, for root alone (socket 0600, in a directory 0700 if it has to be made).
///
/// # Errors
/// [`SocketError::AlreadyRunning`] when a living process answers there; the others say what is in
/// the way.
pub fn listen(path: &Path) -> Result<(UnixListener, SocketFile), SocketError> {
    let failed = |operation| {
        move |source| SocketError::Io {
            operation,
            path: path.to_owned(),
            source,
        }
    };
    if let Some(parent) = path.parent() {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(parent)
            .map_err(failed("make the directory of"))?;
    }
    remove_stale(path)?;
    let listener = UnixListener::bind(path).map_err(failed("listen on"))?;
    fs::set_permissions(path, Permissions::from_mode(0o600)).map_err(failed("set the mode of"))?;
    let identity = identity(&fs::symlink_metadata(path).map_err(failed("look at"))?);
    Ok((
        listener,
        SocketFile {
            path: path.to_owned(),
            identity,
        },
    ))
}

impl SocketFile {
    /// Takes over the file of a socket that somebody else has made.
    ///
    /// # Errors
    /// [`SocketError::Io`] when it is not there.
    pub fn of(path: &Path) -> Result<Self, SocketError> {
        let found = fs::symlink_metadata(path).map_err(|source| SocketError::Io {
            operation: "look at",
            path: path.to_owned(),
            source,
        })?;
        Ok(Self {
            path: path.to_owned(),
            identity: identity(&found),
        })
    }

    /// Begins to watch whether the file stays.
    ///
    /// # Errors
    /// What the kernel says about inotify, or about a file that is gone already.
    pub fn watch(&self) -> io::Result<SocketWatch> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC)?;
        // The file lives on as long as it is listened on: its removal is a change of its links.
        let changes =
            AddWatchFlags::IN_ATTRIB | AddWatchFlags::IN_DELETE_SELF | AddWatchFlags::IN_MOVE_SELF;
        inotify.add_watch(&self.path, changes)?;
        Ok(SocketWatch {
            inotify,
            path: self.path.clone(),
            inode: self.identity.0,
        })
    }
}

/// The watch over a socket's file.
#[derive(Debug)]
pub struct SocketWatch {
    inotify: Inotify,
    path: PathBuf,
    inode: u64,
}

impl SocketWatch {
    /// Waits until the file is removed or another has taken its place.
    ///
    /// # Errors
    /// What the kernel says about inotify.
    pub fn wait_gone(self) -> io::Result<()> {
        while fs::symlink_metadata(&self.path).is_ok_and(|found| found.ino() == self.inode) {
            self.inotify.read_events()?;
        }
        Ok(())
    }
}

fn remove_stale(path: &Path) -> Result<(), SocketError> {
    let failed = |operation| {
        move |source| SocketError::Io {
            operation,
            path: path.to_owned(),
            source,
        }
    };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed("look at")(error)),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(SocketError::NoSocket {
                path: path.to_owned(),
            });
        }
        Ok(_) => {}
    }
    let (operation, error) = match UnixStream::connect(path) {
        Ok(_) => {
            return Err(SocketError::AlreadyRunning {
                path: path.to_owned(),
            });
        }
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            match fs::remove_file(path) {
                Ok(()) => return Ok(()),
                Err(error) => ("remove the dead socket", error),
            }
        }
        Err(error) => ("try", error),
    };
    // `wg` too removes the dead sockets that it comes across, at any time.
    if error.kind() == io::ErrorKind::NotFound {
        return Ok(());
    }
    Err(failed(operation)(error))
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours =
            fs::symlink_metadata(&self.path).is_ok_and(|found| identity(&found) == self.identity);
        if ours && let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove the socket");
        }
    }
}

/// An inode number alone is given to the next file as soon as it is free.
fn identity(file: &Metadata) -> (u64, i64, i64) {
    (file.ino(), file.ctime(), file.ctime_nsec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dead_socket_is_replaced_and_a_living_one_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run/x.sock");
        let (listener, file) = listen(&path).unwrap();
        assert!(matches!(
            listen(&path),
            Err(SocketError::AlreadyRunning { .. })
        ));
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(
            fs::metadata(path.parent().unwrap()).unwrap().mode() & 0o777,
            0o700
        );
        drop(listener);
        // Past the granularity of the file system's time.
        std::thread::sleep(std::time::Duration::from_millis(20));
        let (_listener, second) = listen(&path).unwrap();
        drop(file);
        assert!(
            path.exists(),
            "the first one's end must not remove the second one's socket"
        );
        drop(second);
        assert!(!path.exists());
    }

    #[test]
    fn a_dead_socket_may_be_removed_by_wg_at_the_same_time() {
        let dir = tempfile::tempdir().unwrap();
        for number in 0..300 {
            let path = dir.path().join(format!("{number}.sock"));
            drop(UnixListener::bind(&path).unwrap());
            let start = std::sync::Barrier::new(2);
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    start.wait();
                    let refused = UnixStream::connect(&path)
                        .is_err_and(|e| e.kind() == io::ErrorKind::ConnectionRefused);
                    if refused {
                        let _ = fs::remove_file(&path);
                    }
                });
                start.wait();
                let removed = remove_stale(&path);
                assert!(removed.is_ok(), "{removed:?}");
            });
            assert!(!path.exists());
        }
    }

    #[test]
    fn a_watch_ends_when_the_file_is_removed_and_not_when_its_mode_changes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.sock");
        let (_listener, file) = listen(&path).unwrap();
        let watch = file.watch().unwrap();
        let watching = std::thread::spawn(move || watch.wait_gone());
        fs::set_permissions(&path, Permissions::from_mode(0o660)).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(50));
        assert!(!watching.is_finished());
        fs::remove_file(&path).unwrap();
        watching.join().unwrap().unwrap();
    }

    #[test]
    fn a_file_in_the_way_is_not_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.sock");
        fs::write(&path, "precious").unwrap();
        assert!(matches!(listen(&path), Err(SocketError::NoSocket { .. })));
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }
}
