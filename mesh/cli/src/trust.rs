//! `warren trust`: an operator's word that a peer may change its pinned key.
//!
//! The word is a file in the state directory, which root alone can write; the agent looks for it
//! whenever it reconciles.

use std::fs::{DirBuilder, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use warren_core::NodeName;
use warren_core::consts::TRUSTED_DIR;
use warren_core::files::TRUSTED_SUFFIX;
use warren_core::status::{AgentStatus, PeerStatus};
use warren_keyring::PublicKey;

use crate::Outcome;
use crate::args::TrustArgs;
use crate::sources::{SourceError, Sources};

const REFUSED: u8 = 1;
const USAGE: u8 = 2;
/// How long the agent may take: it looks every 5 s.
const LIMIT: Duration = Duration::from_secs(15);
const LOOK: Duration = Duration::from_millis(250);

/// Why a key was not trusted.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// What was given is no name of a node.
    #[error("trust {node:?}: no node can have that name")]
    Name {
        /// What was given.
        node: String,
    },
    /// What was given is no key.
    #[error("trust {node}: {key:?} is no public key: {cause}")]
    Key {
        /// The peer.
        node: NodeName,
        /// What was given.
        key: String,
        /// What is wrong with it.
        cause: String,
    },
    /// The agent cannot be asked.
    #[error(transparent)]
    Agent(#[from] SourceError),
    /// The agent has no such peer.
    #[error("trust {node}: no such peer; `warren status` lists them")]
    NoPeer {
        /// The peer.
        node: NodeName,
    },
    /// Nothing waits for trust.
    #[error("trust {node}: it publishes the key that it is known with, {key}: nothing to do")]
    Nothing {
        /// The peer.
        node: NodeName,
        /// Its key.
        key: PublicKey,
    },
    /// It publishes another key than the one that was given.
    #[error("trust {node}: it publishes {published}, which is not the key that was given")]
    Other {
        /// The peer.
        node: NodeName,
        /// The key that it publishes.
        published: PublicKey,
    },
    /// The file could not be written.
    #[error("trust {node}: write {}: {source}; run this as root", path.display())]
    Write {
        /// The peer.
        node: NodeName,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The agent does not take the key.
    #[error(
        "trust {node}: written, but the agent has not taken it in {} s; do its state-dir and this \
         command's agree, and has no other node the same key?",
        LIMIT.as_secs()
    )]
    NotTaken {
        /// The peer.
        node: NodeName,
    },
}

/// Runs `warren trust`.
pub fn run(args: &TrustArgs) -> Outcome {
    let mut outcome = Outcome::default();
    match trust(args) {
        Ok((node, old, new)) => {
            outcome.stdout = format!("{node}: {new} is trusted in place of {old}\n");
        }
        Err(e) => {
            outcome.complain(&e);
            outcome.code = match e {
                TrustError::Name { .. } | TrustError::Key { .. } => USAGE,
                _ => REFUSED,
            };
        }
    }
    outcome
}

fn trust(args: &TrustArgs) -> Result<(NodeName, PublicKey, PublicKey), TrustError> {
    let node = NodeName::new(args.node.as_str()).map_err(|_| TrustError::Name {
        node: args.node.clone(),
    })?;
    let given = args.public_key.as_deref().map(|text| {
        PublicKey::from_base64(text).map_err(|e| TrustError::Key {
            node: node.clone(),
            key: text.to_owned(),
            cause: e.to_string(),
        })
    });
    let given = given.transpose()?;
    let sources = Sources::new(args.directories.clone());
    let (_, status) = sources.agent()?;
    let peer = peer(&status, &node).ok_or_else(|| TrustError::NoPeer { node: node.clone() })?;
    let old = peer.public_key;
    let Some(new) = peer.untrusted_key else {
        return Err(TrustError::Nothing { node, key: old });
    };
    if given.is_some_and(|given| given != new) {
        return Err(TrustError::Other {
            node,
            published: new,
        });
    }
    let dir = args.state_dir.join(TRUSTED_DIR);
    let path = dir.join(format!("{node}{TRUSTED_SUFFIX}"));
    write(&dir, &path, new).map_err(|source| TrustError::Write {
        node: node.clone(),
        path,
        source,
    })?;
    let deadline = Instant::now() + LIMIT;
    loop {
        let (_, status) = sources.agent()?;
        if self::peer(&status, &node).is_some_and(|peer| peer.public_key == new) {
            return Ok((node, old, new));
        }
        if Instant::now() > deadline {
            return Err(TrustError::NotTaken { node });
        }
        sleep(LOOK);
    }
}

fn peer<'a>(status: &'a AgentStatus, node: &NodeName) -> Option<&'a PeerStatus> {
    status.peers.iter().find(|peer| peer.node == node.as_str())
}

/// Whole or not at all, as the agent may read it at any moment.
fn write(dir: &Path, path: &Path, key: PublicKey) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let mut file = tempfile::Builder::new()
        .prefix(".tmp-")
        .permissions(Permissions::from_mode(0o600))
        .tempfile_in(dir)?;
    writeln!(file, "{}", serde_json::to_string(&key)?)?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    File::open(dir)?.sync_all()
}
