//! The environment of one call, as the CNI specification defines it for each verb.

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;

use thiserror::Error;

use crate::args::CniArgs;

/// The verbs that this plugin carries out.
pub const SUPPORTED_VERBS: &[&str] = &["ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION"];
/// The longest container id in bytes: it becomes the alias of the host side's link, and the kernel
/// takes no more (`IFALIASZ` less one, linux/if.h; the NUL that is sent behind it counts as well).
const MAX_CONTAINER_ID: usize = 254;
/// The longest name of an interface in bytes (`IFNAMSIZ` less the final NUL, linux/if.h).
const MAX_IFNAME: usize = 15;

/// Why the environment is refused. CNI error code 4.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum EnvError {
    /// Variables that the verb needs are unset or empty: all of them, so that one run shows all.
    #[error("required environment variables are not set: {}", .0.join(", "))]
    Missing(Vec<&'static str>),
    /// Variables have values that the specification does not allow.
    #[error("invalid environment variables: {}", join(.0))]
    Invalid(Vec<InvalidVariable>),
    /// The verb is none that this plugin carries out.
    #[error("CNI_COMMAND {verb:?} is not supported, supported are: {}", SUPPORTED_VERBS.join(", "))]
    UnsupportedVerb {
        /// The verb that was asked for.
        verb: String,
    },
}

/// One variable with a value that is not allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidVariable {
    /// The variable's name.
    pub name: &'static str,
    /// Its value.
    pub value: String,
    /// What would be allowed.
    pub allowed: &'static str,
}

impl fmt::Display for InvalidVariable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}={:?}: must be {}",
            self.name, self.value, self.allowed
        )
    }
}

fn join(invalid: &[InvalidVariable]) -> String {
    invalid
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join("; ")
}

/// The runtime's name of a container: `[a-zA-Z0-9][a-zA-Z0-9_.-]*`, at most 254 bytes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContainerId(String);

impl ContainerId {
    const ALLOWED: &'static str =
        "1 to 254 characters matching ^[a-zA-Z0-9][a-zA-Z0-9_.-]*$ (CNI specification)";

    /// Checks and wraps an id; `None` when it is not allowed.
    pub fn new(id: impl Into<String>) -> Option<Self> {
        let id = id.into();
        (is_identifier(&id) && id.len() <= MAX_CONTAINER_ID).then_some(Self(id))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The name that an interface gets inside a pod: 1 to 15 bytes, as the kernel allows it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IfName(String);

impl IfName {
    const ALLOWED: &'static str =
        "1 to 15 bytes, not \".\" or \"..\", without '/', ':', '%' or white space";

    /// Checks and wraps a name; `None` when it is not allowed.
    pub fn new(name: impl Into<String>) -> Option<Self> {
        let name = name.into();
        // With '%' the name is a pattern to the kernel, which then chooses another one.
        let forbidden = |c: char| matches!(c, '/' | ':' | '%' | '\0') || c.is_whitespace();
        let ok = (1..=MAX_IFNAME).contains(&name.len())
            && name != "."
            && name != ".."
            && !name.contains(forbidden);
        ok.then_some(Self(name))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// What is attached: a container may have several interfaces, each an attachment of its own.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AttachmentId {
    /// The container.
    pub container_id: ContainerId,
    /// The interface inside it.
    pub ifname: IfName,
}

impl fmt::Display for AttachmentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.container_id.0, self.ifname.0)
    }
}

/// One call, as its environment describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CniRequest {
    /// Attach a container.
    Add(PodRequest),
    /// Tell whether a container is attached as it should be.
    Check(PodRequest),
    /// Detach a container.
    Del {
        /// What is detached.
        attachment: AttachmentId,
    },
    /// Remove what belongs to no valid attachment.
    Gc,
    /// Tell whether ADD would work.
    Status,
    /// Tell the supported versions.
    Version,
}

/// What the environment says of a container that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodRequest {
    /// What is attached.
    pub attachment: AttachmentId,
    /// The container's network namespace.
    pub netns: PathBuf,
    /// `CNI_ARGS`.
    pub args: CniArgs,
}

impl CniRequest {
    /// Reads the call from the environment; `get` looks a variable up.
    ///
    /// # Errors
    /// See [`EnvError`]; each is for the runtime's author to mend.
    pub fn from_env(get: impl Fn(&str) -> Option<OsString>) -> Result<Self, EnvError> {
        let get = |name: &'static str| get(name).filter(|value| !value.is_empty());
        let Some(verb) = get("CNI_COMMAND") else {
            return Err(EnvError::Missing(vec!["CNI_COMMAND"]));
        };
        let required: &[&'static str] = match verb.to_str() {
            Some("ADD" | "CHECK") => &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"],
            Some("DEL") => &["CNI_CONTAINERID", "CNI_IFNAME"],
            Some("GC") => &["CNI_PATH"],
            Some("STATUS" | "VERSION") => &[],
            _ => {
                let verb = verb.to_string_lossy().chars().take(64).collect();
                return Err(EnvError::UnsupportedVerb { verb });
            }
        };
        let missing: Vec<_> = required
            .iter()
            .copied()
            .filter(|name| get(name).is_none())
            .collect();
        if !missing.is_empty() {
            return Err(EnvError::Missing(missing));
        }
        match verb.to_str() {
            Some("GC") => return Ok(Self::Gc),
            Some("STATUS") => return Ok(Self::Status),
            Some("VERSION") => return Ok(Self::Version),
            _ => {}
        }
        let text = |name| get(name).unwrap_or_default().to_string_lossy().into_owned();
        let mut invalid = Vec::new();
        let container_id = ContainerId::new(text("CNI_CONTAINERID"));
        let ifname = IfName::new(text("CNI_IFNAME"));
        // A DEL succeeds whatever the other arguments are.
        let args = match verb == "DEL" {
            true => Ok(CniArgs::default()),
            false => CniArgs::parse(&text("CNI_ARGS")),
        };
        let mut note = |name, value: Option<String>, allowed| {
            let value = value.unwrap_or_else(|| text(name));
            invalid.push(InvalidVariable {
                name,
                value,
                allowed,
            });
        };
        if container_id.is_none() {
            note("CNI_CONTAINERID", None, ContainerId::ALLOWED);
        }
        if ifname.is_none() {
            note("CNI_IFNAME", None, IfName::ALLOWED);
        }
        if let Err(wrong) = &args {
            for (pair, allowed) in wrong {
                note("CNI_ARGS", Some(pair.clone()), allowed);
            }
        }
        let (Some(container_id), Some(ifname), Ok(args)) = (container_id, ifname, args) else {
            return Err(EnvError::Invalid(invalid));
        };
        let attachment = AttachmentId {
            container_id,
            ifname,
        };
        if verb == "DEL" {
            return Ok(Self::Del { attachment });
        }
        let request = PodRequest {
            attachment,
            netns: PathBuf::from(get("CNI_NETNS").unwrap_or_default()),
            args,
        };
        Ok(match verb == "ADD" {
            true => Self::Add(request),
            false => Self::Check(request),
        })
    }
}

/// Whether a text is an identifier as the specification wants container ids and network names.
pub(crate) fn is_identifier(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'))
}
