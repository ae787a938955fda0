//! `CNI_ARGS`: what the runtime says of one attachment beside the variables of the protocol.
//!
//! `key=value` pairs, separated by semicolons (CNI specification, section 2, "Parameters"; the keys
//! are those of its CONVENTIONS.md and of Kubernetes' runtimes).

use std::net::IpAddr;

use ipnet::IpNet;

use crate::env::is_identifier;
use crate::plan::Mac;

/// The longest value of a key in bytes that is repeated in a message.
const MAX_SHOWN: usize = 120;
const PAIR: &str = "key=value pairs separated by ';'";
const KNOWN: &str = "only IP, MAC, K8S_POD_NAMESPACE, K8S_POD_NAME, K8S_POD_INFRA_CONTAINER_ID, \
                     K8S_POD_UID and IgnoreUnknown; IgnoreUnknown=1 lets others pass";
const BOOLEAN: &str = "IgnoreUnknown to be 1, true, yes, 0, false or no";
const ADDRESS: &str = "IP to be an address that a pod can have, with or without a prefix length";
const HARDWARE: &str = "MAC to be a unicast address of six bytes, such as c2:11:22:33:44:55";

/// The arguments that this plugin knows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CniArgs {
    /// `K8S_POD_NAMESPACE` and `K8S_POD_NAME` as `namespace/name`, if both are there; for people
    /// only.
    pub pod: Option<String>,
    /// `IP`: the address that the pod shall have.
    pub ip: Option<IpAddr>,
    /// `MAC`: the hardware address that the pod's interface shall have.
    pub mac: Option<Mac>,
}

/// What is wrong: the pair, and what would be allowed.
pub(crate) type Wrong = (String, &'static str);

impl CniArgs {
    /// Reads the variable's value; empty pairs are passed over.
    pub(crate) fn parse(args: &str) -> Result<Self, Vec<Wrong>> {
        let mut out = Self::default();
        let (mut namespace, mut name) = (None, None);
        let mut wrong = Vec::new();
        let mut unknown = Vec::new();
        let mut ignore_unknown = false;
        for pair in args.split(';').filter(|pair| !pair.trim().is_empty()) {
            let shown = || pair.chars().take(MAX_SHOWN).collect::<String>();
            let Some((key, value)) = pair.split_once('=') else {
                wrong.push((shown(), PAIR));
                continue;
            };
            match key {
                "K8S_POD_NAMESPACE" => namespace = Some(value),
                "K8S_POD_NAME" => name = Some(value),
                "K8S_POD_INFRA_CONTAINER_ID" | "K8S_POD_UID" => {}
                "IgnoreUnknown" => match boolean(value) {
                    Some(value) => ignore_unknown = value,
                    None => wrong.push((shown(), BOOLEAN)),
                },
                "IP" => match parse_address(value) {
                    Some(ip) => out.ip = Some(ip),
                    None => wrong.push((shown(), ADDRESS)),
                },
                "MAC" => match parse_mac(value) {
                    Some(mac) => out.mac = Some(mac),
                    None => wrong.push((shown(), HARDWARE)),
                },
                _ => unknown.push((shown(), KNOWN)),
            }
        }
        if !ignore_unknown {
            wrong.append(&mut unknown);
        }
        if !wrong.is_empty() {
            return Err(wrong);
        }
        out.pod = pod_name(namespace, name);
        Ok(out)
    }
}

/// As the reference library reads it.
fn boolean(value: &str) -> Option<bool> {
    match value.to_ascii_lowercase().as_str() {
        "1" | "true" | "yes" => Some(true),
        "0" | "false" | "no" => Some(false),
        _ => None,
    }
}

fn pod_name(namespace: Option<&str>, name: Option<&str>) -> Option<String> {
    /// Kubernetes limits both to 253 characters; what is longer is no pod's name.
    const MAX: usize = 253;
    let valid = |text: &&str| text.len() <= MAX && is_identifier(text);
    let namespace = namespace.filter(valid)?;
    let name = name.filter(valid)?;
    Some(format!("{namespace}/{name}"))
}

/// An address that a pod can have, with or without a prefix length.
pub(crate) fn parse_address(text: &str) -> Option<IpAddr> {
    let address = match text.parse::<IpNet>() {
        Ok(net) => net.addr(),
        Err(_) => text.parse().ok()?,
    };
    let usable = !address.is_unspecified() && !address.is_multicast() && !address.is_loopback();
    usable.then_some(address)
}

/// A hardware address that an interface can have: unicast, and not all zero.
pub(crate) fn parse_mac(text: &str) -> Option<Mac> {
    let mut bytes = text.split([':', '-']);
    let mut mac = Mac::default();
    for byte in &mut mac {
        let part = bytes.next().filter(|part| part.len() == 2)?;
        if !part.bytes().all(|c| c.is_ascii_hexdigit()) {
            return None;
        }
        *byte = u8::from_str_radix(part, 16).ok()?;
    }
    let unicast = mac[0] & 0x01 == 0 && mac != Mac::default();
    (bytes.next().is_none() && unicast).then_some(mac)
}
