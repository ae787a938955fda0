//! The plugins behind `warren-cni` in the chain: which are there, and which versions of the CNI
//! specification they speak.
//!
//! The reference `portmap` makes `hostPort` work, and `bandwidth` the bandwidth annotations. Each is
//! chained only where its program is found, and has said itself, by VERSION, what it speaks: a
//! runtime picks the newest version that the configuration lists, and a plugin that does not know it
//! fails every pod of the node.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use thiserror::Error;
use warren_core::consts::{CNI_PLUGIN, CNI_VERSIONS};

/// How long a plugin may take to tell its versions.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often it is looked whether it has ended.
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// Larger than any answer.
const MAX_ANSWER: u64 = 64 * 1024;

/// Plugins that are chained where they are there: name, capability, and further keys.
const CHAINED: [(&str, &str); 2] = [("portmap", "portMappings"), ("bandwidth", "bandwidth")];

/// Why a plugin cannot be chained.
#[derive(Debug, Error)]
enum ProbeError {
    #[error("cannot run it: {0}")]
    Run(#[from] io::Error),
    #[error("it does not answer VERSION within {PATIENCE:?}")]
    Timeout,
    #[error("its answer to VERSION cannot be understood: {0:?}")]
    Answer(String),
    #[error("it speaks {0}, and none of it is a version that this node can use")]
    Versions(String),
}

/// What the configuration can be made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// The plugins behind `warren-cni`, in their order.
    pub plugins: Vec<Value>,
    /// The versions that all of the chain speak, oldest first; never none.
    pub versions: Vec<&'static str>,
}

impl Default for Chain {
    /// `warren-cni` alone.
    fn default() -> Self {
        Self {
            plugins: Vec::new(),
            versions: CNI_VERSIONS.to_vec(),
        }
    }
}

/// Looks for plugins; a program that has answered is run again only when its file has changed.
#[derive(Clone, Debug)]
pub struct Prober {
    dir: Option<PathBuf>,
    known: BTreeMap<&'static str, (Stamp, Known)>,
}

/// What is known of a file.
#[derive(Clone, Debug)]
enum Known {
    /// What it speaks that this agent knows, too.
    Speaks(BTreeSet<&'static str>),
    /// It cannot be chained.
    Unusable,
    /// It could not be run, which may pass: it is still being written, for one.
    NotRun,
}

/// What tells a file from one that took its place.
type Stamp = (u64, u64, u64, i64, i64);

impl Prober {
    /// Looks in the directory where the runtime looks for plugins; without one there is no chain.
    pub fn new(dir: Option<PathBuf>) -> Self {
        Self {
            dir,
            known: BTreeMap::new(),
        }
    }

    /// The chain as it can be now.
    pub fn chain(&mut self) -> Chain {
        let mut chain = Chain::default();
        // A directory without our own plugin is not the one that the runtime uses.
        let Some(own) = self.versions_of(CNI_PLUGIN) else {
            return chain;
        };
        chain.versions.retain(|version| own.contains(version));
        for (name, capability) in CHAINED {
            let Some(theirs) = self.versions_of(name) else {
                continue;
            };
            let both = |version: &&&str| theirs.contains(**version);
            let common: Vec<_> = chain.versions.iter().filter(both).copied().collect();
            if common.is_empty() {
                continue;
            }
            chain.versions = common;
            chain
                .plugins
                .push(json!({"type": name, "capabilities": {capability: true}}));
        }
        chain
    }

    /// The versions of a plugin that is there and can be used.
    fn versions_of(&mut self, name: &'static str) -> Option<BTreeSet<&'static str>> {
        let path = self.dir.as_ref()?.join(name);
        let Ok(stamp) = stamp(&path) else {
            self.known.remove(name);
            return None;
        };
        let before = self.known.get(name).filter(|(known, _)| *known == stamp);
        let told = match before {
            Some((_, Known::Speaks(versions))) => return Some(versions.clone()),
            Some((_, Known::Unusable)) => return None,
            Some((_, Known::NotRun)) => true,
            None => false,
        };
        let plugin = path.display();
        let known = match probe(&path) {
            Ok(versions) => {
                tracing::info!(%plugin, ?versions, "found a CNI plugin");
                Known::Speaks(versions)
            }
            Err(error) => {
                if !told {
                    tracing::warn!(%plugin, %error, "left out of the CNI chain");
                }
                match error {
                    ProbeError::Run(_) | ProbeError::Timeout => Known::NotRun,
                    ProbeError::Answer(_) | ProbeError::Versions(_) => Known::Unusable,
                }
            }
        };
        self.known.insert(name, (stamp, known.clone()));
        match known {
            Known::Speaks(versions) => Some(versions),
            Known::Unusable | Known::NotRun => None,
        }
    }
}

fn stamp(path: &Path) -> io::Result<Stamp> {
    let meta = path.metadata()?;
    Ok((
        meta.dev(),
        meta.ino(),
        meta.size(),
        meta.mtime(),
        meta.mtime_nsec(),
    ))
}

/// Asks a plugin for its versions; those that this agent does not know are left out.
fn probe(path: &Path) -> Result<BTreeSet<&'static str>, ProbeError> {
    let mut child = Command::new(path)
        .env_clear()
        .env("CNI_COMMAND", "VERSION")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        // A plugin need not read it.
        let _ = stdin.write_all(br#"{"cniVersion":"1.0.0"}"#);
    }
    // The answer is far smaller than a pipe, so that nobody waits for it to be read.
    let started = Instant::now();
    while child.try_wait()?.is_none() {
        if started.elapsed() > PATIENCE {
            child.kill()?;
            child.wait()?;
            return Err(ProbeError::Timeout);
        }
        std::thread::sleep(LOOK_EVERY);
    }
    let mut answer = String::new();
    if let Some(stdout) = child.stdout.take() {
        stdout.take(MAX_ANSWER).read_to_string(&mut answer)?;
    }
    let unclear = || ProbeError::Answer(answer.chars().take(200).collect());
    let json: Value = serde_json::from_str(&answer).map_err(|_| unclear())?;
    let spoken = json["supportedVersions"].as_array().ok_or_else(unclear)?;
    let spoken: BTreeSet<&str> = spoken.iter().filter_map(Value::as_str).collect();
    let common: BTreeSet<&str> = CNI_VERSIONS
        .into_iter()
        .filter(|version| spoken.contains(version))
        .collect();
    // A version above is never the configuration's own, which older runtimes go by.
    if common
        .iter()
        .all(|version| *version > crate::cni_config::NEWEST_DEFAULT)
    {
        let spoken: Vec<&str> = spoken.into_iter().collect();
        return Err(ProbeError::Versions(spoken.join(", ")));
    }
    Ok(common)
}
