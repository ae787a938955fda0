//! A lab to look around in.

use std::io::Read as _;

use serde_json::json;
use warren_lab::{Lab, Privilege, privilege};

/// Makes two hosts on a switch with one daemon each, in control groups of their own where that is allowed, says how to enter them, and waits.
pub(crate) fn run() -> anyhow::Result<()> {
    warren_lab::enter_user_namespace_if_needed()?;
    let lab = Lab::new("hold")?;
    let lan = lab.bridge("lan")?;
    let mut hosts = Vec::new();
    for number in 1..=2 {
        let host = lab.host(&format!("node{number}"))?;
        let end = host.end("eth0").addr(&format!("10.0.1.{number}/24"));
        lab.connect(end.addr(&format!("fd01::{number}/64")), lan.port())?;
        host.sh("setsid sh -c 'sleep 86400 & sleep 86400 &' > /dev/null 2>&1 < /dev/null")?;
        if privilege() == Privilege::Root {
            for group in host.cgroups()? {
                std::fs::write(group.join("cgroup.procs"), host.init_pid()?.to_string())?;
            }
        }
        hosts.push(json!({
            "name": host.name(),
            "init_pid": host.init_pid()?,
            "enter": host.enter_command(),
        }));
    }
    println!(
        "{}",
        json!({ "lab_init_pid": lab.init_pid(), "dir": lab.dir(), "hosts": hosts })
    );
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}
