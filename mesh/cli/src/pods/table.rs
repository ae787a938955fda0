//! The table of `warren pods`.

use std::fmt::Write as _;

use warren_text::table::table;

use super::{PodEntry, Report};
use crate::text::{clean, short_duration};

/// Long ids are cut, as `crictl` does.
const ID_SHOWN: usize = 13;

/// Writes the report for people.
pub(super) fn page(report: &Report, now: u64) -> String {
    let (attached, orphans): (Vec<_>, Vec<_>) =
        report.pods.iter().partition(|entry| entry.attached);
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = match attached.as_slice() {
        [] => writeln!(out, "no pods have addresses on this node"),
        pods => write!(out, "{}", list(pods, now)),
    };
    if !orphans.is_empty() {
        let _ = writeln!(
            out,
            "\nreservations that nothing owns (their interface is gone; they are released by \
             themselves,\nlatest when the addresses are needed)\n{}",
            list(&orphans, now).trim_end()
        );
    }
    if !report.unreserved_interfaces.is_empty() {
        let _ = writeln!(
            out,
            "\ninterfaces of pods without a reservation: {}",
            report.unreserved_interfaces.join(", ")
        );
    }
    out
}

const HEADINGS: [&str; 7] = [
    "POD",
    "CONTAINER",
    "IFNAME",
    "INTERFACE",
    "ADDRESSES",
    "AGE",
    "NETWORK",
];

fn list(entries: &[&PodEntry], now: u64) -> String {
    table(&HEADINGS, &[], entries.iter().map(|entry| row(entry, now)))
}

fn row(entry: &PodEntry, now: u64) -> [String; HEADINGS.len()] {
    let r = &entry.reservation;
    let or_dash = |text: &str| match text {
        "" => "-".to_owned(),
        text => clean(text).into_owned(),
    };
    let id: String = r.container_id.chars().take(ID_SHOWN).collect();
    let addresses: Vec<String> = r.addresses.iter().map(ToString::to_string).collect();
    let age = r
        .since
        .map(|since| short_duration(now.saturating_sub(since)));
    [
        or_dash(r.pod.as_deref().unwrap_or_default()),
        or_dash(&id),
        or_dash(&r.ifname),
        or_dash(&r.host_interface),
        addresses.join(", "),
        age.unwrap_or_else(|| "-".into()),
        or_dash(&entry.network),
    ]
}
