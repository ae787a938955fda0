//! Which of the kernel's offloads may be used, and which are.

use std::fmt;

/// A switch for each offload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offloads {
    /// Super-packets of TCP at the TUN, in both directions, and checksums left to the other side.
    pub tso: bool,
    /// Super-packets of UDP at the TUN, in both directions (Linux 6.2); not without `tso`.
    pub uso: bool,
    /// Trains of datagrams to the network, split by the kernel (`UDP_SEGMENT`, Linux 4.18).
    pub udp_segment: bool,
    /// Trains of datagrams from the network (`UDP_GRO`, Linux 5.0).
    pub udp_gro: bool,
}

impl Offloads {
    /// All there are.
    pub const ALL: Self = Self {
        tso: true,
        uso: true,
        udp_segment: true,
        udp_gro: true,
    };

    /// None of them: a system call for each packet at the TUN, none for more than one datagram.
    pub const NONE: Self = Self {
        tso: false,
        uso: false,
        udp_segment: false,
        udp_gro: false,
    };

    /// Those of a TUN device, which these are of, and those of sockets.
    pub fn with_sockets(self, sockets: Self) -> Self {
        Self {
            tso: self.tso,
            uso: self.uso,
            udp_segment: sockets.udp_segment,
            udp_gro: sockets.udp_gro,
        }
    }

    /// Those that these and the others have in common.
    pub(crate) fn both(self, other: Self) -> Self {
        Self {
            tso: self.tso && other.tso,
            uso: self.uso && other.uso,
            udp_segment: self.udp_segment && other.udp_segment,
            udp_gro: self.udp_gro && other.udp_gro,
        }
    }

    fn names(self) -> impl Iterator<Item = &'static str> {
        [
            (self.tso, "tso"),
            (self.uso, "uso"),
            (self.udp_segment, "udp_segment"),
            (self.udp_gro, "udp_gro"),
        ]
        .into_iter()
        .filter_map(|(on, name)| on.then_some(name))
    }
}

impl Default for Offloads {
    fn default() -> Self {
        Self::ALL
    }
}

/// The names of those that are on, separated by commas, or `none`.
impl fmt::Display for Offloads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut names = self.names();
        f.write_str(names.next().unwrap_or("none"))?;
        names.try_for_each(|name| write!(f, ",{name}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_on_is_named() {
        assert_eq!(Offloads::ALL.to_string(), "tso,uso,udp_segment,udp_gro");
        assert_eq!(Offloads::NONE.to_string(), "none");
        let one = Offloads {
            udp_gro: true,
            ..Offloads::NONE
        };
        assert_eq!(one.to_string(), "udp_gro");
    }
}
