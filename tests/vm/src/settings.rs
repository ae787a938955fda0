//! Numbers and addresses of the machines.

use anyhow::{Context as _, bail};

use crate::Result;

/// The IP families of the mesh: of the pods, and of the nodes' addresses on the private network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// IPv4 alone.
    V4,
    /// IPv6 alone.
    V6,
    /// Both; nodes prefer IPv4.
    Dual,
}

impl Family {
    fn has_v4(self) -> bool {
        self != Self::V6
    }

    fn has_v6(self) -> bool {
        self != Self::V4
    }

    /// Those of an IPv4 and an IPv6 text that the mesh has, with a comma between them.
    fn list(self, v4: &str, v6: &str) -> String {
        let v4 = self.has_v4().then_some(v4);
        let v6 = self.has_v6().then_some(v6);
        let both: Vec<&str> = v4.into_iter().chain(v6).collect();
        both.join(",")
    }
}

/// What the machines are like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// How many there are, 1 to 7.
    pub machines: u8,
    /// The processors of each.
    pub processors: u8,
    /// The memory of each in MiB.
    pub memory_mib: u32,
    /// The families of the mesh.
    pub family: Family,
}

impl Settings {
    /// So many machines, and of the environment: `WARREN_VM_PROCESSORS` (2), `WARREN_VM_MEMORY` in MiB (512),
    /// `WARREN_VM_FAMILY` (`v4`, `v6`, `dual`; `dual`).
    ///
    /// # Errors
    ///
    /// Naming the variable and what it may be.
    pub fn new(machines: u8) -> Result<Self> {
        let variable = |name: &str| std::env::var(name).ok().filter(|text| !text.is_empty());
        let processors = match variable("WARREN_VM_PROCESSORS") {
            None => 2,
            Some(text) => text
                .parse()
                .with_context(|| format!("WARREN_VM_PROCESSORS={text}: it is a number"))?,
        };
        let memory_mib = match variable("WARREN_VM_MEMORY") {
            None => 512,
            Some(text) => text
                .parse()
                .with_context(|| format!("WARREN_VM_MEMORY={text}: it is a number of MiB"))?,
        };
        let family = match variable("WARREN_VM_FAMILY").as_deref() {
            Some("v4") => Family::V4,
            Some("v6") => Family::V6,
            None | Some("dual") => Family::Dual,
            Some(other) => bail!("WARREN_VM_FAMILY={other}: it is v4, v6 or dual"),
        };
        Ok(Self {
            machines,
            processors,
            memory_mib,
            family,
        })
    }

    /// The pod ranges of the mesh.
    pub fn cluster_cidrs(&self) -> String {
        self.family.list("10.244.0.0/16", "fd00:244::/48")
    }

    /// The pod ranges of node `number`.
    pub fn pod_cidrs(&self, number: u8) -> String {
        self.family.list(
            &format!("10.244.{}.0/19", u32::from(number) * 32),
            &format!("fd00:244:0:{number:x}::/64"),
        )
    }

    /// The address of node `number` itself in its first pod range.
    pub(crate) fn tunnel_address(&self, number: u8) -> String {
        match self.family {
            Family::V6 => format!("fd00:244:0:{number:x}::1"),
            Family::V4 | Family::Dual => format!("10.244.{}.1", u32::from(number) * 32),
        }
    }

    /// The addresses by which the others reach node `number`, preferred first.
    pub fn node_addresses(&self, number: u8) -> String {
        self.family.list(&v4(number), &v6(number))
    }

    /// All addresses of machine `number` on the private network, with their prefix lengths. It has both families
    /// whatever the mesh has.
    pub(crate) fn private_addresses(number: u8) -> String {
        format!("{}/24,{}/64", v4(number), v6(number))
    }
}

/// The IPv4 address of machine `number` on the private network.
pub(crate) fn v4(number: u8) -> String {
    format!("192.168.56.{}", 10 + u32::from(number))
}

fn v6(number: u8) -> String {
    format!("fd00:56::{}", 10 + u32::from(number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mesh_of_one_family_has_only_its_addresses() {
        let of = |family| Settings {
            machines: 3,
            processors: 1,
            memory_mib: 512,
            family,
        };
        let dual = of(Family::Dual);
        assert_eq!(dual.pod_cidrs(2), "10.244.64.0/19,fd00:244:0:2::/64");
        assert_eq!(dual.node_addresses(3), "192.168.56.13,fd00:56::13");
        assert_eq!(of(Family::V4).cluster_cidrs(), "10.244.0.0/16");
        assert_eq!(of(Family::V6).node_addresses(1), "fd00:56::11");
    }
}
