//! The daemons: whether they run, and ending them in order.

use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use warren_claim::{AGENT, Holder, holder, tunnel};

/// How long a daemon may take to end.
const LIMIT: Duration = Duration::from_secs(15);
const PAUSE: Duration = Duration::from_millis(20);
/// How often it is looked whether others have ended them.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// The daemons with their claims. The agent first: it would repair what goes with the tunnel.
fn claims(interface: &str) -> [(&'static str, String); 2] {
    [
        ("warren-agent", AGENT.to_owned()),
        ("warren-tunnel", tunnel(interface)),
    ]
}

/// Waits until no daemon runs any more, or for `limit`.
pub(super) fn await_end(interface: &str, limit: Duration) {
    let deadline = Instant::now() + limit;
    let runs = || {
        claims(interface)
            .iter()
            .any(|(_, name)| holder(name).is_some())
    };
    while runs() && Instant::now() < deadline {
        std::thread::sleep(LOOK_EVERY);
    }
}

/// Ends the daemons if that is wanted; returns what still runs, for people.
pub(super) fn daemons(interface: &str, stop: bool) -> Vec<String> {
    claims(interface)
    .iter()
    .filter_map(|(program, name)| {
        let found = holder(name)?;
        if !stop {
            return Some(format!(
                "{program} is running ({found}); end it first (its DaemonSet or service, or it comes \
                 back), or give --stop"
            ));
        }
        end(program, name, &found)
    })
    .collect()
}

fn end(program: &str, name: &str, found: &Holder) -> Option<String> {
    let Some(pid) = found.pid else {
        return Some(format!(
            "{program} runs in another PID namespace ({found}); end it there first"
        ));
    };
    match kill(Pid::from_raw(pid), Signal::SIGTERM) {
        Ok(()) | Err(Errno::ESRCH) => {}
        Err(errno) => {
            return Some(format!(
                "end {program}, pid {pid}: {errno}; run this as root"
            ));
        }
    }
    let deadline = Instant::now() + LIMIT;
    while let Some(found) = holder(name) {
        if found.pid != Some(pid) {
            return Some(format!(
                "{program} was started again by something ({found}); end that first"
            ));
        }
        if Instant::now() > deadline {
            return Some(format!(
                "{program}, pid {pid}, does not end within {LIMIT:?}"
            ));
        }
        std::thread::sleep(PAUSE);
    }
    None
}
