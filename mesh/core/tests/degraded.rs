//! What is called degraded, and what is not.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use proptest::prelude::*;
use warren_core::degraded::{DegradedCause, WayTrouble};
use warren_core::peer_path::{
    DropRun, Initiating, PeerPath, SendFailure, SendFailures, Unanswered, Unheard,
};
use warren_keyring::{PrivateKey, PublicKey};

fn key() -> PublicKey {
    PrivateKey::generate().unwrap().public_key()
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn reason(path: &PeerPath) -> Option<&'static str> {
    DegradedCause::judge(None, Some(path)).map(|cause| cause.reason())
}

/// Data sent for `first` without an answer, the last of it `last` ago, and a handshake sent since
/// `initiating`.
fn silent(first: u64, last: u64, initiating: Option<u64>) -> PeerPath {
    PeerPath {
        unanswered: Some(Unanswered {
            first: seconds(first),
            last: seconds(last),
        }),
        initiating: initiating.map(|since| Initiating {
            initiations: 1 + since as u32 / 5,
            first: seconds(since),
        }),
        ..PeerPath::new(key())
    }
}

#[test]
fn silence_is_degraded_once_a_handshake_has_tested_it_and_only_while_there_is_traffic() {
    assert_eq!(reason(&PeerPath::new(key())), None);
    assert_eq!(
        reason(&silent(9, 0, None)),
        None,
        "a keepalive may still come"
    );
    assert_eq!(
        reason(&silent(14, 0, None)),
        None,
        "one keepalive may be lost"
    );
    assert_eq!(
        reason(&silent(15, 0, Some(0))),
        None,
        "the answer is on its way"
    );
    assert_eq!(reason(&silent(17, 1, Some(2))), Some("no-answer"));
    assert_eq!(reason(&silent(80, 4, Some(65))), Some("no-answer"));
    assert_eq!(
        reason(&silent(120, 20, Some(105))),
        None,
        "nobody asks any more: idle"
    );
    assert_eq!(
        reason(&silent(13, 3, Some(13))),
        Some("no-answer"),
        "never any session"
    );
}

#[test]
fn a_renewal_that_fails_is_told_while_data_still_arrives() {
    assert_eq!(reason(&silent(1, 0, Some(6))), None);
    assert_eq!(
        reason(&silent(1, 0, Some(12))),
        Some("handshake-unanswered")
    );
}

#[test]
fn a_peer_that_does_not_complete_handshakes_does_not_hear_us() {
    let unheard = |first, last| PeerPath {
        unheard: Some(Unheard {
            handshakes: 1,
            first: seconds(first),
            last: seconds(last),
        }),
        ..PeerPath::new(key())
    };
    assert_eq!(reason(&unheard(2, 2)), None);
    assert_eq!(reason(&unheard(3, 3)), Some("not-heard"));
    assert_eq!(reason(&unheard(60, 16)), None, "it does not try any more");
}

#[test]
fn failures_to_send_and_drops_are_told_while_they_last() {
    let failed = |last| PeerPath {
        send_failure: Some(SendFailures {
            cause: SendFailure::Filtered,
            datagrams: 3,
            last: seconds(last),
        }),
        ..silent(20, 0, Some(5))
    };
    assert_eq!(reason(&failed(1)), Some("send-failed"));
    assert_eq!(reason(&failed(16)), Some("no-answer"));
    let dropped = |first, last| PeerPath {
        dropped: Some(DropRun {
            reason: "wrong_source".to_owned(),
            packets: 9,
            first: seconds(first),
            last: seconds(last),
        }),
        ..PeerPath::new(key())
    };
    assert_eq!(reason(&dropped(4, 0)), None, "the mesh is just changing");
    assert_eq!(reason(&dropped(8, 1)), Some("dropped"));
    assert_eq!(reason(&dropped(60, 16)), None);
}

#[test]
fn what_the_kernel_knows_of_the_way_explains_the_silence() {
    let path = silent(30, 0, Some(15));
    let device = "eth0".to_owned();
    let judge = |way| DegradedCause::judge(Some(&way), Some(&path)).unwrap();
    let down = judge(WayTrouble::LinkDown { device });
    assert_eq!(down.reason(), "link-down");
    assert!(down.to_string().contains("eth0"));
    assert_eq!(judge(WayTrouble::NoRoute).reason(), "no-route");
}

#[test]
fn a_line_of_another_version_is_read_as_far_as_it_is_known() {
    let key = key();
    let path: PeerPath = format!("{key} unheard=3 new=7 send_failure=unheard-of")
        .parse()
        .unwrap();
    assert_eq!(path.unheard.unwrap().handshakes, 3);
    assert_eq!(path.send_failure.unwrap().cause, SendFailure::Other);
    for bad in [
        "",
        "nokey unheard=3",
        &format!("{key} unheard=x"),
        &format!("{key} unheard"),
    ] {
        assert!(bad.parse::<PeerPath>().is_err(), "{bad}");
    }
}

fn time() -> impl Strategy<Value = Duration> {
    (0_u64..1 << 40).prop_map(Duration::from_millis)
}

prop_compose! {
    fn path()(
        unanswered in proptest::option::of((time(), time())),
        initiating in proptest::option::of((any::<u32>(), time())),
        unheard in proptest::option::of((any::<u32>(), time(), time())),
        failure in proptest::option::of((0..SendFailure::ALL.len(), any::<u64>(), time())),
        dropped in proptest::option::of(("[a-z_]{1,40}", any::<u64>(), time(), time())),
        path_mtu_bytes in proptest::option::of(any::<u32>()),
    ) -> PeerPath {
        PeerPath {
            public_key: key(),
            unanswered: unanswered.map(|(first, last)| Unanswered { first, last }),
            initiating: initiating.map(|(initiations, first)| Initiating { initiations, first }),
            unheard: unheard.map(|(handshakes, first, last)| Unheard { handshakes, first, last }),
            send_failure: failure.map(|(n, datagrams, last)| SendFailures {
                cause: SendFailure::ALL[n], datagrams, last,
            }),
            dropped: dropped.map(|(reason, packets, first, last)| DropRun {
                reason, packets, first, last,
            }),
            path_mtu_bytes,
        }
    }
}

proptest! {
    #[test]
    fn what_is_written_is_read(path in path()) {
        prop_assert_eq!(path.to_string().parse::<PeerPath>().unwrap(), path);
    }

    #[test]
    fn no_line_makes_the_reader_panic(text in "\\PC{0,200}") {
        let _ = text.parse::<PeerPath>();
        let _ = format!("{} {text}", key()).parse::<PeerPath>();
    }
}
