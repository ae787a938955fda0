//! The store: killed at any point, shared by many, damaged by others.

#![allow(
    clippy::unwrap_used,
    reason = "in a test a failed step is a failed test"
)]

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use ipnet::IpNet;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use warren_cni::env::{AttachmentId, ContainerId, IfName};
use warren_cni::ipam::{
    AddressRange, Circumstances, Disk, Ipam, Live, LiveAttachment, OsDisk, Reservation, Store,
    StoreError, Wanted,
};
use warren_cni::plan::host_name;
use warren_netlink::NetlinkError;

const NOW: Duration = Duration::from_secs(1000);

fn owner(id: &str) -> AttachmentId {
    AttachmentId {
        container_id: ContainerId::new(id).unwrap(),
        ifname: IfName::new("eth0").unwrap(),
    }
}

/// What is attached, as the test says; shared by all stores of a test.
#[derive(Clone, Debug, Default)]
struct Attached(Rc<RefCell<Vec<LiveAttachment>>>);

impl Attached {
    fn add(&self, id: &str, address: IpAddr) {
        self.0.borrow_mut().push(LiveAttachment {
            host_interface: host_name(&owner(id)),
            container_id: id.into(),
            ifname: "eth0".into(),
            ours: true,
            addresses: vec![address],
        });
    }
}

impl Live for Attached {
    fn names(&self) -> Result<BTreeSet<String>, NetlinkError> {
        let attached = self.0.borrow();
        Ok(attached.iter().map(|l| l.host_interface.clone()).collect())
    }

    fn attachments(&self) -> Result<Vec<LiveAttachment>, NetlinkError> {
        Ok(self.0.borrow().clone())
    }
}

fn range() -> Vec<AddressRange> {
    vec![AddressRange::of("10.0.0.0/22".parse::<IpNet>().unwrap())]
}

fn store<D: Disk>(dir: &Path, network: &str, disk: D) -> Store<D, Attached> {
    beside(dir, network, disk, &Attached::default())
}

fn beside<D: Disk>(dir: &Path, network: &str, disk: D, live: &Attached) -> Store<D, Attached> {
    Store::new(dir, network, "boot", disk, live.clone())
}

fn reserve<D: Disk, L: Live>(store: &Store<D, L>, id: &str) -> Result<IpAddr, StoreError> {
    let (owner, ranges) = (owner(id), range());
    let wanted = Wanted {
        owner: &owner,
        pod: Some("default/web"),
        ranges: &ranges,
        addresses: &[],
    };
    let granted = store.update_beside(|pool, elsewhere| {
        let with = Circumstances {
            elsewhere,
            now: NOW,
            unix_time: 5,
        };
        pool.reserve(&wanted, &with)
    })?;
    Ok(granted.addresses[0])
}

fn reservations(dir: &Path) -> Vec<Reservation> {
    store(dir, "net", OsDisk)
        .update(|pool| Ok(pool.reservations().to_vec()))
        .unwrap()
}

fn files(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir.join("ipam")).unwrap();
    let mut names: Vec<_> = entries
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
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

    fn overwrite(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        // Before the write, in it, and after it.
        self.step(|| ())?;
        self.step(|| fs::write(path, &bytes[..bytes.len() / 2]).unwrap())?;
        OsDisk.overwrite(path, bytes)?;
        self.step(|| ())
    }

    fn extend(&self, path: &Path, length: usize) -> io::Result<()> {
        let present = fs::metadata(path)?.len() as usize;
        self.step(|| OsDisk.extend(path, (present + length) / 2).unwrap())?;
        OsDisk.extend(path, length)?;
        self.step(|| ())
    }

    fn exchange(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.step(|| ())?;
        OsDisk.exchange(from, to)?;
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
fn a_damaged_or_foreign_file_is_set_aside_and_made_anew_from_what_lives() {
    let dir = tempfile::tempdir().unwrap();
    let attached = Attached::default();
    let net = beside(dir.path(), "net", OsDisk, &attached);
    let first = reserve(&net, "first").unwrap();
    attached.add("first", first);
    let path = dir.path().join("ipam/net.json");
    let good = fs::read(&path).unwrap();
    let text = String::from_utf8(good.clone()).unwrap();
    let foreign = text.replace("\"net\"", "\"else\"");
    let unknown = text.replacen('{', "{\"new\":1,", 1);
    let cases = [
        &good[..text.trim_end().len() / 2],
        b"",
        b"{}",
        &[0; 4096],
        foreign.as_bytes(),
        unknown.as_bytes(),
    ];
    let mut taken = BTreeSet::from([first]);
    for (i, bytes) in cases.iter().enumerate() {
        fs::write(&path, bytes).unwrap();
        // Another network that shares the range gives no address of a pod that runs ...
        let other = beside(dir.path(), "other", OsDisk, &attached);
        assert!(taken.insert(reserve(&other, &format!("other{i}")).unwrap()));
        assert_eq!(fs::read(&path).unwrap(), *bytes);
        // ... and neither does this one, which knows again whose it is.
        assert_ne!(reserve(&net, "second").unwrap(), first);
        let left = reservations(dir.path());
        assert_eq!(left.len(), 2);
        assert_eq!(
            (&*left[0].container_id, &left[0].addresses),
            ("first", &vec![first])
        );
        // Nothing of it is lost.
        let aside: Vec<_> = files(dir.path())
            .into_iter()
            .filter(|name| name.starts_with("net.json.damaged-"))
            .collect();
        assert_eq!(aside.len(), i + 1, "{aside:?}");
        let kept = |name: &String| fs::read(dir.path().join("ipam").join(name)).unwrap();
        assert!(aside.iter().any(|name| kept(name) == *bytes));
        net.update(|pool| Ok(pool.give_back(&owner("second"))))
            .unwrap();
    }
}

#[test]
fn what_is_no_file_is_set_aside_too() {
    let dir = tempfile::tempdir().unwrap();
    let ours = store(dir.path(), "net", OsDisk);
    reserve(&ours, "first").unwrap();
    let path = dir.path().join("ipam/net.json");
    for _ in 0..2 {
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        reserve(&ours, "first").unwrap();
    }
    fs::remove_file(&path).unwrap();
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    reserve(&ours, "first").unwrap();
    let aside = files(dir.path());
    assert_eq!(
        aside.iter().filter(|name| name.contains("damaged")).count(),
        3
    );
}

#[test]
fn a_lost_document_is_made_anew_from_what_lives() {
    let dir = tempfile::tempdir().unwrap();
    let attached = Attached::default();
    let net = beside(dir.path(), "net", OsDisk, &attached);
    let first = reserve(&net, "first").unwrap();
    attached.add("first", first);
    fs::remove_dir_all(dir.path().join("ipam")).unwrap();
    assert_ne!(reserve(&net, "second").unwrap(), first);
    let released = net
        .update(|pool| Ok(pool.release(&owner("first"), NOW)))
        .unwrap();
    assert_eq!(released, [first]);
}

#[test]
fn a_reboot_releases_everything_that_does_not_live() {
    let dir = tempfile::tempdir().unwrap();
    let attached = Attached::default();
    let before = beside(dir.path(), "net", OsDisk, &attached);
    let first = reserve(&before, "first").unwrap();
    let kept = reserve(&before, "kept").unwrap();
    attached.add("kept", kept);
    let later = Store::new(dir.path(), "net", "next boot", OsDisk, attached);
    let after = reserve(&later, "second").unwrap();
    assert!(after != first && after != kept);
    let left = later
        .update(|pool| Ok(pool.reservations().to_vec()))
        .unwrap();
    let ids: Vec<&str> = left.iter().map(|r| &*r.container_id).collect();
    assert_eq!(ids, ["kept", "second"]);
}

#[test]
fn a_sweep_releases_what_nothing_owns_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let attached = Attached::default();
    let net = beside(dir.path(), "net", OsDisk, &attached);
    let ipam = Ipam::on(net.clone());
    for id in ["lives", "gone", "adding"] {
        let address = reserve(&net, id).unwrap();
        if id == "lives" {
            attached.add(id, address);
        }
    }
    let found: IpAddr = "10.0.1.1".parse().unwrap();
    attached.add("found", found);
    let add = ipam.lock(&owner("adding")).unwrap();
    let ids = |list: Vec<Reservation>| -> Vec<String> {
        list.into_iter().map(|r| r.container_id).collect()
    };
    assert_eq!(ids(ipam.sweep().unwrap()), ["gone"]);
    assert_eq!(ids(reservations(dir.path())), ["lives", "adding", "found"]);
    assert!(ipam.sweep().unwrap().is_empty());
    // The ADD ends without an interface, by SIGKILL for one.
    drop(add);
    assert_eq!(ids(ipam.sweep().unwrap()), ["adding"]);
    assert_eq!(ids(reservations(dir.path())), ["lives", "found"]);
}

#[test]
fn a_used_up_pool_is_swept_and_so_is_one_that_was_long_not() {
    let dir = tempfile::tempdir().unwrap();
    let ipam = Ipam::on(store(dir.path(), "net", OsDisk));
    let give = |id: &str| {
        let ranges = [AddressRange::of("10.0.0.0/30".parse().unwrap())];
        ipam.reserve(&Wanted {
            owner: &owner(id),
            pod: None,
            ranges: &ranges,
            addresses: &[],
        })
    };
    // The first call sweeps, but not itself while its lock is held.
    let lock = ipam.lock(&owner("first")).unwrap();
    give("first").unwrap();
    drop(lock);
    let error = give("second").unwrap_err().to_string();
    // It is free, and cools down.
    assert!(error.contains("0 taken by pods, 1 freed"), "{error}");
    assert!(reservations(dir.path()).is_empty());
}

/// Reserves so many addresses and more on a disk that fills, and releases them while it is full.
fn fill_and_release(state: &Path, filler: &Path, count: usize) {
    let ours = store(state, "net", OsDisk);
    for i in 0..count {
        reserve(&ours, &format!("c{i}")).unwrap();
    }
    let mut file = fs::File::create(filler).unwrap();
    while io::Write::write_all(&mut file, &[1; 512]).is_ok() {}
    // Some more fit into the blocks that are there, and then no more.
    let (mut added, mut refused) = (count, None);
    while refused.is_none() && added < 1000 {
        match reserve(&ours, &format!("c{added}")) {
            Ok(_) => added += 1,
            Err(error) => refused = Some(error.to_string()),
        }
    }
    let error = refused.unwrap();
    assert!(
        error.contains("No space left") && error.contains("free space"),
        "{error}"
    );
    assert_eq!(reservations(state).len(), added);
    // Space comes and goes, and with it pods.
    for i in 0..80 {
        if i % 7 < 3 {
            file.set_len(0).unwrap();
            io::Seek::rewind(&mut file).unwrap();
            let _ = reserve(&ours, &format!("more{i}"));
            while io::Write::write_all(&mut file, &[1; 512]).is_ok() {}
        } else {
            let _ = reserve(&ours, &format!("more{i}"));
        }
        let gone = owner(&format!("more{}", i - i % 2));
        ours.update(|pool| Ok(pool.release(&gone, NOW))).unwrap();
    }
    for i in 0..80 {
        let gone = owner(&format!("more{i}"));
        ours.update(|pool| Ok(pool.release(&gone, NOW))).unwrap();
    }
    for i in 0..added {
        let released = ours
            .update(|pool| Ok(pool.release(&owner(&format!("c{i}")), NOW)))
            .unwrap();
        assert_eq!(released.len(), 1);
        assert_eq!(reservations(state).len(), added - i - 1);
    }
    fs::remove_file(filler).unwrap();
    fs::remove_dir_all(state).unwrap();
}

#[test]
fn on_a_full_disk_the_old_document_stays_and_addresses_can_be_released() {
    let dir = tempfile::tempdir().unwrap();
    if !nix::unistd::geteuid().is_root() {
        assert!(
            std::env::var_os("CI").is_none(),
            "this test needs root, and CI may not skip it"
        );
        eprintln!("skipped: it mounts a small file system, which needs root");
        return;
    }
    // On a thread with mounts of its own, which go with it.
    let run = || {
        unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS).unwrap();
        let private = MsFlags::MS_PRIVATE | MsFlags::MS_REC;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
        mount(
            Some("none"),
            dir.path(),
            Some("tmpfs"),
            MsFlags::empty(),
            Some("size=256k"),
        )
        .unwrap();
        // Of each size, for what fits depends on where a document ends in its last block.
        for count in (1..60).step_by(13) {
            fill_and_release(&dir.path().join("state"), &dir.path().join("filler"), count);
        }
    };
    std::thread::scope(|scope| scope.spawn(run).join().unwrap());
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
    assert_eq!(files(dir.path()), [".lock", ".net.json.spare", "net.json"]);
}
