//! Public keys in JSON.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use warren_keyring::{PrivateKey, PublicKey};

#[test]
fn a_public_key_is_a_base64_string() {
    let key = PrivateKey::generate().unwrap().public_key();
    let json = serde_json::to_string(&key).unwrap();
    assert_eq!(json, format!("\"{key}\""));
    assert_eq!(serde_json::from_str::<PublicKey>(&json).unwrap(), key);
}

#[test]
fn what_is_no_public_key_is_refused_with_the_reason() {
    let zero = format!("\"{}=\"", "A".repeat(43));
    for (json, reason) in [
        (zero.as_str(), "low order"),
        ("\"AAAA\"", "4 bytes of base64"),
        ("7", "44 base64 characters"),
        ("null", "44 base64 characters"),
    ] {
        let message = serde_json::from_str::<PublicKey>(json)
            .unwrap_err()
            .to_string();
        assert!(message.contains(reason), "{message}");
    }
}
