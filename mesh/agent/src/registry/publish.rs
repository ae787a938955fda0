//! This node's own file in the directory of the file registry.

use std::path::Path;

use serde_json::{Map, Value, json};
use warren_core::consts::annotation;
use warren_core::status::DataPlaneKind;

use super::file::MAX_FILE_LEN;
use super::{OwnRecord, RegistryError};
use crate::files;

/// Readable by all nodes' agents, whatever user they share the directory as; nothing in it is
/// secret.
const FILE_MODE: u32 = 0o644;

/// Writes the node's file if it says anything else than `own`. Fields and annotations that are not
/// the agent's stay as they are; `last_good` stands in for a file that cannot be parsed.
///
/// `published_before` makes a foreign uid an error: this node has written its own since its start,
/// so that another machine must have replaced it.
pub(super) fn publish(
    path: &Path,
    own: &OwnRecord,
    last_good: Option<&Value>,
    published_before: bool,
) -> Result<bool, RegistryError> {
    let read = files::read_limited(path, MAX_FILE_LEN);
    let old: Option<Value> = match read {
        Ok(content) => content.and_then(|content| serde_json::from_slice(&content).ok()),
        Err(files::FileError::TooLarge { .. }) => None,
        Err(e) => return Err(e.into()),
    };
    if published_before
        && let Some(uid) = old.as_ref().and_then(|old| old.get("uid")?.as_str())
        && uid != own.uid.0
    {
        return Err(RegistryError::NameTaken {
            name: own.name.clone(),
            uid: uid.to_owned(),
        });
    }
    let base = old
        .as_ref()
        .or(last_good)
        .and_then(Value::as_object)
        .cloned()
        .unwrap_or_default();
    let new = Value::Object(merge(base, own));
    if old.as_ref() == Some(&new) {
        return Ok(false);
    }
    files::replace_json(path, &new, FILE_MODE)?;
    Ok(true)
}

fn merge(mut fields: Map<String, Value>, own: &OwnRecord) -> Map<String, Value> {
    let texts = |items: &mut dyn Iterator<Item = String>| Value::from_iter(items);
    fields.insert("name".into(), json!(own.name.as_str()));
    fields.insert("uid".into(), json!(own.uid.0));
    let pod_cidrs = texts(&mut own.pod_cidrs.iter().map(ToString::to_string));
    fields.insert("podCIDRs".into(), pod_cidrs);
    let addresses = texts(&mut own.addresses.iter().map(ToString::to_string));
    fields.insert("addresses".into(), addresses);
    let mut annotations = match fields.remove("annotations") {
        Some(Value::Object(annotations)) => annotations,
        _ => Map::new(),
    };
    annotations.insert(
        annotation::PUBLIC_KEY.into(),
        json!(own.public_key.to_base64()),
    );
    annotations.insert(
        annotation::MTU.into(),
        json!(own.underlay_mtu_bytes.to_string()),
    );
    if own.endpoints.is_empty() {
        annotations.remove(annotation::ENDPOINT);
    } else {
        annotations.insert(
            annotation::ENDPOINT.into(),
            json!(own.endpoints.to_string()),
        );
    }
    match own.data_plane {
        DataPlaneKind::Userspace => drop(annotations.remove(annotation::DATA_PLANE)),
        other => {
            let word = json!(other.as_str());
            annotations.insert(annotation::DATA_PLANE.into(), word);
        }
    }
    fields.insert("annotations".into(), Value::Object(annotations));
    fields
}
