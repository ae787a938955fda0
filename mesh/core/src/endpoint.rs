//! Where a node's tunnel is reached: at most one UDP endpoint a family, in order of preference.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Why an endpoint annotation was not believed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum EndpointError {
    /// The text is no `ip:port`.
    #[error("\"{text}\" is not ip:port (IPv6 as [ip]:port); names are not resolved")]
    Syntax {
        /// The part that was not understood, shortened.
        text: String,
    },
    /// Port 0.
    #[error("\"{endpoint}\" has port 0; allowed are 1 to 65535")]
    ZeroPort {
        /// The endpoint.
        endpoint: SocketAddr,
    },
    /// An address that no tunnel can be behind.
    #[error("{address} {why}")]
    Unusable {
        /// The address.
        address: IpAddr,
        /// What it is.
        why: &'static str,
    },
    /// Two endpoints of one family.
    #[error("more than one {family} endpoint; at most one a family is allowed")]
    Repeated {
        /// "IPv4" or "IPv6".
        family: &'static str,
    },
    /// An endpoint inside the pod ranges: its packets would be routed into the tunnel itself.
    #[error("{address} lies inside the cluster's pod ranges")]
    InPodRange {
        /// The address.
        address: IpAddr,
    },
}

/// One or two endpoints, at most one a family, first preferred first.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Endpoints(Vec<SocketAddr>);

impl Endpoints {
    /// The first address of each family, in the given order, with one port.
    pub fn from_addresses(addresses: &[IpAddr], port: u16) -> Self {
        let mut out = Self::default();
        for address in addresses.iter().filter(|a| unusable(**a).is_none()) {
            if out.of_family(address.is_ipv6()).is_none() {
                out.0.push(SocketAddr::new(*address, port));
            }
        }
        out
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The endpoints, preferred first.
    pub fn iter(&self) -> impl Iterator<Item = &SocketAddr> {
        self.0.iter()
    }

    /// Those that are not among `others`.
    pub fn without(&self, others: &Self) -> Self {
        let left = self.0.iter().filter(|e| !others.0.contains(e));
        Self(left.copied().collect())
    }

    /// The endpoint of one family.
    pub fn of_family(&self, ipv6: bool) -> Option<SocketAddr> {
        self.0.iter().copied().find(|e| e.is_ipv6() == ipv6)
    }

    /// The endpoint of `remote` that `self` sends to: that of the first family both have.
    ///
    /// The order is that of the node whose name sorts first (`self_first`), so that both ends of a
    /// pair choose the same family.
    pub fn towards(&self, remote: &Self, self_first: bool) -> Option<SocketAddr> {
        let (order, other) = if self_first {
            (self, remote)
        } else {
            (remote, self)
        };
        let family = order
            .0
            .iter()
            .find(|e| other.of_family(e.is_ipv6()).is_some())?
            .is_ipv6();
        remote.of_family(family)
    }
}

impl FromStr for Endpoints {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, EndpointError> {
        let mut out = Self::default();
        for part in text.split(',') {
            let endpoint: SocketAddr = part.trim().parse().map_err(|_| EndpointError::Syntax {
                text: crate::reject::shorten(part),
            })?;
            if endpoint.port() == 0 {
                return Err(EndpointError::ZeroPort { endpoint });
            }
            if let Some(why) = unusable(endpoint.ip()) {
                return Err(EndpointError::Unusable {
                    address: endpoint.ip(),
                    why,
                });
            }
            if out.of_family(endpoint.is_ipv6()).is_some() {
                let family = if endpoint.is_ipv6() { "IPv6" } else { "IPv4" };
                return Err(EndpointError::Repeated { family });
            }
            out.0.push(endpoint);
        }
        Ok(out)
    }
}

impl fmt::Display for Endpoints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, endpoint) in self.0.iter().enumerate() {
            write!(f, "{}{endpoint}", if i == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

impl TryFrom<String> for Endpoints {
    type Error = EndpointError;
    fn try_from(text: String) -> Result<Self, EndpointError> {
        if text.is_empty() {
            Ok(Self::default())
        } else {
            text.parse()
        }
    }
}

impl From<Endpoints> for String {
    fn from(endpoints: Endpoints) -> String {
        endpoints.to_string()
    }
}

/// Why an address can belong to no node of a mesh, if it cannot.
pub fn unusable(address: IpAddr) -> Option<&'static str> {
    if address.is_unspecified() {
        return Some("is the unspecified address");
    }
    if address.is_loopback() {
        return Some("is a loopback address");
    }
    if address.is_multicast() {
        return Some("is a multicast address");
    }
    match address {
        IpAddr::V4(v4) if v4.is_broadcast() => Some("is the broadcast address"),
        IpAddr::V4(v4) if v4.octets()[0] == 0 => Some("is of \"this network\" (0.0.0.0/8)"),
        IpAddr::V4(v4) if v4.is_link_local() => Some("is a link-local address"),
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => Some("is an IPv4-mapped address"),
        IpAddr::V6(v6) if v6.is_unicast_link_local() => Some("is a link-local address"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoints(text: &str) -> Endpoints {
        text.parse().unwrap()
    }

    #[test]
    fn both_ends_of_a_pair_choose_the_same_family() {
        let a = endpoints("192.0.2.1:51871,[2001:db8::1]:51871");
        let b = endpoints("[2001:db8::2]:51871,192.0.2.2:51871");
        let a_to_b = a.towards(&b, true).unwrap();
        let b_to_a = b.towards(&a, false).unwrap();
        assert_eq!(a_to_b, "192.0.2.2:51871".parse().unwrap());
        assert_eq!(b_to_a, "192.0.2.1:51871".parse().unwrap());
    }

    #[test]
    fn no_common_family_gives_no_endpoint() {
        let v4 = endpoints("192.0.2.1:1");
        let v6 = endpoints("[2001:db8::2]:1");
        assert_eq!(v4.towards(&v6, true), None);
        assert_eq!(v6.towards(&v4, false), None);
    }

    #[test]
    fn bad_endpoints_are_refused_with_their_reason() {
        for (text, needle) in [
            ("", "not ip:port"),
            ("node1:51871", "names are not resolved"),
            ("192.0.2.1", "not ip:port"),
            ("192.0.2.1:0", "port 0"),
            ("192.0.2.1:1,192.0.2.2:1", "more than one IPv4"),
            ("127.0.0.1:1", "loopback"),
            ("[::]:1", "unspecified"),
            ("[ff02::1]:1", "multicast"),
            ("[::ffff:192.0.2.1]:1", "IPv4-mapped"),
            ("[fe80::1]:1", "link-local"),
            ("255.255.255.255:1", "broadcast"),
            ("192.0.2.1:1,", "not ip:port"),
        ] {
            let e = text.parse::<Endpoints>().unwrap_err().to_string();
            assert!(e.contains(needle), "{text}: {e}");
        }
    }

    #[test]
    fn text_form_round_trips() {
        for text in ["192.0.2.1:51871", "[2001:db8::1]:5,192.0.2.1:6"] {
            assert_eq!(endpoints(text).to_string(), text);
        }
    }
}
