//! A virtual machine with Debian's kernel, in the namespaces of a host of the lab.
//!
//! ```text
//!   the lab's host                                       the machine
//!   eth0 ---- br0 ---- tap0 ============================ eth0      the link under test
//!             control0 192.168.255.1 ================== control0  192.168.255.2: the agent
//! ```

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use warren_lab::{Host, Proc, bin};

use crate::Result;
use crate::implementation::prepared;
use crate::protocol::{Answer, GUEST, HOST, PORT, Request};

/// How long the machine may take to boot: about five seconds where nothing else runs.
const BOOT: Duration = Duration::from_secs(90);
const MEMORY: &str = "384";

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
        host.sh(&format!(
            "ip link add br0 type bridge stp_state 0 forward_delay 0 mcast_snooping 0
             ip tuntap add tap0 mode tap
             ip tuntap add control0 mode tap
             ip address flush dev eth0
             ip link set eth0 master br0
             ip link set tap0 master br0
             sysctl -q -w net.ipv6.conf.br0.disable_ipv6=1 net.ipv6.conf.tap0.disable_ipv6=1
             ip address add {HOST}/30 dev control0
             ip link set br0 up
             ip link set tap0 up
             ip link set control0 up"
        ))?;
        let kernel = prepared("kernel/vmlinuz").display().to_string();
        let initramfs = initramfs.display().to_string();
        let qemu = host.spawn_argv(&[
            "qemu-system-x86_64",
            "-machine",
            "q35",
            "-accel",
            "tcg,thread=multi",
            "-cpu",
            "max",
            "-smp",
            "1",
            "-m",
            MEMORY,
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-serial",
            "stdio",
            "-no-reboot",
            "-kernel",
            &kernel,
            "-initrd",
            &initramfs,
            "-append",
            "console=ttyS0 net.ifnames=0 mitigations=off apparmor=0 audit=0 quiet panic=-1",
            "-netdev",
            "tap,id=link,ifname=tap0,script=no,downscript=no",
            "-device",
            "virtio-net-pci,netdev=link,mac=02:00:00:00:00:01,romfile=",
            "-netdev",
            "tap,id=control,ifname=control0,script=no,downscript=no",
            "-device",
            "virtio-net-pci,netdev=control,mac=02:00:00:00:00:02,romfile=",
        ])?;
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
        let address = (GUEST, PORT).into();
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
