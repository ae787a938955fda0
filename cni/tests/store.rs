//! The store: killed at any point, shared by many, damaged by others.

#![allow(
    clippy::unwrap_used,
    reason = "in a test a failed step is a failed test"
)]

use std::cell::Cell;
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use ipnet::IpNet;
use warren_cni::env::{AttachmentId, ContainerId, IfName};
use warren_cni::ipam::{Disk, OsDisk, Reservation, Store, StoreError};

const NOW: Duration = Duration::from_secs(1000);

fn owner(id: &str) -> AttachmentId {
    AttachmentId {
        container_id: ContainerId::new(id).unwrap(),
        ifname: IfName::new("eth0").unwrap(),
    }
}

fn range() -> BTreeSet<IpNet> {
    BTreeSet::from(["10.0.0.0/22".parse().unwrap()])
}

fn store<D: Disk>(dir: &Path, network: &str, disk: D) -> Store<D> {
    Store::new(dir, network, "boot", disk)
}

fn reserve<D: Disk>(store: &Store<D>, id: &str) -> Result<IpAddr, StoreError> {
    let id = owner(id);
    let granted =
        store.update_beside(|pool, elsewhere| pool.reserve(&id, None, &range(), elsewhere, NOW))?;
    Ok(granted.addresses[0])
}

fn reservations(dir: &Path) -> Vec<Reservation> {
    store(dir, "net", OsDisk)
        .update(|pool| Ok(pool.reservations().to_vec()))
        .unwrap()
}

/// A disk on which the process is killed at a step: that step is done by half, and none after it.
struct DyingDisk {
    steps_left: Cell<u32>,
}

impl DyingDisk {
    fn step(&self, half: impl FnOnce()) -> io::Result<()> {
        match self.steps_left.get() {
            0 => Err(io::Error::other("killed")),
            1 => {
                self.steps_left.set(0);
                half();
                Err(io::Error::other("killed"))
            }
            left => {
                self.steps_left.set(left - 1);
                Ok(())
            }
        }
    }
}

impl Disk for DyingDisk {
    fn read(&self, path: &Path) -> io::Result<Option<Vec<u8>>> {
        self.step(|| ())?;
        OsDisk.read(path)
    }

    fn write_synced(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        // Before the write, in it, and after it.
        self.step(|| ())?;
        self.step(|| fs::write(path, &bytes[..bytes.len() / 2]).unwrap())?;
        OsDisk.write_synced(path, bytes)?;
        self.step(|| ())
    }

    fn replace_synced(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.step(|| ())?;
        OsDisk.replace_synced(from, to)?;
        self.step(|| ())
    }
}

#[test]
fn a_call_killed_at_any_step_leaves_the_old_or_the_new_document() {
    let (mut old, mut new, mut completed) = (0, 0, false);
    for steps in 1..20 {
        let dir = tempfile::tempdir().unwrap();
        let first = reserve(&store(dir.path(), "net", OsDisk), "first").unwrap();
        let disk = DyingDisk {
            steps_left: Cell::new(steps),
        };
        let outcome = reserve(&store(dir.path(), "net", disk), "second");
        let left = reservations(dir.path());
        assert_eq!(
            (&*left[0].container_id, &*left[0].addresses),
            ("first", &[first][..])
        );
        match left.len() {
            1 => old += 1,
            2 => new += 1,
            _ => panic!("{left:?}"),
        }
        // And life goes on, without a duplicate.
        let third = reserve(&store(dir.path(), "net", OsDisk), "third").unwrap();
        assert!(left.iter().all(|r| !r.addresses.contains(&third)));
        if outcome.is_ok() {
            completed = true;
            break;
        }
    }
    assert!(completed && old >= 4 && new >= 2, "{old} {new}");
}

#[test]
fn eight_at_once_never_get_the_same_address() {
    let dir = tempfile::tempdir().unwrap();
    let taken: Vec<IpAddr> = std::thread::scope(|scope| {
        let worker = |worker: u32| {
            // Two networks share the node's range.
            let network = if worker.is_multiple_of(2) {
                "net"
            } else {
                "other"
            };
            let store = store(dir.path(), network, OsDisk);
            let ids = (0..50).map(move |i| format!("w{worker}-{i}"));
            ids.map(|id| reserve(&store, &id).unwrap())
                .collect::<Vec<_>>()
        };
        let threads: Vec<_> = (0..8).map(|i| scope.spawn(move || worker(i))).collect();
        threads
            .into_iter()
            .flat_map(|thread| thread.join().unwrap())
            .collect()
    });
    assert_eq!(taken.len(), 400);
    assert_eq!(taken.iter().collect::<BTreeSet<_>>().len(), 400);
}

#[test]
fn a_damaged_or_foreign_file_is_named_and_left_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    reserve(&store(dir.path(), "net", OsDisk), "first").unwrap();
    let path = dir.path().join("ipam/net.json");
    let good = fs::read(&path).unwrap();
    let foreign = String::from_utf8(good.clone())
        .unwrap()
        .replace("\"net\"", "\"else\"");
    let unknown = String::from_utf8(good.clone())
        .unwrap()
        .replacen('{', "{\"new\":1,", 1);
    let cases = [
        &good[..good.len() / 2],
        b"",
        b"{}",
        foreign.as_bytes(),
        unknown.as_bytes(),
    ];
    for bytes in cases {
        fs::write(&path, bytes).unwrap();
        // Seen from the network itself, and from another one that shares the range.
        for network in ["net", "other"] {
            let error = reserve(&store(dir.path(), network, OsDisk), "second").unwrap_err();
            let text = error.to_string();
            assert!(matches!(error, StoreError::Damaged { .. }), "{text}");
            assert!(
                text.contains("ipam/net.json") && text.contains("restore it"),
                "{text}"
            );
            assert_eq!(fs::read(&path).unwrap(), bytes);
        }
        // What another network lost does not keep this one's pods from going.
        let other = store(dir.path(), "other", OsDisk);
        other
            .update(|pool| Ok(pool.release(&owner("first"), NOW)))
            .unwrap();
    }
}

#[test]
fn a_reboot_releases_everything() {
    let dir = tempfile::tempdir().unwrap();
    let before = reserve(&store(dir.path(), "net", OsDisk), "first").unwrap();
    let later = Store::new(dir.path(), "net", "next boot", OsDisk);
    let after = reserve(&later, "second").unwrap();
    assert_ne!(before, after);
    let left = later
        .update(|pool| Ok(pool.reservations().to_vec()))
        .unwrap();
    assert_eq!(left.len(), 1);
    assert_eq!(left[0].container_id, "second");
}

#[test]
fn a_call_that_changes_nothing_writes_nothing_and_files_are_private() {
    let dir = tempfile::tempdir().unwrap();
    let ours = store(dir.path(), "net", OsDisk);
    reserve(&ours, "first").unwrap();
    let path = dir.path().join("ipam/net.json");
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
    let written = fs::metadata(&path).unwrap().modified().unwrap();
    ours.update(|pool| Ok(pool.release(&owner("unknown"), NOW)))
        .unwrap();
    assert_eq!(fs::metadata(&path).unwrap().modified().unwrap(), written);
    let mut names: Vec<_> = fs::read_dir(dir.path().join("ipam"))
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    names.sort();
    assert_eq!(names, [".lock", "net.json"]);
}
