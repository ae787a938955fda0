//! `warren uninstall`: takes all that is Warren's off this node, and nothing else.
//!
//! ```text
//! daemons running? -> refuse, or end them (--stop), or let others end them (--wait)
//! pods attached?   -> refuse, or take their network (--pods): without Warren they would be in clear
//! CNI configuration, pods' veths, tunnel's interface, routes, rules, sockets, state, filter last
//! ```
//!
//! It is idempotent: what is gone already is passed over. Every step that fails is told, and the
//! others are done all the same.

mod files;
mod kernel;
mod stop;

use std::path::PathBuf;
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal};
use warren_core::consts;
use warren_core::files::NodeFile;

use crate::args::{Cli, Command, UninstallArgs};
use crate::outcome::Outcome;
use crate::text::clean;

/// What uninstalling is told and does, step by step.
#[derive(Debug, Default)]
struct Report {
    dry_run: bool,
    done: Vec<String>,
    kept: Vec<String>,
    errors: Vec<String>,
}

impl Report {
    /// Does a step, unless only a list is wanted.
    fn step<E: std::fmt::Display>(&mut self, what: String, work: impl FnOnce() -> Result<(), E>) {
        if self.dry_run {
            self.done.push(what);
            return;
        }
        match work() {
            Ok(()) => self.done.push(what),
            Err(e) => self.errors.push(format!("remove {what}: {e}")),
        }
    }

    fn fail(&mut self, error: impl ToString) {
        self.errors.push(error.to_string());
    }
}

/// Uninstalls, or lists what that would remove.
pub fn run(args: &UninstallArgs) -> Outcome {
    let mut outcome = Outcome::default();
    let mut report = Report {
        dry_run: args.dry_run,
        ..Report::default()
    };
    let node = node_file(args);
    let interface = args.interface.clone();
    let interface = interface.or_else(|| node.as_ref().map(|node| node.interface.clone()));
    let interface = interface.unwrap_or_else(|| consts::INTERFACE.to_owned());
    stop::await_end(&interface, Duration::from_secs(args.wait));
    let kernel = match kernel::Kernel::read(&interface) {
        Ok(kernel) => kernel,
        Err(e) => {
            outcome.complain(&e);
            outcome.code = 1;
            return outcome;
        }
    };
    // All that stands in the way is told at once.
    let mut obstacles = Vec::new();
    obstacles.extend(kernel.obstacle());
    if !args.pods {
        obstacles.extend(kernel.pods_obstacle());
    }
    let stop = args.stop && !args.dry_run && obstacles.is_empty();
    obstacles.extend(stop::daemons(&interface, stop));
    for obstacle in &obstacles {
        outcome.complain(obstacle);
    }
    if !obstacles.is_empty() && !args.dry_run {
        outcome.complain(&"nothing was removed");
        outcome.code = 1;
        return outcome;
    }

    files::remove_cni(&mut report, args);
    // Read anew: until the daemons had ended and the runtime had no plugin, more could come.
    let kernel = match kernel::Kernel::read(&interface) {
        Ok(kernel) => kernel,
        Err(e) => {
            report.fail(e);
            kernel
        }
    };
    kernel.remove_devices(&mut report, args.pods);
    kernel.remove_routes_and_rules(&mut report);
    if let Some(dir) = &args.registry_dir {
        files::remove_record(&mut report, dir, args, node.as_ref());
    }
    files::remove_sockets(&mut report, args, &interface);
    files::remove_state(&mut report, args);
    // Last: until here nothing of a pod can leave in clear.
    kernel.remove_filter(&mut report);

    print(&mut outcome, &report, kernel::settings());
    outcome.code = u8::from(!report.errors.is_empty() || !obstacles.is_empty());
    outcome
}

/// Whether the process is to stay when it is done.
pub fn stays(cli: &Cli) -> bool {
    matches!(&cli.command, Command::Uninstall(args) if args.stay)
}

/// Does nothing until this process is told to end.
pub fn stay() {
    // A container's first process gets no signal that it neither blocks nor handles.
    let ends = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT]);
    if ends.thread_block().is_ok() {
        // An error means that there is nothing to wait for.
        let _ = ends.wait();
    }
}

fn print(outcome: &mut Outcome, report: &Report, settings: Vec<String>) {
    let mut line = |text: &str| {
        outcome.stdout.push_str(&clean(text));
        outcome.stdout.push('\n');
    };
    let verb = if report.dry_run {
        "would remove"
    } else {
        "removed"
    };
    for what in &report.done {
        line(&format!("{verb} {what}"));
    }
    if report.done.is_empty() && report.errors.is_empty() {
        line("nothing of Warren's is here");
    }
    for what in &report.kept {
        line(&format!("kept {what}"));
    }
    for setting in settings {
        line(&format!(
            "left {setting} (what it was before is not known, and others may rely on it)"
        ));
    }
    for error in &report.errors {
        outcome.complain(error);
    }
}

/// The record that the agent left for the plugin, if there is a readable one.
fn node_file(args: &UninstallArgs) -> Option<NodeFile> {
    let text = std::fs::read(args.state_dir.join(consts::NODE_FILE)).ok()?;
    serde_json::from_slice(&text).ok()
}

/// The directory and the file in it.
fn shown(path: &std::path::Path) -> String {
    PathBuf::from(path).display().to_string()
}
