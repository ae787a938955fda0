//! The versions of the CNI specification that this plugin speaks.

use std::fmt;

/// A supported version; later ones compare greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CniVersion {
    /// 0.3.1.
    V0_3_1,
    /// 0.4.0.
    V0_4_0,
    /// 1.0.0.
    V1_0_0,
    /// 1.1.0.
    V1_1_0,
}

impl CniVersion {
    /// All of them, oldest first.
    pub const ALL: [Self; 4] = [Self::V0_3_1, Self::V0_4_0, Self::V1_0_0, Self::V1_1_0];
    /// The newest one: what is said where the caller's version is not known.
    pub const NEWEST: Self = Self::V1_1_0;

    /// The version of this text, if it is supported.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|version| version.as_str() == text)
    }

    /// The version as text.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }

    /// All of them as text, for messages.
    pub(crate) fn list() -> String {
        Self::ALL.map(Self::as_str).join(", ")
    }
}

impl fmt::Display for CniVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_agent_writes_its_configuration_by_the_same_list() {
        assert_eq!(
            CniVersion::ALL.map(CniVersion::as_str),
            warren_core::consts::CNI_VERSIONS
        );
    }
}
