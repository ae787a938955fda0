//! A virtual machine with Debian's kernel, on a host of the lab. An agent in it runs what it is told.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use warren_guest::{CONTROL_GUEST, Card, Qemu, wire};
use warren_lab::{Host, Proc, bin};

use crate::Result;
use crate::implementation::prepared;
use crate::protocol::{Answer, PORT, Request};

/// How long the machine may take to boot: about five seconds where nothing else runs.
const BOOT: Duration = Duration::from_secs(90);

/// A running virtual machine; it ends when dropped.
#[derive(Debug)]
pub struct Guest {
    host: Host,
    qemu: Proc,
}

/// A command that runs in a machine; it is killed when dropped.
#[derive(Debug)]
pub struct Running {
    stream: TcpStream,
    what: String,
}

impl Guest {
    /// Boots a machine that takes over the host's `eth0`.
    ///
    /// # Errors
    ///
    /// With the console's last lines when the machine does not come up.
    pub fn boot(host: Host) -> Result<Self> {
        let initramfs = host.dir().join("initramfs");
        pack(&host, &initramfs)?;
        wire(&host)?;
        let qemu = Qemu::new(&prepared("kernel/vmlinuz"), &initramfs)
            .without_reboot()
            .card(Card::LINK)
            .card(Card::CONTROL)
            .start(&host)?;
        qemu.wait_log("the agent is ready", BOOT)?;
        Ok(Self { host, qemu })
    }

    /// Starts a command.
    ///
    /// # Errors
    ///
    /// With the console's last lines when the machine does not answer.
    pub fn start(&self, argv: &[&str]) -> Result<Running> {
        let request = Request {
            argv: argv.iter().map(ToString::to_string).collect(),
        };
        let mut line = serde_json::to_vec(&request)?;
        line.push(b'\n');
        let address = (CONTROL_GUEST, PORT).into();
        let connect = || TcpStream::connect_timeout(&address, Duration::from_secs(20));
        let mut stream = self
            .host
            .in_netns(connect)?
            .with_context(|| self.qemu.describe())?;
        stream.write_all(&line)?;
        Ok(Running {
            stream,
            what: argv.join(" "),
        })
    }

    pub(crate) fn set_cable_mtu(&self, mtu_bytes: u32) -> Result {
        // The bridge takes the least of its ports'.
        let script = format!("ip link set tap0 mtu {mtu_bytes}; ip link set br0 mtu {mtu_bytes}");
        self.host.sh(&script)?;
        let set = ["ip", "link", "set", "eth0", "mtu", &mtu_bytes.to_string()];
        let answer = self.start(&set)?.finish(Duration::from_secs(20))?;
        if answer.code != Some(0) {
            bail!("set the machine's MTU: {answer:?}");
        }
        Ok(())
    }
}

impl Running {
    /// Waits for the command's end.
    ///
    /// # Errors
    ///
    /// When that takes longer than `limit`, or the machine ended.
    pub fn finish(self, limit: Duration) -> Result<Answer> {
        let start = Instant::now();
        self.stream.set_read_timeout(Some(limit))?;
        let mut line = String::new();
        BufReader::new(&self.stream)
            .read_line(&mut line)
            .with_context(|| format!("`{}` after {:?}", self.what, start.elapsed()))?;
        serde_json::from_str(&line)
            .with_context(|| format!("the virtual machine's answer to `{}`", self.what))
    }
}

/// Adds the programs built with the tests to the prepared initramfs: the kernel takes several
/// archives one behind another.
fn pack(host: &Host, initramfs: &Path) -> Result {
    let root = host.dir().join("initramfs.d");
    host.sh(&format!(
        "for program in {agent} {tool}; do
             for library in $(ldd $program | grep -o '/[^ ]*'); do
                 mkdir -p {root}$(dirname $library)
                 cp $library {root}$library
             done
             mkdir -p {root}/bin
             # Debug information is most of a program, and the machine's memory holds it all.
             strip -o {root}/bin/$(basename $program) $program
         done
         cp {base} {initramfs}
         cd {root}
         find . | cpio --quiet -o -H newc >> {initramfs}
         rm -r {root}",
        agent = bin("guest-agent")?.display(),
        tool = bin("lab-tool")?.display(),
        root = root.display(),
        base = prepared("kernel/initramfs").display(),
        initramfs = initramfs.display(),
    ))?;
    Ok(())
}
