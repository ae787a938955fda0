//! Hundreds of calls at once, while calls are killed, namespaces vanish and the disk is full.
//!
//! ```text
//!   250 pods                  node (network and mount namespace)          250 more pods
//!   eth0 -- DEL, all at once -- wrn... | warren0 | wrn... -- ADD, at the same moment -- eth0
//!                                state on a 1 MiB disk
//!     killed after 0 to 60 ms, namespaces that vanish meanwhile, a disk that fills and empties
//! ```
//!
//! The seed is printed and can be given by WARREN_STORM_SEED; WARREN_STORM_ROUNDS is the number of
//! rounds.

#![allow(
    clippy::unwrap_used,
    reason = "in a test a failed step is a failed test"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use warren_cni::ipam::Ipam;
use warren_storm::{Node, Outcome, Plugin, Pod, Random, require_root};

/// Pods that are removed, and pods that are added, at the same moment.
const PODS: usize = 250;
/// Small enough to be filled at once, and large enough for the pods' reservations.
const DISK_KIB: u32 = 1024;
/// Codes that an ADD may fail with in a storm: its namespace is gone (4, 100), or the disk is full.
const EXPECTED_CODES: [u64; 4] = [4, 5, 11, 100];

fn number(name: &str, default: u64) -> u64 {
    let text = std::env::var(name).ok().filter(|text| !text.is_empty());
    text.map_or(default, |text| text.parse().unwrap())
}

#[test]
fn a_storm_leaves_nothing_behind_and_no_pod_half_made() {
    if !require_root() {
        return;
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let seed = number("WARREN_STORM_SEED", u64::from(now.subsec_nanos()));
    let rounds = number("WARREN_STORM_ROUNDS", 2);
    println!("storm: WARREN_STORM_SEED={seed} WARREN_STORM_ROUNDS={rounds}");
    let run = || {
        let mut random = Random::new(seed);
        let node = Node::new(DISK_KIB).unwrap();
        for round in 0..rounds {
            Storm::new(&node, round).run(&mut random);
        }
    };
    thread::scope(|scope| scope.spawn(run).join()).unwrap();
}

/// One call of the storm.
struct Step {
    verb: &'static str,
    container: String,
    /// The pod's namespace; none once it has vanished.
    pod: Mutex<Option<Pod>>,
    kill_after: Option<Duration>,
    vanish_after: Option<Duration>,
    outcome: Mutex<Option<Outcome>>,
}

impl Step {
    fn took_effect(&self) -> bool {
        let outcome = self.outcome.lock().unwrap();
        outcome.as_ref().is_some_and(|o| o.status.success())
    }
}

struct Storm<'a> {
    node: &'a Node,
    round: u64,
    plugin: Plugin,
}

impl<'a> Storm<'a> {
    fn new(node: &'a Node, round: u64) -> Self {
        let target =
            PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../target/debug/warren-cni");
        let program = std::env::var_os("WARREN_CNI").map_or(target, PathBuf::from);
        assert!(
            program.exists(),
            "{program:?}: run `cargo build --workspace --bins` first"
        );
        let conf = json!({
            "cniVersion": "1.0.0", "name": "warren", "type": "warren-cni",
            "stateDir": node.state(),
        });
        let plugin = Plugin { program, conf };
        Self {
            node,
            round,
            plugin,
        }
    }

    fn run(&self, random: &mut Random) {
        let before = self.node.protection().unwrap();
        let mut steps = Vec::new();
        for i in 0..PODS {
            let pod = Pod::new().unwrap();
            let container = format!("r{}-old{i}", self.round);
            let outcome = self
                .plugin
                .call("ADD", &container, Some(&pod.path()))
                .unwrap();
            assert!(outcome.status.success(), "{outcome:?}");
            steps.push(self.step("DEL", container, pod, random));
        }
        for i in 0..PODS {
            let container = format!("r{}-new{i}", self.round);
            steps.push(self.step("ADD", container, Pod::new().unwrap(), random));
        }
        self.all_at_once(&steps, random);
        self.judge(&steps);
        let survivors = self.as_a_runtime_would(&steps, random);
        self.settle(survivors.len());
        self.compare(&survivors);
        assert_eq!(self.node.protection().unwrap(), before);
        println!(
            "storm: round {}: {} pods survived",
            self.round,
            survivors.len()
        );
        // The next round begins with none.
        for container in survivors.keys() {
            let outcome = self.plugin.call("DEL", container, None).unwrap();
            assert!(outcome.status.success(), "{outcome:?}");
        }
        self.compare(&BTreeMap::new());
    }

    fn step(&self, verb: &'static str, container: String, pod: Pod, random: &mut Random) -> Step {
        let within = |random: &mut Random, percent, most| {
            let hit = random.percent(percent);
            let after = Duration::from_micros(random.below(most));
            hit.then_some(after)
        };
        Step {
            verb,
            container,
            pod: Mutex::new(Some(pod)),
            kill_after: within(random, 25, 60_000),
            vanish_after: within(random, 10, 200_000),
            outcome: Mutex::new(None),
        }
    }

    fn all_at_once(&self, steps: &[Step], random: &mut Random) {
        let over = AtomicBool::new(false);
        let pauses: Vec<u64> = (0..64).map(|_| 5 + random.below(60)).collect();
        thread::scope(|scope| {
            let fill = || {
                let path = self.node.disk().join("filler");
                for pause in pauses.iter().cycle() {
                    if over.load(Ordering::Relaxed) {
                        break;
                    }
                    let mut file = File::create(&path).unwrap();
                    while file.write_all(&[1; 4096]).is_ok() {}
                    thread::sleep(Duration::from_millis(*pause));
                    fs::remove_file(&path).unwrap();
                    thread::sleep(Duration::from_millis(*pause));
                }
            };
            let filler = scope.spawn(fill);
            let calls: Vec<_> = steps
                .iter()
                .map(|step| scope.spawn(|| self.carry_out(step)))
                .collect();
            for call in calls {
                call.join().unwrap();
            }
            over.store(true, Ordering::Relaxed);
            filler.join().unwrap();
        });
    }

    fn carry_out(&self, step: &Step) {
        let path = step.pod.lock().unwrap().as_ref().map(Pod::path);
        let netns = path.as_deref().filter(|_| step.verb == "ADD");
        let mut call = self
            .plugin
            .start(step.verb, &step.container, netns)
            .unwrap();
        let vanish = || {
            if let Some(after) = step.vanish_after {
                thread::sleep(after);
                step.pod.lock().unwrap().take();
            }
        };
        thread::scope(|scope| {
            scope.spawn(vanish);
            if let Some(after) = step.kill_after {
                thread::sleep(after);
                call.kill().unwrap();
            }
            *step.outcome.lock().unwrap() = Some(call.wait().unwrap());
        });
    }

    /// What each call said.
    fn judge(&self, steps: &[Step]) {
        let (mut killed, mut refused) = (0, BTreeMap::<u64, usize>::new());
        for step in steps {
            let outcome = step.outcome.lock().unwrap();
            let outcome = outcome.as_ref().unwrap();
            if outcome.killed() {
                killed += 1;
                continue;
            }
            if outcome.status.success() {
                continue;
            }
            // A release fits on a full disk.
            assert_eq!(step.verb, "ADD", "{outcome:?}");
            let code = outcome.json().unwrap()["code"].as_u64().unwrap();
            assert!(EXPECTED_CODES.contains(&code), "{outcome:?}");
            if code != 5 && code != 11 {
                assert!(step.vanish_after.is_some(), "{outcome:?}");
            }
            *refused.entry(code).or_default() += 1;
        }
        println!(
            "storm: round {}: {killed} killed, ADDs refused by code: {refused:?}",
            self.round
        );
    }

    /// A runtime calls DEL for what failed; one that was killed itself forgets it, and the
    /// namespace goes. Returns the pods that go on, with their namespaces and addresses.
    fn as_a_runtime_would(
        &self,
        steps: &[Step],
        random: &mut Random,
    ) -> BTreeMap<String, (Pod, Vec<String>)> {
        let mut survivors = BTreeMap::new();
        for step in steps {
            let pod = step.pod.lock().unwrap().take();
            let attached = step.verb == "ADD" && step.took_effect();
            match pod {
                Some(pod) if attached => {
                    let outcome = step.outcome.lock().unwrap();
                    let addresses = outcome.as_ref().unwrap().addresses();
                    survivors.insert(step.container.clone(), (pod, addresses));
                }
                _ if step.verb == "DEL" && step.took_effect() => {}
                _ if random.percent(60) => {
                    let outcome = self.plugin.call("DEL", &step.container, None).unwrap();
                    assert!(outcome.status.success(), "{outcome:?}");
                }
                _ => {}
            }
        }
        survivors
    }

    /// The kernel removes the interfaces of vanished namespaces in the background.
    fn settle(&self, pods: usize) {
        for _ in 0..600 {
            if self.node.pod_links().unwrap().len() <= pods {
                break;
            }
            thread::sleep(Duration::from_millis(50));
        }
        Ipam::open(&self.node.state(), "warren")
            .unwrap()
            .sweep()
            .unwrap();
    }

    fn compare(&self, survivors: &BTreeMap<String, (Pod, Vec<String>)>) {
        let store = fs::read_to_string(self.node.state().join("ipam/warren.json")).unwrap();
        let store: Value = serde_json::from_str(&store).unwrap();
        let mut reserved = BTreeMap::new();
        for r in store["reservations"].as_array().unwrap() {
            let addresses = r["addresses"].as_array().unwrap().iter();
            let addresses: Vec<_> = addresses.map(|a| a.as_str().unwrap().to_owned()).collect();
            reserved.insert(r["containerId"].as_str().unwrap().to_owned(), addresses);
        }
        let expected: BTreeMap<String, Vec<String>> = survivors
            .iter()
            .map(|(container, (_, addresses))| (container.clone(), addresses.clone()))
            .collect();
        assert_eq!(reserved, expected);
        assert_eq!(self.node.pod_links().unwrap().len(), survivors.len());
        let routes: BTreeSet<String> = self.node.pod_routes().unwrap().into_iter().collect();
        let addresses: Vec<String> = expected.into_values().flatten().collect();
        let distinct: BTreeSet<String> = addresses.iter().cloned().collect();
        assert_eq!(
            addresses.len(),
            distinct.len(),
            "an address was given twice"
        );
        assert_eq!(routes, distinct);
        // One pod reaches all others, with the first packet to each.
        let Some((first, (prober, _))) = survivors.iter().next() else {
            return;
        };
        for (container, (_, addresses)) in survivors {
            if container == first {
                continue;
            }
            assert_eq!(addresses.len(), 2);
            for address in addresses {
                prober
                    .sh(&format!("ping -n -c 1 -W 5 {address}"))
                    .unwrap_or_else(|e| panic!("{container} is not reachable: {e}"));
            }
        }
    }
}
