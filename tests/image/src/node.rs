//! A host of the lab with a container runtime of its own.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use warren_lab::{Host, Output, Proc, poll_until};

use crate::{reference, tar};

/// How long a busy machine may take for a container.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// What `ctr` gives a container unless it is told otherwise, as does Docker.
const USUAL: [&str; 14] = [
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

/// The runtime's own needs, of which the machine lacks one.
pub fn missing() -> Option<&'static str> {
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    let found = |name: &str| {
        path.split(':')
            .any(|dir| Path::new(dir).join(name).exists())
    };
    if !nix::unistd::geteuid().is_root() {
        return Some("root, for control groups");
    }
    ["containerd", "ctr", "runc"]
        .into_iter()
        .find(|name| !found(name))
}

/// A node whose programs run in containers.
#[derive(Debug)]
pub struct Node {
    /// Its namespaces.
    pub host: Host,
    containerd: Option<Proc>,
    namespace: String,
}

/// A container that is to be run, with no rights but those named.
#[derive(Clone, Debug)]
pub struct Container {
    image: &'static str,
    name: String,
    capabilities: Vec<&'static str>,
    options: Vec<String>,
}

impl Container {
    /// A container of that image and name: in the node's network, its root read-only, under the
    /// runtime's default seccomp profile, without any capability.
    pub fn new(image: &'static str, name: &str) -> Self {
        Self {
            image,
            name: name.to_owned(),
            capabilities: Vec::new(),
            options: Vec::new(),
        }
    }

    /// Gives it capabilities.
    pub fn capabilities(mut self, names: &[&'static str]) -> Self {
        self.capabilities.extend(names);
        self
    }

    /// Shows it a file or directory of the node.
    pub fn mount(mut self, from: impl AsRef<Path>, to: &str) -> Self {
        let from = from.as_ref().display();
        let mount = format!("--mount=type=bind,src={from},dst={to},options=rbind:rw");
        self.options.push(mount);
        self
    }

    fn arguments(&self) -> Vec<String> {
        let mut all: Vec<String> = ["--rm", "--net-host", "--read-only", "--seccomp"]
            .map(str::to_owned)
            .into();
        all.push("--snapshotter=native".into());
        let dropped = USUAL.iter().filter(|it| !self.capabilities.contains(it));
        all.extend(dropped.map(|name| format!("--cap-drop={name}")));
        let added = self.capabilities.iter().filter(|it| !USUAL.contains(it));
        all.extend(added.map(|name| format!("--cap-add={name}")));
        all.extend(self.options.iter().cloned());
        all.extend([reference(self.image), self.name.clone()]);
        all
    }
}

impl Node {
    /// Starts containerd on a host and imports the images.
    ///
    /// # Errors
    /// It does not start, or does not take an image.
    pub fn start(host: Host, images: &[&str]) -> Result<Self> {
        // The lab's own /sys hides the control groups; this is the machine's, as in any container.
        host.sh("umount /sys")?;
        let dir = host.dir().join("containerd");
        std::fs::create_dir_all(&dir)?;
        let config = dir.join("config.toml");
        let text = format!(
            "version = 2\nroot = \"{}\"\nstate = \"/run/containerd\"\n\
             disabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n\
             [grpc]\naddress = \"/run/containerd/containerd.sock\"\n",
            dir.join("root").display()
        );
        std::fs::write(&config, text)?;
        let mut command = Command::new("containerd");
        let containerd = host.spawn(command.arg("--config").arg(&config))?;
        let node = Self {
            namespace: format!("warren-image-{}-{}", std::process::id(), host.name()),
            containerd: Some(containerd),
            host,
        };
        poll_until(PATIENCE, "containerd answers", || {
            node.ctr(&["version"]).is_ok_and(|it| it.success())
        })?;
        for image in images {
            let tar = tar(image)?.canonicalize()?;
            let tar = tar.to_str().context("a path that is no text")?;
            let args = ["images", "import", "--snapshotter=native", tar];
            let imported = node.ctr(&args)?;
            if !imported.success() || !imported.stdout.contains(&reference(image)) {
                bail!("import {image}: {imported:?}");
            }
        }
        Ok(node)
    }

    /// A directory of the node that containers may be shown.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn directory(&self, name: &str) -> Result<PathBuf> {
        let path = self.host.dir().join(name);
        std::fs::create_dir_all(&path)?;
        Ok(path)
    }

    /// Runs a container to its end.
    ///
    /// # Errors
    /// It could not be run; that its program fails is no error.
    pub fn run(&self, container: &Container, program: &[&str]) -> Result<Output> {
        let mut args = vec!["run".to_owned()];
        args.extend(container.arguments());
        args.extend(program.iter().map(|it| (*it).to_owned()));
        self.ctr(&args)
    }

    /// Starts a container that stays.
    ///
    /// # Errors
    /// It could not be started.
    pub fn spawn(&self, container: &Container, program: &[&str]) -> Result<Proc> {
        let mut command = self.command(&["run"]);
        command.args(container.arguments()).args(program);
        Ok(self.host.spawn(&mut command)?)
    }

    /// Runs a program in a container, as a probe does.
    ///
    /// # Errors
    /// It could not be run; that the program fails is no error.
    pub fn exec(&self, container: &str, program: &[&str]) -> Result<Output> {
        let mut args = vec!["tasks", "exec", "--exec-id", "probe", container];
        args.extend(program);
        self.ctr(&args)
    }

    /// Sends SIGTERM to a container's program.
    ///
    /// # Errors
    /// There is none.
    pub fn terminate(&self, container: &str) -> Result<()> {
        let sent = self.ctr(&["tasks", "kill", "--signal", "SIGTERM", container])?;
        if !sent.success() {
            bail!("{sent:?}");
        }
        Ok(())
    }

    fn ctr<S: AsRef<std::ffi::OsStr>>(&self, args: &[S]) -> Result<Output> {
        Ok(self.host.output(&mut self.command(args), PATIENCE)?)
    }

    fn command<S: AsRef<std::ffi::OsStr>>(&self, args: &[S]) -> Command {
        let mut command = Command::new("ctr");
        command.args(["--namespace", &self.namespace]).args(args);
        command
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // Whole: a container that outlives its runtime keeps its control groups.
        let tasks = self.ctr(&["tasks", "list", "--quiet"]);
        for task in tasks.map(|it| it.stdout).unwrap_or_default().lines() {
            let _ = self.ctr(&["tasks", "delete", "--force", task]);
        }
        drop(self.containerd.take());
        let hierarchies = std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten();
        let dirs = hierarchies.flatten().map(|entry| entry.path());
        for dir in dirs.chain([PathBuf::from("/sys/fs/cgroup")]) {
            let _ = std::fs::remove_dir(dir.join(&self.namespace));
        }
    }
}
