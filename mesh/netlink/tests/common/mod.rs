//! Fresh network namespaces for tests; the machine's own is never touched.
#![allow(dead_code, reason = "each test file uses its own part of this")]

use std::io;
use std::process::{Command, Stdio};

use nix::sched::{CloneFlags, unshare};
use warren_netlink::{Link, Netlink, Netns, VethPeer, VethSpec};

pub(crate) const MAIN_TABLE: u32 = 254;
pub(crate) const NODE_TABLE: u32 = 51871;
pub(crate) const PROTOCOL: u8 = 151;
pub(crate) const UNREACHABLE_METRIC: u32 = 0xffff_fff0;

/// Makes `N` empty network namespaces, or says why the test is skipped.
pub(crate) fn namespaces<const N: usize>() -> Option<[Netns; N]> {
    let made: io::Result<Vec<Netns>> = (0..N).map(|_| fresh()).collect();
    match made {
        Ok(made) => made.try_into().ok(),
        Err(error) => {
            skip(&format!("cannot make a network namespace: {error}"));
            None
        }
    }
}

/// Tells whether `program` can be run, or says that the test is skipped.
pub(crate) fn has(program: &str) -> bool {
    let found = Command::new(program)
        .arg("-V")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    if found.is_err() {
        skip(&format!("the program {program} is missing"));
    }
    found.is_ok()
}

fn skip(reason: &str) {
    assert!(
        std::env::var_os("CI").is_none(),
        "would be skipped: {reason}"
    );
    println!("skipped: {reason}");
}

fn fresh() -> io::Result<Netns> {
    let make = || {
        unshare(CloneFlags::CLONE_NEWNET)?;
        Netns::current()
    };
    std::thread::spawn(make)
        .join()
        .expect("the thread does not panic")
}

/// Runs `f` in a namespace, on a runtime of one thread, with a connection opened there.
pub(crate) fn within<T: Send>(ns: &Netns, f: impl AsyncFnOnce(Netlink) -> T + Send) -> T {
    ns.run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async { f(Netlink::open().unwrap()).await })
    })
    .unwrap()
}

/// Adds a veth pair of MTU 1500 and switches both ends on; returns the near and the far end.
pub(crate) async fn veth(
    near: &Netlink,
    name: &str,
    far_ns: &Netns,
    far_name: &str,
) -> (Link, Link) {
    let peer = VethPeer {
        name: far_name,
        netns: far_ns,
        mac: None,
        mtu: 1500,
    };
    let spec = VethSpec {
        name,
        alias: None,
        group: 0,
        mtu: 1500,
        mac: None,
        peer,
    };
    near.add_veth(&spec).await.unwrap();
    let far = Netlink::open_in(far_ns).unwrap();
    let near_link = near.link_by_name(name).await.unwrap().unwrap();
    let far_link = far.link_by_name(far_name).await.unwrap().unwrap();
    near.set_up(near_link.index).await.unwrap();
    far.set_up(far_link.index).await.unwrap();
    (near_link, far_link)
}

/// Runs a program in the calling thread's namespace, with `input`, wants it to succeed, and returns
/// what it printed.
pub(crate) fn run(program: &str, arguments: &[&str], input: &str) -> String {
    use std::io::Write;
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(input.as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(
        output.status.success(),
        "{program} {arguments:?} `{input}` failed"
    );
    String::from_utf8(output.stdout).unwrap()
}
