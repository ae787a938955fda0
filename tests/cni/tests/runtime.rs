//! Under a real runtime: Debian's containerd and its own client start a container on the agent's
//! configuration, and tear it down.
//!
//! ```text
//!   container: busybox          node 192.0.2.1                    outside 192.0.2.9
//!   made by ctr and runc             2001:db8::1                          2001:db8::9
//!   eth0 ------------------ wrn....   uplink ----------------------- eth0
//! ```
//!
//! containerd has mount and process namespaces of its own, with empty /etc, /opt, /run and /var/lib.

#![allow(
    clippy::unwrap_used,
    reason = "in a test a failed step is a failed test"
)]

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use warren_agent::cni_chain::Prober;
use warren_agent::cni_config::document;
use warren_agent::config::{Surroundings, load};
use warren_cni_suite::{World, skip, tools, world};

/// How long a busy machine may take for a container.
const PATIENCE: Duration = Duration::from_secs(120);
const REFERENCE: [&str; 2] = ["portmap", "bandwidth"];

/// What a node's runtime does: starts containerd, imports the image, runs one container with `ctr`,
/// and stops containerd. Arguments: directory, name of containerd's namespace, the container's command.
const SCRIPT: &str = r#"
set -eu
dir=$1 namespace=$2 work=$3
mount --make-rprivate /
for place in /run /etc /opt /var/lib; do mount -t tmpfs tmpfs $place; done
mkdir -p /etc/cni/net.d /opt/cni/bin $dir/containerd
cp $dir/10-warren.conflist /etc/cni/net.d/
cp $dir/bin/* /opt/cni/bin/
cat >$dir/containerd.toml <<END
version = 2
root = "$dir/containerd"
state = "/run/containerd"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
  address = "/run/containerd/containerd.sock"
END
containerd --config $dir/containerd.toml >$dir/containerd.log 2>&1 &
daemon=$!
tries=0
until ctr version >/dev/null 2>&1; do
    tries=$((tries + 1))
    [ $tries -lt 300 ] || { cat $dir/containerd.log; exit 1; }
    sleep 0.1
done
ctr -n $namespace image import --snapshotter native $dir/image.tar
status=0
ctr -n $namespace run --rm --cni --snapshotter native warren.test/busybox:1 c1 /bin/sh -c "$work" || status=$?
kill $daemon
wait $daemon || true
exit $status
"#;

/// The cgroups that runc makes for containerd's namespace, removed when the test ends.
struct Cgroups(String);

impl Drop for Cgroups {
    fn drop(&mut self) {
        let hierarchies = std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten();
        let dirs = hierarchies.flatten().map(|entry| entry.path());
        for dir in dirs.chain([PathBuf::from("/sys/fs/cgroup")]) {
            let _ = std::fs::remove_dir(dir.join(&self.0));
        }
    }
}

/// The processes of the node's runtime; they end with this value.
struct Runtime(Child);

impl Drop for Runtime {
    fn drop(&mut self) {
        // It takes its process namespace along.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn missing() -> Option<&'static str> {
    let programs = ["containerd", "ctr", "runc", "busybox"];
    let plugins = REFERENCE.map(|name| Path::new(tools::REFERENCE_PLUGINS).join(name));
    let absent = programs
        .into_iter()
        .find(|name| tools::program(name).is_none());
    absent.or_else(|| {
        plugins
            .iter()
            .any(|p| !p.exists())
            .then_some("containernetworking-plugins")
    })
}

/// The configuration that the agent writes where Debian's plugins are there.
fn conflist(world: &World) -> Value {
    let bin = world.dir().join("bin");
    std::fs::create_dir(&bin).unwrap();
    std::fs::copy(
        warren_lab::bin("warren-cni").unwrap(),
        bin.join("warren-cni"),
    )
    .unwrap();
    for name in REFERENCE {
        std::fs::copy(
            Path::new(tools::REFERENCE_PLUGINS).join(name),
            bin.join(name),
        )
        .unwrap();
    }
    let args = [
        "warren-agent".to_owned(),
        "--node-name=node-1".into(),
        "--cluster-cidrs=10.244.0.0/16,fd00::/48".into(),
        "--pod-cidrs=10.244.1.0/24,fd00:0:0:1::/64".into(),
        format!("--state-dir={}", world.state().display()),
        format!("--run-dir={}", world.run_dir().display()),
        format!("--cni-bin-dir={}", bin.display()),
    ];
    let loaded = load(
        args.map(OsString::from),
        &BTreeMap::new(),
        &Surroundings::default(),
    )
    .unwrap();
    document(&loaded.config, &Prober::new(Some(bin)).chain())
}

#[test]
fn containerd_starts_a_container_on_the_agents_configuration_and_tears_it_down() {
    let world = world!();
    if let Some(name) = missing() {
        skip(&format!("{name} is missing; run tests/install-deps"));
        return;
    }
    let conflist = conflist(&world);
    // Debian's portmap does not know 1.1.0.
    let types: Vec<&str> = conflist["plugins"]
        .as_array()
        .unwrap()
        .iter()
        .map(|plugin| plugin["type"].as_str().unwrap())
        .collect();
    assert_eq!(types, ["warren-cni", "portmap", "bandwidth"]);
    assert_eq!(
        conflist["cniVersions"],
        serde_json::json!(["0.3.1", "0.4.0", "1.0.0"])
    );
    let dir = world.dir();
    std::fs::write(dir.join("10-warren.conflist"), conflist.to_string()).unwrap();
    let make = Path::new(env!("CARGO_MANIFEST_DIR")).join("make-image");
    let made = Command::new(make)
        .arg(dir.join("image.tar"))
        .status()
        .unwrap();
    assert!(made.success());

    let namespace = format!("warren-test-{}", std::process::id());
    let _cgroups = Cgroups(namespace.clone());
    let work = "ip addr show dev eth0 && ip route && ip -6 route &&
        for to in 10.244.1.1 fd00:0:0:1::1 192.0.2.9 2001:db8::9; do ping -c 1 -W 10 $to || exit 1; done &&
        echo ALL-REACHED && nc -l -p 80 -e echo from the container";
    let mut command = Command::new("unshare");
    command.args([
        "-m",
        "-p",
        "-f",
        "--mount-proc",
        "--kill-child",
        "sh",
        "-c",
        SCRIPT,
        "sh",
    ]);
    command.arg(dir).args([&namespace, work]);
    let log = dir.join("runtime.log");
    let file = std::fs::File::create(&log).unwrap();
    command
        .stdin(Stdio::null())
        .stdout(file.try_clone().unwrap())
        .stderr(file);
    command.env("PATH", "/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin");
    let mut runtime = Runtime(world.node.run(|| command.spawn().unwrap()));
    let said = || std::fs::read_to_string(&log).unwrap();

    let deadline = Instant::now() + PATIENCE;
    while !said().contains("ALL-REACHED") {
        let ended = runtime.0.try_wait().unwrap();
        assert!(
            ended.is_none() && Instant::now() < deadline,
            "{ended:?}\n{}",
            said()
        );
        std::thread::sleep(Duration::from_millis(50));
    }
    // The container runs: what it is attached by is ours, and the node reaches it.
    assert_eq!(world.reserved(), [format!("{namespace}-c1")]);
    assert_eq!(world.pod_links().len(), 1);
    let pool: Value =
        serde_json::from_slice(&std::fs::read(world.state().join("ipam/warren.json")).unwrap())
            .unwrap();
    let address = pool["reservations"][0]["addresses"][0]
        .as_str()
        .unwrap()
        .to_owned();
    assert!(said().contains(&format!("inet {address}/32")), "{}", said());
    world.node.sh(&format!("ping -n -c 1 -W 10 {address}"));
    let answer = world.node.run(|| {
        use std::io::Read;
        let mut text = String::new();
        loop {
            // `ALL-REACHED` comes a moment before it listens.
            if let Ok(mut stream) = std::net::TcpStream::connect(format!("{address}:80")) {
                stream.read_to_string(&mut text).unwrap();
                return text;
            }
            assert!(Instant::now() < deadline, "the container does not listen");
            std::thread::sleep(Duration::from_millis(50));
        }
    });
    assert_eq!(answer.trim(), "from the container");

    // It ends by itself, and ctr tears its network down.
    let ended = loop {
        if let Some(status) = runtime.0.try_wait().unwrap() {
            break status;
        }
        assert!(Instant::now() < deadline, "{}", said());
        std::thread::sleep(Duration::from_millis(50));
    };
    assert!(ended.success(), "{}", said());
    assert!(
        world.pod_links().is_empty() && world.reserved().is_empty(),
        "{}",
        said()
    );
    assert!(!world.node.sh("ip route; ip -6 route").contains("proto 152"));
}
