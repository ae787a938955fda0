//! The state directory's mode: what makes directories for containers lets everybody look in.

use std::io;
use std::path::Path;

use warren_core::files::is_state;
use warren_keyring::directory;

/// Closes a directory of this user to others, when they could look in but not write, and nothing is
/// in it but Warren's state. Any other directory is left as it is.
///
/// # Errors
/// The system's answer.
pub fn close_to_others(dir: &Path) -> io::Result<()> {
    if let Some(mode) = directory::close_to_others(dir, is_state)? {
        tracing::info!(dir = %dir.display(), mode = format!("{mode:04o}"), "closed to other users");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

    use super::*;

    fn after(mode: u32) -> u32 {
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), Permissions::from_mode(mode)).unwrap();
        close_to_others(dir.path()).unwrap();
        dir.path().metadata().unwrap().mode() & 0o7777
    }

    #[test]
    fn a_directory_that_others_can_only_look_into_is_closed_to_them() {
        for mode in [0o755, 0o750, 0o711, 0o705] {
            assert_eq!(after(mode), 0o700, "{mode:04o}");
        }
        assert_eq!(after(0o700), 0o700);
    }

    #[test]
    fn a_directory_that_others_could_have_written_to_is_left_for_the_administrator() {
        for mode in [0o777, 0o775, 0o757, 0o722, 0o1777] {
            assert_eq!(after(mode), mode, "{mode:04o}");
        }
    }

    #[test]
    fn a_directory_that_holds_something_else_is_left_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
        std::fs::write(dir.path().join("another's"), "").unwrap();
        close_to_others(dir.path()).unwrap();
        assert_eq!(dir.path().metadata().unwrap().mode() & 0o7777, 0o755);
        std::fs::remove_file(dir.path().join("another's")).unwrap();
        std::fs::write(dir.path().join("node-uid"), "").unwrap();
        close_to_others(dir.path()).unwrap();
        assert_eq!(dir.path().metadata().unwrap().mode() & 0o7777, 0o700);
    }

    #[test]
    fn another_users_directory_is_left_as_it_is() {
        let root = Path::new("/");
        let before = root.metadata().unwrap().mode();
        if !nix::unistd::geteuid().is_root() {
            close_to_others(root).unwrap();
            assert_eq!(root.metadata().unwrap().mode(), before);
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
        std::os::unix::fs::chown(dir.path(), Some(65534), None).unwrap();
        close_to_others(dir.path()).unwrap();
        assert_eq!(dir.path().metadata().unwrap().mode() & 0o7777, 0o755);
    }

    #[test]
    fn a_directory_that_is_not_there_yet_is_nothing_to_do() {
        let dir = tempfile::tempdir().unwrap();
        close_to_others(&dir.path().join("absent")).unwrap();
    }
}
