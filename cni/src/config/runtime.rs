//! What the runtime asks for one pod: the capabilities in `runtimeConfig`, and `args`.
//!
//! The keys are those of the CNI project's CONVENTIONS.md. A capability reaches the plugin only when
//! the configuration declares it under `capabilities`; so one that has no effect here is a mistake
//! that someone must hear of, and is refused by name.

use std::net::IpAddr;

use super::{ConfigError, Fields, unsupported};
use crate::args::{parse_address, parse_mac};
use crate::plan::Mac;

/// The most names a pod can have: more would not fit into what is sent about them.
const MAX_ALIASES: usize = 100;

/// What is asked for one pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// `runtimeConfig.ips`, else `args.cni.ips`: the addresses that the pod shall have, at most one
    /// of each family. A prefix length is allowed and means nothing: pods have /32 and /128.
    pub ips: Vec<IpAddr>,
    /// `runtimeConfig.mac`: the hardware address that the pod's interface shall have.
    pub mac: Option<Mac>,
    /// `runtimeConfig.aliases`: names under which others on this node may find the pod.
    pub aliases: Vec<String>,
}

impl Asked {
    pub(super) fn parse(root: &Fields<'_>) -> Result<Self, ConfigError> {
        let mut asked = Self::default();
        if let Some(runtime) = root.object("runtimeConfig")? {
            for (key, value) in runtime.object {
                if !matches!(&**key, "ips" | "mac" | "aliases") && !value.is_null() {
                    let instead = "of the capabilities, only ips, mac and aliases are this \
                                   plugin's; declare the others for the plugin that has them";
                    return Err(unsupported(runtime.way(key), value, instead));
                }
            }
            asked.ips = ips(&runtime)?;
            let allowed = "must be a unicast address of six bytes, such as c2:11:22:33:44:55";
            asked.mac = runtime.parsed("mac", allowed, parse_mac)?;
            asked.aliases = aliases(&runtime)?;
        }
        // Others than us may put there what they like.
        if asked.ips.is_empty()
            && let Some(Ok(Some(args))) = root.object("args")?.map(|args| args.object("cni"))
        {
            asked.ips = ips(&args)?;
        }
        Ok(asked)
    }
}

fn ips(fields: &Fields<'_>) -> Result<Vec<IpAddr>, ConfigError> {
    let allowed = "each must be an address that a pod can have, with or without a prefix length";
    let ips = fields.list("ips", allowed, parse_address)?;
    for ipv6 in [false, true] {
        if let Some(second) = ips.iter().filter(|ip| ip.is_ipv6() == ipv6).nth(1) {
            let instead = "a pod has one address of each family";
            return Err(unsupported(
                fields.way("ips"),
                &second.to_string().into(),
                instead,
            ));
        }
    }
    Ok(ips)
}

fn aliases(fields: &Fields<'_>) -> Result<Vec<String>, ConfigError> {
    let allowed = "each must be a DNS name: labels of letters, digits and hyphens, of 1 to 63 \
                   characters, joined by dots";
    let name = |text: &str| is_dns_name(text).then(|| text.to_ascii_lowercase());
    let aliases = fields.list("aliases", allowed, name)?;
    if aliases.len() > MAX_ALIASES {
        let allowed = "must be at most 100 names";
        return Err(fields.invalid("aliases", &aliases.len().into(), allowed));
    }
    Ok(aliases)
}

/// A name as in RFC 1123, section 2.1.
fn is_dns_name(text: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label
                .bytes()
                .all(|c| c.is_ascii_alphanumeric() || c == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    text.len() <= 253 && text.split('.').all(label)
}
