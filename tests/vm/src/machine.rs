//! A virtual machine.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use serde_json::Value;
use warren_guest::{Accel, Card, Qemu, wire};
use warren_lab::{Host, Link, Output, Proc, poll_until};

use crate::Result;
use crate::payload::{GUEST_DIR, Version};
use crate::places::prepared;
use crate::settings::Settings;
use crate::ssh::Ssh;

/// How long a boot may take: 20 seconds without acceleration where nothing else runs.
const BOOT: Duration = Duration::from_secs(600);
/// How long a command may take, unless the test says so.
const COMMAND: Duration = Duration::from_secs(300);
/// What a machine prints at the end of its boot.
const UP: &str = "vm is up after";

/// A machine with a kernel and a disk of its own. It ends with its lab.
#[derive(Debug)]
pub struct Machine {
    /// Its number: in its name and its addresses.
    pub number: u8,
    /// Its cable to the private network, to be cut and restored.
    pub link: Link,
    host: Host,
    qemu: Qemu,
    process: Option<Proc>,
    ssh: Ssh,
}

impl Machine {
    /// Makes a machine on a host with a link at its `eth0`, still off.
    pub(crate) fn new(
        host: Host,
        number: u8,
        link: Link,
        settings: &Settings,
        payload: &Path,
    ) -> Result<Self> {
        wire(&host)?;
        let (kernel, initramfs) = (prepared("kernel/vmlinuz"), prepared("kernel/initramfs"));
        let accel = Accel::find(&host, &kernel, &initramfs)?;
        let disk = overlay(&host)?;
        let addresses = Settings::private_addresses(number);
        let card = Card::of_machine(number);
        let qemu = Qemu::new(&kernel, &initramfs)
            .accel(accel)
            .processors(settings.processors)
            .memory_mib(settings.memory_mib)
            .kernel_argument(&format!("vm.name={}", host.name()))
            .kernel_argument(&format!("vm.card={}", card.hardware_address()))
            .kernel_argument(&format!("vm.addresses={addresses}"))
            .disk(&disk)
            .read_only_disk(payload)
            // As with Vagrant: the first card is the way in, the second the private network.
            .card(Card::CONTROL)
            .card(card);
        Ok(Self {
            number,
            link,
            ssh: Ssh::new(host.clone()),
            host,
            qemu,
            process: None,
        })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        self.host.name()
    }

    /// Switches it on, without waiting for it.
    ///
    /// # Errors
    ///
    /// When QEMU cannot be started.
    pub fn power_on(&mut self) -> Result {
        self.process = Some(self.qemu.start(&self.host)?);
        Ok(())
    }

    /// Pulls its plug: what it has not synced to its disk is lost.
    pub fn cut_power(&mut self) {
        self.process = None;
        self.ssh.disconnect();
    }

    /// Tells whether it is switched on.
    pub fn is_on(&self) -> bool {
        self.process.as_ref().is_some_and(Proc::is_running)
    }

    /// Waits until it has booted since it was switched on.
    ///
    /// # Errors
    ///
    /// With its console's last lines.
    pub fn wait_up(&mut self) -> Result {
        self.wait_boots(1)
    }

    /// Reboots it as an administrator does, and waits until it is up again.
    ///
    /// # Errors
    ///
    /// With its console's last lines when it does not come up.
    pub fn reboot(&mut self) -> Result {
        let boots = self.boots();
        // The connection ends before the answer.
        self.ssh.try_sh("systemctl reboot", COMMAND)?;
        self.ssh.disconnect();
        self.wait_boots(boots + 1)
    }

    /// Runs a shell script in it (`sh -e`) that must succeed, and gives its standard output.
    ///
    /// # Errors
    ///
    /// With all it printed, for another code than 0 or when it takes too long.
    pub fn sh(&self, script: &str) -> Result<String> {
        self.sh_within(script, COMMAND)
    }

    /// As [`sh`](Self::sh), with a limit.
    ///
    /// # Errors
    ///
    /// As [`sh`](Self::sh).
    pub fn sh_within(&self, script: &str, limit: Duration) -> Result<String> {
        let output = self.ssh.try_sh(script, limit)?;
        if !output.success() {
            let (name, status) = (self.name(), output.status);
            bail!(
                "on {name}: {status}: {script}\n{}{}",
                output.stdout,
                output.stderr
            );
        }
        Ok(output.stdout)
    }

    /// Runs a shell script in it and gives its output whatever its code.
    ///
    /// # Errors
    ///
    /// When the machine does not answer.
    pub fn try_sh(&self, script: &str) -> Result<Output> {
        self.ssh.try_sh(script, COMMAND)
    }

    /// Runs a command in it that prints JSON.
    ///
    /// # Errors
    ///
    /// As [`sh`](Self::sh), or when it prints something else.
    pub fn json(&self, script: &str) -> Result<Value> {
        let text = self.sh(script)?;
        serde_json::from_str(&text).with_context(|| format!("`{script}` printed {text}"))
    }

    /// Starts a command line in it that goes on; what it prints is the log of the process here, which is there after
    /// the machine is gone.
    ///
    /// # Errors
    ///
    /// When it cannot be started.
    pub fn spawn(&self, line: &str) -> Result<Proc> {
        self.ssh.spawn(line)
    }

    /// Writes a file in it.
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    pub fn write(&self, path: &str, content: &[u8]) -> Result {
        let line = format!("cat > '{path}'");
        let output = self.ssh.with_input(&line, content, COMMAND)?;
        if !output.success() {
            bail!("write {path} on {}: {}", self.name(), output.stderr);
        }
        Ok(())
    }

    /// Its agent's status document.
    ///
    /// # Errors
    ///
    /// When there is none. The command's code says whether all is well, and does not count.
    pub fn status(&self) -> Result<Value> {
        let output = self.try_sh("warren status --json")?;
        serde_json::from_str(&output.stdout).with_context(|| {
            format!(
                "status of {}: {}{}",
                self.name(),
                output.stdout,
                output.stderr
            )
        })
    }

    /// Gives it what the archive has for it.
    pub(crate) fn unpack(&self) -> Result {
        self.sh(&format!(
            "mkdir -p {GUEST_DIR}; tar -xf /dev/vdb -C {GUEST_DIR}
             install -m 755 {GUEST_DIR}/tools/* {GUEST_DIR}/guest/pod /usr/local/bin"
        ))?;
        Ok(())
    }

    /// Makes it a node of the mesh with these programs, as tests/vm/provision/mesh says. May be done again, with others.
    ///
    /// # Errors
    ///
    /// With all that the script printed.
    pub fn provision(&self, settings: &Settings, version: Version) -> Result {
        let peers: Vec<String> = (1..=settings.machines)
            .filter(|number| *number != self.number)
            .map(|number| format!("node{number}={}", crate::settings::v4(number)))
            .collect();
        let key = std::fs::read(prepared("ssh/registry")).context("read the key")?;
        self.write("/run/registry-key", &key)?;
        self.sh(&format!(
            "chmod 600 /run/registry-key
             export NODE_NAME='{name}' NODE_ADDRESSES='{addresses}' CLUSTER_CIDRS='{cluster}' POD_CIDRS='{pods}'
             export PEERS='{peers}'
             {GUEST_DIR}/provision/mesh {programs} /run/registry-key
             # A test may pull the plug next.
             sync",
            programs = version.guest_dir(),
            name = self.name(),
            addresses = settings.node_addresses(self.number),
            cluster = settings.cluster_cidrs(),
            pods = settings.pod_cidrs(self.number),
            peers = peers.join(" "),
        ))?;
        Ok(())
    }

    /// Writes what tells of a failure to the lab's logs, as far as the machine still answers.
    pub(crate) fn collect_logs(&self, dir: &Path) {
        const QUESTIONS: &str = "exec 2>&1; set +e; set -x
            warren status; warren pods; warren doctor; wg show
            ip address; ip route show table all; ip -6 route show table all; ip rule; ip -6 rule
            nft list ruleset; ls -lR /var/lib/warren /etc/cni; cat /var/lib/warren/registry/*.json
            cat /var/lib/vm/*.json; ip neighbour; systemctl --failed; journalctl --no-pager -b all";
        let text = match self.try_sh(QUESTIONS) {
            Ok(output) => output.stdout,
            Err(e) => format!("{e:#}"),
        };
        let _ = std::fs::write(dir.join(format!("{}-answers.log", self.name())), text);
    }

    pub(crate) fn describe(&self) -> String {
        self.process
            .as_ref()
            .map_or_else(|| format!("{} is off", self.name()), Proc::describe)
    }

    fn boots(&self) -> usize {
        let console = self.process.as_ref().map(Proc::log).unwrap_or_default();
        console.matches(UP).count()
    }

    fn wait_boots(&mut self, boots: usize) -> Result {
        let gone = || !self.is_on();
        poll_until(BOOT, "a machine's boot", || self.boots() >= boots || gone())
            .with_context(|| self.describe())?;
        if gone() {
            bail!("the machine ended: {}", self.describe());
        }
        self.ssh.connect()
    }
}

/// A disk whose changes are the machine's own.
fn overlay(host: &Host) -> Result<PathBuf> {
    let (base, disk) = (prepared("disk.raw"), host.dir().join("disk.qcow2"));
    let (base, path) = (base.display().to_string(), disk.display().to_string());
    let argv = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b"];
    host.run(&[&argv[..], &[&base, &path]].concat())?;
    Ok(disk)
}
