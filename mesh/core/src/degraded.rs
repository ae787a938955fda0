//! Why traffic with a peer suffers: judged by what the tunnel and the kernel know, without a
//! packet sent to find out.
//!
//! A peer must answer data within 10 s (its passive keepalive, WireGuard paper, section 6.5) and a
//! handshake at once. So silence after data is a fact, and silence without data is none: a pair
//! that has nothing to say is idle, not degraded. What lies behind the silence, the far end or the
//! way to it, one end alone cannot know, and it is not claimed here.

use std::fmt;
use std::time::Duration;

use crate::peer_path::{PeerPath, SendFailure};

/// How long a peer may be silent after data: its keepalive comes after 10 s, and 2 s are for the
/// way and for machines that are busy.
const SILENCE: Duration = Duration::from_secs(12);
/// How long an initiation may take to be answered.
const HANDSHAKE: Duration = Duration::from_secs(1);
/// How long handshakes may fail while data still comes on the keys of an older one: three tries.
const RENEWAL: Duration = Duration::from_secs(11);
/// How long an answered initiation may take to be completed.
const COMPLETION: Duration = Duration::from_secs(3);
/// What happened longer ago is history: tries come every 5 s, a lost one or two included.
const RECENT: Duration = Duration::from_secs(15);
/// How long packets must have been dropped in a row: while a change of the mesh reaches its nodes
/// one after the other, some are.
const DROPPING: Duration = Duration::from_secs(5);

/// What the kernel says of the way to an endpoint.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum WayTrouble {
    /// The device that leads there is switched off or has no carrier.
    LinkDown {
        /// The device.
        device: String,
    },
    /// No route leads there.
    NoRoute,
}

/// Why traffic with a peer suffers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DegradedCause {
    /// The underlay's device is down.
    LinkDown {
        /// The device.
        device: String,
    },
    /// No route leads to the endpoint.
    NoRoute,
    /// The kernel does not take datagrams for it.
    SendFailed {
        /// Why.
        cause: SendFailure,
        /// How many datagrams, since the last one that was sent.
        datagrams: u64,
    },
    /// Nothing comes from it although it was asked.
    NoAnswer {
        /// Since when it should have answered.
        silent: Duration,
        /// Handshakes that were sent to it meanwhile.
        initiations: u32,
    },
    /// Its data comes, and it does not answer handshakes.
    HandshakeUnanswered {
        /// Handshakes that were sent to it.
        initiations: u32,
        /// Since when.
        first: Duration,
    },
    /// Its handshakes come, and it does not complete them.
    NotHeard {
        /// How many.
        handshakes: u32,
        /// Since when.
        first: Duration,
    },
    /// Its packets are authentic, and dropped.
    Dropped {
        /// The tunnel's name of the reason.
        reason: String,
        /// How many.
        packets: u64,
    },
    /// The way takes smaller packets only than the smallest that Warren uses.
    PathMtu {
        /// The largest packet of the way, in bytes.
        path_mtu_bytes: u32,
        /// What one outer packet needs, in bytes.
        needed_bytes: u32,
    },
}

impl DegradedCause {
    /// Every stable word, for metrics.
    pub const REASONS: [&str; 8] = [
        "link-down",
        "no-route",
        "send-failed",
        "no-answer",
        "handshake-unanswered",
        "not-heard",
        "dropped",
        "path-mtu",
    ];

    /// A stable word for the cause.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::LinkDown { .. } => "link-down",
            Self::NoRoute => "no-route",
            Self::SendFailed { .. } => "send-failed",
            Self::NoAnswer { .. } => "no-answer",
            Self::HandshakeUnanswered { .. } => "handshake-unanswered",
            Self::NotHeard { .. } => "not-heard",
            Self::Dropped { .. } => "dropped",
            Self::PathMtu { .. } => "path-mtu",
        }
    }

    /// Judges a way. What is certain and near comes first: a device that is down explains the
    /// silence behind it.
    pub fn judge(way: Option<&WayTrouble>, path: Option<&PeerPath>) -> Option<Self> {
        match way {
            Some(WayTrouble::LinkDown { device }) => {
                let device = device.clone();
                return Some(Self::LinkDown { device });
            }
            Some(WayTrouble::NoRoute) => return Some(Self::NoRoute),
            None => {}
        }
        let path = path?;
        let judges = [
            Self::send_failed,
            Self::no_answer,
            Self::handshake_unanswered,
            Self::not_heard,
            Self::dropped,
        ];
        judges.into_iter().find_map(|judge| judge(path))
    }

    fn send_failed(path: &PeerPath) -> Option<Self> {
        let failed = path.send_failure.filter(|failed| failed.last < RECENT)?;
        Some(Self::SendFailed {
            cause: failed.cause,
            datagrams: failed.datagrams,
        })
    }

    fn no_answer(path: &PeerPath) -> Option<Self> {
        let asked = path.unanswered.filter(|asked| asked.last < RECENT)?;
        // The handshake that follows silence is the test of it: one lost keepalive is no trouble.
        let tried = path.initiating.filter(|tried| tried.first >= HANDSHAKE)?;
        (asked.first >= SILENCE).then_some(Self::NoAnswer {
            silent: asked.first,
            initiations: tried.initiations,
        })
    }

    fn handshake_unanswered(path: &PeerPath) -> Option<Self> {
        // Where nothing comes at all it is for `no_answer` to say so.
        let tried = path.initiating.filter(|tried| tried.first >= RENEWAL)?;
        let silent = path.unanswered.is_some_and(|asked| asked.first >= RENEWAL);
        (!silent && tried.initiations >= 3).then_some(Self::HandshakeUnanswered {
            initiations: tried.initiations,
            first: tried.first,
        })
    }

    fn not_heard(path: &PeerPath) -> Option<Self> {
        let unheard = path.unheard.filter(|unheard| unheard.last < RECENT)?;
        (unheard.first >= COMPLETION).then_some(Self::NotHeard {
            handshakes: unheard.handshakes,
            first: unheard.first,
        })
    }

    fn dropped(path: &PeerPath) -> Option<Self> {
        let run = path.dropped.as_ref().filter(|run| run.last < RECENT)?;
        (run.first.saturating_sub(run.last) >= DROPPING).then(|| Self::Dropped {
            reason: run.reason.clone(),
            packets: run.packets,
        })
    }
}

impl fmt::Display for DegradedCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LinkDown { device } => write!(
                f,
                "the underlay's device {device} is down or has no carrier"
            ),
            Self::NoRoute => write!(
                f,
                "this node has no route to its endpoint; see `ip route get`"
            ),
            Self::SendFailed { cause, datagrams } => {
                write!(f, "{datagrams} datagrams to it were not sent: ")?;
                f.write_str(match cause {
                    SendFailure::NoRoute => "no route leads to its endpoint; see `ip route get`",
                    SendFailure::NoSource => "this node has no address to send from",
                    SendFailure::NoFamily => "this node lacks the endpoint's address family",
                    SendFailure::Filtered => {
                        "a packet filter of this node refuses them; see `nft list ruleset`"
                    }
                    SendFailure::TooLarge => "they are too large for the underlay",
                    SendFailure::DeviceDown => "the underlay's device is down",
                    SendFailure::Other => "the kernel refuses them; see the tunnel's status",
                })
            }
            Self::NoAnswer {
                silent,
                initiations,
            } => write!(
                f,
                "nothing received from it for {} s, though data or handshakes were sent ({initiations} \
                 unanswered); its tunnel is down, or UDP to its endpoint or back is lost",
                silent.as_secs()
            ),
            Self::HandshakeUnanswered { initiations, first } => write!(
                f,
                "it answered none of {initiations} handshakes in {} s, though its data arrives; \
                 the session ends when its keys are 180 s old",
                first.as_secs()
            ),
            Self::NotHeard { handshakes, first } => write!(
                f,
                "its handshakes arrive and it does not complete them ({handshakes} answered in {} \
                 s): what is sent to it is lost",
                first.as_secs()
            ),
            Self::Dropped { reason, packets } => {
                let why = match reason.as_str() {
                    "wrong_source" => {
                        "their sources are not within its allowed IPs; the nodes differ on whose \
                         pod range it is"
                    }
                    "martian_source" => "their sources are addresses that no host can have",
                    "inner_malformed" => "they are no IP packets",
                    _ => "see the tunnel's counters",
                };
                write!(f, "{packets} packets of it were dropped ({reason}): {why}")
            }
            Self::PathMtu {
                path_mtu_bytes,
                needed_bytes,
            } => write!(
                f,
                "the way to it takes packets of {path_mtu_bytes} bytes and the tunnel needs \
                 {needed_bytes}: they are sent in fragments, which is slow and which some networks \
                 drop"
            ),
        }
    }
}
