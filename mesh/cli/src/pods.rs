//! `warren pods`: who has which address on this node, and which reservations nothing owns.

mod table;

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;

use nix::net::if_::if_nameindex;
use serde::Serialize;
use warren_core::consts::VETH_PREFIX;
use warren_core::files::{IPAM_DIR, IPAM_SUFFIX, IpamFile, Reservation};

use crate::args::PodsArgs;
use crate::{Environment, Outcome};

const TROUBLE: u8 = 1;
const NOTHING_READ: u8 = 2;

/// Where the kernel tells this boot from others.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// What the command tells; with `--json`, as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Every reservation.
    pub pods: Vec<PodEntry>,
    /// Pods' interfaces that no reservation has.
    #[serde(rename = "unreservedInterfaces")]
    pub unreserved_interfaces: Vec<String>,
}

/// One reservation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PodEntry {
    /// The network.
    pub network: String,
    /// What is stored.
    #[serde(flatten)]
    pub reservation: Reservation,
    /// Whether its interface is on the node. One without is released by itself, once another pod
    /// comes or goes.
    pub attached: bool,
}

/// Runs `warren pods`. Exit codes: 0 all reservations could be read, 1 some could not, 2 none.
pub fn run(args: &PodsArgs, environment: &Environment) -> Outcome {
    let mut outcome = Outcome::default();
    let interfaces = match interfaces() {
        Ok(interfaces) => interfaces,
        Err(error) => {
            outcome.complain(&format!("list this node's interfaces: {error}"));
            outcome.code = NOTHING_READ;
            return outcome;
        }
    };
    let documents = read_all(&args.state_dir.join(IPAM_DIR), &mut outcome);
    let boot_id = fs::read_to_string(BOOT_ID).unwrap_or_default();
    let report = report(documents, boot_id.trim(), &interfaces);
    outcome.stdout = match args.json {
        true => match serde_json::to_string_pretty(&report) {
            Ok(text) => text + "\n",
            Err(error) => {
                outcome.complain(&error);
                outcome.code = TROUBLE;
                String::new()
            }
        },
        false => table::page(&report, environment.now),
    };
    outcome
}

/// Compares what is stored with the interfaces that are there. Reservations of an earlier boot that
/// have no interface are history: the next pod's ADD drops them.
pub fn report(documents: Vec<IpamFile>, boot_id: &str, interfaces: &BTreeSet<String>) -> Report {
    let mut report = Report::default();
    let mut reserved = BTreeSet::new();
    for document in documents {
        for reservation in document.reservations {
            let attached = interfaces.contains(&reservation.host_interface);
            if !attached && document.boot_id != boot_id {
                continue;
            }
            reserved.insert(reservation.host_interface.clone());
            report.pods.push(PodEntry {
                network: document.network.clone(),
                reservation,
                attached,
            });
        }
    }
    report.pods.sort_by(|a, b| {
        let key = |entry: &PodEntry| {
            let r = &entry.reservation;
            (
                !entry.attached,
                r.pod.clone(),
                r.container_id.clone(),
                r.ifname.clone(),
            )
        };
        key(a).cmp(&key(b))
    });
    let stray = interfaces.iter().filter(|name| !reserved.contains(*name));
    report.unreserved_interfaces = stray.cloned().collect();
    report
}

/// The pods' interfaces of this node.
fn interfaces() -> io::Result<BTreeSet<String>> {
    let all = if_nameindex()?;
    let names = all.iter().map(|i| i.name().to_string_lossy().into_owned());
    Ok(names.filter(|name| name.starts_with(VETH_PREFIX)).collect())
}

fn read_all(folder: &Path, outcome: &mut Outcome) -> Vec<IpamFile> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        // No pod was ever attached.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Vec::new(),
        Err(error) => {
            outcome.complain(&format!(
                "list {}: {error}; it is for root, and --state-dir says where it is",
                folder.display()
            ));
            outcome.code = NOTHING_READ;
            return Vec::new();
        }
    };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let names: BTreeSet<String> = names.collect();
    let mut documents = Vec::new();
    for name in &names {
        if name.contains(".damaged-") {
            outcome.complain(&format!(
                "{}: a damaged address store that was set aside; remove it when it is of no use",
                folder.join(name).display()
            ));
            continue;
        }
        if name.starts_with('.') || !name.ends_with(IPAM_SUFFIX) {
            continue;
        }
        let path = folder.join(name);
        let read = fs::read(&path).and_then(|bytes| Ok(serde_json::from_slice(&bytes)?));
        match read {
            Ok(document) => documents.push(document),
            Err(error) => {
                outcome.complain(&format!(
                    "read {}: {error}; the next pod's ADD makes it anew from the pods that run",
                    path.display()
                ));
                outcome.code = TROUBLE;
            }
        }
    }
    documents
}
