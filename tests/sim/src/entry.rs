//! What the registry holds of a node, as facts; the text that agents read is made of them.

use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;

use ipnet::IpNet;
use warren_agent::registry::OwnRecord;
use warren_core::consts::{DEFAULT_PORT, annotation};
use warren_core::{NodeUid, NodeView};
use warren_keyring::PublicKey;

/// Something wrong with a node's text, and how the refusal must be called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// The key is no key.
    Key,
    /// The key is missing.
    NoKey,
    /// An annotation is too long.
    Long,
    /// The endpoint is a name.
    Endpoint,
    /// The operator's endpoint is a name; the node's own agent does not touch it.
    Forced,
    /// A podCIDR has host bits.
    HostBits,
    /// A podCIDR is not of the cluster.
    Foreign,
    /// There is no podCIDR.
    NoCidr,
    /// An address is a loopback one.
    Address,
    /// The MTU is no number.
    Mtu,
}

impl Flaw {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Key,
        Self::NoKey,
        Self::Long,
        Self::Endpoint,
        Self::Forced,
        Self::HostBits,
        Self::Foreign,
        Self::NoCidr,
        Self::Address,
        Self::Mtu,
    ];

    /// The word that people are shown.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Key => "InvalidPublicKey",
            Self::NoKey => "NoPublicKey",
            Self::Long => "AnnotationTooLong",
            Self::Endpoint | Self::Forced => "InvalidEndpoint",
            Self::HostBits | Self::Foreign => "InvalidPodCIDR",
            Self::NoCidr => "NoPodCIDR",
            Self::Address => "InvalidAddress",
            Self::Mtu => "InvalidMtu",
        }
    }
}

/// A node in the registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its name.
    pub name: String,
    /// The uid of this life of it.
    pub uid: String,
    /// Its key.
    pub key: PublicKey,
    /// The key that it says it will change to.
    pub next_key: Option<PublicKey>,
    /// Its pod ranges.
    pub pod_cidrs: Vec<IpNet>,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// The endpoints that its agent published.
    pub endpoint: Option<Vec<SocketAddr>>,
    /// The endpoints that an operator set.
    pub forced: Option<Vec<SocketAddr>>,
    /// The MTU of its underlay in bytes.
    pub mtu: Option<u32>,
    /// What is wrong with it.
    pub flaw: Option<Flaw>,
}

/// An entry with its text.
#[derive(Debug)]
pub struct Listed {
    /// The facts.
    pub entry: Entry,
    /// The text.
    pub view: NodeView,
}

impl Entry {
    /// Puts the text beside the facts.
    pub fn listed(self) -> Rc<Listed> {
        let view = self.view();
        Rc::new(Listed { entry: self, view })
    }

    /// What the node's own agent writes over what is there.
    pub fn published(old: Option<&Self>, own: &OwnRecord) -> Self {
        let kept = old.and_then(|old| old.flaw);
        Self {
            name: own.name.to_string(),
            uid: own.uid.0.clone(),
            key: own.public_key,
            next_key: old.and_then(|old| old.next_key),
            pod_cidrs: own.pod_cidrs.iter().copied().collect(),
            addresses: own.addresses.clone(),
            endpoint: (!own.endpoints.is_empty()).then(|| own.endpoints.iter().copied().collect()),
            forced: old.and_then(|old| old.forced.clone()),
            mtu: Some(own.underlay_mtu_bytes),
            flaw: kept.filter(|flaw| *flaw == Flaw::Forced),
        }
    }

    /// Where it is reached: what an operator says, what it says, its addresses.
    pub fn endpoints(&self) -> Vec<SocketAddr> {
        if let Some(said) = self.forced.as_ref().or(self.endpoint.as_ref()) {
            return said.clone();
        }
        let mut out: Vec<SocketAddr> = Vec::new();
        for address in &self.addresses {
            if out.iter().all(|e| e.is_ipv6() != address.is_ipv6()) {
                out.push(SocketAddr::new(*address, DEFAULT_PORT));
            }
        }
        out
    }

    fn view(&self) -> NodeView {
        let text = |endpoints: &[SocketAddr]| {
            let texts: Vec<String> = endpoints.iter().map(ToString::to_string).collect();
            texts.join(",")
        };
        let mut view = NodeView {
            name: self.name.clone(),
            uid: NodeUid(self.uid.clone()),
            pod_cidrs: self.pod_cidrs.iter().map(ToString::to_string).collect(),
            addresses: self.addresses.iter().map(ToString::to_string).collect(),
            ..NodeView::default()
        };
        let mut set = |key: &str, value: String| {
            view.annotations.insert(key.into(), value);
        };
        set(annotation::PUBLIC_KEY, self.key.to_base64());
        if let Some(key) = self.next_key {
            set(annotation::NEXT_PUBLIC_KEY, key.to_base64());
        }
        if let Some(endpoint) = &self.endpoint {
            set(annotation::ENDPOINT, text(endpoint));
        }
        if let Some(forced) = &self.forced {
            set(annotation::FORCE_ENDPOINT, text(forced));
        }
        if let Some(mtu) = self.mtu {
            set(annotation::MTU, mtu.to_string());
        }
        match self.flaw {
            Some(Flaw::Key) => set(annotation::PUBLIC_KEY, "AAAA".into()),
            Some(Flaw::Long) => set(annotation::MTU, "1".repeat(1025)),
            // What the agent said counts only where no operator said anything.
            Some(Flaw::Endpoint | Flaw::Forced) => {
                set(annotation::FORCE_ENDPOINT, "gateway.example:51871".into());
            }
            Some(Flaw::Mtu) => set(annotation::MTU, "lots".into()),
            Some(Flaw::NoKey) => drop(view.annotations.remove(annotation::PUBLIC_KEY)),
            Some(Flaw::HostBits) => view.pod_cidrs = vec!["10.130.1.7/24".into()],
            Some(Flaw::Foreign) => view.pod_cidrs.push("11.1.1.0/24".into()),
            Some(Flaw::NoCidr) => view.pod_cidrs.clear(),
            Some(Flaw::Address) => view.addresses.push("127.0.0.1".into()),
            None => {}
        }
        view
    }
}
