//! The CNI configuration that makes the container runtime call `warren-cni`.
//!
//! It appears only once pods would be protected, and stays when the agent exits: `warren-cni`
//! itself asks the kernel, at every call, whether the protection is there.

use std::path::Path;

use serde_json::{Value, json};

use crate::config::Config;
use crate::files::{self, FileError};

/// Larger than any configuration that is written here.
const MAX_LEN: u64 = 64 * 1024;
/// Runtimes read it as whatever user they run as; nothing in it is secret.
const MODE: u32 = 0o644;
const DIR_MODE: u32 = 0o755;

/// The configuration. Its `cniVersion` is at most 1.0.0, and its `cniVersions` leave 1.1.0 out:
/// plugins chained behind us may not know it, and libcni would pick it.
pub fn document(config: &Config) -> Value {
    json!({
        "cniVersion": "1.0.0",
        "cniVersions": ["0.3.1", "0.4.0", "1.0.0"],
        "name": "warren",
        "plugins": [{
            "type": "warren-cni",
            "stateDir": config.state_dir,
            "runDir": config.run_dir,
        }],
    })
}

/// Writes the configuration into `dir` unless it is there already; returns whether it was written.
///
/// # Errors
/// [`FileError`].
pub fn install(config: &Config, dir: &Path) -> Result<bool, FileError> {
    let path = dir.join(&config.cni_conf_name);
    let document = document(config);
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
