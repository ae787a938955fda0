//! Prometheus' metrics, made of the status at each scrape: a peer that leaves takes its series
//! along, and no label is unbounded.

use std::fmt;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode as encode_text;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use warren_core::degraded::DegradedCause;
use warren_core::status::{AgentStatus, DataPlaneKind, NodeState, PeerState};

use crate::snapshot::Stats;
use crate::tunnel_socket::TunnelReport;

/// A peer's labels, as the widely used WireGuard exporters have them.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PeerLabels {
    interface: String,
    public_key: String,
    friendly_name: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabel {
    state: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DataPlaneLabel {
    data_plane: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RuleLabel {
    rule: String,
}

/// The text of a scrape.
///
/// # Errors
/// None that a caller could cause: writing to a string.
pub fn encode(
    status: &AgentStatus,
    stats: &Stats,
    tunnel: &TunnelReport,
) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    wireguard(&mut registry, status);
    warren(&mut registry, status);
    reconciles(&mut registry, stats);
    let drops = Family::<ReasonLabel, Counter>::default();
    for (reason, packets) in &tunnel.drops {
        drops
            .get_or_create(&ReasonLabel {
                reason: reason.clone(),
            })
            .inc_by(*packets);
    }
    registry.register(
        "warren_tunnel_drops",
        "Packets that the tunnel dropped, by reason",
        drops,
    );
    let fragmented = Counter::<u64>::default();
    fragmented.inc_by(tunnel.fragmented);
    registry.register(
        "warren_tunnel_fragmented_datagrams",
        "Datagrams that were too large to arrive in one piece",
        fragmented,
    );
    let mut text = String::new();
    encode_text(&mut text, &registry)?;
    Ok(text)
}

fn wireguard(registry: &mut Registry, status: &AgentStatus) {
    let sent = Family::<PeerLabels, Counter>::default();
    let received = Family::<PeerLabels, Counter>::default();
    let handshake = Family::<PeerLabels, Gauge>::default();
    for peer in &status.peers {
        let labels = PeerLabels {
            interface: status.interface.clone(),
            public_key: peer.public_key.to_base64(),
            friendly_name: peer.node.clone(),
        };
        sent.get_or_create(&labels).inc_by(peer.tx_bytes);
        received.get_or_create(&labels).inc_by(peer.rx_bytes);
        let at = peer.latest_handshake.unwrap_or(0);
        handshake
            .get_or_create(&labels)
            .set(i64::try_from(at).unwrap_or(i64::MAX));
    }
    registry.register("wireguard_sent_bytes", "Bytes sent to the peer", sent);
    registry.register(
        "wireguard_received_bytes",
        "Bytes received from the peer",
        received,
    );
    let help = "Unix time of the newest handshake with the peer, 0 for none";
    registry.register("wireguard_latest_handshake_seconds", help, handshake);
}

fn warren(registry: &mut Registry, status: &AgentStatus) {
    let mut flag = |name: &str, help: &str, value: bool| {
        let gauge = Gauge::<i64>::default();
        gauge.set(value.into());
        registry.register(name, help, gauge);
    };
    flag(
        "warren_protected",
        "Whether no pod's packet can leave in clear",
        status.protected,
    );
    flag(
        "warren_tunnel_up",
        "Whether the tunnel answers",
        status.tunnel.ok,
    );
    flag(
        "warren_registry_up",
        "Whether the registry tells of nodes",
        status.registry.ok,
    );
    flag(
        "warren_synced",
        "Whether the whole view was received since the start",
        status.synced,
    );
    flag(
        "warren_degraded",
        "Whether something suffers on this node; `warren status` tells",
        status.state != NodeState::Ok,
    );
    let problems = Gauge::<i64>::default();
    problems.set(i64::try_from(status.problems.len()).unwrap_or(i64::MAX));
    registry.register(
        "warren_problems",
        "What needs attention; `warren status` tells",
        problems,
    );

    let data_plane = Family::<DataPlaneLabel, Gauge>::default();
    for kind in DataPlaneKind::ALL {
        let label = DataPlaneLabel {
            data_plane: kind.as_str(),
        };
        let is_used = kind == status.data_plane;
        data_plane.get_or_create(&label).set(is_used.into());
    }
    let help = "Who encrypts: 1 for the data plane in use, 0 for the other";
    registry.register("warren_data_plane", help, data_plane);

    let peers = Family::<StateLabel, Gauge>::default();
    for state in PeerState::ALL {
        let count = status
            .peers
            .iter()
            .filter(|peer| peer.state == state)
            .count();
        let label = StateLabel {
            state: state.as_str(),
        };
        peers
            .get_or_create(&label)
            .set(i64::try_from(count).unwrap_or(i64::MAX));
    }
    registry.register("warren_peers", "Peers by their state", peers);
    degraded(registry, status);
    let rejected = Family::<ReasonLabel, Gauge>::default();
    for node in &status.rejected {
        rejected
            .get_or_create(&ReasonLabel {
                reason: node.reason.clone(),
            })
            .inc();
    }
    registry.register(
        "warren_rejected_nodes",
        "Nodes that are not planned with",
        rejected,
    );
    let held = Gauge::<i64>::default();
    let untrusted = status
        .peers
        .iter()
        .filter(|peer| peer.untrusted_key.is_some());
    held.set(i64::try_from(untrusted.count()).unwrap_or(i64::MAX));
    let help = "Peers that publish a key which is not trusted here; `warren trust` trusts it";
    registry.register("warren_held_keys", help, held);
    let drops = Family::<RuleLabel, Counter>::default();
    for (rule, packets) in &status.filter_drops {
        drops
            .get_or_create(&RuleLabel { rule: rule.clone() })
            .inc_by(*packets);
    }
    let help = "Packets that the filter dropped since it was loaded, by rule";
    registry.register("warren_filter_drops", help, drops);
}

/// One series a peer and one a cause, whatever happens: an alert needs no series that comes and
/// goes.
fn degraded(registry: &mut Registry, status: &AgentStatus) {
    let peers = Family::<PeerLabels, Gauge>::default();
    let causes = Family::<ReasonLabel, Gauge>::default();
    for reason in DegradedCause::REASONS {
        let label = ReasonLabel {
            reason: reason.to_owned(),
        };
        causes.get_or_create(&label).set(0);
    }
    for peer in &status.peers {
        let labels = PeerLabels {
            interface: status.interface.clone(),
            public_key: peer.public_key.to_base64(),
            friendly_name: peer.node.clone(),
        };
        let is_degraded = peer.degraded.is_some();
        peers.get_or_create(&labels).set(is_degraded.into());
        if let Some(cause) = &peer.degraded {
            let reason = cause.reason.clone();
            causes.get_or_create(&ReasonLabel { reason }).inc();
        }
    }
    let help = "Whether traffic with the peer suffers; `warren status` tells why";
    registry.register("warren_peer_degraded", help, peers);
    let help = "Peers that traffic suffers with, by cause";
    registry.register("warren_degraded_peers", help, causes);
}

fn reconciles(registry: &mut Registry, stats: &Stats) {
    let mut counter = |name: &str, help: &str, value: u64| {
        let counter = Counter::<u64>::default();
        counter.inc_by(value);
        registry.register(name, help, counter);
    };
    counter(
        "warren_reconciles",
        "Reconciles since the start",
        stats.reconciles,
    );
    counter(
        "warren_reconcile_failures",
        "Reconciles that left something undone",
        stats.failed,
    );
    counter(
        "warren_follows",
        "Times that single nodes' news were applied without a whole reconcile",
        stats.follows,
    );
    counter("warren_reconcile_changes", "Changes made", stats.changes);
    counter(
        "warren_key_changes",
        "Changes of known nodes' keys that were believed",
        stats.key_changes,
    );
    let total = Counter::<f64, std::sync::atomic::AtomicU64>::default();
    total.inc_by(stats.total.as_secs_f64());
    registry.register(
        "warren_reconcile_seconds",
        "Time that all reconciles took",
        total,
    );
    let following = Counter::<f64, std::sync::atomic::AtomicU64>::default();
    following.inc_by(stats.following.as_secs_f64());
    registry.register(
        "warren_follow_seconds",
        "Time that following single nodes' news took",
        following,
    );
    let last = Gauge::<f64, std::sync::atomic::AtomicU64>::default();
    last.set(stats.last.as_secs_f64());
    let help = "Time that the last reconcile took";
    registry.register("warren_reconcile_last_duration_seconds", help, last);
}
