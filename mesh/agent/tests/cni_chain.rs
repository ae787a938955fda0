//! The agent's CNI configuration: what is chained, and which versions it says.

#![allow(
    clippy::unwrap_used,
    reason = "in a test a failed step is a failed test"
)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::{Value, json};
use warren_agent::cni_chain::{Chain, Prober};

/// A program cannot be run while a child that another test just forked still has it open.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Puts a plugin into place, by rename as installers do: it counts its runs and tells its versions.
fn put(dir: &Path, name: &str, script: &str) {
    let new = dir.join(format!(".{name}"));
    let text = format!(
        "#!/bin/sh\necho run >> {}/{name}.runs\n{script}\n",
        dir.display()
    );
    fs::write(&new, text).unwrap();
    fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).unwrap();
    fs::rename(new, dir.join(name)).unwrap();
}

fn put_speaking(dir: &Path, name: &str, versions: &[&str]) {
    let answer = json!({"cniVersion": "1.0.0", "supportedVersions": versions});
    put(
        dir,
        name,
        &format!("[ \"$CNI_COMMAND\" = VERSION ] && echo '{answer}'"),
    );
}

fn runs(dir: &Path, name: &str) -> usize {
    let text = fs::read_to_string(dir.join(format!("{name}.runs"))).unwrap_or_default();
    text.lines().count()
}

fn names(chain: &Chain) -> Vec<&str> {
    let name = |plugin: &'_ Value| plugin["type"].as_str().unwrap().to_owned();
    let names: Vec<String> = chain.plugins.iter().map(name).collect();
    let known = ["portmap", "bandwidth"];
    known
        .into_iter()
        .filter(|n| names.contains(&(*n).to_owned()))
        .collect()
}

const ALL: [&str; 5] = ["0.2.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

#[test]
fn the_versions_are_those_that_the_whole_chain_speaks() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let mut prober = Prober::new(Some(dir.to_owned()));
    // Without our own plugin it is not the runtime's directory.
    put_speaking(dir, "portmap", &ALL);
    assert_eq!(prober.chain(), Chain::default());
    assert_eq!(
        Chain::default().versions,
        ["0.3.1", "0.4.0", "1.0.0", "1.1.0"]
    );

    put_speaking(dir, "warren-cni", &ALL[1..]);
    let chain = prober.chain();
    assert_eq!(names(&chain), ["portmap"]);
    assert_eq!(chain.versions, ["0.3.1", "0.4.0", "1.0.0", "1.1.0"]);
    let expected = json!({"type": "portmap", "capabilities": {"portMappings": true}});
    assert_eq!(chain.plugins[0], expected);

    // Debian's do not know 1.1.0.
    put_speaking(dir, "bandwidth", &ALL[..4]);
    let chain = prober.chain();
    assert_eq!(names(&chain), ["portmap", "bandwidth"]);
    assert_eq!(chain.versions, ["0.3.1", "0.4.0", "1.0.0"]);

    fs::remove_file(dir.join("bandwidth")).unwrap();
    assert_eq!(
        prober.chain().versions,
        ["0.3.1", "0.4.0", "1.0.0", "1.1.0"]
    );
}

#[test]
fn a_plugin_is_run_again_only_when_its_file_changed() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    put_speaking(dir, "warren-cni", &ALL);
    put_speaking(dir, "portmap", &ALL[..4]);
    let mut prober = Prober::new(Some(dir.to_owned()));
    for _ in 0..5 {
        assert_eq!(prober.chain().versions.last(), Some(&"1.0.0"));
    }
    assert_eq!((runs(dir, "warren-cni"), runs(dir, "portmap")), (1, 1));
    put_speaking(dir, "portmap", &ALL);
    assert_eq!(prober.chain().versions.last(), Some(&"1.1.0"));
    assert_eq!((runs(dir, "warren-cni"), runs(dir, "portmap")), (1, 2));
}

#[test]
fn a_plugin_that_does_not_say_what_it_speaks_is_left_out() {
    let _alone = alone();
    for script in [
        "exit 1",
        "echo nonsense",
        "echo '{\"supportedVersions\": \"1.0.0\"}'",
        // Nothing that older runtimes could be told.
        "echo '{\"supportedVersions\": [\"1.1.0\"]}'",
        "echo '{\"supportedVersions\": [\"0.2.0\"]}'",
    ] {
        let dir = tempfile::tempdir().unwrap();
        put_speaking(dir.path(), "warren-cni", &ALL);
        put(dir.path(), "portmap", script);
        let mut prober = Prober::new(Some(dir.path().to_owned()));
        assert_eq!(prober.chain(), Chain::default(), "{script}");
    }
    // What is no program at all, and what cannot be run.
    let dir = tempfile::tempdir().unwrap();
    put_speaking(dir.path(), "warren-cni", &ALL);
    fs::create_dir(dir.path().join("portmap")).unwrap();
    fs::write(dir.path().join("bandwidth"), "").unwrap();
    let mut prober = Prober::new(Some(dir.path().to_owned()));
    assert_eq!(prober.chain(), Chain::default());
}

#[test]
fn no_directory_no_chain() {
    assert_eq!(Prober::new(None).chain(), Chain::default());
}
