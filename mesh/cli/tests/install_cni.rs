//! `warren install-cni`, as an init container calls it on a directory that is the runtime's.
#![allow(clippy::unwrap_used)]

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

struct Place {
    dir: TempDir,
}

impl Place {
    /// A program to install, and a runtime's directory with somebody else's plugin in it.
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("built"), "the plugin").unwrap();
        fs::create_dir(dir.path().join("bin")).unwrap();
        fs::write(dir.path().join("bin/portmap"), "another's").unwrap();
        Self { dir }
    }

    fn bin(&self) -> PathBuf {
        self.dir.path().join("bin")
    }

    fn plugin(&self) -> PathBuf {
        self.bin().join("warren-cni")
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.bin()).unwrap();
        let mut names: Vec<_> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    fn command(&self) -> Command {
        command(&self.dir.path().join("built"), &self.bin())
    }

    fn install(&self) -> Output {
        self.command().output().unwrap()
    }
}

fn command(from: &Path, to: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_warren"));
    command.arg("install-cni").arg("--from").arg(from);
    command.arg("--to").arg(to);
    command
}

fn assert_installed(place: &Place, output: &Output) {
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(fs::read(place.plugin()).unwrap(), b"the plugin");
    let mode = fs::metadata(place.plugin()).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o755);
    assert_eq!(place.names(), ["portmap", "warren-cni"]);
    assert_eq!(fs::read(place.bin().join("portmap")).unwrap(), b"another's");
}

#[test]
fn the_plugin_is_put_there_executable_and_nothing_else_is_touched() {
    let place = Place::new();
    let output = place.install();
    assert_installed(&place, &output);
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(said, format!("{}: installed\n", place.plugin().display()));
}

#[test]
fn the_same_program_is_not_written_again() {
    let place = Place::new();
    place.install();
    let identity = |path: &Path| {
        let metadata = fs::metadata(path).unwrap();
        (metadata.ino(), metadata.mtime_nsec(), metadata.ctime_nsec())
    };
    let before = identity(&place.plugin());
    let output = place.install();
    assert_installed(&place, &output);
    assert_eq!(identity(&place.plugin()), before);
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(said, format!("{}: up to date\n", place.plugin().display()));
}

#[test]
fn an_older_program_of_another_mode_is_replaced_also_while_it_is_open() {
    let place = Place::new();
    fs::write(place.plugin(), "an older one").unwrap();
    fs::set_permissions(place.plugin(), Permissions::from_mode(0o700)).unwrap();
    let mut open = File::open(place.plugin()).unwrap();
    assert_installed(&place, &place.install());
    // Whoever runs the older one keeps it whole.
    let mut text = String::new();
    std::io::Read::read_to_string(&mut open, &mut text).unwrap();
    assert_eq!(text, "an older one");

    fs::set_permissions(place.plugin(), Permissions::from_mode(0o644)).unwrap();
    assert_installed(&place, &place.install());
}

#[test]
fn a_symbolic_link_in_its_place_is_replaced_and_what_it_names_is_left_alone() {
    let place = Place::new();
    symlink("portmap", place.plugin()).unwrap();
    assert_installed(&place, &place.install());
    assert!(!place.plugin().is_symlink());
}

#[test]
fn installers_that_are_killed_leave_the_old_or_the_new_program_and_the_next_cleans_up() {
    let place = Place::new();
    let large = vec![b'x'; 32 << 20];
    fs::write(place.dir.path().join("built"), &large).unwrap();
    fs::write(place.plugin(), "an older one").unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut wait = Duration::from_millis(1);
    // Until one was killed while it wrote.
    while place.names().len() < 3 {
        assert!(Instant::now() < deadline, "none was killed in time");
        let mut child = place
            .command()
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(wait);
        let _ = child.kill();
        child.wait().unwrap();
        let found = fs::read(place.plugin()).unwrap();
        assert!(found == b"an older one" || found == large);
        if found == large {
            fs::write(place.plugin(), "an older one").unwrap();
            wait = Duration::from_millis(1);
        }
        wait += Duration::from_millis(1);
    }
    let output = place.install();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(place.names(), ["portmap", "warren-cni"]);
    assert!(fs::read(place.plugin()).unwrap() == large);
}

#[test]
fn eight_at_once_leave_one_whole_program() {
    let place = Place::new();
    let children: Vec<_> = (0..8).map(|_| place.command().spawn().unwrap()).collect();
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    assert_installed(&place, &place.install());
}

#[test]
fn what_cannot_be_installed_is_named_and_leaves_all_as_it_was() {
    let place = Place::new();
    let refused = |command: &mut Command, parts: &[&str]| {
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let said = String::from_utf8(output.stderr).unwrap();
        for part in parts {
            assert!(said.contains(part), "{part}: {said}");
        }
        assert_eq!(place.names()[0], "portmap");
    };
    let built = place.dir.path().join("built");
    let absent = place.dir.path().join("absent");
    refused(&mut command(&absent, &place.bin()), &["absent", "--from"]);
    refused(&mut command(&built, &absent), &["absent", "--to"]);
    let empty = place.dir.path().join("empty");
    fs::write(&empty, "").unwrap();
    refused(&mut command(&empty, &place.bin()), &["empty", "--from"]);
    fs::create_dir(place.plugin()).unwrap();
    refused(
        &mut command(&built, &place.bin()),
        &["warren-cni", "a directory"],
    );
    assert_eq!(place.names(), ["portmap", "warren-cni"]);
}

#[test]
fn without_a_place_to_install_to_it_is_wrong_usage() {
    let output = Command::new(env!("CARGO_BIN_EXE_warren"))
        .arg("install-cni")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8(output.stderr).unwrap().contains("--to"));
}
