//! Commands that run to their end and processes that stay.

use std::fmt;
use std::io::{Read as _, Seek as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::unistd::Pid;

use crate::error::{LabError, Result};
use crate::holder::{pidfd_open, wait_pidfd};

/// How long a process killed by SIGKILL may take to be gone.
const KILL_GRACE: Duration = Duration::from_secs(5);
/// How much of a log a failure message shows.
const LOG_TAIL_LINES: usize = 40;

/// What a finished command left.
#[derive(Debug, Clone)]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output, invalid UTF-8 replaced.
    pub stdout: String,
    /// Its standard error, invalid UTF-8 replaced.
    pub stderr: String,
}

impl Output {
    /// Tells whether the command ended with code 0.
    pub fn success(&self) -> bool {
        self.status.success()
    }

    /// Parses the standard output as one JSON document.
    ///
    /// # Errors
    ///
    /// [`LabError::Io`] with the text when it is not JSON.
    pub fn json(&self) -> Result<serde_json::Value> {
        serde_json::from_str(&self.stdout)
            .map_err(|e| LabError::io(format!("parse as JSON: {:?}", self.stdout), e))
    }
}

/// A process that runs in a host or pod; killed when dropped.
pub struct Proc {
    inner: Arc<ProcInner>,
}

/// The part of [`Proc`] that its host also knows, to reap it when the host ends.
pub(crate) struct ProcInner {
    child: Mutex<Child>,
    pid: i32,
    pidfd: OwnedFd,
    command: String,
    host: String,
    enter: String,
    log: PathBuf,
}

impl Proc {
    pub(crate) fn new(
        child: Child,
        command: String,
        place: (String, String),
        log: PathBuf,
    ) -> Result<Self> {
        let pid = child.id() as i32;
        let (host, enter) = place;
        let pidfd = pidfd_open(pid).map_err(|e| LabError::io("open a pidfd", e))?;
        let child = Mutex::new(child);
        Ok(Self {
            inner: Arc::new(ProcInner {
                child,
                pid,
                pidfd,
                command,
                host,
                enter,
                log,
            }),
        })
    }

    pub(crate) fn inner(&self) -> &Arc<ProcInner> {
        &self.inner
    }

    /// The process's PID as the test sees it.
    pub fn pid(&self) -> i32 {
        self.inner.pid
    }

    /// The file that holds its standard output and error.
    pub fn log_path(&self) -> &Path {
        &self.inner.log
    }

    /// All it has printed so far.
    pub fn log(&self) -> String {
        std::fs::read(&self.inner.log)
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// The last lines it printed, with the command and the way into its host, for messages.
    pub fn describe(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        let tail = lines
            .split_at(lines.len().saturating_sub(LOG_TAIL_LINES))
            .1
            .join("\n");
        let ProcInner {
            command,
            host,
            enter,
            ..
        } = &*self.inner;
        format!("`{command}` on {host}, last lines:\n{tail}\nto look around: {enter}")
    }

    /// Sends a signal; does nothing when the process has been reaped.
    pub fn signal(&self, signal: Signal) {
        self.inner.signal(signal);
    }

    /// Kills it and waits until it is gone.
    pub fn kill(&self) {
        self.inner.kill_and_reap();
    }

    /// Tells whether it still runs.
    pub fn is_running(&self) -> bool {
        matches!(self.inner.child().try_wait(), Ok(None))
    }

    /// Waits for its end.
    ///
    /// # Errors
    ///
    /// [`LabError::Timeout`] with the log's tail when it still runs after `limit`.
    pub fn wait_timeout(&self, limit: Duration) -> Result<ExitStatus> {
        let limit = crate::patience(limit);
        let ended = wait_pidfd(self.inner.pidfd.as_fd(), limit);
        match self.inner.child().try_wait() {
            Ok(Some(status)) if ended => Ok(status),
            Err(e) => Err(LabError::io(format!("wait for {}", self.inner.command), e)),
            _ => Err(LabError::Timeout {
                what: format!("the end of {}", self.inner.command),
                limit,
                detail: format!("\n{}", self.describe()),
            }),
        }
    }

    /// Waits until the log contains `text`.
    ///
    /// # Errors
    ///
    /// [`LabError::Timeout`] with the log's tail.
    pub fn wait_log(&self, text: &str, limit: Duration) -> Result<()> {
        crate::poll_until(limit, text, || self.log().contains(text))
            .map(drop)
            .map_err(|_| LabError::Timeout {
                what: format!("{text:?} in a log"),
                limit,
                detail: format!("\n{}", self.describe()),
            })
    }
}

impl fmt::Debug for Proc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Proc({} {:?} on {})",
            self.inner.pid, self.inner.command, self.inner.host
        )
    }
}

impl Drop for Proc {
    fn drop(&mut self) {
        self.kill();
    }
}

impl ProcInner {
    fn child(&self) -> MutexGuard<'_, Child> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn signal(&self, signal: Signal) {
        let mut child = self.child();
        // Under the lock and only while unreaped, so the PID cannot be another's.
        if matches!(child.try_wait(), Ok(None)) {
            let _ = nix::sys::signal::kill(Pid::from_raw(self.pid), signal);
        }
    }

    pub(crate) fn kill_and_reap(&self) {
        self.signal(Signal::SIGKILL);
        wait_pidfd(self.pidfd.as_fd(), KILL_GRACE);
        let _ = self.child().try_wait();
    }
}

/// An unnamed file for a command's output: unlike a pipe, a daemon that keeps it open does not
/// keep the reader waiting.
pub(crate) fn memory_file(content: &[u8]) -> Result<std::fs::File> {
    use std::io::Write as _;
    let fd = nix::sys::memfd::memfd_create(c"lab", nix::sys::memfd::MFdFlags::MFD_CLOEXEC)
        .map_err(|e| LabError::io("memfd_create", e))?;
    let mut file = std::fs::File::from(fd);
    file.write_all(content)
        .and_then(|()| file.rewind())
        .map_err(|e| LabError::io("write to a memory file", e))?;
    Ok(file)
}

/// Where a command ran, for messages.
pub(crate) struct Place<'a> {
    pub(crate) host: &'a str,
    pub(crate) enter: &'a str,
}

/// Starts a prepared command by `start`, waits at most `limit` and collects its output.
pub(crate) fn finish(
    place: &Place<'_>,
    command: &mut Command,
    limit: Duration,
    start: impl FnOnce(&mut Command) -> std::io::Result<Child>,
) -> Result<Output> {
    let text = display(command);
    let host = place.host.to_owned();
    let files = (memory_file(b"")?, memory_file(b"")?);
    let copy = |file: &std::fs::File| {
        file.try_clone()
            .map_err(|e| LabError::io("duplicate a memory file", e))
    };
    command.stdout(copy(&files.0)?).stderr(copy(&files.1)?);
    let mut child = start(command).map_err(|source| LabError::Start {
        host: host.clone(),
        command: text.clone(),
        source,
    })?;
    let pid = child.id() as i32;
    let pidfd = pidfd_open(pid).map_err(|e| LabError::io("open a pidfd", e))?;
    let limit = crate::patience(limit);
    let ended = wait_pidfd(pidfd.as_fd(), limit);
    if !ended {
        // The command leads a session of its own: its children go with it.
        let _ = nix::sys::signal::killpg(Pid::from_raw(pid), Signal::SIGKILL);
    }
    let status = child
        .wait()
        .map_err(|e| LabError::io(format!("wait for `{text}`"), e))?;
    let read = |mut file: std::fs::File| {
        let mut bytes = Vec::new();
        file.rewind()
            .and_then(|()| file.read_to_end(&mut bytes))
            .map(|_| String::from_utf8_lossy(&bytes).into_owned())
            .map_err(|e| LabError::io(format!("read the output of `{text}`"), e))
    };
    let (stdout, stderr) = (read(files.0)?, read(files.1)?);
    if !ended {
        let output = format!("{stdout}{stderr}");
        let enter = place.enter.to_owned();
        return Err(LabError::CommandTimeout {
            host,
            command: text,
            limit,
            output,
            enter,
        });
    }
    Ok(Output {
        status,
        stdout,
        stderr,
    })
}

/// Turns an output with another code than 0 into an error.
pub(crate) fn checked(place: &Place<'_>, command: &Command, output: Output) -> Result<Output> {
    if output.success() {
        return Ok(output);
    }
    Err(LabError::Command {
        host: place.host.to_owned(),
        command: display(command),
        status: output.status.to_string(),
        output: output.stdout + &output.stderr,
        enter: place.enter.to_owned(),
    })
}

/// The command as a person would type it, roughly.
pub(crate) fn display(command: &Command) -> String {
    let mut text = command.get_program().to_string_lossy().into_owned();
    for argument in command.get_args() {
        text.push(' ');
        text.push_str(&argument.to_string_lossy());
    }
    text
}
