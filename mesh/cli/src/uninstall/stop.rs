//! The daemons: whether they run, and ending them in order.

use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use warren_claim::{AGENT, AGENT_AS_TUNNEL, Holder, holder, tunnel};

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
    let holders = claims(interface).map(|(program, name)| (program, holder(&name)));
    let names = claims(interface).map(|(_, name)| name);
    let running = programs(holders).into_iter().zip(names);
    running
        .filter_map(|(found, name)| {
            let (program, found) = found?;
            if !stop {
                return Some(format!(
                    "{program} is running ({found}); end it first (its DaemonSet or service, or it comes \
                     back), or give --stop"
                ));
            }
            end(program, &name, &found)
        })
        .collect()
}

/// Who is to be ended for each claim. An agent that drives the kernel's WireGuard has the tunnel's claim as
/// well: it is named as what it is, and once.
fn programs(
    [agent, tunnel]: [(&'static str, Option<Holder>); 2],
) -> [Option<(&'static str, Holder)>; 2] {
    let is_agent = |holder: &Holder| {
        let pid = agent.1.as_ref().and_then(|agent| agent.pid);
        holder.words.as_deref() == Some(AGENT_AS_TUNNEL) || pid.is_some() && holder.pid == pid
    };
    let tunnel = match tunnel {
        (_, Some(holder)) if is_agent(&holder) => match agent.1 {
            Some(_) => None,
            // Its other claim is gone already.
            None => Some((agent.0, holder)),
        },
        (program, holder) => holder.map(|holder| (program, holder)),
    };
    [agent.1.map(|holder| (agent.0, holder)), tunnel]
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

#[cfg(test)]
mod tests {
    use super::*;

    fn found(pid: Option<i32>, words: &str) -> Option<Holder> {
        let words = Some(words.to_owned());
        Some(Holder { pid, words })
    }

    fn named(agent: Option<Holder>, tunnel: Option<Holder>) -> [Option<&'static str>; 2] {
        programs([("warren-agent", agent), ("warren-tunnel", tunnel)])
            .map(|found| found.map(|(program, _)| program))
    }

    #[test]
    fn an_agent_that_has_both_claims_is_told_once_and_by_its_name() {
        let (agent, tunnel) = (Some("warren-agent"), Some("warren-tunnel"));
        let lock = "lock /run/warren/agent.lock";
        // In another PID namespace there is no process to compare.
        for pid in [Some(7), None] {
            let both = named(found(pid, lock), found(pid, AGENT_AS_TUNNEL));
            assert_eq!(both, [agent, None]);
        }
        // One that is stopped says nothing.
        let mute = Some(Holder {
            pid: Some(7),
            words: None,
        });
        assert_eq!(named(found(Some(7), lock), mute), [agent, None]);
        let last = named(None, found(Some(7), AGENT_AS_TUNNEL));
        assert_eq!(last, [None, agent]);
        let two = named(found(Some(7), lock), found(Some(8), "lock of the tunnel"));
        assert_eq!(two, [agent, tunnel]);
        assert_eq!(
            named(None, found(None, "lock of the tunnel")),
            [None, tunnel]
        );
        assert_eq!(named(None, None), [None, None]);
    }
}
