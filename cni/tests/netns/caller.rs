//! What a caller, or a node, can do to a call beside its configuration.

use std::fs::File;
use std::process::{Command, Stdio};

use serde_json::json;

use crate::refused;
use crate::world::{Ns, PLUGIN, World, require_root};

/// An ADD with this stdout fails, says why on stderr, and leaves nothing behind.
#[track_caller]
fn unheard(world: &World, mut command: Command, stdout: Option<Stdio>, words: &[&str]) {
    let pod = Ns::new();
    if let Some(stdout) = stdout {
        command.stdout(stdout);
    }
    let call = world.start(command, "ADD", "c1", Some(&pod), (&[], &world.conf()));
    let out = call.wait_with_output().unwrap();
    let stderr = String::from_utf8(out.stderr).unwrap();
    assert!(!out.status.success(), "{stderr}");
    assert!(words.iter().all(|word| stderr.contains(word)), "{stderr}");
    assert!(world.pod_links().is_empty(), "{stderr}");
    assert_eq!(pod.links(), ["lo"], "{stderr}");
    assert!(world.reservations().is_empty(), "{stderr}");
    world.add("c1", &pod).ok();
    world.del("c1").done();
}

#[test]
fn an_add_whose_result_nobody_reads_leaves_nothing_behind() {
    if !require_root() {
        return;
    }
    let world = World::new();
    // The reader is gone.
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let undone = ["cannot write the answer", "undone"];
    unheard(&world, Command::new(PLUGIN), Some(writer.into()), &undone);
    // No room.
    let full = File::options().write(true).open("/dev/full").unwrap();
    unheard(&world, Command::new(PLUGIN), Some(full.into()), &undone);
    // Closed, and what means the same.
    let mut closed = Command::new("/bin/sh");
    closed.args(["-c", "exec \"$0\" >&-", PLUGIN]);
    unheard(&world, closed, None, &["ADD refused: stdout is closed"]);
    let null = Some(Stdio::null());
    unheard(&world, Command::new(PLUGIN), null, &["ADD refused"]);
    // What answers nothing may have it.
    let pod = Ns::new();
    world.add("c2", &pod).ok();
    let mut del = Command::new(PLUGIN);
    del.stdout(Stdio::null());
    let del = world.start(del, "DEL", "c2", Some(&pod), (&[], &world.conf()));
    assert!(del.wait_with_output().unwrap().status.success());
    assert!(world.pod_links().is_empty());
}

/// The kernel itself stays as it is: only its settings for IPv6 are hidden from the plugin, by which
/// it tells.
#[test]
fn a_kernel_without_ipv6_is_named_and_nothing_is_made() {
    if !require_root() {
        return;
    }
    let world = World::new();
    let pod = Ns::new();
    let hidden = |verb: &str| {
        let mut command = Command::new("unshare");
        let script = "mount -t tmpfs none /proc/sys/net/ipv6 && exec \"$0\"";
        command.args(["-m", "/bin/sh", "-c", script, PLUGIN]);
        command.stdout(Stdio::piped());
        let env = [("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")];
        let call = world.start(command, verb, "c1", Some(&pod), (&env, &world.conf()));
        let out = call.wait_with_output().unwrap();
        crate::world::Reply {
            success: out.status.success(),
            stdout: String::from_utf8(out.stdout).unwrap(),
            stderr: String::from_utf8(out.stderr).unwrap(),
        }
    };
    let words = ["no IPv6", "ipv6.disable=1", "fd00:0:0:1::/64"];
    refused(&hidden("ADD"), 100, &words);
    // No tunnel runs here, which is told as well.
    refused(&hidden("STATUS"), 51, &words);
    assert!(world.pod_links().is_empty() && world.reservations().is_empty());
    // A cluster of IPv4 alone has no need of it.
    world.write_node(&["10.244.1.0/24"], &["10.244.0.0/16"]);
    let result = hidden("ADD").ok();
    assert_eq!(result["ips"].as_array().unwrap().len(), 1);
    hidden("DEL").done();
}

#[test]
fn a_node_that_has_ipv6_switched_off_by_sysctl_gives_its_pods_ipv6() {
    if !require_root() {
        return;
    }
    let world = World::new();
    let pod = Ns::new();
    world
        .node
        .sh("echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6");
    world.add("c1", &pod).ok();
    pod.sh("ping -n -c 1 -W 10 fd00:0:0:1::1");
}

/// Two networks on one node, which know nothing of each other: neither their state directories nor
/// their names.
#[test]
fn networks_with_state_directories_of_their_own_leave_each_others_pods_alone() {
    if !require_root() {
        return;
    }
    let world = World::new();
    let elsewhere = tempfile::tempdir().unwrap();
    let record = world.state().join("node.json");
    std::fs::copy(record, elsewhere.path().join("node.json")).unwrap();
    let mut first = world.conf();
    first["ranges"] = json!([{"subnet": "10.244.1.0/25"}, {"subnet": "fd00:0:0:1::/65"}]);
    let mut second = world.conf();
    second["stateDir"] = json!(elsewhere.path());
    second["ranges"] = json!([{"subnet": "10.244.1.128/25"}, {"subnet": "fd00:0:0:1:8000::/65"}]);
    let (ours, theirs) = (Ns::new(), Ns::new());
    world.call("ADD", "ours", Some(&ours), &[], &first).ok();
    world
        .call("ADD", "theirs", Some(&theirs), &[], &second)
        .ok();
    // What each has stored is lost, and made anew from what runs: of its own alone.
    std::fs::remove_dir_all(world.state().join("ipam")).unwrap();
    std::fs::remove_dir_all(elsewhere.path().join("ipam")).unwrap();
    let (third, fourth) = (Ns::new(), Ns::new());
    world.call("ADD", "third", Some(&third), &[], &first).ok();
    world
        .call("ADD", "fourth", Some(&fourth), &[], &second)
        .ok();
    let held = world.reservations();
    let held: Vec<&str> = held
        .iter()
        .map(|r| r["containerId"].as_str().unwrap_or_default())
        .collect();
    assert_eq!(held, ["ours", "third"]);
    // And a collection of the one takes nothing of the other.
    let mut collect = first.clone();
    collect["cni.dev/valid-attachments"] = json!([]);
    world.call("GC", "", None, &[], &collect).done();
    assert_eq!((ours.links().len(), third.links().len()), (1, 1));
    assert_eq!((theirs.links().len(), fourth.links().len()), (2, 2));
    theirs.sh("ping -n -c 1 -W 10 10.244.1.1");
    // A stray of its own goes, though there is another network.
    std::fs::remove_dir_all(elsewhere.path().join("ipam")).unwrap();
    let mut collect = second.clone();
    collect["cni.dev/valid-attachments"] = json!([{"containerID": "fourth", "ifname": "eth0"}]);
    world.call("GC", "", None, &[], &collect).done();
    assert_eq!((theirs.links().len(), fourth.links().len()), (1, 2));
}
