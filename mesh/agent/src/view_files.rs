//! The last view on disk: the whole of it, and behind it the changes since, one a line.
//!
//! ```text
//!   view.json                 the whole, replaced at once
//!   view.json.changes         the whole's digest, then a change a line, each synced when it is there
//! ```
//!
//! A node that joins costs a line, not a file of all nodes. Lines that follow another whole than the one
//! that is there are of an earlier one, and worth nothing; a last line that was cut off by a crash is
//! that of a change of which nobody was told that it is kept.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use warren_core::consts::VIEW_FILE;
use warren_core::files::{SavedView, ViewChange};

use crate::files::{self, FileError};

const FILE_MODE: u32 = 0o600;
/// The view of 5,000 nodes is about 10 MiB.
const MAX_VIEW_LEN: u64 = 256 * 1024 * 1024;
/// More than is ever added between two wholes, in bytes; what comes after it makes a whole.
const MAX_CHANGES_LEN: u64 = 16 * 1024 * 1024;

/// What the changes follow.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Head {
    /// The SHA-256 of the whole, in hexadecimal.
    follows: String,
}

/// The files, for the one process that writes them.
#[derive(Debug)]
pub struct ViewFiles {
    whole: PathBuf,
    changes: PathBuf,
    /// The whole that this process wrote last.
    head: Option<Head>,
    /// Where changes to it go.
    open: Option<File>,
    len: u64,
}

impl ViewFiles {
    /// The files in this directory; none is touched before something is to be kept.
    pub fn new(state_dir: &Path) -> Self {
        Self {
            whole: state_dir.join(VIEW_FILE),
            changes: state_dir.join(format!("{VIEW_FILE}.changes")),
            head: None,
            open: None,
            len: 0,
        }
    }

    /// Reads the last view; `None` when there is none.
    ///
    /// # Errors
    /// [`FileError`] when the whole cannot be read. Changes that cannot be are left out with a warning.
    pub fn load(&self) -> Result<Option<SavedView>, FileError> {
        let Some(text) = files::read_limited(&self.whole, MAX_VIEW_LEN)? else {
            return Ok(None);
        };
        let mut view: SavedView =
            serde_json::from_slice(&text).map_err(|source| FileError::Content {
                path: self.whole.clone(),
                source,
            })?;
        match files::read_limited(&self.changes, MAX_CHANGES_LEN * 2) {
            Ok(Some(changes)) => replay(&mut view, &head_of(&text), &changes),
            Ok(None) => {}
            Err(e) => tracing::warn!(error = %e, "start without the view's last changes"),
        }
        Ok(Some(view))
    }

    /// Keeps the whole view.
    ///
    /// # Errors
    /// [`FileError`]; what was kept before is then still there.
    pub fn save(&mut self, view: &SavedView) -> Result<(), FileError> {
        let text = files::to_json(&self.whole, view)?;
        files::replace(&self.whole, &text, FILE_MODE)?;
        // The changes of the whole before stay until the next one; their head does not fit any more.
        self.head = Some(head_of(&text));
        self.open = None;
        self.len = 0;
        Ok(())
    }

    /// Adds a change to what is kept, and returns whether it could be: only to a whole that this process
    /// wrote, and not without end.
    ///
    /// # Errors
    /// [`FileError`]; the whole is to be kept then.
    pub fn add(&mut self, change: &ViewChange) -> Result<bool, FileError> {
        let Some(head) = self.head.as_ref().filter(|_| self.len < MAX_CHANGES_LEN) else {
            return Ok(false);
        };
        let line = files::to_json_line(&self.changes, change)?;
        if self.open.is_none() {
            let head = files::to_json_line(&self.changes, head)?;
            files::replace(&self.changes, &head, FILE_MODE)?;
            let open = OpenOptions::new()
                .append(true)
                .custom_flags(nix::libc::O_NOFOLLOW)
                .open(&self.changes);
            self.open = Some(open.map_err(FileError::io("open", &self.changes))?);
        }
        let Some(open) = &mut self.open else {
            return Ok(false);
        };
        self.len += line.len() as u64;
        let written = open.write_all(&line).and_then(|()| open.sync_data());
        if let Err(e) = written {
            // Half a line may be there: nothing may follow it.
            self.head = None;
            self.open = None;
            return Err(FileError::io("write", &self.changes)(e));
        }
        Ok(true)
    }
}

fn head_of(whole: &[u8]) -> Head {
    let digest = Sha256::digest(whole);
    Head {
        follows: digest.iter().map(|byte| format!("{byte:02x}")).collect(),
    }
}

fn replay(view: &mut SavedView, head: &Head, changes: &[u8]) {
    let mut lines = changes.split_inclusive(|byte| *byte == b'\n');
    let follows = lines
        .next()
        .and_then(|line| serde_json::from_slice(line).ok());
    if follows.as_ref() != Some(head) {
        return;
    }
    for line in lines.filter(|line| line.ends_with(b"\n")) {
        match serde_json::from_slice::<ViewChange>(line) {
            Ok(change) => view.apply(change),
            Err(e) => {
                tracing::warn!(error = %e, "the view's changes are damaged; starting without the rest");
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use warren_core::files::NodeChange;
    use warren_core::{NodeUid, NodeView};

    use super::*;

    fn view(name: &str) -> NodeView {
        NodeView {
            name: name.to_owned(),
            uid: NodeUid("life".to_owned()),
            ..NodeView::default()
        }
    }

    fn joins(name: &str) -> ViewChange {
        ViewChange {
            nodes: vec![NodeChange {
                name: name.to_owned(),
                view: Some(view(name)),
                incumbent: None,
            }],
            applied_endpoints: BTreeMap::new(),
        }
    }

    fn names(files: &ViewFiles) -> Vec<String> {
        let view = files.load().unwrap().unwrap_or_default();
        view.views.into_iter().map(|view| view.name).collect()
    }

    fn whole(names: &[&str]) -> SavedView {
        SavedView {
            views: names.iter().map(|name| view(name)).collect(),
            ..SavedView::default()
        }
    }

    #[test]
    fn what_was_added_is_there_at_the_next_start_and_the_rest_of_a_crash_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let mut files = ViewFiles::new(dir.path());
        assert!(!files.add(&joins("a")).unwrap(), "there is no whole yet");
        files.save(&whole(&["a"])).unwrap();
        for name in ["b", "c"] {
            assert!(files.add(&joins(name)).unwrap());
        }
        let mut gone = joins("a");
        gone.nodes[0].view = None;
        assert!(files.add(&gone).unwrap());
        assert_eq!(names(&ViewFiles::new(dir.path())), ["b", "c"]);

        // A crash in the midst of a line.
        let changes = dir.path().join("view.json.changes");
        let mut text = std::fs::read(&changes).unwrap();
        for cut in 1..40 {
            let end = text.len() - cut;
            std::fs::write(&changes, &text[..end]).unwrap();
            assert_eq!(names(&files), ["a", "b", "c"], "cut by {cut}");
        }
        text.truncate(text.len() - 10);
        std::fs::write(&changes, &text).unwrap();
        // The next process does not write behind it.
        let mut next = ViewFiles::new(dir.path());
        assert!(!next.add(&joins("d")).unwrap());
        next.save(&whole(&["a", "b", "c", "d"])).unwrap();
        assert!(next.add(&joins("e")).unwrap());
        assert_eq!(names(&next), ["a", "b", "c", "d", "e"]);
    }

    #[test]
    fn changes_of_an_earlier_whole_are_not_made_to_a_later_one() {
        let dir = tempfile::tempdir().unwrap();
        let mut files = ViewFiles::new(dir.path());
        files.save(&whole(&["a"])).unwrap();
        assert!(files.add(&joins("b")).unwrap());
        // Killed before anything more was written.
        files.save(&whole(&["a", "c"])).unwrap();
        assert_eq!(names(&files), ["a", "c"]);
        assert!(files.add(&joins("d")).unwrap());
        assert_eq!(names(&files), ["a", "c", "d"]);
    }

    #[test]
    fn both_files_are_the_owners_alone() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let mut files = ViewFiles::new(dir.path());
        files.save(&whole(&["a"])).unwrap();
        files.add(&joins("b")).unwrap();
        for file in ["view.json", "view.json.changes"] {
            let mode = std::fs::metadata(dir.path().join(file))
                .unwrap()
                .permissions()
                .mode();
            assert_eq!(mode & 0o777, 0o600, "{file}");
        }
    }
}
