//! The environment of one call, as the CNI specification defines it for each verb.

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;

use thiserror::Error;

/// The verbs that this plugin carries out.
pub const SUPPORTED_VERBS: &[&str] = &["ADD", "DEL", "VERSION"];
/// The longest container id in bytes: it becomes the alias of the host side's link, and the kernel
/// takes no more (`IFALIASZ`, linux/if.h).
const MAX_CONTAINER_ID: usize = 255;
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

/// The runtime's name of a container: `[a-zA-Z0-9][a-zA-Z0-9_.-]*`, at most 255 bytes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContainerId(String);

impl ContainerId {
    const ALLOWED: &'static str =
        "1 to 255 characters matching ^[a-zA-Z0-9][a-zA-Z0-9_.-]*$ (CNI specification)";

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
        "1 to 15 bytes, not \".\" or \"..\", without '/', ':' or white space";

    /// Checks and wraps a name; `None` when it is not allowed.
    pub fn new(name: impl Into<String>) -> Option<Self> {
        let name = name.into();
        let forbidden = |c: char| matches!(c, '/' | ':' | '\0') || c.is_whitespace();
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
    Add {
        /// What is attached.
        attachment: AttachmentId,
        /// The container's network namespace.
        netns: PathBuf,
        /// The Kubernetes pod (`namespace/name`), if the runtime tells.
        pod: Option<String>,
    },
    /// Detach a container.
    Del {
        /// What is detached.
        attachment: AttachmentId,
    },
    /// Tell the supported versions.
    Version,
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
            Some("ADD") => &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"],
            Some("DEL") => &["CNI_CONTAINERID", "CNI_IFNAME"],
            Some("VERSION") => return Ok(Self::Version),
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
        let text = |name| get(name).unwrap_or_default().to_string_lossy().into_owned();
        let container_id = ContainerId::new(text("CNI_CONTAINERID"));
        let ifname = IfName::new(text("CNI_IFNAME"));
        match (container_id, ifname) {
            (Some(container_id), Some(ifname)) => {
                let attachment = AttachmentId {
                    container_id,
                    ifname,
                };
                if verb == "DEL" {
                    return Ok(Self::Del { attachment });
                }
                let netns = PathBuf::from(get("CNI_NETNS").unwrap_or_default());
                Ok(Self::Add {
                    attachment,
                    netns,
                    pod: pod_name(&text("CNI_ARGS")),
                })
            }
            (container_id, ifname) => {
                let mut invalid = Vec::new();
                let mut note = |ok: bool, name, allowed| {
                    if !ok {
                        invalid.push(InvalidVariable {
                            name,
                            value: text(name),
                            allowed,
                        });
                    }
                };
                note(
                    container_id.is_some(),
                    "CNI_CONTAINERID",
                    ContainerId::ALLOWED,
                );
                note(ifname.is_some(), "CNI_IFNAME", IfName::ALLOWED);
                Err(EnvError::Invalid(invalid))
            }
        }
    }
}

/// Whether a text is an identifier as the specification wants container ids and network names.
pub(crate) fn is_identifier(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'))
}

/// The pod that `CNI_ARGS` names, for people only; other arguments are not ours.
fn pod_name(args: &str) -> Option<String> {
    /// Kubernetes limits both to 253 characters; what is longer is no pod's name.
    const MAX: usize = 253;
    let value = |key: &str| {
        let mut pairs = args.split(';').filter_map(|pair| pair.split_once('='));
        pairs.find(|(name, _)| *name == key).map(|(_, value)| value)
    };
    let valid = |text: &&str| text.len() <= MAX && is_identifier(text);
    let namespace = value("K8S_POD_NAMESPACE").filter(valid)?;
    let name = value("K8S_POD_NAME").filter(valid)?;
    Some(format!("{namespace}/{name}"))
}
