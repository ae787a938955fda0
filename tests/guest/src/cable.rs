//! How a machine is wired to its host.

use std::net::Ipv4Addr;

use warren_lab::Host;

use crate::Result;

/// The host's end of the control link.
pub const CONTROL_HOST: Ipv4Addr = Ipv4Addr::new(192, 168, 255, 1);
/// The machine's end of the control link, with a prefix length of 30.
pub const CONTROL_GUEST: Ipv4Addr = Ipv4Addr::new(192, 168, 255, 2);

/// A network card of a machine: the device of its host, and its hardware address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Card {
    pub(crate) tap: &'static str,
    pub(crate) mac: [u8; 6],
}

impl Card {
    /// The one on the host's link, where there is one machine.
    pub const LINK: Self = Self {
        tap: "tap0",
        mac: [2, 0, 0, 0, 0, 1],
    };
    /// The one that leads to the tests.
    pub const CONTROL: Self = Self {
        tap: "control0",
        mac: [2, 0, 0, 0, 0, 2],
    };

    /// The one on the host's link of one of several machines on the same network.
    pub fn of_machine(number: u8) -> Self {
        Self {
            mac: [2, 0, 0, 0, 1, number],
            ..Self::LINK
        }
    }

    /// Its hardware address, as machines write it.
    pub fn hardware_address(self) -> String {
        self.mac.map(|byte| format!("{byte:02x}")).join(":")
    }
}

/// Gives the host's `eth0` to a machine that will have both cards, and takes its addresses away.
///
/// # Errors
///
/// Those of the lab, with what `ip` said.
pub fn wire(host: &Host) -> Result {
    host.sh(&format!(
        "ip link add br0 type bridge stp_state 0 forward_delay 0 mcast_snooping 0
         ip tuntap add tap0 mode tap
         ip tuntap add control0 mode tap
         ip address flush dev eth0
         ip link set eth0 master br0
         ip link set tap0 master br0
         sysctl -q -w net.ipv6.conf.eth0.disable_ipv6=1 \
             net.ipv6.conf.br0.disable_ipv6=1 net.ipv6.conf.tap0.disable_ipv6=1
         ip address add {CONTROL_HOST}/30 dev control0
         ip link set br0 up
         ip link set tap0 up
         ip link set control0 up"
    ))?;
    Ok(())
}
