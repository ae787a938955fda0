//! Who is measured.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// Something that serves `warren0`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Contender {
    /// warren-tunnel.
    Warren,
    /// wireguard-go, as pinned in tests/interop/versions.
    WireguardGo,
    /// boringtun-cli, likewise.
    Boringtun,
    /// A veth between the nodes: what there is without a tunnel.
    Veth,
}

impl Contender {
    /// All of them.
    pub(crate) const ALL: [Self; 4] =
        [Self::Warren, Self::WireguardGo, Self::Boringtun, Self::Veth];

    /// A few letters of its name, for names of labs.
    pub(crate) fn short(self) -> &'static str {
        match self {
            Self::Warren => "wt",
            Self::WireguardGo => "go",
            Self::Boringtun => "bt",
            Self::Veth => "ve",
        }
    }

    /// Its program, where `tests/interop/prepare` makes it.
    pub(crate) fn program(self) -> Option<PathBuf> {
        let file = match self {
            Self::WireguardGo => "bin/wireguard-go",
            Self::Boringtun => "bin/boringtun-cli",
            Self::Warren | Self::Veth => return None,
        };
        let variable = |name| std::env::var_os(name).map(PathBuf::from);
        let cache = variable("XDG_CACHE_HOME")
            .unwrap_or_else(|| variable("HOME").unwrap_or_default().join(".cache"));
        let prepared = variable("WARREN_INTEROP_DIR").unwrap_or(cache.join("warren/interop"));
        Some(prepared.join(file))
    }

    /// What is not there that it needs.
    pub(crate) fn missing(self) -> Option<PathBuf> {
        self.program().filter(|path| !path.exists())
    }
}

impl fmt::Display for Contender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Warren => "warren-tunnel",
            Self::WireguardGo => "wireguard-go",
            Self::Boringtun => "boringtun-cli",
            Self::Veth => "veth",
        })
    }
}

impl FromStr for Contender {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|c| c.to_string() == name);
        found.ok_or_else(|| {
            let names = Self::ALL.map(|c| c.to_string());
            format!("{name:?} is nobody; allowed: {}", names.join(", "))
        })
    }
}
