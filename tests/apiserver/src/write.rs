//! One change of an object in each form that an API server takes, and what came of it.

use anyhow::{Context, Result};
use http::Request;
use serde_json::{Map, Value, json};

/// The forms in which a client can write a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// A JSON merge patch.
    Merge,
    /// A JSON patch.
    Json,
    /// A strategic merge patch.
    Strategic,
    /// Server-side apply by the field manager `warren`, forced. It only sets: what a change removes, stays.
    Apply,
    /// An update of the whole object (PUT).
    Update,
}

impl Form {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Merge,
        Self::Json,
        Self::Strategic,
        Self::Apply,
        Self::Update,
    ];
    /// Those that need the verb `patch` alone.
    pub const PATCHES: [Self; 4] = [Self::Merge, Self::Json, Self::Strategic, Self::Apply];
}

/// What the API server answered: the object, or the message of its refusal.
pub type Outcome = Result<Value, String>;

/// Writes the change from `old` to `new`, which have `apiVersion` and `kind`, to `path` in a form. A dry run
/// passes admission and validation like any other, and changes nothing.
///
/// # Errors
/// Those of the connection; what the API server refuses is an [`Outcome`].
pub async fn write(
    client: &kube::Client,
    path: &str,
    form: Form,
    (old, new): (&Value, &Value),
    dry_run: bool,
) -> Result<Outcome> {
    let (method, content, body, query) = match form {
        Form::Merge => (
            "PATCH",
            "application/merge-patch+json",
            difference(old, new),
            "",
        ),
        Form::Json => (
            "PATCH",
            "application/json-patch+json",
            serde_json::to_value(json_patch::diff(old, new))?,
            "",
        ),
        Form::Strategic => (
            "PATCH",
            "application/strategic-merge-patch+json",
            by_type(old, difference(old, new)),
            "",
        ),
        Form::Apply => (
            "PATCH",
            "application/apply-patch+yaml",
            applied(old, new),
            "fieldManager=warren&force=true&",
        ),
        Form::Update => ("PUT", "application/json", new.clone(), ""),
    };
    let dry_run = if dry_run { "dryRun=All" } else { "" };
    let request = Request::builder()
        .method(method)
        .uri(format!("{path}?{query}{dry_run}"))
        .header("content-type", content)
        .body(serde_json::to_vec(&body)?)?;
    outcome(client.request(request).await)
}

/// Sends any request with a body in JSON; PATCH is a merge patch.
///
/// # Errors
/// Those of the connection; what the API server refuses is an [`Outcome`].
pub async fn send(
    client: &kube::Client,
    method: &str,
    path: &str,
    body: Option<&Value>,
) -> Result<Outcome> {
    let body = body.map(serde_json::to_vec).transpose()?;
    let content = match method {
        "PATCH" => "application/merge-patch+json",
        _ => "application/json",
    };
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("content-type", content)
        .body(body.unwrap_or_default())?;
    outcome(client.request(request).await)
}

fn outcome(answer: kube::Result<Value>) -> Result<Outcome> {
    match answer {
        Ok(value) => Ok(Ok(value)),
        Err(kube::Error::Api(status)) => Ok(Err(status.message)),
        Err(error) => Err(error).context("ask the API server"),
    }
}

/// The merge patch from `old` to `new`: what differs, null where it is gone, lists as a whole.
fn difference(old: &Value, new: &Value) -> Value {
    let (Value::Object(old), Value::Object(new)) = (old, new) else {
        return new.clone();
    };
    let mut patch: Map<String, Value> = old
        .keys()
        .filter(|key| !new.contains_key(*key))
        .map(|key| (key.clone(), Value::Null))
        .collect();
    for (key, value) in new {
        match old.get(key) {
            Some(old) if old == value => {}
            Some(old) => drop(patch.insert(key.clone(), difference(old, value))),
            None => drop(patch.insert(key.clone(), value.clone())),
        }
    }
    Value::Object(patch)
}

/// Leaves only the items that differ in lists whose items are told apart by `type`, as conditions are.
fn by_type(old: &Value, mut patch: Value) -> Value {
    match &mut patch {
        Value::Object(fields) => {
            for (key, value) in fields {
                *value = by_type(&old[key.as_str()], value.take());
            }
        }
        Value::Array(items) if items.iter().all(|item| item["type"].is_string()) => {
            let old = old.as_array().cloned().unwrap_or_default();
            items.retain(|item| !old.contains(item));
        }
        _ => {}
    }
    patch
}

fn applied(old: &Value, new: &Value) -> Value {
    let mut config = by_type(old, difference(old, new));
    without_nulls(&mut config);
    json_patch::merge(
        &mut config,
        &json!({
            "apiVersion": new["apiVersion"],
            "kind": new["kind"],
            "metadata": {"name": new["metadata"]["name"]},
        }),
    );
    config
}

fn without_nulls(value: &mut Value) {
    if let Value::Object(fields) = value {
        fields.retain(|_, value| !value.is_null());
        fields.values_mut().for_each(without_nulls);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_patch_has_what_differs_and_nothing_else() {
        let old =
            json!({"a": 1, "b": {"c": 1, "d": 2}, "l": [{"type": "x", "n": 1}, {"type": "y"}]});
        let new =
            json!({"b": {"c": 1, "d": 3}, "e": 4, "l": [{"type": "x", "n": 2}, {"type": "y"}]});
        let patch = difference(&old, &new);
        let mut merged = old.clone();
        json_patch::merge(&mut merged, &patch);
        assert_eq!(merged, new);
        let expected = json!({"a": null, "b": {"d": 3}, "e": 4, "l": [{"type": "x", "n": 2}]});
        assert_eq!(by_type(&old, patch), expected);
    }
}
