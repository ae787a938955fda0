//! The clock. How far it is off cannot be known without asking others; that it is wrong can.

use super::facts::Facts;
use super::finding::{Check, Finding};
use super::state::stamp_mark;

/// 2026-01-01: no version of this program was there before.
const TOO_EARLY: u64 = 1_767_225_600;
/// 2100-01-01.
const TOO_LATE: u64 = 4_102_444_800;
/// The tunnel writes its mark an hour ahead.
const MARK_AHEAD_SECONDS: u64 = 3600;
/// Handshakes and this clock are read one after the other.
const SLACK_SECONDS: u64 = 60;

pub(super) fn check(facts: &Facts) -> Vec<Finding> {
    let mut check = Check::new("clock");
    let set = "timedatectl set-ntp true, or: date -u -s 'YYYY-MM-DD hh:mm:ss'";
    if !(TOO_EARLY..TOO_LATE).contains(&facts.now) {
        check.error(
            format!("the clock says {} s since 1970, which cannot be", facts.now),
            "certificates are refused, logs mislead; Warren's own sessions go on",
            set,
        );
    }
    if let Some(mark) = stamp_mark(facts) {
        let ahead = mark.saturating_sub(facts.now);
        if ahead > MARK_AHEAD_SECONDS + SLACK_SECONDS {
            check.warn(
                format!(
                    "handshakes were stamped up to {} s ahead of the clock",
                    ahead - MARK_AHEAD_SECONDS
                ),
                "the clock went back; stamps go on from the latest, so that peers take them",
                format!("if the clock is wrong now: {set}; else there is nothing to do"),
            );
        }
    }
    let peers = facts.device.iter().flat_map(|device| &device.peers);
    let newest = peers.filter_map(|peer| peer.last_handshake).max();
    if newest.is_some_and(|at| at.as_secs() > facts.now + SLACK_SECONDS) {
        check.warn(
            "a handshake lies in the future",
            "the clock went back; ages of handshakes in `warren status` are wrong until then",
            set,
        );
    }
    check.done("plausible, and not behind what handshakes were stamped with")
}
