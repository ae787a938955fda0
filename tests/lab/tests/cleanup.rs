//! Nothing of a lab outlives its test process, however that ends.

use std::io::BufRead as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use warren_lab::{Lab, LabError, Privilege, hierarchies, poll_until, privilege, require};

/// Long enough for a slow, shared machine.
const LIMIT: Duration = Duration::from_secs(30);

/// A process of its own with a lab of two hosts, each with two daemonised sleeps.
struct Victim {
    child: Child,
    init: i32,
    dir: PathBuf,
    pid_namespaces: Vec<String>,
}

impl Victim {
    fn start() -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_lab-tool"))
            .arg("hold-lab")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("lab-tool starts");
        let mut line = String::new();
        let stdout = child.stdout.take().expect("its output is piped");
        std::io::BufReader::new(stdout)
            .read_line(&mut line)
            .expect("it prints one line");
        let told: serde_json::Value = serde_json::from_str(&line).expect("it prints JSON");
        let number = |v: &serde_json::Value| v.as_i64().expect("a number") as i32;
        let hosts = told["hosts"].as_array().expect("a list");
        let inits = hosts.iter().map(|h| number(&h["init_pid"]));
        let namespace = |pid| pid_namespace(pid).expect("its first process runs");
        let pid_namespaces: Vec<String> = inits.map(namespace).collect();
        let dir = PathBuf::from(told["dir"].as_str().expect("a path"));
        let victim = Self {
            child,
            init: number(&told["lab_init_pid"]),
            dir,
            pid_namespaces,
        };
        assert!(victim.dir.is_dir());
        if privilege() == Privilege::Root {
            assert_eq!(control_groups(&victim.dir).len(), hierarchies().len());
        }
        // Per host: its first process and two daemons, whose shells may still be about to end.
        let six = poll_until(LIMIT, "six processes", || victim.members() == 6);
        assert!(six.is_ok(), "{} processes", victim.members());
        victim
    }

    /// How many processes of the machine are in the hosts' PID namespaces.
    fn members(&self) -> usize {
        let ours = |pid| pid_namespace(pid).is_some_and(|ns| self.pid_namespaces.contains(&ns));
        all_pids().into_iter().filter(|pid| ours(*pid)).count()
    }

    fn assert_gone(mut self, how: &str) -> Result<(), LabError> {
        self.child.wait().expect("wait");
        poll_until(
            LIMIT,
            &format!("the end of all processes after {how}"),
            || self.members() == 0 && pid_namespace(self.init).is_none(),
        )?;
        poll_until(
            LIMIT,
            &format!("the end of the directory after {how}"),
            || !self.dir.exists(),
        )?;
        poll_until(
            LIMIT,
            &format!("the end of the control groups after {how}"),
            || control_groups(&self.dir).is_empty(),
        )?;
        Ok(())
    }
}

/// The PID namespace of a living process; a zombie only waits for the machine's init, which may
/// take its time.
fn pid_namespace(pid: i32) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    if stat.rsplit(')').next()?.starts_with(" Z") {
        return None;
    }
    let link = std::fs::read_link(format!("/proc/{pid}/ns/pid")).ok()?;
    Some(link.display().to_string())
}

fn all_pids() -> Vec<i32> {
    let entries = std::fs::read_dir("/proc")
        .expect("/proc is there")
        .flatten();
    entries
        .filter_map(|e| e.file_name().to_str()?.parse().ok())
        .collect()
}

/// The control groups of the lab of this directory, one in each hierarchy.
fn control_groups(dir: &Path) -> Vec<PathBuf> {
    let name = dir.file_name().expect("a lab's directory has a name");
    let groups = hierarchies().into_iter().map(|h| h.mount_point.join(name));
    groups.filter(|group| group.is_dir()).collect()
}

/// What the machine's own namespaces show: links, named network namespaces, mounts.
fn machine() -> (Vec<String>, Vec<String>, String) {
    let names = |dir: &str| {
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        let mut names: Vec<_> = entries
            .map(|e| e.file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    };
    let mounts = std::fs::read_to_string("/proc/self/mounts").expect("/proc is there");
    (names("/sys/class/net"), names("/run/netns"), mounts)
}

fn signal(child: &Child, name: &str) {
    let pid = child.id().to_string();
    let status = Command::new("kill")
        .args(["-s", name, &pid])
        .status()
        .expect("kill runs");
    assert!(status.success());
}

#[test]
fn nothing_is_left_after_a_signal_or_a_normal_end() -> Result<(), LabError> {
    require!();
    let before = machine();
    for name in ["KILL", "TERM", "INT"] {
        let victim = Victim::start();
        assert_eq!(
            machine(),
            before,
            "a running lab is invisible to the machine"
        );
        signal(&victim.child, name);
        victim.assert_gone(name)?;
    }
    let mut victim = Victim::start();
    drop(victim.child.stdin.take());
    victim.assert_gone("a normal end")?;
    assert_eq!(machine(), before);
    Ok(())
}

#[test]
fn killing_the_labs_first_process_ends_everything_in_it() -> Result<(), LabError> {
    require!();
    let lab = Lab::new("init")?;
    let node1 = lab.host("node1")?;
    let sleeper = node1.spawn_argv(&["sleep", "600"])?;
    let status = Command::new("kill")
        .args(["-9", &lab.init_pid().to_string()])
        .status();
    assert!(status.expect("kill runs").success());
    sleeper.wait_timeout(LIMIT)?;
    Ok(())
}

#[test]
fn a_panic_ends_the_lab_and_keeps_its_logs() -> Result<(), LabError> {
    require!();
    let told = std::sync::Mutex::new(PathBuf::new());
    let panicked = std::thread::scope(|scope| {
        let work = scope.spawn(|| {
            let lab = Lab::new("panicking").expect("a lab");
            *told.lock().expect("not poisoned") = lab.dir().to_owned();
            let node1 = lab.host("node1").expect("a host");
            let talker = node1.spawn_argv(&["sh", "-c", "echo last words; sleep 600"]);
            talker
                .expect("sh starts")
                .wait_log("last words", LIMIT)
                .expect("it talks");
            panic!("on purpose: the message above and below is part of the test");
        });
        work.join().is_err()
    });
    assert!(panicked);
    assert!(!told.into_inner().expect("not poisoned").exists());
    let artifacts = std::env::var_os("WARREN_LAB_ARTIFACTS").map_or_else(
        || {
            let exe = std::env::current_exe().expect("this program");
            let target = exe
                .ancestors()
                .find(|a| a.ends_with("target"))
                .map(Path::to_owned);
            target
                .expect("tests run from the target directory")
                .join("lab-artifacts")
        },
        PathBuf::from,
    );
    let prefix = format!("panicking-{}-", std::process::id());
    let entries = std::fs::read_dir(artifacts)
        .expect("logs are kept")
        .flatten();
    let kept = entries
        .map(|e| e.path())
        .find(|p| {
            p.file_name()
                .is_some_and(|n| n.to_string_lossy().starts_with(&prefix))
        })
        .expect("a directory for this process");
    let log = std::fs::read_to_string(kept.join("node1-sh-0.log")).expect("the log is kept");
    assert_eq!(log, "last words\n");
    std::fs::remove_dir_all(kept).expect("remove the kept logs");
    Ok(())
}

#[test]
fn a_detached_lab_stays_until_it_is_taken_down() -> Result<(), LabError> {
    require!();
    let lab = Lab::new("detached")?;
    let node1 = lab.host("node1")?;
    node1.sh("setsid sh -c 'sleep 600 &' > /dev/null 2>&1 < /dev/null")?;
    let namespace = pid_namespace(node1.init_pid()?);
    let detached = lab.detach()?;
    // The sweep of another lab must not take it for stale.
    drop(Lab::new("sweep")?);
    assert!(detached.dir.is_dir());
    let members = || {
        all_pids()
            .into_iter()
            .filter(|p| pid_namespace(*p) == namespace)
            .count()
    };
    poll_until(LIMIT, "its first process and the daemon", || members() == 2)?;
    let status = Command::new("sh")
        .args(["-c", &detached.take_down])
        .status();
    assert!(status.expect("sh runs").success());
    poll_until(LIMIT, "the end of a lab taken down", || {
        members() == 0 && !detached.dir.exists()
    })?;
    Ok(())
}

#[test]
fn the_next_lab_removes_directories_of_dead_processes() -> Result<(), LabError> {
    require!();
    let lab = Lab::new("first")?;
    let mine = lab
        .dir()
        .file_name()
        .expect("a name")
        .to_string_lossy()
        .into_owned();
    let mut parts: Vec<&str> = mine.split('.').collect();
    // Our own PID with another start time: a process that is gone.
    parts[3] = "1";
    let stale = lab.dir().with_file_name(parts.join("."));
    std::fs::create_dir(&stale).expect("make a stale directory");
    drop(Lab::new("second")?);
    assert!(!stale.exists());
    assert!(lab.dir().is_dir(), "a living one stays");
    Ok(())
}
