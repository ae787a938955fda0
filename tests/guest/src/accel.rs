//! What runs a machine's instructions.

use std::path::Path;
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context as _, bail};
use warren_lab::{Host, poll_until};

use crate::Result;
use crate::qemu::Qemu;

/// How long a machine may take to show its first line by KVM.
const TEST_BOOT: Duration = Duration::from_secs(20);
/// What the initramfs of the test boot prints first.
const FIRST_LINE: &str = "the kernel is up";

/// What runs a machine's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accel {
    /// QEMU itself: everywhere, ten times slower and more.
    Tcg,
    /// The processor, by `/dev/kvm`.
    Kvm,
}

impl Accel {
    /// What the environment variable `ACCEL` says (`tcg`, `kvm`), else KVM where a machine that is booted by it on
    /// this host comes up within 20 seconds: some have a `/dev/kvm` that hangs its machines. Tried once a process.
    ///
    /// # Errors
    ///
    /// When `ACCEL` is something else, or QEMU cannot be started.
    pub fn find(host: &Host, kernel: &Path, initramfs: &Path) -> Result<Self> {
        static FOUND: OnceLock<Accel> = OnceLock::new();
        if let Some(found) = FOUND.get() {
            return Ok(*found);
        }
        let asked = std::env::var("ACCEL").unwrap_or_default();
        let found = match asked.as_str() {
            "tcg" => Self::Tcg,
            "kvm" => Self::Kvm,
            "" if Path::new("/dev/kvm").exists() => Self::try_kvm(host, kernel, initramfs)?,
            "" => Self::Tcg,
            other => bail!("ACCEL={other}: it is tcg or kvm"),
        };
        Ok(*FOUND.get_or_init(|| found))
    }

    fn try_kvm(host: &Host, kernel: &Path, initramfs: &Path) -> Result<Self> {
        let qemu = Qemu::new(kernel, initramfs)
            .accel(Self::Kvm)
            .start(host)
            .context("a test boot by KVM")?;
        let up = || qemu.log().contains(FIRST_LINE);
        // One that ends by itself is not waited for.
        let waited = poll_until(TEST_BOOT, FIRST_LINE, || up() || !qemu.is_running());
        Ok(if waited.is_ok() && up() {
            Self::Kvm
        } else {
            Self::Tcg
        })
    }

    pub(crate) fn arguments(self) -> [&'static str; 4] {
        match self {
            Self::Tcg => ["-accel", "tcg,thread=multi", "-cpu", "max"],
            Self::Kvm => ["-accel", "kvm", "-cpu", "host"],
        }
    }
}
