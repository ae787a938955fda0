//! Where a reconcile leaves what outlives it: a seam, so that the reconcile itself touches no file.

use std::collections::BTreeMap;
use std::path::Path;

use warren_core::consts::{NODE_FILE, TRUSTED_DIR};
use warren_core::files::{NodeFile, SavedView, TRUSTED_SUFFIX, ViewChange};
use warren_core::{NodeName, Pinning};
use warren_keyring::PublicKey;

use crate::cni_chain::Prober;
use crate::config::Config;
use crate::files::FileError;
use crate::view_files::ViewFiles;
use crate::{cni_config, files};

/// The agent's own files are nobody else's matter.
const FILE_MODE: u32 = 0o600;
/// Longer than any key in JSON, in bytes.
const MAX_TRUSTED_LEN: u64 = 1024;

/// What the reconcile needs of a disk.
pub trait Store {
    /// Keeps the view for the next start.
    ///
    /// # Errors
    /// [`FileError`]; the view kept before is then still there.
    fn save_view(&mut self, view: &SavedView) -> Result<(), FileError>;

    /// Adds a change to the view that was kept last, and returns whether that could be: the whole view
    /// is to be kept first otherwise. The work is that of the change alone.
    ///
    /// # Errors
    /// [`FileError`]; whether the change is kept is not known then.
    fn add_to_view(&mut self, change: &ViewChange) -> Result<bool, FileError>;

    /// Tells the CNI plugin of this node.
    ///
    /// # Errors
    /// [`FileError`]; what was told before is then still there.
    fn save_node(&mut self, file: &NodeFile) -> Result<(), FileError>;

    /// Lets the container runtime start pods, and returns whether that is new.
    ///
    /// # Errors
    /// [`FileError`].
    fn install_cni(&mut self) -> Result<bool, FileError>;

    /// The keys that an operator trusts on this node, where keys are pinned.
    ///
    /// # Errors
    /// [`FileError`].
    fn trusted_keys(&mut self) -> Result<BTreeMap<NodeName, PublicKey>, FileError> {
        Ok(BTreeMap::new())
    }
}

/// The files of the configuration's directories.
#[derive(Debug)]
pub struct Disk {
    config: Config,
    view: ViewFiles,
    plugins: Prober,
}

impl Disk {
    /// The directories of this configuration.
    pub fn new(config: Config) -> Self {
        let plugins = Prober::new(config.cni_bin_dir.clone());
        Self {
            view: ViewFiles::new(&config.state_dir),
            config,
            plugins,
        }
    }
}

impl Store for Disk {
    fn save_view(&mut self, view: &SavedView) -> Result<(), FileError> {
        self.view.save(view)
    }

    fn add_to_view(&mut self, change: &ViewChange) -> Result<bool, FileError> {
        self.view.add(change)
    }

    fn save_node(&mut self, file: &NodeFile) -> Result<(), FileError> {
        files::replace_json(&self.config.state_dir.join(NODE_FILE), file, FILE_MODE)
    }

    fn install_cni(&mut self) -> Result<bool, FileError> {
        match self.config.cni_conf_dir.as_deref() {
            Some(dir) => cni_config::install(&self.config, &self.plugins.chain(), dir),
            None => Ok(false),
        }
    }

    fn trusted_keys(&mut self) -> Result<BTreeMap<NodeName, PublicKey>, FileError> {
        match self.config.pinning {
            Pinning::Warn => Ok(BTreeMap::new()),
            Pinning::Strict => read_trusted(&self.config.state_dir.join(TRUSTED_DIR)),
        }
    }
}

/// Whatever has no node's name is none of it, such as a file that is being written.
fn read_trusted(dir: &Path) -> Result<BTreeMap<NodeName, PublicKey>, FileError> {
    let mut out = BTreeMap::new();
    for path in files::list(dir)? {
        let node = path.file_name().and_then(|name| name.to_str());
        let node = node.and_then(|name| name.strip_suffix(TRUSTED_SUFFIX));
        let Some(Ok(node)) = node.map(NodeName::new) else {
            continue;
        };
        if let Some(key) = files::read_json(&path, MAX_TRUSTED_LEN)? {
            out.insert(node, key);
        }
    }
    Ok(out)
}
