//! The implementations of WireGuard, and how each is started.

use std::path::PathBuf;
use std::time::Duration;

use warren_lab::Host;

use crate::Result;
use crate::flood::FloodPace;
use crate::guest::Guest;
use crate::machine::{Background, Machine};

/// What the transfer counters of `wg show` count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Counting {
    /// Every byte of every WireGuard message, as the kernel does.
    Messages,
    /// The bytes of the packets inside alone. boringtun, which does so, does not pad either.
    InnerPackets,
}

/// What happens when the address of the machine changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moving {
    /// Packets leave from the new one at once.
    AtOnce,
    /// They go on once a handshake was begun for want of answers, after 15 seconds.
    AfterHandshake,
    /// Its sockets are bound to the old one for good.
    Never,
}

/// One implementation of WireGuard.
pub trait Implementation: Sync {
    /// What messages call it; also part of its lab's name.
    fn name(&self) -> &'static str;

    /// The files that it needs on this machine, if any.
    fn needs(&self) -> Vec<PathBuf>;

    /// The name of its interface.
    fn interface(&self) -> &'static str {
        "wg0"
    }

    /// The machine that it runs on, made from a host of the lab with a link at `eth0`.
    ///
    /// # Errors
    ///
    /// When the machine does not come up.
    fn machine(&self, host: Host) -> Result<Machine> {
        Ok(Machine::Host(host))
    }

    /// Makes its interface, still down and without a key.
    ///
    /// # Errors
    ///
    /// When it cannot be started.
    fn start(&self, machine: &Machine, mtu_bytes: u32) -> Result<Option<Background>>;

    /// What its counters count.
    fn counting(&self) -> Counting {
        Counting::Messages
    }

    /// Whether it says when the last handshake was.
    fn tells_handshakes(&self) -> bool {
        true
    }

    /// Whether the settings of a peer can be changed without removing it.
    fn changes_peers(&self) -> bool {
        true
    }

    /// What happens when the address of its machine changes.
    fn moving(&self) -> Moving {
        Moving::AtOnce
    }

    /// How many initiations put it under load, yet do not keep it from working.
    fn load(&self) -> FloodPace {
        FloodPace {
            burst: 1_000,
            pause: Duration::from_millis(50),
        }
    }
}

/// All but warren-tunnel itself.
pub fn implementations() -> [&'static dyn Implementation; 4] {
    [
        &WireguardGo::NEWEST,
        &WireguardGo::DEBIAN,
        &Boringtun,
        &Kernel,
    ]
}

/// The path of something that `tests/interop/prepare` makes.
pub(crate) fn prepared(name: &str) -> PathBuf {
    let cache = || {
        std::env::var_os("XDG_CACHE_HOME").map_or_else(
            || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cache"),
            PathBuf::from,
        )
    };
    std::env::var_os("WARREN_INTEROP_DIR")
        .map_or_else(|| cache().join("warren/interop"), PathBuf::from)
        .join(name)
}

/// warren-tunnel as a node's daemon runs, without a memory.
pub(crate) struct Warren;

impl Implementation for Warren {
    fn name(&self) -> &'static str {
        "warren-tunnel"
    }

    fn needs(&self) -> Vec<PathBuf> {
        Vec::new()
    }

    fn interface(&self) -> &'static str {
        "warren0"
    }

    fn start(&self, machine: &Machine, _mtu_bytes: u32) -> Result<Option<Background>> {
        let program = machine.program("warren-tunnel")?;
        let argv = [program.as_str(), "--ephemeral", "--log", "debug"];
        machine.spawn(&argv).map(Some)
    }
}

struct WireguardGo {
    name: &'static str,
    file: &'static str,
    moving: Moving,
}

impl WireguardGo {
    const NEWEST: Self = Self {
        name: "wireguard-go",
        file: "bin/wireguard-go",
        moving: Moving::AtOnce,
    };
    const DEBIAN: Self = Self {
        name: "wireguard-go-debian",
        file: "bin/wireguard-go-debian",
        moving: Moving::AfterHandshake,
    };
}

impl Implementation for WireguardGo {
    fn name(&self) -> &'static str {
        self.name
    }

    fn needs(&self) -> Vec<PathBuf> {
        vec![prepared(self.file)]
    }

    fn start(&self, machine: &Machine, _mtu_bytes: u32) -> Result<Option<Background>> {
        let program = prepared(self.file).display().to_string();
        let argv = ["env", "LOG_LEVEL=verbose", &program, "-f", self.interface()];
        machine.spawn(&argv).map(Some)
    }

    fn moving(&self) -> Moving {
        self.moving
    }
}

struct Boringtun;

impl Implementation for Boringtun {
    fn name(&self) -> &'static str {
        "boringtun-cli"
    }

    fn needs(&self) -> Vec<PathBuf> {
        vec![prepared("bin/boringtun-cli")]
    }

    fn start(&self, machine: &Machine, mtu_bytes: u32) -> Result<Option<Background>> {
        let interface = self.interface();
        // It reads the MTU once, when it opens the interface, and cuts longer packets off.
        machine.sh(&format!(
            "ip tuntap add {interface} mode tun multi_queue
             ip link set {interface} mtu {mtu_bytes}"
        ))?;
        let program = prepared("bin/boringtun-cli").display().to_string();
        let argv = [
            program.as_str(),
            "--foreground",
            "--disable-drop-privileges",
            "--verbosity=debug",
            interface,
        ];
        machine.spawn(&argv).map(Some)
    }

    fn counting(&self) -> Counting {
        Counting::InnerPackets
    }

    // It gives the handshake's age where its time belongs.
    fn tells_handshakes(&self) -> bool {
        false
    }

    // It panics when asked to.
    fn changes_peers(&self) -> bool {
        false
    }

    fn moving(&self) -> Moving {
        Moving::Never
    }
}

/// The kernel's own, in a virtual machine.
struct Kernel;

impl Implementation for Kernel {
    fn name(&self) -> &'static str {
        "kernel"
    }

    fn needs(&self) -> Vec<PathBuf> {
        vec![
            prepared("kernel/vmlinuz"),
            prepared("kernel/initramfs"),
            "/usr/bin/qemu-system-x86_64".into(),
        ]
    }

    fn machine(&self, host: Host) -> Result<Machine> {
        Guest::boot(host).map(Machine::Guest)
    }

    fn start(&self, machine: &Machine, _mtu_bytes: u32) -> Result<Option<Background>> {
        machine.run(&["ip", "link", "add", self.interface(), "type", "wireguard"])?;
        Ok(None)
    }

    // Without acceleration a key exchange takes the machine about a millisecond.
    fn load(&self) -> FloodPace {
        FloodPace {
            burst: 600,
            pause: Duration::from_millis(250),
        }
    }
}
