//! The saved state, as a damaged disk or another version may hold it.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use warren_tunnel::state::{STATE_FILE, State};

static FOLDER: LazyLock<tempfile::TempDir> =
    LazyLock::new(|| tempfile::tempdir_in("/dev/shm").expect("a directory in memory"));

fuzz_target!(|content: &[u8]| {
    let path = FOLDER.path().join(STATE_FILE);
    std::fs::write(&path, content).expect("write to memory");
    if let Ok(Some(state)) = State::load(&path) {
        state.save(&path).expect("write to memory");
        let again = State::load(&path).expect("what was saved is good");
        assert_eq!(
            again,
            Some(state),
            "what is saved is loaded as something else"
        );
    }
});
