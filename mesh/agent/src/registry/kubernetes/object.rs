//! Nodes as they are watched: parsed into what the mesh needs, and nothing else kept.

use std::borrow::Cow;

use k8s_openapi::ClusterResourceScope;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;
use warren_core::kubernetes::NodeObject;

/// A Node for kube's calls.
#[derive(Clone, Debug, Deserialize)]
#[serde(from = "NodeObject")]
pub(super) struct Watched {
    pub(super) object: NodeObject,
    /// Name, uid and version again, where kube looks for them.
    metadata: ObjectMeta,
}

impl From<NodeObject> for Watched {
    fn from(object: NodeObject) -> Self {
        let metadata = ObjectMeta {
            name: Some(object.metadata.name.clone()),
            uid: Some(object.metadata.uid.clone()),
            resource_version: object.metadata.resource_version.clone(),
            ..ObjectMeta::default()
        };
        Self { object, metadata }
    }
}

impl kube::Resource for Watched {
    type DynamicType = ();
    type Scope = ClusterResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        "Node".into()
    }

    fn group((): &()) -> Cow<'_, str> {
        "".into()
    }

    fn version((): &()) -> Cow<'_, str> {
        "v1".into()
    }

    fn plural((): &()) -> Cow<'_, str> {
        "nodes".into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}
