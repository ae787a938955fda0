//! The parsers of single values. Each says what is wrong; what is allowed is in the table.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use ipnet::IpNet;
use warren_core::node::{overlap, parse_pod_cidr};
use warren_core::{Endpoints, NodeName, Pinning};

use super::{DataPlaneChoice, LogFormat, RegistryKind};

/// The longest name of a network device (IFNAMSIZ, without its NUL).
const MAX_INTERFACE_LEN: usize = 15;

pub(super) fn node_name(text: &str) -> Result<NodeName, String> {
    NodeName::new(text).map_err(|e| e.to_string())
}

pub(super) fn registry(text: &str) -> Result<RegistryKind, String> {
    match text {
        "kubernetes" => Ok(RegistryKind::Kubernetes),
        "file" => Ok(RegistryKind::File),
        _ => Err("is no registry of this version".into()),
    }
}

pub(super) fn directory(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    if path.is_absolute() {
        Ok(path)
    } else {
        Err("is no absolute path".into())
    }
}

pub(super) fn optional_file(text: &str) -> Result<Option<PathBuf>, String> {
    optional_directory(text)
}

pub(super) fn data_plane(text: &str) -> Result<DataPlaneChoice, String> {
    match text {
        "userspace" => Ok(DataPlaneChoice::Userspace),
        "kernel" => Ok(DataPlaneChoice::Kernel),
        "auto" => Ok(DataPlaneChoice::Auto),
        _ => Err("is no data plane".into()),
    }
}

pub(super) fn pinning(text: &str) -> Result<Pinning, String> {
    match text {
        "warn" => Ok(Pinning::Warn),
        "strict" => Ok(Pinning::Strict),
        _ => Err("is no way of pinning".into()),
    }
}

pub(super) fn file_name(text: &str) -> Result<String, String> {
    if text.is_empty() || text.starts_with('.') || text.contains('/') {
        return Err("is no plain file name".into());
    }
    if !text.ends_with(".conflist") {
        return Err("does not end in .conflist, and container runtimes would ignore it".into());
    }
    Ok(text.into())
}

pub(super) fn optional_directory(text: &str) -> Result<Option<PathBuf>, String> {
    if text.is_empty() {
        Ok(None)
    } else {
        directory(text).map(Some)
    }
}

pub(super) fn pod_ranges(items: &[String]) -> Result<BTreeSet<IpNet>, String> {
    let mut out: BTreeSet<IpNet> = BTreeSet::new();
    for item in items {
        let net = parse_pod_cidr(item).map_err(|e| e.to_string())?;
        if let Some(other) = out.iter().find(|other| overlap(other, &net)) {
            return Err(format!("has {net}, which overlaps {other}"));
        }
        out.insert(net);
    }
    if out.is_empty() {
        Err("is empty".into())
    } else {
        Ok(out)
    }
}

pub(super) fn ranges(items: &[String]) -> Result<BTreeSet<IpNet>, String> {
    let parse = |item: &String| {
        let net: IpNet = item
            .parse()
            .map_err(|_| format!("has {item}, which is no prefix"))?;
        if net == net.trunc() {
            Ok(net)
        } else {
            Err(format!("has {item} with host bits set"))
        }
    };
    items.iter().map(parse).collect()
}

pub(super) fn addresses(items: &[String]) -> Result<Vec<IpAddr>, String> {
    let mut out = Vec::new();
    for item in items {
        let address: IpAddr = item
            .parse()
            .map_err(|_| format!("has {item}, which is no IP address"))?;
        if let Some(why) = warren_core::endpoint::unusable(address) {
            return Err(format!("has {item}, which {why}"));
        }
        if out.contains(&address) {
            return Err(format!("has {item} twice"));
        }
        out.push(address);
    }
    Ok(out)
}

pub(super) fn endpoint(items: &[String]) -> Result<Option<Endpoints>, String> {
    if items.is_empty() {
        return Ok(None);
    }
    items
        .join(",")
        .parse()
        .map(Some)
        .map_err(|e: warren_core::endpoint::EndpointError| e.to_string())
}

pub(super) fn interface(text: &str) -> Result<String, String> {
    if text.is_empty() || text.len() > MAX_INTERFACE_LEN {
        return Err("has a wrong length".into());
    }
    // Narrower than the kernel: the name becomes part of paths and of the filter's text.
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if !text.starts_with(|c: char| c.is_ascii_alphanumeric()) || !text.chars().all(plain) {
        return Err("has characters that are not allowed".into());
    }
    if text == "lo" || text.starts_with(warren_core::consts::VETH_PREFIX) {
        return Err("is a name that other devices have".into());
    }
    Ok(text.into())
}

pub(super) fn port(text: &str) -> Result<u16, String> {
    match text.parse::<u16>() {
        Ok(0) => Err("is 0, and peers must know the port".into()),
        Ok(port) => Ok(port),
        Err(_) => Err("is no port".into()),
    }
}

pub(super) fn boolean(text: &str) -> Result<bool, String> {
    match text {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err("is no boolean".into()),
    }
}

pub(super) fn seconds(text: &str) -> Result<u16, String> {
    text.parse()
        .map_err(|_| "is no number of that range".into())
}

pub(super) fn mtu(text: &str) -> Result<Option<u32>, String> {
    if text == "auto" {
        return Ok(None);
    }
    match text.parse::<u32>() {
        Ok(mtu @ warren_core::consts::MIN_MTU..=65_535) => Ok(Some(mtu)),
        Ok(_) => Err("is out of range".into()),
        Err(_) => Err("is no number".into()),
    }
}

pub(super) fn listen(text: &str) -> Result<Option<SocketAddr>, String> {
    if text == "off" {
        return Ok(None);
    }
    text.parse()
        .map(Some)
        .map_err(|_| "is no address with a port".into())
}

pub(super) fn log_format(text: &str) -> Result<LogFormat, String> {
    match text {
        "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        _ => Err("is no log format".into()),
    }
}

pub(super) fn log_level(text: &str) -> Result<tracing::Level, String> {
    match text {
        "error" => Ok(tracing::Level::ERROR),
        "warn" => Ok(tracing::Level::WARN),
        "info" => Ok(tracing::Level::INFO),
        "debug" => Ok(tracing::Level::DEBUG),
        "trace" => Ok(tracing::Level::TRACE),
        _ => Err("is no log level".into()),
    }
}
