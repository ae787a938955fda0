//! What agents have left on a Node, as patches that remove it.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Node;
use serde_json::{Value, json};
use warren_core::consts::annotation;
use warren_core::kubernetes::NETWORK_UNAVAILABLE;

use crate::registry::FIELD_MANAGER as AGENT;

/// The annotations that agents may write. `force-endpoint` is operators'.
const OURS: [&str; 5] = [
    annotation::PUBLIC_KEY,
    annotation::NEXT_PUBLIC_KEY,
    annotation::ENDPOINT,
    annotation::MTU,
    annotation::DATA_PLANE,
];

/// A merge patch that removes the agents' annotations, if there are any.
pub(super) fn without_annotations(node: &Node) -> Option<Value> {
    let present = node.metadata.annotations.iter().flatten();
    let ours: BTreeMap<&str, Value> = present
        .filter(|(key, _)| OURS.contains(&key.as_str()))
        .map(|(key, _)| (key.as_str(), Value::Null))
        .collect();
    // With the uid nothing is written to another life of the Node.
    let uid = &node.metadata.uid;
    (!ours.is_empty()).then(|| json!({"metadata": {"uid": uid, "annotations": ours}}))
}

/// A strategic merge patch of the status that removes the condition, if it is there and an agent wrote it.
///
/// Server-side apply of nothing would do the same, but for a Node whose other writers the API server does not know:
/// there it removes their part of the status too.
pub(super) fn without_condition(node: &Node) -> Option<Value> {
    let written = node.metadata.managed_fields.iter().flatten().any(|entry| {
        entry.manager.as_deref() == Some(AGENT) && entry.subresource.as_deref() == Some("status")
    });
    let conditions = node.status.as_ref()?.conditions.iter().flatten();
    let present = { conditions }.any(|condition| condition.type_ == NETWORK_UNAVAILABLE);
    let gone = json!([{"$patch": "delete", "type": NETWORK_UNAVAILABLE}]);
    let uid = &node.metadata.uid;
    (written && present).then(|| json!({"metadata": {"uid": uid}, "status": {"conditions": gone}}))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(annotations: Value, manager: &str) -> Node {
        let node = json!({
            "metadata": {
                "name": "a", "uid": "1", "annotations": annotations,
                "managedFields": [{"manager": manager, "operation": "Apply", "subresource": "status"}],
            },
            "status": {"conditions": [
                {"type": "Ready", "status": "True"}, {"type": "NetworkUnavailable", "status": "False"},
            ]},
        });
        serde_json::from_value(node).unwrap()
    }

    #[test]
    fn what_agents_wrote_goes_and_what_others_wrote_stays() {
        let forced = json!({"example.com/a": "b", annotation::FORCE_ENDPOINT: "192.0.2.1:1"});
        let mut both = forced.clone();
        both[annotation::MTU] = json!("1500");
        let of_agent = node(both, AGENT);
        assert_eq!(
            without_annotations(&of_agent),
            Some(json!({"metadata": {"uid": "1", "annotations": {annotation::MTU: null}}}))
        );
        let patch = without_condition(&of_agent).unwrap();
        assert_eq!(patch["status"]["conditions"].as_array().unwrap().len(), 1);
        // A cloud's route controller writes that condition too.
        let of_others = node(forced, "cloud-controller-manager");
        assert_eq!(without_annotations(&of_others), None);
        assert_eq!(without_condition(&of_others), None);
    }
}
