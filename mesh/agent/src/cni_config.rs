//! The CNI configuration that makes the container runtime call `warren-cni`.
//!
//! It appears only once pods would be protected, and stays when the agent exits: `warren-cni`
//! itself asks the kernel, at every call, whether the protection is there.

use std::path::Path;

use serde_json::{Value, json};
use warren_core::consts::{CNI_NETWORK, CNI_PLUGIN};

use crate::cni_chain::Chain;
use crate::config::Config;
use crate::files::{self, FileError};

/// Larger than any configuration that is written here.
const MAX_LEN: u64 = 64 * 1024;
/// Runtimes read it as whatever user they run as; nothing in it is secret.
const MODE: u32 = 0o644;
const DIR_MODE: u32 = 0o755;
/// The newest version that `cniVersion` says: a runtime that does not know `cniVersions` takes it
/// as it is, and refuses what it does not know itself.
pub(crate) const NEWEST_DEFAULT: &str = "1.0.0";

/// The configuration, for this chain.
pub fn document(config: &Config, chain: &Chain) -> Value {
    let usable = |version: &&&str| **version <= NEWEST_DEFAULT;
    let default = chain.versions.iter().rev().find(usable);
    let mut plugins = vec![json!({
        "type": CNI_PLUGIN,
        "capabilities": {"ips": true, "mac": true, "aliases": true},
        "stateDir": config.state_dir,
        "runDir": config.run_dir,
    })];
    plugins.extend(chain.plugins.iter().cloned());
    json!({
        "cniVersion": default.unwrap_or(&NEWEST_DEFAULT),
        "cniVersions": chain.versions,
        "name": CNI_NETWORK,
        "plugins": plugins,
    })
}

/// Writes the configuration into `dir` unless it is there already; returns whether it was written.
///
/// # Errors
/// [`FileError`].
pub fn install(config: &Config, chain: &Chain, dir: &Path) -> Result<bool, FileError> {
    let path = dir.join(&config.cni_conf_name);
    let document = document(config, chain);
    let present = files::read_limited(&path, MAX_LEN).ok().flatten();
    if present.and_then(|text| serde_json::from_slice::<Value>(&text).ok())
        == Some(document.clone())
    {
        return Ok(false);
    }
    files::make_dir(dir, DIR_MODE)?;
    files::replace_json(&path, &document, MODE)?;
    Ok(true)
}
