//! `kubectl warren status`, by its page, its document and what it calls trouble.
#![allow(clippy::unwrap_used)]

mod common;

use common::{annotate, cluster, key, no_answer, reject, said, said_of};
use serde_json::{Value, json};
use warren_core::consts::annotation;
use warren_core::status::PeerState;
use warren_kubectl::facts::Facts;
use warren_kubectl::status::{Kind, PairState, Report, State, Style, page};

fn plain(facts: &Facts) -> String {
    page(&Report::of(facts), Style::default())
}

#[test]
fn a_cluster_that_is_well_is_two_tables() {
    assert_eq!(
        plain(&cluster(3)),
        "\
cluster   https://192.0.2.250:6443
state     ok
nodes     3, of which 3 are ok
agents    3 of 0.1.0
tunnels   3 of 0.1.0

NODE   STATE  NETWORK    KEY            KEY AGE  AGENT  TUNNEL  PEERS
node1  ok     available  ERERERERERER…    3d 4h  0.1.0  0.1.0     2/2
node2  ok     available  IiIiIiIiIiIi…    3d 4h  0.1.0  0.1.0     2/2
node3  ok     available  MzMzMzMzMzMz…    3d 4h  0.1.0  0.1.0     2/2

handshakes: how long ago the row's node had one with the column's
       node1  node2  node3
node1  .      12s    13s
node2  11s    .      13s
node3  11s    12s    .
! degraded   * one-sided   x no peer there   ? not known
"
    );
    assert_eq!(Report::of(&cluster(3)).state, State::Ok);
}

#[test]
fn troubles_are_marked_in_the_matrix_and_told_below_with_their_causes() {
    let mut facts = cluster(4);
    facts.agents.insert(
        "node4".to_owned(),
        Err(
            "pod warren-agent-4 does not run: Pending, container agent: ImagePullBackOff"
                .to_owned(),
        ),
    );
    facts.nodes[3].status = None;
    let degraded = said_of(&mut facts, 1, 2);
    degraded.state = PeerState::Degraded;
    degraded.degraded = Some(no_answer());
    let never = said_of(&mut facts, 2, 3);
    (never.state, never.handshake_age_seconds) = (PeerState::Connecting, None);
    said(&mut facts, 3).peers.retain(|p| p.node != "node1");
    said(&mut facts, 3).rejected.push(reject("node1", false));
    assert_eq!(
        plain(&facts),
        "\
cluster   https://192.0.2.250:6443
state     degraded
nodes     4, of which 2 are ok
agents    3 of 0.1.0
tunnels   3 of 0.1.0

NODE   STATE     NETWORK    KEY            KEY AGE  AGENT  TUNNEL  PEERS
node1  degraded  available  ERERERERERER…    3d 4h  0.1.0  0.1.0     1/3
node2  ok        available  IiIiIiIiIiIi…    3d 4h  0.1.0  0.1.0     2/3
node3  ok        available  MzMzMzMzMzMz…    3d 4h  0.1.0  0.1.0     1/3
node4  UNKNOWN   -          RERERERERERE…        -  -      -           -

troubles
  node1: node2: nothing received from it for 17 s
  node4: pod warren-agent-4 does not run: Pending, container agent: ImagePullBackOff

refused nodes
  node1, by node3: its key is that of node1 (DuplicateKey)

pairs in trouble
  node1 -> node2: degraded: nothing received from it for 17 s (no-answer)
  node1 -> node3: one-sided: node3 does not have node1 as a peer
  node3 -> node2: one-sided: node2 has had no handshake with node3

handshakes: how long ago the row's node had one with the column's
       node1  node2  node3  node4
node1  .      12s!   13s*   14s
node2  11s    .      never  14s
node3  x      12s*   .      14s
node4  ?      ?      ?      .
! degraded   * one-sided   x no peer there   ? not known
"
    );
}

#[test]
fn wide_shows_whole_keys_endpoints_and_ranges() {
    let mut facts = cluster(2);
    annotate(
        &mut facts.nodes[1],
        annotation::FORCE_ENDPOINT,
        Some("192.0.2.2:51871"),
    );
    let style = Style {
        wide: true,
        matrix: false,
    };
    let page = page(&Report::of(&facts), style);
    let row = |name: &str| {
        page.lines()
            .find(|l| l.starts_with(name))
            .unwrap()
            .to_owned()
    };
    assert!(row("node1").contains(&key(1).to_base64()));
    assert!(
        row("node1").ends_with("192.0.2.1:51871           10.244.1.0/24"),
        "{page}"
    );
    assert!(
        row("node2").ends_with("192.0.2.2:51871 (forced)  10.244.2.0/24"),
        "{page}"
    );
}

#[test]
fn many_nodes_have_a_line_in_place_of_the_matrix_unless_it_is_asked_for() {
    let facts = cluster(13);
    let short = plain(&facts);
    assert!(
        short.ends_with(
            "\nhandshakes: 156 of 156 ends have had one, 0 not yet; --matrix shows each\n"
        ),
        "{short}"
    );
    let style = Style {
        wide: false,
        matrix: true,
    };
    let long = page(&Report::of(&facts), style);
    assert!(long.contains("\nnode13  11s    12s "), "{long}");
}

#[test]
fn a_page_stays_short_however_much_is_wrong() {
    let mut facts = cluster(14);
    for answer in facts.agents.values_mut() {
        for peer in &mut answer.as_mut().unwrap().peers {
            peer.degraded = Some(no_answer());
        }
    }
    let page = plain(&facts);
    assert!(
        page.contains("\n  and 142 more; -o json has all\n"),
        "{page}"
    );
    assert!(page.lines().count() < 150);
}

#[test]
fn text_of_others_does_not_reach_the_terminal_as_it_is() {
    let mut facts = cluster(2);
    let escape = "a\u{1b}[2Jb\u{202e}";
    facts
        .agents
        .insert("node2".to_owned(), Err(escape.to_owned()));
    said(&mut facts, 1).problems.push(escape.to_owned());
    annotate(&mut facts.nodes[1], annotation::PUBLIC_KEY, Some(escape));
    let page = plain(&facts);
    assert!(!page.contains(['\u{1b}', '\u{202e}']), "{page}");
}

/// One end's session, and what the other end says.
#[test]
fn a_session_is_one_sided_when_the_other_end_has_none_or_an_older_one() {
    let pair = |change: &dyn Fn(&mut Facts)| {
        let mut facts = cluster(2);
        change(&mut facts);
        let report = Report::of(&facts);
        report.nodes[0].peers[0].pair
    };
    assert_eq!(pair(&|_| {}), PairState::Ok);
    let older =
        |seconds| pair(&move |facts| said_of(facts, 2, 1).handshake_age_seconds = Some(seconds));
    // The agents were not asked at one moment.
    assert_eq!(older(12 + 60), PairState::Ok);
    assert_eq!(older(12 + 61), PairState::OneSided);
    assert_eq!(
        pair(&|facts| said_of(facts, 2, 1).handshake_age_seconds = None),
        PairState::OneSided
    );
    assert_eq!(
        pair(&|facts| said(facts, 2).peers.clear()),
        PairState::OneSided
    );
    // Of an end that cannot be asked nothing is known.
    let mute = |facts: &mut Facts| {
        facts
            .agents
            .insert("node2".to_owned(), Err("no".to_owned()));
    };
    assert_eq!(pair(&mute), PairState::Ok);
    // Without a session, who went first is history.
    let idle = |facts: &mut Facts| {
        let peer = said_of(facts, 1, 2);
        (peer.state, peer.handshake_age_seconds) = (PeerState::Idle, Some(300));
        said_of(facts, 2, 1).handshake_age_seconds = None;
    };
    assert_eq!(pair(&idle), PairState::Ok);
    assert_eq!(
        pair(&|facts| said_of(facts, 1, 2).state = PeerState::Unknown),
        PairState::Unknown
    );
}

fn kinds(change: impl Fn(&mut Facts)) -> Vec<(Kind, String, Vec<String>)> {
    let mut facts = cluster(3);
    change(&mut facts);
    let report = Report::of(&facts);
    assert!(report.disagreements.is_empty() || report.state == State::Degraded);
    let found = report.disagreements.into_iter();
    found.map(|d| (d.kind, d.node, d.seen_by)).collect()
}

fn seen(kind: Kind, node: &str, by: &[&str]) -> Vec<(Kind, String, Vec<String>)> {
    let by = by.iter().map(|&name| name.to_owned()).collect();
    vec![(kind, node.to_owned(), by)]
}

#[test]
fn a_key_that_is_not_the_published_one_is_a_disagreement() {
    assert_eq!(kinds(|_| {}), []);
    let other = |facts: &mut Facts| said(facts, 1).public_key = Some(key(9));
    assert_eq!(kinds(other), seen(Kind::Key, "node1", &["node1"]));
    let held = |facts: &mut Facts| {
        for by in [2, 3] {
            said_of(facts, by, 1).public_key = key(9);
            said_of(facts, by, 1).untrusted_key = Some(key(1));
        }
    };
    // Seen by many it is one.
    assert_eq!(
        kinds(held),
        seen(Kind::KeyAtPeer, "node1", &["node2", "node3"])
    );
    let mut facts = cluster(3);
    held(&mut facts);
    assert!(plain(&facts).contains("`warren trust node1` there"));
}

#[test]
fn endpoints_and_ranges_that_differ_are_disagreements() {
    let moved = |facts: &mut Facts| {
        annotate(
            &mut facts.nodes[0],
            annotation::FORCE_ENDPOINT,
            Some("203.0.113.7:51871"),
        );
    };
    assert_eq!(
        kinds(moved),
        seen(Kind::EndpointAtPeer, "node1", &["node2", "node3"])
    );
    // Where a peer is heard from is not where it was published to be: NAT.
    let roamed = |facts: &mut Facts| {
        said_of(facts, 2, 1).endpoint = Some("203.0.113.9:1024".parse().unwrap());
    };
    assert_eq!(kinds(roamed), []);
    let unpublished = |facts: &mut Facts| annotate(&mut facts.nodes[0], annotation::ENDPOINT, None);
    assert_eq!(
        kinds(unpublished),
        seen(Kind::Endpoint, "node1", &["node1"])
    );
    let ranges = |facts: &mut Facts| {
        said(facts, 1).pod_cidrs = vec!["10.244.9.0/24".parse().unwrap()];
    };
    assert_eq!(kinds(ranges), seen(Kind::PodCidrs, "node1", &["node1"]));
    let at_peer = |facts: &mut Facts| said_of(facts, 3, 1).pod_cidrs.clear();
    assert_eq!(
        kinds(at_peer),
        seen(Kind::PodCidrsAtPeer, "node1", &["node3"])
    );
    let configured = |facts: &mut Facts| {
        said(facts, 2).cluster_cidrs = vec!["10.0.0.0/8".parse().unwrap()];
    };
    assert_eq!(
        kinds(configured),
        seen(Kind::ClusterCidrs, "node2", &["node2"])
    );
}

#[test]
fn a_node_that_is_missing_at_a_peer_or_only_there_is_a_disagreement() {
    let missing = |facts: &mut Facts| said(facts, 2).peers.retain(|p| p.node != "node1");
    assert_eq!(kinds(missing), seen(Kind::MissingPeer, "node1", &["node2"]));
    let refused = |facts: &mut Facts| {
        missing(facts);
        said(facts, 2).rejected.push(reject("node1", false));
    };
    assert_eq!(kinds(refused), []);
    // An agent that has not heard of all nodes yet says so itself.
    let starting = |facts: &mut Facts| {
        missing(facts);
        said(facts, 2).synced = false;
    };
    assert_eq!(kinds(starting), []);
    let gone = |facts: &mut Facts| {
        facts.nodes.remove(0);
        facts.agents.remove("node1");
    };
    assert_eq!(
        kinds(gone),
        seen(Kind::PeerWithoutNode, "node1", &["node2", "node3"])
    );
}

#[test]
fn the_whole_is_as_bad_as_its_worst_part() {
    let state = |change: &dyn Fn(&mut Facts)| {
        let mut facts = cluster(2);
        change(&mut facts);
        Report::of(&facts).state
    };
    assert_eq!(
        state(&|facts| said(facts, 1).protected = false),
        State::Failed
    );
    let waits = |facts: &mut Facts| said(facts, 1).rejected.push(reject("node7", true));
    assert_eq!(state(&waits), State::Degraded);
    let mute = |facts: &mut Facts, node: &str| {
        facts.agents.insert(node.to_owned(), Err("no".to_owned()));
    };
    assert_eq!(state(&|facts| mute(facts, "node1")), State::Degraded);
    let all = |facts: &mut Facts| {
        mute(facts, "node1");
        mute(facts, "node2");
    };
    assert_eq!(state(&all), State::Unknown);
}

#[test]
fn the_document_is_as_docs_kubectl_says() {
    let mut facts = cluster(2);
    facts
        .agents
        .insert("node2".to_owned(), Err("no".to_owned()));
    said(&mut facts, 1).rejected.push(reject("node7", true));
    annotate(&mut facts.nodes[0], annotation::PUBLIC_KEY, None);
    let document = serde_json::to_value(Report::of(&facts)).unwrap();
    assert_eq!(
        document,
        json!({
            "schema": 1,
            "api": "https://192.0.2.250:6443",
            "state": "degraded",
            "nodes": [
                {
                    "node": "node1",
                    "state": "ok",
                    "causes": [],
                    "network_unavailable": {
                        "type": "NetworkUnavailable",
                        "status": "False",
                        "reason": "WarrenIsUp",
                        "message": "Warren protects this node's pods, and its tunnel answers",
                    },
                    "published_key": null,
                    "public_key": key(1).to_base64(),
                    "key_age_seconds": 273_600,
                    "agent_version": "0.1.0",
                    "tunnel_version": "0.1.0",
                    "endpoints": ["192.0.2.1:51871"],
                    "force_endpoint": null,
                    "pod_cidrs": ["10.244.1.0/24"],
                    "peers": [{
                        "node": "node2",
                        "pair": "ok",
                        "state": "up",
                        "handshake_age_seconds": 12,
                        "endpoint": "192.0.2.2:51871",
                        "cause": null,
                    }],
                },
                {
                    "node": "node2",
                    "state": "unknown",
                    "causes": ["no"],
                    "network_unavailable": document["nodes"][1]["network_unavailable"],
                    "published_key": key(2).to_base64(),
                    "public_key": null,
                    "key_age_seconds": null,
                    "agent_version": null,
                    "tunnel_version": null,
                    "endpoints": [],
                    "force_endpoint": null,
                    "pod_cidrs": ["10.244.2.0/24"],
                    "peers": [],
                },
            ],
            "refused": [{
                "node": "node7",
                "reason": "DuplicateKey",
                "message": "its key is that of node1",
                "waiting": true,
                "refused_by": ["node1"],
            }],
            "disagreements": [{
                "kind": "key",
                "node": "node1",
                "message": format!("its Node publishes no key, and its tunnel has {}", key(1)),
                "seen_by": ["node1"],
            }],
        })
    );
    let described = std::fs::read_to_string(
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/kubectl.md"),
    )
    .unwrap();
    let mut names = Vec::new();
    members(&document, &mut names);
    for name in names {
        assert!(described.contains(&format!("`{name}`")), "{name}");
    }
}

/// The names of all members of a document but those of a condition, which is Kubernetes' own.
fn members(value: &Value, names: &mut Vec<String>) {
    match value {
        Value::Object(object) => {
            for (name, value) in object {
                names.push(name.clone());
                if name != "network_unavailable" {
                    members(value, names);
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| members(item, names)),
        _ => {}
    }
}
