//! The lab: hosts, switches and routers that vanish with the test process.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use crate::capture::{Capture, ClearTextRules, Retap, Tap};
use crate::cgroup;
use crate::directory;
use crate::error::{LabError, Result};
use crate::holder::LabInit;
use crate::host::{Bridge, Host};
use crate::link::{End, Link};
use crate::nat::NatRouter;
use crate::privilege::{Privilege, enter_user_namespace_if_needed, privilege};
use crate::space::{Space, lock};

/// How long the kernel may take to end every process of a lab.
const KILL_GRACE: Duration = Duration::from_secs(5);

/// A set of hosts joined by links. Dropping it kills every process in it and removes its
/// directory; the same happens when the test process ends in any other way, SIGKILL included.
#[derive(Debug)]
pub struct Lab {
    core: Arc<LabCore>,
}

/// What hosts and links need of their lab.
pub(crate) struct LabCore {
    pub(crate) name: String,
    pub(crate) dir: PathBuf,
    init: LabInit,
    pid_ns: std::os::fd::OwnedFd,
    mnt_ns: std::os::fd::OwnedFd,
    spaces: Mutex<Vec<Space>>,
    pub(crate) links: Mutex<Vec<Link>>,
    captures: Mutex<Vec<Weak<Retap>>>,
}

/// A lab that was left running on purpose; see [`Lab::detach`].
#[derive(Debug, Clone)]
pub struct Detached {
    /// The PID of the lab's first process; SIGTERM to it ends the lab and removes its directory.
    pub init_pid: i32,
    /// The lab's directory, with its logs.
    pub dir: PathBuf,
    /// The command line that takes the lab down.
    pub take_down: String,
}

impl Lab {
    /// Makes an empty lab, and removes what killed test processes left in the temporary directory.
    ///
    /// # Errors
    ///
    /// [`LabError::Privilege`] with what is missing, [`LabError::Name`], [`LabError::Namespaces`].
    pub fn new(name: &str) -> Result<Self> {
        directory::check_name(name)?;
        if let Privilege::None { missing } = privilege() {
            return Err(LabError::Privilege { missing });
        }
        enter_user_namespace_if_needed()?;
        directory::remove_stale();
        let init = LabInit::start(name)?;
        let dir =
            match directory::create(name).and_then(|dir| init.set_directory(&dir).map(|()| dir)) {
                Ok(dir) => dir,
                Err(e) => {
                    init.holder.kill();
                    init.holder.wait(KILL_GRACE);
                    return Err(e);
                }
            };
        let (pid_ns, mnt_ns) = (init.holder.namespace("pid")?, init.holder.namespace("mnt")?);
        let core = LabCore {
            name: name.to_owned(),
            dir,
            init,
            pid_ns,
            mnt_ns,
            spaces: Mutex::default(),
            links: Mutex::default(),
            captures: Mutex::default(),
        };
        Ok(Self {
            core: Arc::new(core),
        })
    }

    /// The lab's directory: `hosts/<name>/` and `logs/`. Removed with the lab.
    pub fn dir(&self) -> &Path {
        &self.core.dir
    }

    /// The PID of the lab's first process, on which all others depend.
    pub fn init_pid(&self) -> i32 {
        self.core.init.holder.pid()
    }

    /// Adds a host: namespaces of its own, a private `/run`, its name as hostname, loopback up.
    ///
    /// # Errors
    ///
    /// [`LabError::Name`] when the name is in use or not usable; [`LabError::Namespaces`].
    pub fn host(&self, name: &str) -> Result<Host> {
        directory::check_name(name)?;
        let mut spaces = lock(&self.core.spaces);
        if spaces.iter().any(|s| s.name() == name) {
            return Err(LabError::Name {
                name: name.into(),
                why: "it is in use in this lab",
            });
        }
        let space = Space::new(&self.core, name, name, self.core.parent())?;
        spaces.push(space.clone());
        Ok(Host::new(space))
    }

    /// Adds a switch: a bridge in a namespace of its own that forwards every frame and sends none.
    ///
    /// # Errors
    ///
    /// As [`host`](Self::host).
    pub fn bridge(&self, name: &str) -> Result<Bridge> {
        Bridge::new(self.host(name)?)
    }

    /// Adds a host that forwards both families.
    ///
    /// # Errors
    ///
    /// As [`host`](Self::host).
    pub fn router(&self, name: &str) -> Result<Host> {
        let host = self.host(name)?;
        host.sysctl("net.ipv4.ip_forward", "1")?;
        host.sysctl("net.ipv6.conf.all.forwarding", "1")?;
        host.sysctl("net.ipv6.conf.default.forwarding", "1")?;
        Ok(host)
    }

    /// Adds a router that masquerades IPv4 leaving by the interface `outside`, with mapped ports
    /// that differ from the originals; IPv6 is forwarded as it is.
    ///
    /// # Errors
    ///
    /// As [`host`](Self::host).
    pub fn nat_router(&self, name: &str, outside: &str) -> Result<NatRouter> {
        NatRouter::new(self.router(name)?, outside)
    }

    /// Joins two ends by a cable.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), warren_lab::LabError> {
    /// # let lab = warren_lab::Lab::new("x")?;
    /// let (node, lan) = (lab.host("node1")?, lab.bridge("lan")?);
    /// let link = lab.connect(node.end("eth0").addr("10.0.1.1/24").via("10.0.1.254"), lan.port())?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`LabError::Command`] with what `ip` said, for one on a name in use or a wrong address.
    pub fn connect(&self, a: End, b: End) -> Result<Link> {
        Link::new(&self.core, a, b)
    }

    /// Captures on all the taps at once, judging each packet by `rules` as it passes.
    ///
    /// # Errors
    ///
    /// [`LabError::Capture`] naming the tap and the step.
    pub fn capture(&self, taps: &[Tap], rules: ClearTextRules) -> Result<Capture> {
        let capture = Capture::start(&self.core.name, taps, rules)?;
        lock(&self.core.captures).push(Arc::downgrade(capture.retap()));
        Ok(capture)
    }

    /// Copies the logs of all that was started to where what failures leave stays, and tells where that is; none when there
    /// are no logs. A lab that ends by a panic does it by itself.
    pub fn keep_logs(&self) -> Option<PathBuf> {
        directory::keep_logs(&self.core.name, &self.core.dir)
    }

    /// Leaves the lab running after this process has ended, processes started in it included.
    ///
    /// # Errors
    ///
    /// [`LabError::Io`] when the lab's init is gone.
    pub fn detach(self) -> Result<Detached> {
        self.core.init.detach()?;
        let init_pid = self.init_pid();
        let dir = self.core.dir.clone();
        // The directory's name carries the owner by which stale ones are told.
        directory::hand_over(&dir, init_pid)?;
        std::mem::forget(self);
        Ok(Detached {
            init_pid,
            dir,
            take_down: format!("kill {init_pid}"),
        })
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking()
            && let Some(kept) = directory::keep_logs(&self.core.name, &self.core.dir)
        {
            eprintln!(
                "the logs of lab {} are kept in {}",
                self.core.name,
                kept.display()
            );
        }
        self.core.init.holder.kill();
        for space in lock(&self.core.spaces).drain(..) {
            space.shut_down();
        }
        // Links hold hosts, and hosts hold the lab.
        lock(&self.core.links).clear();
        self.core.init.holder.wait(KILL_GRACE);
        if let Some(name) = self.core.dir.file_name() {
            cgroup::remove(&name.to_string_lossy());
        }
        let _ = std::fs::remove_dir_all(&self.core.dir);
    }
}

impl LabCore {
    /// The namespaces below which hosts are made.
    pub(crate) fn parent(&self) -> (&std::os::fd::OwnedFd, &std::os::fd::OwnedFd) {
        (&self.pid_ns, &self.mnt_ns)
    }

    /// Lets the captures follow interfaces that were made again.
    pub(crate) fn refresh_captures(&self) {
        let mut captures = lock(&self.captures);
        captures.retain(|c| c.strong_count() > 0);
        for capture in captures.iter().filter_map(Weak::upgrade) {
            capture.refresh();
        }
    }

    pub(crate) fn add_space(&self, space: &Space) {
        lock(&self.spaces).push(space.clone());
    }

    pub(crate) fn remove_space(&self, space: &Space) {
        lock(&self.spaces).retain(|s| !Arc::ptr_eq(&s.inner, &space.inner));
    }

    /// The pods of a host.
    pub(crate) fn spaces_below(&self, host: &str) -> Vec<Space> {
        let below = |s: &&Space| {
            s.name()
                .strip_prefix(host)
                .is_some_and(|r| r.starts_with('/'))
        };
        lock(&self.spaces).iter().filter(below).cloned().collect()
    }

    pub(crate) fn has_space(&self, name: &str) -> bool {
        lock(&self.spaces).iter().any(|s| s.name() == name)
    }
}

impl std::fmt::Debug for LabCore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lab")
            .field("name", &self.name)
            .field("dir", &self.dir)
            .finish_non_exhaustive()
    }
}
