//! Runs a test in a network namespace of its own, which ends with the test.

use std::process::Command;

/// Runs `test` on a thread of its own in a new network namespace; without root it says so and
/// passes, and fails where CI promises root.
pub(crate) fn in_namespace<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send) {
    if !nix::unistd::geteuid().is_root() {
        let reason = "no root: a network namespace cannot be made";
        assert!(
            std::env::var_os("CI").is_none(),
            "skipped where nothing may be: {reason}"
        );
        println!("skipped: {reason}");
        return;
    }
    let run = || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        sh("ip link set lo up");
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(test());
    };
    std::thread::scope(|scope| {
        if let Err(panic) = scope.spawn(run).join() {
            std::panic::resume_unwind(panic);
        }
    });
}

/// Runs a command line in the calling thread's namespace and returns what it printed.
pub(crate) fn sh(line: &str) -> String {
    let output = Command::new("sh").args(["-c", line]).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "`{line}`: {stderr}");
    String::from_utf8(output.stdout).unwrap()
}
