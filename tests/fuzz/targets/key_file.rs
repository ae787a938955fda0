//! The private key's file, with any content.
#![no_main]

use std::fs::{OpenOptions, Permissions, set_permissions};
use std::io::Write as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use warren_keyring::PrivateKey;

static FOLDER: LazyLock<tempfile::TempDir> = LazyLock::new(|| {
    let folder = tempfile::tempdir_in("/dev/shm").expect("a directory in memory");
    set_permissions(folder.path(), Permissions::from_mode(0o700)).expect("our own directory");
    folder
});

fuzz_target!(|content: &[u8]| {
    let path = FOLDER.path().join("private.key");
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let mut file = options.open(&path).expect("write to memory");
    file.write_all(content).expect("write to memory");
    drop(file);
    if let Ok(key) = warren_keyring::file::load(&path) {
        // The scalar is clamped: the text may differ, but it must be the same key, and stay it.
        let line = std::str::from_utf8(content.strip_suffix(b"\n").unwrap_or(content));
        let given = PrivateKey::from_base64(line.expect("a key that is no text"));
        assert_eq!(
            given.expect("a key that is none").public_key(),
            key.public_key()
        );
        let again = PrivateKey::from_base64(&key.to_base64()).expect("what is written is a key");
        assert_eq!(
            *again.as_bytes(),
            *key.as_bytes(),
            "a key that changes when it is written"
        );
    }
});
