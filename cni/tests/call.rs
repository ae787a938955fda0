//! What the program answers without touching anything: verbs, versions, errors, panics.

#![allow(
    clippy::unwrap_used,
    reason = "in a test a failed step is a failed test"
)]

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use warren_cni::call::answer;

type Env<'a> = &'a [(&'a str, &'a str)];

fn run(env: Env, stdin: Option<&[u8]>) -> (bool, Value, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_warren-cni"));
    command.env_clear().envs(env.iter().copied());
    command.stdin(if stdin.is_some() {
        Stdio::piped()
    } else {
        Stdio::null()
    });
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    if let Some(mut pipe) = child.stdin.take() {
        // A program that refuses early does not read to the end.
        let _ = pipe.write_all(stdin.unwrap_or_default());
    }
    let out = child.wait_with_output().unwrap();
    let json = serde_json::from_slice(&out.stdout).unwrap();
    (
        out.status.success(),
        json,
        String::from_utf8(out.stderr).unwrap(),
    )
}

const VERSION: [(&str, &str); 1] = [("CNI_COMMAND", "VERSION")];
const STATUS: [(&str, &str); 1] = [("CNI_COMMAND", "STATUS")];
const DEL: [(&str, &str); 3] = [
    ("CNI_COMMAND", "DEL"),
    ("CNI_CONTAINERID", "c1"),
    ("CNI_IFNAME", "eth0"),
];

#[test]
fn version_works_with_without_and_with_broken_stdin() {
    let supported = json!(["0.3.1", "0.4.0", "1.0.0", "1.1.0"]);
    let cases: [(Option<&[u8]>, &str); 4] = [
        (None, "1.1.0"),
        (Some(b""), "1.1.0"),
        (Some(b"{"), "1.1.0"),
        (Some(b"{\"cniVersion\":\"0.4.0\"}"), "0.4.0"),
    ];
    for (stdin, version) in cases {
        let (success, json, stderr) = run(&VERSION, stdin);
        assert!(success && stderr.is_empty(), "{stderr}");
        assert_eq!(
            json,
            json!({"cniVersion": version, "supportedVersions": supported})
        );
    }
}

#[test]
fn version_does_not_wait_for_a_silent_stdin() {
    let (silent, _held_open) = io::pipe().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_warren-cni"));
    command
        .env_clear()
        .env("CNI_COMMAND", "VERSION")
        .stdin(silent);
    let out = command.output().unwrap();
    assert!(out.status.success());
    assert!(
        String::from_utf8(out.stdout)
            .unwrap()
            .contains("supportedVersions")
    );
}

#[test]
fn errors_are_json_with_the_right_code_and_version() {
    let conf = |version: &str, name: &str| {
        json!({"cniVersion": version, "name": name, "type": "t"})
            .to_string()
            .into_bytes()
    };
    let gc = [("CNI_COMMAND", "GC"), ("CNI_PATH", "/opt/cni/bin")];
    let check = [
        ("CNI_COMMAND", "CHECK"),
        ("CNI_CONTAINERID", "c1"),
        ("CNI_NETNS", "/run/netns/c1"),
        ("CNI_IFNAME", "eth0"),
    ];
    let cases: [(Env, Vec<u8>, u32, &str, &str); 14] = [
        (&[], Vec::new(), 4, "1.1.0", "CNI_COMMAND"),
        (
            &[("CNI_COMMAND", "CHECK")],
            Vec::new(),
            4,
            "1.1.0",
            "CNI_CONTAINERID, CNI_NETNS, CNI_IFNAME",
        ),
        (&[("CNI_COMMAND", "GC")], Vec::new(), 4, "1.1.0", "CNI_PATH"),
        // Also what the environment lacks is told in the configuration's version.
        (&DEL[..2], conf("0.4.0", "n"), 4, "0.4.0", "CNI_IFNAME"),
        (&DEL[..2], conf("0.2.0", "n"), 4, "1.1.0", "CNI_IFNAME"),
        (
            &[("CNI_COMMAND", "UPDATE")],
            Vec::new(),
            4,
            "1.1.0",
            "UPDATE",
        ),
        (
            &[("CNI_COMMAND", "STATUS")],
            Vec::new(),
            6,
            "1.1.0",
            "empty",
        ),
        (&STATUS, conf("1.0.0", "n"), 1, "1.0.0", "STATUS"),
        (&gc, conf("1.0.0", "n"), 1, "1.0.0", "GC"),
        (&check, conf("0.3.1", "n"), 1, "0.3.1", "0.4.0"),
        (&DEL, Vec::new(), 6, "1.1.0", "empty"),
        (&DEL, conf("0.2.0", "n"), 1, "1.1.0", "0.2.0"),
        (&DEL, conf("0.4.0", ""), 7, "1.1.0", "name"),
        (&DEL, vec![b' '; (1 << 20) + 1], 7, "1.1.0", "longer"),
    ];
    for (env, stdin, code, version, word) in cases {
        let (success, json, _) = run(env, Some(&stdin));
        assert!(!success);
        assert_eq!(
            (&json["code"], &json["cniVersion"]),
            (&json!(code), &json!(version)),
            "{json}"
        );
        assert!(json["msg"].as_str().unwrap().contains(word), "{json}");
        assert_eq!(json.as_object().unwrap().len(), 4, "{json}");
    }
}

struct PanickingStdin(File);

impl Read for PanickingStdin {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        panic!("the worst has happened")
    }
}

impl AsFd for PanickingStdin {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[test]
fn a_panic_is_told_as_an_internal_error() {
    let env = |name: &str| {
        DEL.iter()
            .find(|(key, _)| *key == name)
            .map(|(_, value)| OsString::from(value))
    };
    let answer = answer(env, PanickingStdin(File::open("/dev/null").unwrap()));
    assert!(!answer.success);
    let json = answer.output.unwrap();
    assert_eq!(json["code"], 999);
    assert!(
        json["msg"]
            .as_str()
            .unwrap()
            .contains("the worst has happened")
    );
}
