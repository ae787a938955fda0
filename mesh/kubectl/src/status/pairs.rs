//! Each pair of nodes, by what both ends say of their handshakes.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde::Serialize;
use warren_core::status::{AgentStatus, PeerState, PeerStatus};

use super::report::answered;
use crate::facts::Facts;

/// How much two ends may differ in the age of one handshake: the agents are not asked at one moment.
const TOLERANCE_SECONDS: u64 = 60;

/// Another node, as one sees it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Seen {
    /// The other node.
    pub node: String,
    /// How the pair is, by what both ends say.
    pub pair: PairState,
    /// How the peer is, by what this end says; `null` where it is no peer there.
    pub state: Option<PeerState>,
    /// Age in seconds of the newest handshake, by what this end says.
    pub handshake_age_seconds: Option<u64>,
    /// Where this end sends to.
    pub endpoint: Option<SocketAddr>,
    /// Why the pair is degraded or one-sided.
    pub cause: Option<String>,
}

/// How a pair is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum PairState {
    /// There was a handshake, and nothing suffers. It may be idle.
    Ok,
    /// There was no handshake yet, on either end.
    Never,
    /// This end says that traffic suffers.
    Degraded,
    /// This end has a session, and the other end knows of none.
    OneSided,
    /// This end's tunnel does not have it as a peer yet, or does not answer.
    Unknown,
    /// This end's agent does not plan with it.
    NoPeer,
}

/// Judges all pairs whose first end has answered, by that end's name.
pub(super) fn judge(facts: &Facts) -> BTreeMap<String, Vec<Seen>> {
    let told: BTreeMap<&str, BTreeMap<&str, &PeerStatus>> = answered(facts)
        .map(|(node, status)| (node, by_name(status)))
        .collect();
    let others = |this: &str| {
        let nodes = facts.nodes.iter().map(|node| node.metadata.name.clone());
        nodes.filter(|other| other != this).collect::<Vec<_>>()
    };
    told.iter()
        .map(|(&this, peers)| {
            let seen = others(this).into_iter().map(|other| {
                let back = told.get(other.as_str());
                let back = back.map(|peers| peers.get(this).copied());
                pair(
                    this,
                    other.clone(),
                    peers.get(other.as_str()).copied(),
                    back,
                )
            });
            (this.to_owned(), seen.collect())
        })
        .collect()
}

fn by_name(status: &AgentStatus) -> BTreeMap<&str, &PeerStatus> {
    let peers = status.peers.iter();
    peers.map(|peer| (peer.node.as_str(), peer)).collect()
}

/// One end, and what the other end says; `back` is absent where the other agent has not answered.
fn pair(
    this: &str,
    other: String,
    there: Option<&PeerStatus>,
    back: Option<Option<&PeerStatus>>,
) -> Seen {
    let Some(peer) = there else {
        return Seen {
            node: other,
            pair: PairState::NoPeer,
            state: None,
            handshake_age_seconds: None,
            endpoint: None,
            cause: None,
        };
    };
    let (pair, cause) = if let Some(cause) = &peer.degraded {
        (
            PairState::Degraded,
            Some(format!("{} ({})", cause.message, cause.reason)),
        )
    } else if peer.state == PeerState::Unknown {
        (PairState::Unknown, None)
    } else if let Some(cause) = one_sided(this, &other, peer, back) {
        (PairState::OneSided, Some(cause))
    } else if peer.handshake_age_seconds.is_none() {
        (PairState::Never, None)
    } else {
        (PairState::Ok, None)
    };
    Seen {
        node: other,
        pair,
        state: Some(peer.state),
        handshake_age_seconds: peer.handshake_age_seconds,
        endpoint: peer.endpoint,
        cause,
    }
}

/// Why the other end does not share this end's session, if it does not.
fn one_sided(
    this: &str,
    other: &str,
    peer: &PeerStatus,
    back: Option<Option<&PeerStatus>>,
) -> Option<String> {
    if peer.state != PeerState::Up {
        return None;
    }
    let ours = peer.handshake_age_seconds?;
    let Some(back) = back? else {
        return Some(format!("{other} does not have {this} as a peer"));
    };
    match back.handshake_age_seconds {
        _ if back.state == PeerState::Unknown => Some(format!(
            "the tunnel of {other} does not have {this} as a peer"
        )),
        None => Some(format!("{other} has had no handshake with {this}")),
        Some(theirs) if theirs > ours.saturating_add(TOLERANCE_SECONDS) => Some(format!(
            "the handshake of {ours} s ago is not known to {other}, whose newest is of {theirs} s ago"
        )),
        Some(_) => None,
    }
}
