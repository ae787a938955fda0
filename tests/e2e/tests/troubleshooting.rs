//! docs/troubleshooting.md quotes what the programs print: each message is looked for in the source.
#![allow(clippy::unwrap_used)] // in a test, a failed unwrap is the report

use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The programs' source files: strings that go on in the next line joined, quotes unescaped.
fn sources() -> Vec<String> {
    let mut folders = vec!["keyring/src", "mesh", "cni/src"]
        .into_iter()
        .map(PathBuf::from)
        .collect::<Vec<_>>();
    let mut out = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(root().join(&folder)).unwrap() {
            let path = folder.join(entry.unwrap().file_name());
            let whole = root().join(&path);
            let name = path.file_name().unwrap().to_str().unwrap();
            if whole.is_dir() && !["tests", "target"].contains(&name) {
                folders.push(path);
            } else if name.ends_with(".rs") {
                out.push(joined(&std::fs::read_to_string(whole).unwrap()));
            }
        }
    }
    out
}

fn joined(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some((before, after)) = rest.split_once("\\\n") {
        out.push_str(before);
        rest = after.trim_start();
    }
    out.push_str(rest);
    out.replace("\\\"", "\"")
}

/// Whether one source file has all parts of a message; `…` stands for what is filled in.
fn is_printed(message: &str, sources: &[String]) -> bool {
    let parts: Vec<&str> = message
        .split('…')
        .map(str::trim)
        .filter(|part| part.len() > 1)
        .collect();
    let longest = parts.iter().map(|part| part.len()).max().unwrap_or(0);
    longest >= 8
        && sources
            .iter()
            .any(|source| parts.iter().all(|part| source.contains(part)))
}

#[test]
fn every_quoted_message_is_one_of_the_programs() {
    let sources = sources();
    let text = std::fs::read_to_string(root().join("docs/troubleshooting.md")).unwrap();
    let quoted: Vec<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("> "))
        .collect();
    assert!(
        quoted.len() > 40,
        "only {} messages are quoted",
        quoted.len()
    );
    let unknown: Vec<&&str> = quoted.iter().filter(|m| !is_printed(m, &sources)).collect();
    assert!(unknown.is_empty(), "no program prints: {unknown:#?}");
    // The check can fail.
    assert!(!is_printed("registry file …: is a teapot", &sources));
}

#[test]
fn every_check_of_the_doctor_is_described() {
    let text = std::fs::read_to_string(root().join("docs/troubleshooting.md")).unwrap();
    let mut checks = 0;
    for source in sources() {
        for after in source.split("Check::new(\"").skip(1) {
            let name = after.split('"').next().unwrap();
            assert!(text.contains(&format!("| `{name}` | ")), "{name}");
            checks += 1;
        }
    }
    assert_eq!(checks, 15);
}
