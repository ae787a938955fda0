//! `warren install-cni`: puts the plugin where the container runtime looks for it.
//!
//! An init container runs it on the host's directory, which other networks' plugins share.

use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use warren_core::consts::CNI_PLUGIN;

use crate::args::InstallCniArgs;
use crate::outcome::Outcome;

/// What the name of a file begins with that is not whole yet.
pub(crate) const PARTIAL: &str = ".warren-cni-";
const MODE: u32 = 0o755;
const FAILED: u8 = 1;

/// Why the plugin was not installed.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// The program to install cannot be read.
    #[error("read {}: {source}; give the plugin's file as --from", path.display())]
    Source {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The program to install is empty.
    #[error("{} is empty; give the plugin's file as --from", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// The directory to install to cannot be opened.
    #[error("open {}: {source}; give the runtime's directory of CNI plugins as --to", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Something else is in the plugin's place.
    #[error("{} is a directory; remove it", path.display())]
    InTheWay {
        /// The plugin's place.
        path: PathBuf,
    },
    /// The system refused.
    #[error("{operation} {}: {source}", path.display())]
    Write {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Runs `warren install-cni`.
pub fn run(args: &InstallCniArgs) -> Outcome {
    let mut outcome = Outcome::default();
    let target = args.to.join(CNI_PLUGIN);
    match install(&args.from, &args.to, &target) {
        Ok(written) => {
            let what = if written { "installed" } else { "up to date" };
            outcome.stdout = format!("{}: {what}\n", target.display());
        }
        Err(e) => {
            outcome.complain(&e);
            outcome.code = FAILED;
        }
    }
    outcome
}

/// Returns whether it was written.
fn install(from: &Path, dir: &Path, target: &Path) -> Result<bool, InstallError> {
    let program = fs::read(from).map_err(|source| InstallError::Source {
        path: from.to_owned(),
        source,
    })?;
    if program.is_empty() {
        let path = from.to_owned();
        return Err(InstallError::Empty { path });
    }
    let cannot_open = |source| InstallError::Directory {
        path: dir.to_owned(),
        source,
    };
    let directory = File::open(dir).map_err(cannot_open)?;
    // INVARIANT: a partial file belongs to whoever holds this lock, which the kernel lets go of when
    // the process ends; so what is found of one was left by an installer that was killed.
    directory.lock().map_err(cannot_open)?;
    for entry in fs::read_dir(dir).map_err(cannot_open)?.flatten() {
        if entry.file_name().to_string_lossy().starts_with(PARTIAL) {
            let path = entry.path();
            fs::remove_file(&path).map_err(failed("remove", &path))?;
        }
    }
    match fs::symlink_metadata(target) {
        Ok(found) if found.is_dir() => {
            let path = target.to_owned();
            return Err(InstallError::InTheWay { path });
        }
        Ok(found)
            if found.is_file()
                && found.permissions().mode() & 0o7777 == MODE
                && fs::read(target).is_ok_and(|present| present == program) =>
        {
            return Ok(false);
        }
        _ => {}
    }
    replace(dir, target, &program).map_err(failed("write", target))?;
    directory.sync_all().map_err(failed("sync", dir))?;
    Ok(true)
}

/// Whole or not at all: the runtime may start the plugin at any moment.
fn replace(dir: &Path, target: &Path, program: &[u8]) -> io::Result<()> {
    let mut file = tempfile::Builder::new().prefix(PARTIAL).tempfile_in(dir)?;
    file.write_all(program)?;
    // Not by the mode that it is made with, which the umask narrows.
    file.as_file()
        .set_permissions(Permissions::from_mode(MODE))?;
    file.as_file().sync_all()?;
    file.persist(target)?;
    Ok(())
}

fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> InstallError {
    let path = path.to_owned();
    move |source| InstallError::Write {
        operation,
        path,
        source,
    }
}
