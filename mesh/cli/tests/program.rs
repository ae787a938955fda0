//! The program itself: what only a process can show.
#![allow(clippy::unwrap_used)]

mod common;

use std::process::{Command, Output, Stdio};

use common::{Sockets, good_status};

fn warren(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_warren"))
        .args(arguments)
        .output()
        .unwrap()
}

#[test]
fn version_and_help_go_to_stdout() {
    let version = warren(&["--version"]);
    let expected = format!("warren {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(String::from_utf8_lossy(&version.stdout), expected);
    for arguments in [&["help"][..], &["--help"], &["help", "show"]] {
        let help = warren(arguments);
        assert_eq!(help.status.code(), Some(0));
        assert!(String::from_utf8_lossy(&help.stdout).contains("Usage: warren"));
    }
}

#[test]
fn wrong_usage_is_exit_code_2() {
    let wrong = [
        &[][..],
        &["list"],
        &["show", "warren0", "no-such-field"],
        &["show", "warren0", "dump", "--json"],
        &["status", "warren0"],
    ];
    for arguments in wrong {
        let output = warren(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn directories_come_from_the_environment_and_the_exit_code_from_the_status() {
    let mut status = good_status();
    status.protected = false;
    let sockets = Sockets::new();
    let _agent = sockets.agent(serde_json::to_vec(&status).unwrap());
    let output = Command::new(env!("CARGO_BIN_EXE_warren"))
        .arg("status")
        .env("WARREN_RUN_DIR", sockets.path("warren"))
        .env("WARREN_UAPI_DIR", sockets.path("wireguard"))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stdout.starts_with(b"node        node1\n"));
}

#[test]
fn reader_that_goes_early_is_no_error() {
    let sockets = Sockets::new();
    let _agent = sockets.agent(serde_json::to_vec(&good_status()).unwrap());
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let child = Command::new(env!("CARGO_BIN_EXE_warren"))
        .args(["status", "--json"])
        .env("WARREN_RUN_DIR", sockets.path("warren"))
        .stdout(writer)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert!(output.stderr.is_empty());
}
