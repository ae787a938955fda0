//! The private key's file.

use warren_keyring::file;

use super::facts::Facts;
use super::finding::{Check, Finding};

pub(super) fn check(facts: &Facts) -> Vec<Finding> {
    let mut check = Check::new("key");
    let path = facts.args.key_file();
    match file::load(&path) {
        Err(e) => {
            let text = e.to_string();
            // Each of these messages ends with its cure.
            let (finding, cure) = text.split_once("; ").unwrap_or((&text, ""));
            check.error(
                finding,
                "warren-tunnel refuses to start with it",
                cure.trim_start_matches("run "),
            );
        }
        Ok(key) => {
            let running = facts
                .device
                .as_ref()
                .ok()
                .and_then(|d| d.private_key.as_ref());
            if running.is_some_and(|running| running.public_key() != key.public_key()) {
                check.warn(
                    "warren-tunnel runs with another key than its file has",
                    "at its next start this node comes back with another public key",
                    "restart warren-tunnel, or put the key back that it runs with",
                );
            }
        }
    }
    check.done(format!("{} is this user's alone", path.display()))
}
