//! Results as the runtime wants them, in the version that it asked for.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use thiserror::Error;

use crate::version::CniVersion;

/// Why a `prevResult` is refused. Code 7.
#[derive(Debug, Error)]
pub enum PrevResultError {
    /// It is no result.
    #[error("prevResult of the network configuration cannot be understood: {0}")]
    Decode(#[from] serde_json::Error),
    /// The verb needs one.
    #[error("network configuration lacks \"prevResult\": CHECK needs the result of the ADD")]
    Missing,
}

/// The result of an ADD. Keys that are not known here are kept as they came with a `prevResult`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CniResult {
    /// The interfaces, of this plugin and of those before it.
    #[serde(default)]
    pub interfaces: Vec<Interface>,
    /// The addresses.
    #[serde(default)]
    pub ips: Vec<IpConfig>,
    /// The routes inside the container.
    #[serde(default)]
    pub routes: Vec<Route>,
    /// What the container's resolver is to be told.
    #[serde(default)]
    pub dns: Dns,
    /// Other keys of a `prevResult`.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// One interface.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its hardware address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// Its MTU in bytes; told from version 1.1.0 on.
    #[serde(default, rename = "mtu", skip_serializing_if = "Option::is_none")]
    pub mtu_bytes: Option<u32>,
    /// The namespace that it is in; none for the host's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<String>,
    /// Other keys of a `prevResult`.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// One address.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct IpConfig {
    /// `4` or `6`; told before version 1.0.0 only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    version: Option<String>,
    /// Index of its interface among the result's interfaces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<usize>,
    /// The address with its prefix length.
    pub address: IpNet,
    /// The gateway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
    /// Other keys of a `prevResult`.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl IpConfig {
    /// An address on the interface with this index.
    pub fn new(address: IpNet, interface: usize, gateway: IpAddr) -> Self {
        Self {
            version: None,
            interface: Some(interface),
            address,
            gateway: Some(gateway),
            extra: Map::new(),
        }
    }
}

/// One route.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Route {
    /// Where it leads to.
    pub dst: IpNet,
    /// By which gateway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gw: Option<IpAddr>,
    /// What this plugin has to say of it beside that; told from version 1.1.0 on.
    #[serde(skip)]
    pub details: RouteDetails,
    /// Other keys of a `prevResult`.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// The fields of a route that came with version 1.1.0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct RouteDetails {
    /// The path's MTU.
    #[serde(rename = "mtu", skip_serializing_if = "Option::is_none")]
    pub mtu_bytes: Option<u32>,
    /// The largest TCP segment that is advertised.
    #[serde(rename = "advmss", skip_serializing_if = "Option::is_none")]
    pub advmss_bytes: Option<u32>,
    /// The metric.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority: Option<u32>,
    /// The routing table.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub table: Option<u32>,
}

/// What a resolver is told, as in resolv.conf(5).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dns {
    /// Addresses of name servers, the first one asked first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nameservers: Vec<String>,
    /// The local domain.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub domain: String,
    /// Search domains.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub search: Vec<String>,
    /// Options.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
}

impl Dns {
    /// Whether there is nothing to tell.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl CniResult {
    /// Reads the result of the plugin before this one; an empty object is an empty result.
    ///
    /// # Errors
    /// [`PrevResultError`] when it is no result; whoever wrote the chain's configuration must look.
    pub fn from_prev(prev: Option<&Value>) -> Result<Self, PrevResultError> {
        let Some(prev) = prev else {
            return Ok(Self::default());
        };
        let mut result = Self::deserialize(without_nulls(prev))?;
        result.extra.remove("cniVersion");
        Ok(result)
    }

    /// The result as a runtime of this version reads it.
    pub fn to_json(&self, version: CniVersion) -> Value {
        let mut result = self.clone();
        for ip in &mut result.ips {
            let family = if ip.address.addr().is_ipv4() {
                "4"
            } else {
                "6"
            };
            ip.version = (version < CniVersion::V1_0_0).then(|| family.to_owned());
        }
        if version < CniVersion::V1_1_0 {
            result
                .interfaces
                .iter_mut()
                .for_each(|interface| interface.mtu_bytes = None);
        }
        let mut value = json!(result);
        if version >= CniVersion::V1_1_0
            && let Some(routes) = value["routes"].as_array_mut()
        {
            for (route, told) in result.routes.iter().zip(routes) {
                if let (Some(told), Value::Object(details)) =
                    (told.as_object_mut(), json!(route.details))
                {
                    told.extend(details);
                }
            }
        }
        value["cniVersion"] = version.as_str().into();
        value
    }
}

/// The value without the keys that are null: some plugins write so what they have nothing of.
fn without_nulls(value: &Value) -> Value {
    match value {
        Value::Object(object) => {
            let told = object.iter().filter(|(_, value)| !value.is_null());
            told.map(|(key, value)| (key.clone(), without_nulls(value)))
                .collect()
        }
        Value::Array(items) => items.iter().map(without_nulls).collect(),
        other => other.clone(),
    }
}

/// What VERSION answers. `asked` is the `cniVersion` on stdin, if there is one.
pub fn version_result(asked: Option<&str>) -> Value {
    json!({
        "cniVersion": asked.unwrap_or(CniVersion::NEWEST.as_str()),
        "supportedVersions": CniVersion::ALL.map(CniVersion::as_str),
    })
}
