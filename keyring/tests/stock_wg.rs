//! Our keys against those of the stock `wg` tool.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::Write;
use std::process::{Command, Stdio};

use warren_keyring::{PresharedKey, PrivateKey, PublicKey};

/// Tells whether `wg` is there; where it must be, its absence is a failure.
fn wg_is_installed() -> bool {
    let installed = Command::new("wg").arg("--version").output().is_ok();
    if !installed {
        assert!(
            std::env::var_os("CI").is_none(),
            "CI must have wireguard-tools"
        );
        println!("skipped: `wg` is not installed (Debian package wireguard-tools)");
    }
    installed
}

fn wg(verb: &str, input: &str) -> String {
    let mut child = Command::new("wg")
        .arg(verb)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(input.as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(
        output.status.success(),
        "wg {verb}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let text = String::from_utf8(output.stdout).unwrap();
    text.strip_suffix('\n').unwrap().to_owned()
}

#[test]
fn public_keys_equal_those_of_wg_pubkey() {
    if !wg_is_installed() {
        return;
    }
    for _ in 0..50 {
        let private = PrivateKey::generate().unwrap();
        let theirs = wg("pubkey", &private.to_base64());
        assert_eq!(private.public_key().to_base64(), theirs);
        assert_eq!(
            PublicKey::from_base64(&theirs).unwrap(),
            private.public_key()
        );
    }
}

#[test]
fn a_key_of_wg_genkey_is_taken_unchanged() {
    if !wg_is_installed() {
        return;
    }
    for _ in 0..20 {
        let theirs = wg("genkey", "");
        let private = PrivateKey::from_base64(&theirs).unwrap();
        assert_eq!(*private.to_base64(), theirs);
        assert_eq!(private.public_key().to_base64(), wg("pubkey", &theirs));
    }
}

#[test]
fn an_unclamped_key_has_the_public_key_that_wg_gives_it() {
    if !wg_is_installed() {
        return;
    }
    for _ in 0..20 {
        // Any 32 bytes, which a preshared key is.
        let theirs = wg("genpsk", "");
        let private = PrivateKey::from_base64(&theirs).unwrap();
        assert_eq!(private.public_key().to_base64(), wg("pubkey", &theirs));
    }
}

#[test]
fn a_key_of_wg_genpsk_is_taken_unchanged() {
    if !wg_is_installed() {
        return;
    }
    for _ in 0..20 {
        let theirs = wg("genpsk", "");
        assert_eq!(
            *PresharedKey::from_base64(&theirs).unwrap().to_base64(),
            theirs
        );
    }
}
