//! Calls of plugins, measured.

use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::Value;

/// A plugin with its configuration.
#[derive(Clone, Debug)]
pub struct Plugin {
    /// The program.
    pub program: PathBuf,
    /// The network configuration.
    pub conf: Value,
}

/// A call under way.
#[derive(Debug)]
pub struct Call {
    child: Child,
    started: Instant,
}

/// What came of a call.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// How it ended.
    pub status: ExitStatus,
    /// What it answered.
    pub stdout: String,
    /// What it logged.
    pub stderr: String,
    /// From its start to its end.
    pub elapsed: Duration,
    /// The processor time that it used, in user mode and in the kernel.
    pub cpu: (Duration, Duration),
    /// The most memory that it had, in KiB. The kernel counts the caller's too, as of the moment
    /// when the call was started.
    pub max_rss_kib: u64,
}

impl Plugin {
    /// Starts a call for the container's `eth0`.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub fn start(&self, verb: &str, container: &str, netns: Option<&str>) -> Result<Call> {
        let folder = self.program.parent().unwrap_or(self.program.as_path());
        let mut command = Command::new(&self.program);
        command
            .env_clear()
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", container)
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", folder)
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .envs(netns.map(|path| ("CNI_NETNS", path)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let conf = self.conf.to_string();
        let started = Instant::now();
        let mut child = command
            .spawn()
            .with_context(|| format!("start {}", self.program.display()))?;
        if let Some(mut stdin) = child.stdin.take() {
            // A call that is refused by its environment reads nothing.
            let _ = stdin.write_all(conf.as_bytes());
        }
        Ok(Call { child, started })
    }

    /// Makes a call and waits for its end.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub fn call(&self, verb: &str, container: &str, netns: Option<&str>) -> Result<Outcome> {
        self.start(verb, container, netns)?.wait()
    }
}

impl Call {
    /// Kills it, wherever it is.
    ///
    /// # Errors
    /// When it was waited for already.
    pub fn kill(&mut self) -> Result<()> {
        Ok(self.child.kill()?)
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub fn wait(mut self) -> Result<Outcome> {
        let (mut stdout, mut stderr) = (String::new(), String::new());
        // What it prints is less than a pipe holds, so that one can be read after the other.
        if let Some(mut pipe) = self.child.stdout.take() {
            pipe.read_to_string(&mut stdout)?;
        }
        if let Some(mut pipe) = self.child.stderr.take() {
            pipe.read_to_string(&mut stderr)?;
        }
        let pid = libc::pid_t::try_from(self.child.id()).context("a process id")?;
        let mut status = 0;
        // SAFETY: a plain C structure for which all zeroes is a value.
        let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
        loop {
            // SAFETY: both pointers are to live values of the right types; the process is our child
            // and nobody else waits for it, for `self` is consumed.
            let waited = unsafe { libc::wait4(pid, &mut status, 0, &mut usage) };
            if waited == pid {
                break;
            }
            let error = std::io::Error::last_os_error();
            if error.kind() != std::io::ErrorKind::Interrupted {
                return Err(error).context("wait for a call");
            }
        }
        let time = |t: libc::timeval| {
            Duration::new(t.tv_sec.unsigned_abs(), 0)
                + Duration::from_micros(t.tv_usec.unsigned_abs())
        };
        Ok(Outcome {
            elapsed: self.started.elapsed(),
            status: ExitStatus::from_raw(status),
            stdout,
            stderr,
            cpu: (time(usage.ru_utime), time(usage.ru_stime)),
            max_rss_kib: usage.ru_maxrss.unsigned_abs(),
        })
    }
}

impl Outcome {
    /// Whether it was killed.
    pub fn killed(&self) -> bool {
        self.status.signal().is_some()
    }

    /// The answer, if it is JSON.
    pub fn json(&self) -> Option<Value> {
        serde_json::from_str(&self.stdout).ok()
    }

    /// The addresses of an ADD's answer, without prefix lengths.
    pub fn addresses(&self) -> Vec<String> {
        let json = self.json().unwrap_or_default();
        let ips = json["ips"].as_array().into_iter().flatten();
        ips.filter_map(|ip| Some(ip["address"].as_str()?.split('/').next()?.to_owned()))
            .collect()
    }
}
