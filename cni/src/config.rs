//! The network configuration that the runtime gives on stdin.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};
use thiserror::Error;
use warren_core::consts::{MIN_MTU, RUN_DIR, STATE_DIR};

use crate::env::is_identifier;
use crate::result::Dns;
use crate::version::CniVersion;

/// The largest configuration that is read, in bytes: a long `prevResult` has a few KiB.
pub const MAX_CONFIG_BYTES: usize = 1 << 20;
/// The largest MTU that a veth takes (linux/if_ether.h, `ETH_MAX_MTU`).
const MAX_MTU: u32 = 65_535;
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
        /// The key.
        key: &'static str,
        /// Its value, shortened.
        value: String,
        /// What it must be.
        allowed: &'static str,
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

/// A network configuration. Keys that are not listed here are tolerated and ignored.
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
    /// `mtu`: the pods' MTU in bytes, 1280 to 65535. Default: what the node's record says.
    pub mtu_bytes: Option<u32>,
    /// `dns`: handed on in the result. Default: what an earlier plugin said, or nothing.
    pub dns: Dns,
    /// `prevResult`: the result of the plugin before this one in a chain; undecoded, for a DEL must
    /// not fail on it.
    pub prev_result: Option<Value>,
    /// `logFile`: logs are appended to it. Default: stderr.
    pub log_file: Option<PathBuf>,
    /// `logLevel`: `error`, `warn`, `info`, `debug` or `trace`. Default: `info`.
    pub log_level: LogLevel,
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
            Some(other) => return Err(invalid("cniVersion", other, "a version as a string")),
            // A configuration without it is of version 0.1.0 (CNI specification).
            None => {
                return Err(ConfigError::Version {
                    found: "0.1.0 (the key is missing)".into(),
                });
            }
        };
        let fields = Fields(&object);
        Ok(Self {
            version,
            name: fields.name()?,
            plugin: fields.plugin()?,
            state_dir: fields.path("stateDir")?.unwrap_or_else(|| STATE_DIR.into()),
            run_dir: fields.path("runDir")?.unwrap_or_else(|| RUN_DIR.into()),
            mtu_bytes: fields.mtu()?,
            dns: fields.dns()?,
            prev_result: fields.get("prevResult").cloned(),
            log_file: fields.path("logFile")?,
            log_level: fields.log_level()?,
        })
    }
}

struct Fields<'a>(&'a Map<String, Value>);

impl Fields<'_> {
    /// A key that is there and not null.
    fn get(&self, key: &str) -> Option<&Value> {
        self.0.get(key).filter(|value| !value.is_null())
    }

    fn text(&self, key: &'static str, allowed: &'static str) -> Result<Option<&str>, ConfigError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(invalid(key, other, allowed)),
        }
    }

    fn name(&self) -> Result<String, ConfigError> {
        let allowed = "must be 1 to 200 characters matching ^[a-zA-Z0-9][a-zA-Z0-9_.-]*$";
        match self.text("name", allowed)? {
            None => Err(ConfigError::Missing {
                key: "name",
                allowed,
            }),
            Some(name) if is_identifier(name) && name.len() <= MAX_NAME => Ok(name.into()),
            Some(name) => Err(invalid("name", &name.into(), allowed)),
        }
    }

    fn plugin(&self) -> Result<String, ConfigError> {
        let allowed = "must be the plugin's file name";
        match self.text("type", allowed)? {
            None => Err(ConfigError::Missing {
                key: "type",
                allowed,
            }),
            Some(name) if !name.is_empty() && !name.contains('/') => Ok(name.into()),
            Some(name) => Err(invalid("type", &name.into(), allowed)),
        }
    }

    fn path(&self, key: &'static str) -> Result<Option<PathBuf>, ConfigError> {
        let allowed = "must be an absolute path";
        match self.text(key, allowed)? {
            None => Ok(None),
            Some(text) if Path::new(text).is_absolute() => Ok(Some(text.into())),
            Some(text) => Err(invalid(key, &text.into(), allowed)),
        }
    }

    fn mtu(&self) -> Result<Option<u32>, ConfigError> {
        let allowed = "must be a whole number of bytes from 1280 to 65535";
        let Some(value) = self.get("mtu") else {
            return Ok(None);
        };
        let bytes = value.as_u64().and_then(|n| u32::try_from(n).ok());
        match bytes.filter(|n| (MIN_MTU..=MAX_MTU).contains(n)) {
            Some(bytes) => Ok(Some(bytes)),
            None => Err(invalid("mtu", value, allowed)),
        }
    }

    fn log_level(&self) -> Result<LogLevel, ConfigError> {
        let allowed = "must be \"error\", \"warn\", \"info\", \"debug\" or \"trace\"";
        match self.text("logLevel", allowed)? {
            None => Ok(LogLevel::default()),
            Some("error") => Ok(LogLevel::Error),
            Some("warn") => Ok(LogLevel::Warn),
            Some("info") => Ok(LogLevel::Info),
            Some("debug") => Ok(LogLevel::Debug),
            Some("trace") => Ok(LogLevel::Trace),
            Some(text) => Err(invalid("logLevel", &text.into(), allowed)),
        }
    }

    fn dns(&self) -> Result<Dns, ConfigError> {
        let allowed = "must be an object of nameservers, search and options (lists of strings) and \
                       domain (a string)";
        let Some(value) = self.get("dns") else {
            return Ok(Dns::default());
        };
        let dns: Dns =
            serde_json::from_value(value.clone()).map_err(|_| invalid("dns", value, allowed))?;
        for server in &dns.nameservers {
            if server.parse::<IpAddr>().is_err() {
                let allowed = "each must be an IP address";
                return Err(invalid("dns.nameservers", &server.as_str().into(), allowed));
            }
        }
        Ok(dns)
    }
}

fn invalid(key: &'static str, value: &Value, allowed: &'static str) -> ConfigError {
    ConfigError::Invalid {
        key,
        value: shorten(value),
        allowed,
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
