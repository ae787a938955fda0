//! Warren on three machines with kernels of their own, which reboot and whose power is cut: all scenarios on the same
//! machines, for a boot takes most of a minute without acceleration; one result for each.
//!
//!   cargo test -p warren-vm --test machines -- [PART OF A NAME]...

mod earlier;
mod pods;
mod power_cut;
mod reboot;
mod traffic;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use warren_vm::{Cluster, Machine, Settings, Version, skip_reason};

/// How long something in a machine may take that is not measured.
const PATIENCE: Duration = Duration::from_secs(240);
const MACHINES: u8 = 3;

/// Something that must be so.
struct Scenario {
    /// What it says of Warren's behaviour.
    name: &'static str,
    /// What the first machine begins with. Only the first scenario of all may want something else than the rest.
    first: Version,
    /// Finds out whether it is so.
    run: fn(&mut Cluster) -> Result<()>,
}

/// All of them, in their order.
const SCENARIOS: [Scenario; 4] = [
    Scenario {
        name: "an_earlier_version_on_one_machine_reaches_the_current_ones_and_is_upgraded",
        first: Version::Earlier,
        run: earlier::run,
    },
    Scenario {
        name: "pods_of_three_machines_reach_each_other_and_nothing_is_in_clear",
        first: Version::Current,
        run: traffic::run,
    },
    Scenario {
        name: "a_rebooted_machine_is_protected_before_its_first_pod_and_has_its_old_key",
        first: Version::Current,
        run: reboot::run,
    },
    Scenario {
        name: "a_power_cut_amid_adds_and_dels_leaves_no_damage_and_no_leak",
        first: Version::Current,
        run: power_cut::run,
    },
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.iter().any(|argument| argument == "--list") {
        for scenario in &SCENARIOS {
            println!("{}: test", scenario.name);
        }
        return ExitCode::SUCCESS;
    }
    if let Some(reason) = skip_reason() {
        println!("skipped: {reason}");
        return ExitCode::from(u8::from(std::env::var_os("CI").is_some()));
    }
    let parts: Vec<&str> = arguments
        .iter()
        .map(String::as_str)
        .filter(|argument| !argument.starts_with('-'))
        .collect();
    let is_chosen = |s: &&Scenario| parts.is_empty() || parts.iter().any(|p| s.name.contains(p));
    let chosen: Vec<&Scenario> = SCENARIOS.iter().filter(is_chosen).collect();
    // Who ends cargo or make by a signal ends neither this process nor, by it, the machines.
    if let Err(e) = set_pdeathsig(Signal::SIGTERM) {
        println!("this process would outlive the one that started it: {e}");
        return ExitCode::FAILURE;
    }
    match run(&chosen) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            println!("\n{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs scenarios and tells how many failed.
fn run(scenarios: &[&Scenario]) -> Result<usize> {
    let start = Instant::now();
    let first = scenarios.first().context("no scenario has such a name")?;
    let mut cluster = Cluster::start("vm", Settings::new(MACHINES)?, first.first)?;
    let (mut passed, mut failed) = (0, 0);
    for scenario in scenarios {
        let began = Instant::now();
        // A panic is a failure as any other: what comes next is still to be found out.
        let run = || cluster.tidy().and_then(|()| (scenario.run)(&mut cluster));
        let result = catch_unwind(AssertUnwindSafe(run));
        let result = result.unwrap_or_else(|_| Err(anyhow!("it panicked")));
        let took = began.elapsed().as_secs_f64();
        match result {
            Ok(()) => {
                passed += 1;
                println!("test {} ... ok ({took:.1} s)", scenario.name);
            }
            Err(error) => {
                failed += 1;
                println!(
                    "test {} ... FAILED ({took:.1} s)\n{error:#}\n",
                    scenario.name
                );
                cluster.collect_logs();
            }
        }
    }
    let all = start.elapsed().as_secs_f64();
    println!("{passed} passed, {failed} failed, in {all:.0} s");
    if failed > 0 {
        match cluster.keep_logs() {
            Some(dir) => println!("logs are kept in {}", dir.display()),
            None => println!("the logs could not be kept"),
        }
    }
    Ok(failed)
}

/// The key of a node, as the device has it.
fn identity(machine: &Machine) -> Result<String> {
    machine.sh("wg show warren0 public-key")
}

fn boot_id(machine: &Machine) -> Result<String> {
    let id = machine.sh("cat /proc/sys/kernel/random/boot_id")?;
    Ok(id.trim().to_owned())
}

/// What would be another if a node's daemons had been started again, or the node itself.
fn untouched(machine: &Machine) -> Result<String> {
    let daemons = "systemctl show -p MainPID,NRestarts warren-tunnel warren-agent";
    Ok(boot_id(machine)? + &machine.sh(daemons)?)
}
