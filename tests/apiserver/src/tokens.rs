//! Tokens of service accounts, issued by the API server itself.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Pod, Secret, ServiceAccount};
use kube::api::PostParams;
use kube::{Api, Client, Resource, ResourceExt as _};
use serde_json::json;

/// The service account of `warren-agent`: namespace and name, as `deploy/manifests` has them.
pub const AGENT: (&str, &str) = ("warren-system", "warren-agent");

/// What a token is bound to.
pub type Binding = BoundObjectReference;

/// Makes a Pod of a service account on a node, or on none, and returns what binds a token to it.
///
/// # Errors
/// Those of the API server.
pub async fn agent_pod(
    admin: &Client,
    (namespace, account): (&str, &str),
    name: &str,
    node: Option<&str>,
) -> Result<Binding> {
    let pods: Api<Pod> = Api::namespaced(admin.clone(), namespace);
    let pod = serde_json::from_value(json!({
        "metadata": {"name": name},
        "spec": {
            "serviceAccountName": account,
            "nodeName": node,
            "containers": [{"name": "agent", "image": "agent"}],
        },
    }))?;
    let pod = pods.create(&PostParams::default(), &pod).await?;
    Ok(binding(&pod))
}

/// Asks for a token of a service account, bound or not.
///
/// # Errors
/// Those of the API server.
pub async fn token(
    admin: &Client,
    (namespace, account): (&str, &str),
    bound: Option<Binding>,
) -> Result<String> {
    let accounts: Api<ServiceAccount> = Api::namespaced(admin.clone(), namespace);
    let request = TokenRequest {
        spec: Some(TokenRequestSpec {
            bound_object_ref: bound,
            ..TokenRequestSpec::default()
        }),
        ..TokenRequest::default()
    };
    let answer = accounts
        .create_token_request(account, &PostParams::default(), &request)
        .await?;
    let token = answer.status.and_then(|status| status.token);
    token.context("an answer without a token")
}

/// Makes a Secret that holds a token which never ends, as all did before Kubernetes 1.24; returns the token,
/// and what binds another one to that Secret.
///
/// # Errors
/// Those of the API server; no token within a minute.
pub async fn secret_token(
    admin: &Client,
    (namespace, account): (&str, &str),
) -> Result<(String, Binding)> {
    let secrets: Api<Secret> = Api::namespaced(admin.clone(), namespace);
    let secret: Secret = serde_json::from_value(json!({
        "metadata": {
            "name": account,
            "annotations": {"kubernetes.io/service-account.name": account},
        },
        "type": "kubernetes.io/service-account-token",
    }))?;
    secrets.create(&PostParams::default(), &secret).await?;
    for _ in 0..600 {
        let secret = secrets.get(account).await?;
        if let Some(token) = secret.data.as_ref().and_then(|data| data.get("token")) {
            return Ok((String::from_utf8(token.0.clone())?, binding(&secret)));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    bail!("no token in the Secret in time")
}

fn binding<R: Resource<DynamicType = ()>>(object: &R) -> Binding {
    Binding {
        api_version: Some("v1".into()),
        kind: Some(R::kind(&()).into_owned()),
        name: Some(object.name_any()),
        uid: object.uid(),
    }
}
