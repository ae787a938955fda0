//! The command line of QEMU.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use warren_lab::{Host, Proc};

use crate::Result;
use crate::accel::Accel;
use crate::cable::Card;

/// What every machine's kernel is told. Without acceleration mitigations cost much and protect nothing; a program at other
/// addresses each time is translated each time, which makes short ones ten times slower; and where others have the
/// processor, the kernel's look at its timer finds it broken, and the machine hangs.
const KERNEL_ARGUMENTS: &str = "console=ttyS0 net.ifnames=0 no_timer_check mitigations=off norandmaps \
                                apparmor=0 selinux=0 audit=0 quiet";

/// A machine to be started: with a serial console and nothing else but what is added.
#[derive(Debug, Clone)]
pub struct Qemu {
    kernel: PathBuf,
    initramfs: PathBuf,
    accel: Accel,
    processors: u8,
    memory_mib: u32,
    kernel_arguments: String,
    devices: Vec<OsString>,
    disks: usize,
}

impl Qemu {
    /// A machine that boots this kernel with this initramfs: by TCG, with one processor and 384 MiB of memory.
    pub fn new(kernel: &Path, initramfs: &Path) -> Self {
        Self {
            kernel: kernel.to_owned(),
            initramfs: initramfs.to_owned(),
            accel: Accel::Tcg,
            processors: 1,
            memory_mib: 384,
            kernel_arguments: KERNEL_ARGUMENTS.to_owned(),
            devices: Vec::new(),
            disks: 0,
        }
    }

    /// Sets what runs its instructions.
    #[must_use]
    pub fn accel(mut self, accel: Accel) -> Self {
        self.accel = accel;
        self
    }

    /// Sets how many processors it has. Without acceleration each is a thread.
    #[must_use]
    pub fn processors(mut self, processors: u8) -> Self {
        self.processors = processors;
        self
    }

    /// Sets its memory, in MiB.
    #[must_use]
    pub fn memory_mib(mut self, memory_mib: u32) -> Self {
        self.memory_mib = memory_mib;
        self
    }

    /// Adds to its kernel's command line.
    #[must_use]
    pub fn kernel_argument(mut self, argument: &str) -> Self {
        self.kernel_arguments.push(' ');
        self.kernel_arguments.push_str(argument);
        self
    }

    /// Ends the process when the machine would reboot or panics; else it reboots.
    #[must_use]
    pub fn without_reboot(mut self) -> Self {
        self.devices.push("-no-reboot".into());
        self.kernel_argument("panic=-1")
    }

    /// Adds a network card.
    #[must_use]
    pub fn card(mut self, card: Card) -> Self {
        let (tap, mac) = (card.tap, card.hardware_address());
        self.devices.extend([
            "-netdev".into(),
            format!("tap,id={tap},ifname={tap},script=no,downscript=no").into(),
            "-device".into(),
            format!("virtio-net-pci,netdev={tap},mac={mac},romfile=").into(),
        ]);
        self
    }

    /// Adds a disk that the machine writes to: `/dev/vda`, `/dev/vdb` and so on. The file is in QEMU's own format.
    #[must_use]
    pub fn disk(self, file: &Path) -> Self {
        self.drive(file, "format=qcow2")
    }

    /// Adds a disk that it only reads: a file as it is, its length a multiple of 512 bytes.
    #[must_use]
    pub fn read_only_disk(self, file: &Path) -> Self {
        self.drive(file, "format=raw,readonly=on")
    }

    fn drive(mut self, file: &Path, options: &str) -> Self {
        let id = format!("disk{}", self.disks);
        self.disks += 1;
        let mut drive = OsString::from(format!("id={id},if=none,{options},file="));
        drive.push(file);
        self.devices.extend([
            "-drive".into(),
            drive,
            "-device".into(),
            format!("virtio-blk-pci,drive={id}").into(),
        ]);
        self
    }

    /// Starts it as a process of the host. Its console is the process's log.
    ///
    /// # Errors
    ///
    /// Those of the lab, such as that QEMU is not installed.
    pub fn start(&self, host: &Host) -> Result<Proc> {
        Ok(host.spawn_argv(&self.arguments())?)
    }

    fn arguments(&self) -> Vec<OsString> {
        let (processors, memory) = (self.processors.to_string(), self.memory_mib.to_string());
        let mut argv: Vec<OsString> = ["qemu-system-x86_64", "-machine", "q35"]
            .into_iter()
            .chain(self.accel.arguments())
            .chain(["-smp", &processors, "-m", &memory])
            .chain(["-nodefaults", "-no-user-config", "-display", "none"])
            .chain(["-serial", "stdio", "-device", "virtio-rng-pci"])
            .map(OsString::from)
            .collect();
        argv.extend(["-kernel".into(), self.kernel.clone().into()]);
        argv.extend(["-initrd".into(), self.initramfs.clone().into()]);
        argv.extend(["-append".into(), self.kernel_arguments.clone().into()]);
        argv.extend(self.devices.iter().cloned());
        argv
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cards_and_disks_come_in_the_order_in_which_they_were_added() {
        let qemu = Qemu::new(Path::new("vmlinuz"), Path::new("initramfs"))
            .kernel_argument("vm.name=node1")
            .disk(Path::new("a"))
            .read_only_disk(Path::new("b"))
            .card(Card::CONTROL)
            .card(Card::of_machine(10));
        let arguments = qemu.arguments();
        let of = |option: &str| -> Vec<&OsString> {
            let pairs = arguments.windows(2).filter(|pair| pair[0] == option);
            pairs.map(|pair| &pair[1]).collect()
        };
        assert_eq!(
            of("-drive"),
            [
                "id=disk0,if=none,format=qcow2,file=a",
                "id=disk1,if=none,format=raw,readonly=on,file=b"
            ]
        );
        assert_eq!(
            of("-device"),
            [
                "virtio-rng-pci",
                "virtio-blk-pci,drive=disk0",
                "virtio-blk-pci,drive=disk1",
                "virtio-net-pci,netdev=control0,mac=02:00:00:00:00:02,romfile=",
                "virtio-net-pci,netdev=tap0,mac=02:00:00:00:01:0a,romfile=",
            ]
        );
        let command_line = of("-append")[0].to_string_lossy();
        assert!(command_line.ends_with(" vm.name=node1"), "{command_line}");
    }

    #[test]
    fn a_machine_that_may_not_reboot_does_not_after_a_panic_either() {
        let arguments = Qemu::new(Path::new("k"), Path::new("i"))
            .without_reboot()
            .arguments();
        assert!(arguments.iter().any(|a| a == "-no-reboot"));
        let panic = |a: &OsString| a.to_string_lossy().ends_with(" panic=-1");
        assert!(arguments.iter().any(panic));
    }
}
