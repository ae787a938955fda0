//! The file of a private key: one line of base64, as `wg genkey` prints it.
//!
//! The file is believed only if nobody else can have read or written it: a regular file, no
//! symbolic link, owned by the caller's effective user, of mode 0600 or less, in a directory of
//! the same owner and of mode 0700 or less. Each violation is an error of its own that says how
//! to cure it; nothing is cured silently, for a key that others could read must be replaced.

use std::fs::{DirBuilder, File, Metadata};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use nix::unistd::geteuid;
use zeroize::Zeroizing;

use crate::{BASE64_LEN, KeyError, PrivateKey};

/// Why a key file could not be loaded or created. No variant holds any part of a key.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The path does not end in a file's name.
    #[error("load private key: {} names no file; give a path such as DIRECTORY/private.key", path.display())]
    NotAFileName {
        /// The path as given.
        path: PathBuf,
    },
    /// There is no such file or directory.
    #[error("load private key: {} does not exist; make it by `wg genkey` under `umask 077`", path.display())]
    Missing {
        /// The key's file.
        path: PathBuf,
    },
    /// Another user owns the directory, and can put another key there.
    #[error(
        "load private key: the directory {} is owned by uid {found}, not by uid {expected}; \
         run `chown {expected} {}`, and replace the key if that user is not to be trusted",
        path.display(), path.display()
    )]
    DirectoryOwner {
        /// The directory.
        path: PathBuf,
        /// The owner found.
        found: u32,
        /// The effective user of this process.
        expected: u32,
    },
    /// Others may enter or change the directory.
    #[error(
        "load private key: the directory {} has mode {mode:04o}, which lets others in; \
         run `chmod 0700 {}`",
        path.display(), path.display()
    )]
    DirectoryMode {
        /// The directory.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The file is a symbolic link, which is not followed.
    #[error(
        "load private key: {} is a symbolic link; put the key's file itself there",
        path.display()
    )]
    SymbolicLink {
        /// The key's file.
        path: PathBuf,
    },
    /// The file is a directory, a pipe, a socket or a device.
    #[error(
        "load private key: {} is no regular file; remove it, and put the key's file there",
        path.display()
    )]
    NotRegular {
        /// The key's file.
        path: PathBuf,
    },
    /// Another user owns the file, and may know or choose the key.
    #[error(
        "load private key: {} is owned by uid {found}, not by uid {expected}; \
         run `chown {expected} {}`, and replace the key if that user is not to be trusted",
        path.display(), path.display()
    )]
    Owner {
        /// The key's file.
        path: PathBuf,
        /// The owner found.
        found: u32,
        /// The effective user of this process.
        expected: u32,
    },
    /// Others may read, change or run the file.
    #[error(
        "load private key: {} has mode {mode:04o}, wider than 0600; \
         run `chmod 0600 {}`, and replace the key if another user may have read it",
        path.display(), path.display()
    )]
    Mode {
        /// The key's file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The file is empty.
    #[error(
        "load private key: {} is empty; remove it to have a new key made, or restore it",
        path.display()
    )]
    Empty {
        /// The key's file.
        path: PathBuf,
    },
    /// The file is longer or shorter than a key and its newline.
    #[error(
        "load private key: {} has {found} bytes instead of {BASE64_LEN} and a newline; \
         restore it, or put one line of `wg genkey` there",
        path.display()
    )]
    Length {
        /// The key's file.
        path: PathBuf,
        /// The length found, in bytes.
        found: u64,
    },
    /// The file has the right length, and no key.
    #[error("load private key: {} holds no key: {source}", path.display())]
    Key {
        /// The key's file.
        path: PathBuf,
        /// What is wrong with the text.
        source: KeyError,
    },
    /// A new key could not be generated.
    #[error("create private key {}: {source}", path.display())]
    Generate {
        /// The key's file.
        path: PathBuf,
        /// Why not.
        source: KeyError,
    },
    /// The operating system refused an operation.
    #[error("{operation} {}: {source}", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
}

/// Loads a private key.
///
/// # Errors
/// [`FileError::Missing`] when there is none, which the caller may take as "create one"; any
/// other variant needs a person, and says what to do.
pub fn load(path: &Path) -> Result<PrivateKey, FileError> {
    load_in(&open_directory(path)?, path)
}

/// Loads a private key, and creates it first if there is none: its directory too (0700, but not
/// the directory's parents).
///
/// An existing file is never overwritten. Of several that call this at once, one creates the
/// key and all return it. When it returns, the key is on the disk.
///
/// # Errors
/// As [`load`], but for [`FileError::Missing`]; [`FileError::Generate`] and [`FileError::Io`]
/// when nothing can be created.
pub fn load_or_create(path: &Path) -> Result<PrivateKey, FileError> {
    let directory = match open_directory(path) {
        Err(FileError::Missing { .. }) => {
            create_directory(path)?;
            open_directory(path)?
        }
        other => other?,
    };
    let key = match load_in(&directory, path) {
        Err(FileError::Missing { .. }) => {
            create(path)?;
            load_in(&directory, path)?
        }
        other => other?,
    };
    // Also when the file was there: its creator may not have come to this point yet.
    directory
        .sync_all()
        .map_err(io_error("sync the directory of", path))?;
    Ok(key)
}

/// Opens the directory of the key and makes sure that it is the caller's alone. What is opened
/// relative to it later is in the directory that was checked.
fn open_directory(path: &Path) -> Result<File, FileError> {
    let directory = directory_of(path);
    let file = File::open(directory).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => FileError::Missing {
            path: path.to_owned(),
        },
        _ => io_error("open directory", directory)(source),
    })?;
    let metadata = file
        .metadata()
        .map_err(io_error("inspect directory", directory))?;
    if !metadata.is_dir() {
        let source = io::Error::from(io::ErrorKind::NotADirectory);
        return Err(io_error("open directory", directory)(source));
    }
    let expected = geteuid().as_raw();
    if metadata.uid() != expected {
        let path = directory.to_owned();
        return Err(FileError::DirectoryOwner {
            path,
            found: metadata.uid(),
            expected,
        });
    }
    let mode = permissions(&metadata);
    if mode & 0o077 != 0 {
        return Err(FileError::DirectoryMode {
            path: directory.to_owned(),
            mode,
        });
    }
    Ok(file)
}

fn load_in(directory: &File, path: &Path) -> Result<PrivateKey, FileError> {
    let Some(name) = path.file_name() else {
        return Err(FileError::NotAFileName {
            path: path.to_owned(),
        });
    };
    // Not blocking: a pipe without a writer would be waited for.
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
    let file = match openat(directory, name, flags, Mode::empty()) {
        Ok(descriptor) => File::from(descriptor),
        Err(Errno::ENOENT) => {
            return Err(FileError::Missing {
                path: path.to_owned(),
            });
        }
        Err(Errno::ELOOP) => {
            return Err(FileError::SymbolicLink {
                path: path.to_owned(),
            });
        }
        // Opening a socket gives this.
        Err(Errno::ENXIO) => {
            return Err(FileError::NotRegular {
                path: path.to_owned(),
            });
        }
        Err(errno) => return Err(io_error("open private key", path)(errno.into())),
    };
    let metadata = file
        .metadata()
        .map_err(io_error("inspect private key", path))?;
    check_file(&metadata, path)?;
    read_key(file, path)
}

fn check_file(metadata: &Metadata, path: &Path) -> Result<(), FileError> {
    if !metadata.is_file() {
        return Err(FileError::NotRegular {
            path: path.to_owned(),
        });
    }
    let expected = geteuid().as_raw();
    if metadata.uid() != expected {
        return Err(FileError::Owner {
            path: path.to_owned(),
            found: metadata.uid(),
            expected,
        });
    }
    let mode = permissions(metadata);
    if mode & !0o600 != 0 {
        return Err(FileError::Mode {
            path: path.to_owned(),
            mode,
        });
    }
    match metadata.len() {
        0 => Err(FileError::Empty {
            path: path.to_owned(),
        }),
        WITHOUT_NEWLINE | WITH_NEWLINE => Ok(()),
        found => Err(FileError::Length {
            path: path.to_owned(),
            found,
        }),
    }
}

fn read_key(mut file: File, path: &Path) -> Result<PrivateKey, FileError> {
    let mut content = Zeroizing::new([0u8; BASE64_LEN + 1]);
    let mut length = 0;
    loop {
        match file.read(&mut content[length..]) {
            Ok(0) => break,
            Ok(read) => length += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(io_error("read private key", path)(error)),
        }
    }
    let text = content[..length]
        .strip_suffix(b"\n")
        .unwrap_or(&content[..length]);
    if text.len() != BASE64_LEN {
        return Err(FileError::Length {
            path: path.to_owned(),
            found: length as u64,
        });
    }
    let key = std::str::from_utf8(text)
        .map_err(|_| KeyError::Base64Encoding)
        .and_then(PrivateKey::from_base64);
    key.map_err(|source| FileError::Key {
        path: path.to_owned(),
        source,
    })
}

fn create_directory(path: &Path) -> Result<(), FileError> {
    let directory = directory_of(path);
    match DirBuilder::new().mode(0o700).create(directory) {
        Ok(()) => {}
        // Another one that starts at the same time.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(io_error("create directory", directory)(error)),
    }
    let parent = directory_of(directory);
    File::open(parent)
        .and_then(|parent| parent.sync_all())
        .map_err(io_error("sync directory", parent))
}

/// Writes a new key under a temporary name, and gives it its own name only when it is whole and
/// on the disk, and only if nothing has that name.
fn create(path: &Path) -> Result<(), FileError> {
    let key = PrivateKey::generate().map_err(|source| FileError::Generate {
        path: path.to_owned(),
        source,
    })?;
    // Created anew (O_EXCL) with mode 0600, and removed again if a later step fails.
    let mut file = tempfile::Builder::new()
        .prefix(".private-key-")
        .tempfile_in(directory_of(path))
        .map_err(io_error("create a temporary file beside", path))?;
    file.write_all(key.to_base64().as_bytes())
        .and_then(|()| file.write_all(b"\n"))
        .and_then(|()| file.as_file().sync_all())
        .map_err(io_error("write private key", path))?;
    match file.persist_noclobber(path) {
        Ok(_) => Ok(()),
        // Another one was faster; its key counts.
        Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(io_error("create private key", path)(error.error)),
    }
}

fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => Path::new("/"),
    }
}

fn permissions(metadata: &Metadata) -> u32 {
    metadata.mode() & 0o7777
}

fn io_error<'a>(
    operation: &'static str,
    path: &'a Path,
) -> impl FnOnce(io::Error) -> FileError + 'a {
    move |source| FileError::Io {
        operation,
        path: path.to_owned(),
        source,
    }
}

const WITHOUT_NEWLINE: u64 = BASE64_LEN as u64;
const WITH_NEWLINE: u64 = WITHOUT_NEWLINE + 1;
