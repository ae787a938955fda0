//! Who is measured.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Something that serves `warren0`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub(crate) enum Contender {
    /// warren-tunnel.
    Warren,
    /// warren-tunnel that polls for up to 60 microseconds before it sleeps.
    Spinning,
    /// wireguard-go, as pinned in tests/interop/versions.
    WireguardGo,
    /// boringtun-cli, likewise.
    Boringtun,
    /// A veth between the nodes: what there is without a tunnel.
    Veth,
}

impl Contender {
    /// All of them.
    pub(crate) const ALL: [Self; 5] = [
        Self::Warren,
        Self::Spinning,
        Self::WireguardGo,
        Self::Boringtun,
        Self::Veth,
    ];
    /// Those that are measured where nobody is named.
    pub(crate) const USUAL: [Self; 4] =
        [Self::Warren, Self::WireguardGo, Self::Boringtun, Self::Veth];

    /// A few letters of its name, for names of labs.
    pub(crate) fn short(self) -> &'static str {
        match self {
            Self::Warren => "wt",
            Self::Spinning => "ws",
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
            Self::Warren | Self::Spinning | Self::Veth => return None,
        };
        let variable = |name| std::env::var_os(name).map(PathBuf::from);
        let cache = variable("XDG_CACHE_HOME")
            .unwrap_or_else(|| variable("HOME").unwrap_or_default().join(".cache"));
        let prepared = variable("WARREN_INTEROP_DIR").unwrap_or(cache.join("warren/interop"));
        Some(prepared.join(file))
    }

    /// What warren-tunnel finds in its environment.
    pub(crate) fn env(self) -> Vec<(String, String)> {
        match self {
            Self::Spinning => vec![("WARREN_SPIN".to_owned(), "60".to_owned())],
            _ => Vec::new(),
        }
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
            Self::Spinning => "warren-spin-60",
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

impl From<Contender> for String {
    fn from(contender: Contender) -> Self {
        contender.to_string()
    }
}

impl TryFrom<String> for Contender {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        name.parse()
    }
}
