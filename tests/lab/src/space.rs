//! What hosts and pods have in common: a set of namespaces in which commands run.

use std::ffi::{CString, OsStr};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use nix::sched::{CloneFlags, setns};

use crate::error::{LabError, Result};
use crate::holder::{Holder, HolderPlan};
use crate::lab::LabCore;
use crate::privilege;
use crate::process::{Output, Place, Proc, ProcInner, checked, display, finish, memory_file};

/// How long [`Space::run`] waits for a command.
pub const COMMAND_LIMIT: Duration = Duration::from_secs(60);
/// How long killed namespaces may take to be empty.
const KILL_GRACE: Duration = Duration::from_secs(5);

/// A network, mount, PID, UTS and IPC namespace in which commands run. Hosts and pods deref to it.
#[derive(Clone)]
pub struct Space {
    pub(crate) inner: Arc<SpaceInner>,
}

pub(crate) struct SpaceInner {
    pub(crate) name: String,
    pub(crate) lab: Arc<LabCore>,
    hostname: String,
    dir: PathBuf,
    spaces: Mutex<Option<Arc<Namespaces>>>,
    procs: Mutex<Vec<Weak<ProcInner>>>,
    spawned: AtomicU32,
}

/// The namespaces of a running holder.
#[derive(Debug)]
pub(crate) struct Namespaces {
    pub(crate) holder: Holder,
    pub(crate) net: OwnedFd,
    pub(crate) mnt: OwnedFd,
    pub(crate) pid: OwnedFd,
    uts: OwnedFd,
    ipc: OwnedFd,
}

impl Namespaces {
    fn start(plan: &HolderPlan<'_>) -> Result<Self> {
        let holder = plan.start()?;
        let open = |kind| holder.namespace(kind);
        let (net, mnt, pid) = (open("net")?, open("mnt")?, open("pid")?);
        let (uts, ipc) = (open("uts")?, open("ipc")?);
        Ok(Self {
            holder,
            net,
            mnt,
            pid,
            uts,
            ipc,
        })
    }
}

impl Space {
    /// Makes the namespaces below `parent` (the lab's init for a host, the host for a pod).
    pub(crate) fn new(
        lab: &Arc<LabCore>,
        name: &str,
        hostname: &str,
        parent: (&OwnedFd, &OwnedFd),
    ) -> Result<Self> {
        let dir = lab.dir.join("hosts").join(name);
        std::fs::create_dir_all(&dir)
            .map_err(|e| LabError::io(format!("make {}", dir.display()), e))?;
        let space = Self {
            inner: Arc::new(SpaceInner {
                name: name.to_owned(),
                lab: Arc::clone(lab),
                hostname: hostname.to_owned(),
                dir,
                spaces: Mutex::new(None),
                procs: Mutex::new(Vec::new()),
                spawned: AtomicU32::new(0),
            }),
        };
        space.boot(parent)?;
        Ok(space)
    }

    pub(crate) fn boot(&self, (pid_ns, mnt_ns): (&OwnedFd, &OwnedFd)) -> Result<()> {
        let plan = HolderPlan {
            name: &self.inner.name,
            hostname: &self.inner.hostname,
            pid_ns: pid_ns.as_fd(),
            mnt_ns: mnt_ns.as_fd(),
        };
        *self.slot() = Some(Arc::new(Namespaces::start(&plan)?));
        // No duplicate address detection: a lab's addresses are unique and tests must not wait.
        for kind in ["all", "default"] {
            for (key, value) in [("accept_dad", "0"), ("dad_transmits", "0")] {
                self.sysctl(&format!("net.ipv6.conf.{kind}.{key}"), value)?;
            }
            // Copied from the machine by some kernels; a host starts like a fresh one.
            self.sysctl(&format!("net.ipv4.conf.{kind}.rp_filter"), "0")?;
        }
        self.configure(&["ip", "link", "set", "lo", "up"], b"")
            .map(drop)
    }

    /// The name given when it was made; a pod's is `host/pod`.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// A directory of its own on the machine's disk, visible inside under the same path; a host's
    /// is kept over a reboot, and all end with the lab.
    pub fn dir(&self) -> &Path {
        &self.inner.dir
    }

    /// The PID of its first process as the test sees it.
    ///
    /// # Errors
    ///
    /// [`LabError::Gone`].
    pub fn init_pid(&self) -> Result<i32> {
        self.spaces().map(|s| s.holder.pid())
    }

    /// The path of its network namespace, valid for the test and for the machine.
    ///
    /// # Errors
    ///
    /// [`LabError::Gone`].
    pub fn netns_path(&self) -> Result<PathBuf> {
        Ok(PathBuf::from(format!("/proc/{}/ns/net", self.init_pid()?)))
    }

    /// The command line by which a person enters it.
    pub fn enter_command(&self) -> String {
        let user = if privilege::inside_user_namespace() {
            " --user --preserve-credentials"
        } else {
            ""
        };
        match self.init_pid() {
            Ok(pid) => format!("nsenter --target {pid}{user} --mount --uts --ipc --net --pid"),
            Err(gone) => gone.to_string(),
        }
    }

    /// Runs a command to its end (at most [`COMMAND_LIMIT`]).
    ///
    /// # Errors
    ///
    /// [`LabError::Command`] for another code than 0, with all it printed;
    /// [`LabError::CommandTimeout`], [`LabError::Start`], [`LabError::Gone`].
    pub fn run<S: AsRef<OsStr>>(&self, argv: &[S]) -> Result<Output> {
        let mut command = command_of(argv);
        let output = self.output(&mut command, COMMAND_LIMIT)?;
        self.check(&command, output)
    }

    /// Runs a command to its end and gives its output whatever its code.
    ///
    /// # Errors
    ///
    /// As [`run`](Self::run), but never [`LabError::Command`].
    pub fn try_run<S: AsRef<OsStr>>(&self, argv: &[S]) -> Result<Output> {
        self.output(&mut command_of(argv), COMMAND_LIMIT)
    }

    /// Runs a shell script (`sh -ec`) to its end.
    ///
    /// # Errors
    ///
    /// As [`run`](Self::run).
    pub fn sh(&self, script: &str) -> Result<Output> {
        self.run(&["sh", "-ec", script])
    }

    /// Runs a prepared command (environment, arguments, standard input from a file) to its end and
    /// gives its output whatever its code. Standard output and error are captured.
    ///
    /// # Errors
    ///
    /// As [`try_run`](Self::try_run).
    pub fn output(&self, command: &mut Command, limit: Duration) -> Result<Output> {
        let spaces = self.spaces()?;
        let enter = self.enter_command();
        finish(&self.place(&enter), command, limit, |command| {
            start_in(&spaces, command)
        })
    }

    /// Like [`output`](Self::output), with `input` on standard input, such as a CNI configuration.
    ///
    /// # Errors
    ///
    /// As [`try_run`](Self::try_run).
    pub fn output_with_input(
        &self,
        command: &mut Command,
        input: &[u8],
        limit: Duration,
    ) -> Result<Output> {
        command.stdin(memory_file(input)?);
        self.output(command, limit)
    }

    /// Turns an output with another code than 0 into the error [`run`](Self::run) would give.
    ///
    /// # Errors
    ///
    /// [`LabError::Command`].
    pub fn check(&self, command: &Command, output: Output) -> Result<Output> {
        checked(&self.place(&self.enter_command()), command, output)
    }

    /// Starts a process that stays; its standard output and error go to a log file.
    ///
    /// # Errors
    ///
    /// [`LabError::Start`], [`LabError::Gone`].
    pub fn spawn(&self, command: &mut Command) -> Result<Proc> {
        let spaces = self.spaces()?;
        let text = display(command);
        let program = Path::new(command.get_program())
            .file_name()
            .unwrap_or_default();
        let number = self.inner.spawned.fetch_add(1, Ordering::Relaxed);
        let file = format!(
            "{}-{}-{number}.log",
            self.inner.name.replace('/', "-"),
            program.to_string_lossy()
        );
        let path = self.inner.lab.dir.join("logs").join(file);
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(&path)
            .map_err(|e| LabError::io(format!("open {}", path.display()), e))?;
        let second = log
            .try_clone()
            .map_err(|e| LabError::io("duplicate a log", e))?;
        command.stdout(log).stderr(second);
        let child = start_in(&spaces, command).map_err(|source| LabError::Start {
            host: self.inner.name.clone(),
            command: text.clone(),
            source,
        })?;
        let proc = Proc::new(
            child,
            text,
            (self.inner.name.clone(), self.enter_command()),
            path,
        )?;
        let mut procs = lock(&self.inner.procs);
        procs.retain(|p| p.strong_count() > 0);
        procs.push(Arc::downgrade(proc.inner()));
        Ok(proc)
    }

    /// Starts a process from its arguments; see [`spawn`](Self::spawn).
    ///
    /// # Errors
    ///
    /// As [`spawn`](Self::spawn).
    pub fn spawn_argv<S: AsRef<OsStr>>(&self, argv: &[S]) -> Result<Proc> {
        self.spawn(&mut command_of(argv))
    }

    /// Runs `work` on a thread of the test process that is in this network namespace: sockets made
    /// there belong to it for good. The mount namespace stays the test's.
    ///
    /// # Errors
    ///
    /// [`LabError::Gone`], or [`LabError::Io`] when the namespace cannot be joined.
    ///
    /// # Panics
    ///
    /// When `work` panics.
    pub fn in_netns<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        let spaces = self.spaces()?;
        let result = std::thread::scope(|scope| {
            scope
                .spawn(|| setns(&spaces.net, CloneFlags::CLONE_NEWNET).map(|()| work()))
                .join()
        });
        match result {
            Ok(done) => {
                done.map_err(|e| LabError::io(format!("join {}'s network", self.name()), e))
            }
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// Writes a network sysctl by its dotted name, such as `net.ipv4.ip_forward`; a dot inside an
    /// interface's name is written as `/`, as for sysctl(8).
    ///
    /// # Errors
    ///
    /// [`LabError::Io`] with the key, or [`LabError::Gone`].
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        let swap = |c| {
            if c == '.' {
                '/'
            } else if c == '/' {
                '.'
            } else {
                c
            }
        };
        let path = format!("/proc/sys/{}", key.chars().map(swap).collect::<String>());
        self.in_netns(|| std::fs::write(&path, value))?
            .map_err(|e| LabError::io(format!("set {key} = {value} on {}", self.name()), e))
    }

    /// Runs a set-up tool of the machine in this network namespace only: the machine's `/proc` and
    /// its paths stay visible to it.
    pub(crate) fn configure(&self, argv: &[&str], input: &[u8]) -> Result<Output> {
        let spaces = self.spaces()?;
        let mut command = command_of(argv);
        command.stdin(memory_file(input)?);
        let net = spaces.net.as_raw_fd();
        // SAFETY: the closure makes only system calls; `spaces` keeps the descriptor open.
        unsafe {
            command.pre_exec(move || {
                let _ = nix::unistd::setsid();
                join(net, libc::CLONE_NEWNET)
            });
        }
        let enter = self.enter_command();
        let place = self.place(&enter);
        let output = finish(&place, &mut command, COMMAND_LIMIT, Command::spawn)?;
        checked(&place, &command, output)
    }

    /// Runs a batch of `ip` commands in this network namespace.
    pub(crate) fn ip_batch(&self, lines: &str) -> Result<()> {
        self.configure(&["ip", "-batch", "-"], lines.as_bytes())
            .map(drop)
    }

    pub(crate) fn spaces(&self) -> Result<Arc<Namespaces>> {
        let gone = || LabError::Gone {
            name: self.inner.name.clone(),
        };
        self.slot().as_ref().map(Arc::clone).ok_or_else(gone)
    }

    /// Kills every process in it and lets its namespaces go.
    pub(crate) fn shut_down(&self) {
        let Some(spaces) = self.slot().take() else {
            return;
        };
        spaces.holder.kill();
        // A PID namespace ends only when all its zombies are reaped, and ours are our children.
        self.reap();
        spaces.holder.wait(KILL_GRACE);
    }

    /// Collects the processes started here, which are killed or about to be.
    pub(crate) fn reap(&self) {
        let procs: Vec<_> = lock(&self.inner.procs)
            .iter()
            .filter_map(Weak::upgrade)
            .collect();
        for proc in procs {
            proc.kill_and_reap();
        }
    }

    fn place<'a>(&'a self, enter: &'a str) -> Place<'a> {
        Place {
            host: &self.inner.name,
            enter,
        }
    }

    fn slot(&self) -> MutexGuard<'_, Option<Arc<Namespaces>>> {
        lock(&self.inner.spaces)
    }
}

impl std::fmt::Debug for Space {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.inner.name)
    }
}

/// Locks a mutex whose data stays valid even when a holder of the lock panicked.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn command_of<S: AsRef<OsStr>>(argv: &[S]) -> Command {
    let (program, arguments) = match argv {
        [program, arguments @ ..] => (program.as_ref(), arguments),
        [] => (OsStr::new(""), argv),
    };
    let mut command = Command::new(program);
    command
        .args(arguments)
        .stdin(Stdio::null())
        .env("PATH", privilege::search_path());
    command
}

/// Starts a command as a member of all the namespaces. The PID namespace applies to children of
/// the calling thread, for good, so a thread of its own does it; the others are joined by the
/// child itself, because a thread cannot leave its process's mount namespace.
fn start_in(spaces: &Namespaces, command: &mut Command) -> std::io::Result<Child> {
    let dir = match command.get_current_dir() {
        Some(dir) => dir.to_owned(),
        None => std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/")),
    };
    let dir = CString::new(dir.as_os_str().as_bytes())?;
    let joined = [
        (spaces.mnt.as_raw_fd(), libc::CLONE_NEWNS),
        (spaces.net.as_raw_fd(), libc::CLONE_NEWNET),
        (spaces.uts.as_raw_fd(), libc::CLONE_NEWUTS),
        (spaces.ipc.as_raw_fd(), libc::CLONE_NEWIPC),
    ];
    // SAFETY: the closure makes only system calls on values made before the fork; the descriptors
    // stay open in `spaces` until the child has executed its program.
    unsafe {
        command.pre_exec(move || {
            let _ = nix::unistd::setsid();
            for (fd, kind) in joined {
                join(fd, kind)?;
            }
            if libc::chdir(dir.as_ptr()) != 0 {
                return Err(std::io::Error::last_os_error());
            }
            Ok(())
        });
    }
    let started = std::thread::scope(|scope| {
        scope
            .spawn(|| {
                setns(&spaces.pid, CloneFlags::CLONE_NEWPID)?;
                command.spawn()
            })
            .join()
    });
    started.unwrap_or_else(|_| Err(std::io::Error::other("the starting thread panicked")))
}

fn join(fd: std::os::fd::RawFd, kind: libc::c_int) -> std::io::Result<()> {
    // SAFETY: setns takes plain integers.
    if unsafe { libc::setns(fd, kind) } != 0 {
        return Err(std::io::Error::last_os_error());
    }
    Ok(())
}
