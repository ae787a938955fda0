use warren_core::NodeUid;
use warren_core::kubernetes::{NodeMetadata, NodeObject};

use super::*;

fn node(name: &str, uid: &str, key: &str) -> Watched {
    let annotations = [("warren.network/public-key".to_owned(), key.to_owned())];
    Watched::from(NodeObject {
        metadata: NodeMetadata {
            name: name.to_owned(),
            uid: uid.to_owned(),
            annotations: Some(annotations.into()),
            ..NodeMetadata::default()
        },
        ..NodeObject::default()
    })
}

fn list(told: &mut Told, nodes: &[Watched]) -> Vec<RegistryEvent> {
    let mut events = told.handle(Event::Init);
    for node in nodes {
        events.extend(told.handle(Event::InitApply(node.clone())));
    }
    events.extend(told.handle(Event::InitDone));
    events
}

fn synced(nodes: &[Watched]) -> Told {
    let mut told = Told::new(&NodeName::new("own").expect("a name"));
    list(&mut told, nodes);
    told
}

fn applied(node: &Watched) -> RegistryEvent {
    RegistryEvent::Applied(node.object.view())
}

fn deleted_event(name: &str, uid: &str) -> RegistryEvent {
    RegistryEvent::Deleted {
        name: name.to_owned(),
        uid: NodeUid(uid.to_owned()),
    }
}

#[test]
fn the_whole_view_is_told_once_the_list_is_complete_and_not_before() {
    let mut told = Told::new(&NodeName::new("own").expect("a name"));
    let nodes = [node("a", "1", "k"), node("b", "2", "k")];
    assert_eq!(told.handle(Event::Init), []);
    assert_eq!(told.handle(Event::InitApply(nodes[0].clone())), []);
    assert!(!told.is_synced());
    // The list broke off, and begins anew.
    let views = nodes.iter().map(|n| n.object.view()).collect();
    assert_eq!(list(&mut told, &nodes), [RegistryEvent::Synced(views)]);
}

#[test]
fn repeated_events_are_told_once() {
    let mut told = synced(&[node("a", "1", "k")]);
    let changed = node("a", "1", "other");
    assert_eq!(
        told.handle(Event::Apply(changed.clone())),
        [applied(&changed)]
    );
    assert_eq!(told.handle(Event::Apply(changed.clone())), []);
    assert_eq!(
        told.handle(Event::Delete(changed.clone())),
        [deleted_event("a", "1")]
    );
    assert_eq!(told.handle(Event::Delete(changed)), []);
}

#[test]
fn events_that_were_lost_are_made_up_for_by_the_next_list() {
    let mut told = synced(&[
        node("a", "1", "k"),
        node("b", "2", "k"),
        node("c", "3", "k"),
    ]);
    let now = [
        node("a", "1", "new"),
        node("c", "3", "k"),
        node("d", "4", "k"),
    ];
    let expected = [deleted_event("b", "2"), applied(&now[0]), applied(&now[2])];
    assert_eq!(list(&mut told, &now), expected);
}

#[test]
fn a_node_made_anew_is_deleted_first_whether_or_not_the_deletion_was_seen() {
    let reborn = node("a", "2", "k");
    let expected = [deleted_event("a", "1"), applied(&reborn)];
    let mut told = synced(&[node("a", "1", "k")]);
    assert_eq!(told.handle(Event::Apply(reborn.clone())), expected);
    let mut told = synced(&[node("a", "1", "k")]);
    assert_eq!(list(&mut told, std::slice::from_ref(&reborn)), expected);
    // The deletion of the earlier life comes late.
    assert_eq!(told.handle(Event::Delete(node("a", "1", "k"))), []);
}

#[test]
fn a_list_without_other_nodes_takes_none_away_until_one_is_heard_of() {
    let mut told = synced(&[
        node("own", "0", "k"),
        node("a", "1", "k"),
        node("b", "2", "k"),
    ]);
    assert_eq!(list(&mut told, &[node("own", "0", "k")]), []);
    assert!(told.trouble().is_some());
    let b = node("b", "2", "k");
    assert_eq!(
        told.handle(Event::Apply(b.clone())),
        [deleted_event("a", "1")]
    );
    assert_eq!(told.trouble(), None);
    assert_eq!(told.handle(Event::Delete(b)), [deleted_event("b", "2")]);
}

#[test]
fn a_cluster_of_this_node_alone_is_believed() {
    let mut told = synced(&[node("own", "0", "k")]);
    assert_eq!(list(&mut told, &[]), [deleted_event("own", "0")]);
    assert_eq!(told.trouble(), None);
}
