//! The network configuration that the runtime gives on stdin.
//!
//! ```json
//! {
//!   "cniVersion": "1.0.0", "name": "warren", "type": "warren-cni",
//!   "stateDir": "/var/lib/warren", "runDir": "/run/warren",
//!   "mtu": 1400,
//!   "masquerade": true,
//!   "dns": {"nameservers": ["10.96.0.10"], "search": ["cluster.local"]},
//!   "ranges": [
//!     {"subnet": "10.244.1.0/24", "rangeStart": "10.244.1.10", "rangeEnd": "10.244.1.250",
//!      "gateway": "10.244.1.254", "exclude": ["10.244.1.64/28", "10.244.1.99"]},
//!     {"subnet": "fd00:244:0:1::/64"}
//!   ],
//!   "routes": [{"dst": "192.0.2.0/24", "mtu": 1300}],
//!   "logLevel": "info", "logFile": "/var/log/warren-cni.log",
//!   "capabilities": {"ips": true, "mac": true, "aliases": true}
//! }
//! ```
//!
//! Only the first three keys are required. Keys that nobody here knows are tolerated; a wrong value
//! is refused with the key, the value and what is allowed. What every verb needs is in [`NetConf`];
//! what describes pods is in [`PodConf`], which DEL and GC do not look at: a slip in it must not
//! keep a pod from being removed.

mod pod;
mod runtime;

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};
use thiserror::Error;
use warren_core::consts::{RUN_DIR, STATE_DIR};

pub use pod::{ExtraRoute, PodConf, RangeConf};
pub use runtime::Asked;

use crate::env::{AttachmentId, ContainerId, IfName, is_identifier};
use crate::plan::network_mac;
use crate::version::CniVersion;

/// The largest configuration that is read, in bytes: a long `prevResult` has a few KiB.
pub const MAX_CONFIG_BYTES: usize = 1 << 20;
/// The key of GC's list (CNI specification, section 2).
const VALID_ATTACHMENTS: &str = "cni.dev/valid-attachments";
/// The longest network name in bytes: it names files, which have suffixes too.
const MAX_NAME: usize = 200;

/// Why a configuration is refused.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// It is longer than [`MAX_CONFIG_BYTES`]. Code 7.
    #[error("network configuration on stdin is longer than {MAX_CONFIG_BYTES} bytes")]
    TooLong,
    /// It is no JSON object. Code 6.
    #[error("network configuration on stdin cannot be decoded: {0}")]
    Decode(String),
    /// It wants a version that is not supported. Code 1.
    #[error(
        "cniVersion {found} is not supported, supported are: {}",
        CniVersion::list()
    )]
    Version {
        /// What it says.
        found: String,
    },
    /// A required key is missing. Code 7.
    #[error("network configuration lacks {key:?}: {allowed}")]
    Missing {
        /// The key.
        key: &'static str,
        /// What it must be.
        allowed: &'static str,
    },
    /// A key has a value that is not allowed. Code 7.
    #[error("network configuration has {key} = {value}: {allowed}")]
    Invalid {
        /// The key, with the way to it.
        key: String,
        /// Its value, shortened.
        value: String,
        /// What it must be.
        allowed: &'static str,
    },
    /// A key asks for what this plugin does not do. Code 2.
    #[error("network configuration has {key} = {value}, which is not supported: {instead}")]
    Unsupported {
        /// The key, with the way to it.
        key: String,
        /// Its value, shortened.
        value: String,
        /// What can be done instead.
        instead: &'static str,
    },
}

/// How much is logged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogLevel {
    /// What a person must act on, and failures.
    Error,
    /// What a person should look at.
    Warn,
    /// Every call that changed something. The default.
    #[default]
    Info,
    /// Every step.
    Debug,
    /// Everything.
    Trace,
}

/// What every verb needs of a network configuration. Keys that are not listed here or in
/// [`PodConf`] are tolerated and ignored.
#[derive(Clone, Debug, PartialEq)]
pub struct NetConf {
    /// `cniVersion`: the version of the configuration, and of the result.
    pub version: CniVersion,
    /// `name`: the network's name.
    pub name: String,
    /// `type`: the plugin's file name.
    pub plugin: String,
    /// `stateDir`: where the node's record is read and reservations are kept. Default:
    /// `/var/lib/warren`.
    pub state_dir: PathBuf,
    /// `runDir`: where the daemons' sockets are. Default: `/run/warren`.
    pub run_dir: PathBuf,
    /// `prevResult`: the result of the plugin before this one in a chain; undecoded, for a DEL must
    /// not fail on it.
    pub prev_result: Option<Value>,
    /// `logFile`: logs are appended to it. Default: stderr.
    pub log_file: Option<PathBuf>,
    /// `logLevel`: `error`, `warn`, `info`, `debug` or `trace`. Default: `info`.
    pub log_level: LogLevel,
    object: Map<String, Value>,
}

impl NetConf {
    /// Reads a configuration.
    ///
    /// # Errors
    /// See [`ConfigError`]; each names what the writer of the configuration must change.
    pub fn parse(stdin: &[u8]) -> Result<Self, ConfigError> {
        if stdin.len() > MAX_CONFIG_BYTES {
            return Err(ConfigError::TooLong);
        }
        if stdin.trim_ascii().is_empty() {
            return Err(ConfigError::Decode("it is empty".into()));
        }
        let object: Map<String, Value> =
            serde_json::from_slice(stdin).map_err(|e| ConfigError::Decode(e.to_string()))?;
        // The version decides what the other keys mean, so it is judged first.
        let version = match object.get("cniVersion") {
            Some(Value::String(text)) => {
                CniVersion::parse(text).ok_or_else(|| ConfigError::Version {
                    found: shorten(&Value::from(&**text)),
                })?
            }
            Some(other) => {
                return Err(invalid(
                    "cniVersion",
                    other,
                    "must be a version as a string",
                ));
            }
            // A configuration without it is of version 0.1.0 (CNI specification).
            None => {
                return Err(ConfigError::Version {
                    found: "0.1.0 (the key is missing)".into(),
                });
            }
        };
        let fields = Fields::root(&object);
        Ok(Self {
            version,
            name: fields.name()?,
            plugin: fields.plugin()?,
            state_dir: fields.path("stateDir")?.unwrap_or_else(|| STATE_DIR.into()),
            run_dir: fields.path("runDir")?.unwrap_or_else(|| RUN_DIR.into()),
            prev_result: fields.get("prevResult").cloned(),
            log_file: fields.path("logFile")?,
            log_level: fields.log_level()?,
            object,
        })
    }

    /// Reads what the configuration says of pods.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`], [`ConfigError::Unsupported`].
    pub fn pod(&self) -> Result<PodConf, ConfigError> {
        let network_mac = network_mac(&self.state_dir, &self.name);
        PodConf::parse(&Fields::root(&self.object), network_mac)
    }

    /// `cni.dev/valid-attachments`: what GC must keep; none when the runtime gives no list, for
    /// then it does not know, and nothing may be removed.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] when it is no list of attachments.
    pub fn valid_attachments(&self) -> Result<Option<Vec<AttachmentId>>, ConfigError> {
        let fields = Fields::root(&self.object);
        let allowed = "must be a list of objects with containerID and ifname";
        let Some(value) = fields.get(VALID_ATTACHMENTS) else {
            return Ok(None);
        };
        let wrong = || invalid(VALID_ATTACHMENTS, value, allowed);
        let attachment = |entry: &Value| {
            let text = |key: &str| entry.get(key).and_then(Value::as_str);
            Some(AttachmentId {
                container_id: ContainerId::new(text("containerID")?)?,
                ifname: IfName::new(text("ifname")?)?,
            })
        };
        let list = value.as_array().ok_or_else(wrong)?;
        let list: Option<Vec<_>> = list.iter().map(attachment).collect();
        list.map(Some).ok_or_else(wrong)
    }
}

/// The keys of an object of the configuration, and the way to it.
struct Fields<'a> {
    object: &'a Map<String, Value>,
    path: String,
}

impl<'a> Fields<'a> {
    fn root(object: &'a Map<String, Value>) -> Self {
        Self {
            object,
            path: String::new(),
        }
    }

    /// The keys of this value, which must be an object.
    fn of(value: &'a Value, path: String) -> Result<Self, ConfigError> {
        match value {
            Value::Object(object) => Ok(Self {
                object,
                path: path + ".",
            }),
            other => Err(invalid(path, other, "must be an object")),
        }
    }

    /// The keys of the object under this key, if it is there.
    fn object(&self, key: &str) -> Result<Option<Self>, ConfigError> {
        self.get(key)
            .map(|value| Self::of(value, self.way(key)))
            .transpose()
    }

    /// The way to a key.
    fn way(&self, key: &str) -> String {
        format!("{}{key}", self.path)
    }

    /// A key that is there and not null.
    fn get(&self, key: &str) -> Option<&'a Value> {
        self.object.get(key).filter(|value| !value.is_null())
    }

    fn invalid(&self, key: &str, value: &Value, allowed: &'static str) -> ConfigError {
        invalid(self.way(key), value, allowed)
    }

    fn text(&self, key: &str, allowed: &'static str) -> Result<Option<&'a str>, ConfigError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.invalid(key, other, allowed)),
        }
    }

    /// A text that `parse` understands.
    fn parsed<T>(
        &self,
        key: &str,
        allowed: &'static str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Result<Option<T>, ConfigError> {
        let Some(text) = self.text(key, allowed)? else {
            return Ok(None);
        };
        match parse(text) {
            Some(value) => Ok(Some(value)),
            None => Err(self.invalid(key, &text.into(), allowed)),
        }
    }

    /// A list of texts that `parse` understands; none if the key is not there.
    fn list<T>(
        &self,
        key: &str,
        allowed: &'static str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Result<Vec<T>, ConfigError> {
        let Some(value) = self.get(key) else {
            return Ok(Vec::new());
        };
        let Some(items) = value.as_array() else {
            return Err(self.invalid(key, value, allowed));
        };
        let one = |(i, item): (usize, &Value)| {
            let parsed = item.as_str().and_then(&parse);
            parsed.ok_or_else(|| self.invalid(&format!("{key}[{i}]"), item, allowed))
        };
        items.iter().enumerate().map(one).collect()
    }

    /// A whole number from `min` to `max`.
    fn number(
        &self,
        key: &str,
        (min, max): (u32, u32),
        allowed: &'static str,
    ) -> Result<Option<u32>, ConfigError> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        let number = value.as_u64().and_then(|n| u32::try_from(n).ok());
        match number.filter(|n| (min..=max).contains(n)) {
            Some(number) => Ok(Some(number)),
            None => Err(self.invalid(key, value, allowed)),
        }
    }

    fn boolean(&self, key: &str) -> Result<Option<bool>, ConfigError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(*value)),
            Some(other) => Err(self.invalid(key, other, "must be true or false")),
        }
    }

    fn name(&self) -> Result<String, ConfigError> {
        let allowed = "must be 1 to 200 characters matching ^[a-zA-Z0-9][a-zA-Z0-9_.-]*$";
        let valid = |name: &str| is_identifier(name) && name.len() <= MAX_NAME;
        self.parsed("name", allowed, |name| valid(name).then(|| name.to_owned()))?
            .ok_or(ConfigError::Missing {
                key: "name",
                allowed,
            })
    }

    fn plugin(&self) -> Result<String, ConfigError> {
        let allowed = "must be the plugin's file name";
        let valid = |name: &str| !name.is_empty() && !name.contains('/');
        self.parsed("type", allowed, |name| valid(name).then(|| name.to_owned()))?
            .ok_or(ConfigError::Missing {
                key: "type",
                allowed,
            })
    }

    fn path(&self, key: &str) -> Result<Option<PathBuf>, ConfigError> {
        self.parsed(key, "must be an absolute path", |text| {
            let absolute = Path::new(text).is_absolute() && !text.contains('\0');
            absolute.then(|| text.into())
        })
    }

    fn log_level(&self) -> Result<LogLevel, ConfigError> {
        let allowed = "must be \"error\", \"warn\", \"info\", \"debug\" or \"trace\"";
        let level = |text: &str| match text {
            "error" => Some(LogLevel::Error),
            "warn" => Some(LogLevel::Warn),
            "info" => Some(LogLevel::Info),
            "debug" => Some(LogLevel::Debug),
            "trace" => Some(LogLevel::Trace),
            _ => None,
        };
        Ok(self.parsed("logLevel", allowed, level)?.unwrap_or_default())
    }
}

fn invalid(key: impl Into<String>, value: &Value, allowed: &'static str) -> ConfigError {
    ConfigError::Invalid {
        key: key.into(),
        value: shorten(value),
        allowed,
    }
}

fn unsupported(key: impl Into<String>, value: &Value, instead: &'static str) -> ConfigError {
    ConfigError::Unsupported {
        key: key.into(),
        value: shorten(value),
        instead,
    }
}

/// A value as JSON, short enough for a message.
fn shorten(value: &Value) -> String {
    const MAX: usize = 120;
    let text = value.to_string();
    if text.chars().count() <= MAX {
        return text;
    }
    text.chars().take(MAX).chain("...".chars()).collect()
}
