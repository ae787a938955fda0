//! The private key's file: what is created, what is believed, and what is refused.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Barrier;
use std::thread;

use tempfile::TempDir;
use warren_keyring::file::{FileError, load, load_or_create};
use warren_keyring::{KeyError, PrivateKey};

/// A private directory, removed when dropped, and the path of a key in it.
fn place() -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), Permissions::from_mode(0o700)).unwrap();
    let path = directory.path().join("private.key");
    (directory, path)
}

fn write(path: &Path, content: &[u8], mode: u32) {
    fs::write(path, content).unwrap();
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

fn key_line() -> String {
    format!("{}\n", *PrivateKey::generate().unwrap().to_base64())
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().mode() & 0o7777
}

/// Both ways in must refuse alike, and the message must name the path and the fix.
fn refusal(path: &Path, fix: &str) -> FileError {
    let before = fs::symlink_metadata(path).map(|metadata| (metadata.ino(), metadata.len()));
    let error = load(path).unwrap_err();
    assert_eq!(
        load_or_create(path).unwrap_err().to_string(),
        error.to_string()
    );
    let message = error.to_string();
    assert!(
        message.contains(path.parent().unwrap().to_str().unwrap()),
        "{message}"
    );
    assert!(message.contains(fix), "{message}");
    let after = fs::symlink_metadata(path).map(|metadata| (metadata.ino(), metadata.len()));
    assert_eq!(
        before.unwrap(),
        after.unwrap(),
        "the refused file was touched"
    );
    error
}

#[test]
fn a_created_key_is_private_and_is_loaded_again() {
    let (directory, _) = place();
    let path = directory.path().join("state").join("private.key");
    let key = load_or_create(&path).unwrap();
    assert_eq!(mode(&path), 0o600);
    assert_eq!(mode(path.parent().unwrap()), 0o700);
    assert_eq!(
        fs::read_to_string(&path).unwrap(),
        format!("{}\n", *key.to_base64())
    );
    assert_eq!(load(&path).unwrap(), key);
    assert_eq!(load_or_create(&path).unwrap(), key);
    let names: Vec<_> = fs::read_dir(path.parent().unwrap()).unwrap().collect();
    assert_eq!(names.len(), 1, "only the key is left: {names:?}");
}

#[test]
fn a_missing_key_is_told_from_a_bad_one() {
    let (directory, path) = place();
    assert!(matches!(load(&path), Err(FileError::Missing { .. })));
    let deeper = directory.path().join("none").join("private.key");
    assert!(matches!(load(&deeper), Err(FileError::Missing { .. })));
    assert!(!deeper.parent().unwrap().exists());
}

#[test]
fn parents_of_the_directory_are_not_made_up() {
    let (directory, _) = place();
    let path = directory
        .path()
        .join("none")
        .join("state")
        .join("private.key");
    let error = load_or_create(&path).unwrap_err();
    assert!(
        matches!(
            error,
            FileError::Io {
                operation: "create directory",
                ..
            }
        ),
        "{error}"
    );
    assert!(!directory.path().join("none").exists());
}

#[test]
fn the_newline_may_be_missing_and_the_mode_narrower() {
    let (_directory, path) = place();
    let line = key_line();
    write(&path, line.trim_end().as_bytes(), 0o400);
    assert_eq!(*load(&path).unwrap().to_base64(), line.trim_end());
}

#[test]
fn a_file_that_others_may_use_is_refused() {
    let (_directory, path) = place();
    for wide in [0o640, 0o604, 0o660, 0o644, 0o700, 0o620, 0o4600] {
        write(&path, key_line().as_bytes(), wide);
        let error = refusal(&path, &format!("chmod 0600 {}", path.display()));
        assert!(
            matches!(error, FileError::Mode { mode, .. } if mode == wide),
            "{error}"
        );
    }
}

#[test]
fn a_directory_that_others_may_enter_is_refused() {
    let (directory, path) = place();
    write(&path, key_line().as_bytes(), 0o600);
    for wide in [0o750, 0o705, 0o777, 0o1777, 0o710, 0o720] {
        fs::set_permissions(directory.path(), Permissions::from_mode(wide)).unwrap();
        let error = refusal(&path, &format!("chmod 0700 {}", directory.path().display()));
        assert!(
            matches!(error, FileError::DirectoryMode { mode, .. } if mode == wide),
            "{error}"
        );
    }
}

#[test]
fn no_key_is_created_in_a_directory_that_others_may_enter() {
    let (directory, path) = place();
    fs::set_permissions(directory.path(), Permissions::from_mode(0o755)).unwrap();
    assert!(matches!(
        load_or_create(&path),
        Err(FileError::DirectoryMode { .. })
    ));
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
}

#[test]
fn a_symbolic_link_is_refused_even_to_a_good_key() {
    let (directory, path) = place();
    let target = directory.path().join("target");
    symlink(&target, &path).unwrap();
    assert!(matches!(
        refusal(&path, "symbolic link"),
        FileError::SymbolicLink { .. }
    ));
    assert!(!target.exists(), "a key was created through the link");
    write(&target, key_line().as_bytes(), 0o600);
    assert!(matches!(
        refusal(&path, "symbolic link"),
        FileError::SymbolicLink { .. }
    ));
}

#[test]
fn what_is_no_regular_file_is_refused_without_waiting() {
    let (directory, path) = place();
    fs::create_dir(&path).unwrap();
    assert!(matches!(
        refusal(&path, "no regular file"),
        FileError::NotRegular { .. }
    ));

    let pipe = directory.path().join("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
    assert!(matches!(
        refusal(&pipe, "no regular file"),
        FileError::NotRegular { .. }
    ));

    let socket = directory.path().join("socket");
    let _listener = UnixListener::bind(&socket).unwrap();
    assert!(matches!(
        refusal(&socket, "no regular file"),
        FileError::NotRegular { .. }
    ));
}

#[test]
fn a_file_or_directory_of_another_user_is_refused() {
    if !nix::unistd::geteuid().is_root() {
        assert!(
            std::env::var_os("CI").is_none(),
            "CI must run this test as root"
        );
        println!("skipped: only root can give files away");
        return;
    }
    let (directory, path) = place();
    write(&path, key_line().as_bytes(), 0o600);
    std::os::unix::fs::chown(&path, Some(65534), None).unwrap();
    let error = refusal(&path, &format!("chown 0 {}", path.display()));
    assert!(
        matches!(
            error,
            FileError::Owner {
                found: 65534,
                expected: 0,
                ..
            }
        ),
        "{error}"
    );

    std::os::unix::fs::chown(&path, Some(0), None).unwrap();
    std::os::unix::fs::chown(directory.path(), Some(65534), None).unwrap();
    let error = refusal(&path, &format!("chown 0 {}", directory.path().display()));
    assert!(
        matches!(
            error,
            FileError::DirectoryOwner {
                found: 65534,
                expected: 0,
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn an_empty_file_is_refused_and_not_replaced() {
    let (_directory, path) = place();
    write(&path, b"", 0o600);
    assert!(matches!(
        refusal(&path, "is empty"),
        FileError::Empty { .. }
    ));
}

#[test]
fn a_key_cut_short_or_grown_is_refused() {
    let (_directory, path) = place();
    let line = key_line();
    let mut contents: Vec<Vec<u8>> = (1..44).map(|n| line.as_bytes()[..n].to_vec()).collect();
    contents.push(format!("{line}\n").into_bytes());
    contents.push(format!("{} ", line.trim_end()).into_bytes());
    contents.push(format!("{}\n", &line[..43]).into_bytes());
    contents.push([line.as_bytes(), line.as_bytes()].concat());
    contents.push(vec![b'A'; 1 << 20]);
    for content in contents {
        write(&path, &content, 0o600);
        let error = refusal(&path, "and a newline");
        let length = content.len() as u64;
        assert!(
            matches!(error, FileError::Length { found, .. } if found == length),
            "{error}"
        );
    }
}

#[test]
fn garbage_of_the_right_length_is_refused() {
    let (_directory, path) = place();
    let all_zero = format!("{}=", "A".repeat(43));
    for (content, cause) in [
        (vec![0xff; 44], KeyError::Base64Encoding),
        (vec![b'\n'; 44], KeyError::Base64Encoding),
        (vec![b'A'; 44], KeyError::Base64Encoding),
        (all_zero.into_bytes(), KeyError::ZeroPrivateKey),
    ] {
        write(&path, &content, 0o600);
        let error = refusal(&path, "wg genkey");
        match error {
            // A text that ends in a newline is one character short of a key.
            FileError::Length { found: 44, .. } => assert_eq!(content[43], b'\n'),
            FileError::Key { source, .. } => assert_eq!(source, cause),
            other => panic!("{other}"),
        }
    }
}

#[test]
fn creators_that_race_end_with_the_same_key() {
    const CREATORS: usize = 16;
    for _ in 0..20 {
        let (directory, _) = place();
        let path = directory.path().join("state").join("private.key");
        let start = Barrier::new(CREATORS);
        let keys: Vec<PrivateKey> = thread::scope(|scope| {
            let creators: Vec<_> = (0..CREATORS)
                .map(|_| {
                    scope.spawn(|| {
                        start.wait();
                        load_or_create(&path).unwrap()
                    })
                })
                .collect();
            creators
                .into_iter()
                .map(|creator| creator.join().unwrap())
                .collect()
        });
        assert!(keys.iter().all(|key| *key == keys[0]));
        assert_eq!(load(&path).unwrap(), keys[0]);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }
}

#[test]
fn a_path_without_a_name_is_refused() {
    let (directory, _) = place();
    fs::create_dir(directory.path().join("state")).unwrap();
    fs::set_permissions(
        directory.path().join("state"),
        Permissions::from_mode(0o700),
    )
    .unwrap();
    let path = directory.path().join("state").join("..");
    assert!(matches!(load(&path), Err(FileError::NotAFileName { .. })));
}
