//! Network namespaces that live as long as their values.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::process::{Command, Output};

use nix::sched::{CloneFlags, setns, unshare};
use serde_json::Value;

/// A network namespace.
#[derive(Debug)]
pub struct Ns(File);

impl Default for Ns {
    fn default() -> Self {
        Self::new()
    }
}

impl Ns {
    pub fn new() -> Self {
        let make = || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            File::open("/proc/thread-self/ns/net").unwrap()
        };
        Self(std::thread::spawn(make).join().unwrap())
    }

    /// A path of it that every process of the machine can open.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }

    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        let inside = || {
            setns(&self.0, CloneFlags::CLONE_NEWNET).unwrap();
            f()
        };
        std::thread::scope(|scope| scope.spawn(inside).join().unwrap())
    }

    /// Runs a shell command inside.
    pub fn try_sh(&self, command: &str) -> Output {
        self.run(|| Command::new("sh").args(["-c", command]).output().unwrap())
    }

    /// Runs a shell command inside, which must succeed, and returns what it printed.
    #[track_caller]
    pub fn sh(&self, command: &str) -> String {
        let out = self.try_sh(command);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (stdout, stderr) = (text(&out.stdout), text(&out.stderr));
        assert!(
            out.status.success(),
            "{command}: {}\n{stdout}{stderr}",
            out.status
        );
        stdout
    }

    #[track_caller]
    pub fn json(&self, command: &str) -> Value {
        serde_json::from_str(&self.sh(command)).unwrap()
    }

    /// The names of the links inside, sorted.
    pub fn links(&self) -> Vec<String> {
        let links = self.json("ip -j link");
        let name = |link: &Value| link["ifname"].as_str().unwrap().to_owned();
        let mut names: Vec<String> = links.as_array().unwrap().iter().map(name).collect();
        names.sort();
        names
    }
}
