//! The output of each version of the specification as strict types: what a version does not have
//! is refused, as are wrong types and indexes that lead nowhere.
//!
//! Section 5 of the specification; for 0.3.1 and 0.4.0 the section "Result" of theirs.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::Deserialize;
use serde_json::Value;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Result_<I, A, R> {
    cni_version: String,
    interfaces: Vec<I>,
    ips: Vec<A>,
    routes: Vec<R>,
    #[serde(default)]
    dns: Dns,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Dns {
    #[serde(default)]
    nameservers: Vec<IpAddr>,
    #[serde(default)]
    domain: Option<String>,
    #[serde(default)]
    search: Vec<String>,
    #[serde(default)]
    options: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct OldInterface {
    name: String,
    mac: Option<String>,
    sandbox: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct NewInterface {
    name: String,
    mac: Option<String>,
    mtu: Option<u32>,
    sandbox: Option<String>,
    socket_path: Option<String>,
    #[serde(rename = "pciID")]
    pci_id: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct OldIp {
    version: String,
    address: IpNet,
    gateway: Option<IpAddr>,
    interface: Option<usize>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct NewIp {
    address: IpNet,
    gateway: Option<IpAddr>,
    interface: Option<usize>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct OldRoute {
    dst: IpNet,
    gw: Option<IpAddr>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct NewRoute {
    dst: IpNet,
    gw: Option<IpAddr>,
    mtu: Option<u32>,
    advmss: Option<u32>,
    priority: Option<u32>,
    table: Option<u32>,
    scope: Option<u32>,
}

/// Checks the result of an ADD by the types of its version, and that its parts belong together.
#[track_caller]
pub fn check_result(result: &Value, version: &str) {
    let text = result.to_string();
    let fail = |e: serde_json::Error| -> ! { panic!("{e}: {result:#}") };
    type Old = Result_<OldInterface, OldIp, OldRoute>;
    type Middle = Result_<OldInterface, NewIp, OldRoute>;
    type New = Result_<NewInterface, NewIp, NewRoute>;
    let (said, names, ips, routes, dns);
    // What all versions have, in types of their own.
    macro_rules! take {
        ($parsed:expr) => {
            let (interfaces, addresses) = ($parsed.interfaces.into_iter(), $parsed.ips.into_iter());
            (said, dns) = ($parsed.cni_version, $parsed.dns);
            names = interfaces.map(|i| (i.name, i.mac, i.sandbox)).collect();
            ips = addresses
                .map(|i| (i.address, i.gateway, i.interface))
                .collect();
            routes = $parsed.routes.into_iter().map(|r| (r.dst, r.gw)).collect();
        };
    }
    match version {
        "0.3.1" | "0.4.0" => {
            let parsed: Old = serde_json::from_str(&text).unwrap_or_else(|e| fail(e));
            for ip in &parsed.ips {
                let family = if ip.address.addr().is_ipv4() {
                    "4"
                } else {
                    "6"
                };
                assert_eq!(ip.version, family, "{result:#}");
            }
            take!(parsed);
        }
        "1.0.0" => {
            let parsed: Middle = serde_json::from_str(&text).unwrap_or_else(|e| fail(e));
            take!(parsed);
        }
        "1.1.0" => {
            let parsed: New = serde_json::from_str(&text).unwrap_or_else(|e| fail(e));
            for interface in &parsed.interfaces {
                assert!(interface.mtu.is_some(), "{result:#}");
                assert!(interface.socket_path.is_none() && interface.pci_id.is_none());
            }
            for route in &parsed.routes {
                let told = (
                    route.mtu,
                    route.advmss,
                    route.priority,
                    route.table,
                    route.scope,
                );
                assert!(told == (None, None, None, None, None) || route.gw.is_some());
            }
            take!(parsed);
        }
        other => panic!("no such version: {other}"),
    }
    let _ = (dns.nameservers, dns.domain, dns.search, dns.options);
    let names: Vec<(String, Option<String>, Option<String>)> = names;
    let ips: Vec<(IpNet, Option<IpAddr>, Option<usize>)> = ips;
    let routes: Vec<(IpNet, Option<IpAddr>)> = routes;
    assert_eq!(said, version);
    for (name, mac, _) in &names {
        assert!((1..=15).contains(&name.len()), "{result:#}");
        let mac = mac.as_deref().unwrap();
        let bytes: Vec<_> = mac
            .split(':')
            .map(|b| u8::from_str_radix(b, 16).unwrap())
            .collect();
        assert_eq!(bytes.len(), 6, "{result:#}");
    }
    for (address, gateway, interface) in &ips {
        // Section 5: the index of the interface that the address is on, which is in the container.
        let (_, _, sandbox) = &names[interface.unwrap()];
        assert!(
            sandbox.as_deref().is_some_and(|s| !s.is_empty()),
            "{result:#}"
        );
        let gateway = gateway.unwrap();
        assert_eq!(gateway.is_ipv4(), address.addr().is_ipv4(), "{result:#}");
    }
    for (dst, gw) in &routes {
        assert_eq!(gw.unwrap().is_ipv4(), dst.addr().is_ipv4(), "{result:#}");
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Error {
    cni_version: String,
    code: u32,
    msg: String,
    details: String,
}

/// Checks an error by section 5, "Error".
#[track_caller]
pub fn check_error(error: &Value) {
    let parsed: Error =
        serde_json::from_value(error.clone()).unwrap_or_else(|e| panic!("{e}: {error:#}"));
    assert!(["0.3.1", "0.4.0", "1.0.0", "1.1.0"].contains(&&*parsed.cni_version));
    assert!(parsed.code > 0 && !parsed.msg.is_empty(), "{error:#}");
    let reserved = [1, 2, 3, 4, 5, 6, 7, 11, 50, 51];
    assert!(
        parsed.code >= 100 || reserved.contains(&parsed.code),
        "{error:#}"
    );
    let _ = parsed.details;
}
