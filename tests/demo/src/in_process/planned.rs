//! What the agent would plan for each node, with endpoints on loopback in the place of the
//! published ones.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};
use ipnet::IpNet;
use warren_core::consts::{DEFAULT_PORT, annotation};
use warren_core::files::SavedView;
use warren_core::status::DataPlaneKind;
use warren_core::uapi::{AllowedIpUpdate, PeerUpdate, SetRequest};
use warren_core::{
    Endpoints, LocalNode, NodeName, NodeUid, NodeView, Planner, RegistryEvent, Settings,
};
use warren_e2e::{CLUSTER_V4, CLUSTER_V6};
use warren_keyring::{PrivateKey, PublicKey};

/// The MTU of the underlay that is planned for, in bytes: Ethernet's, as between real nodes.
pub(super) const UNDERLAY_MTU: u32 = 1500;

/// A node of the mesh, as it is published.
pub(super) struct Identity {
    pub(super) number: u8,
    pub(super) private_key: PrivateKey,
    pub(super) public_key: PublicKey,
    /// One prefix a family.
    pub(super) pod_cidrs: BTreeSet<IpNet>,
    /// Addresses of the ranges for documentation: planning refuses loopback, and rightly so.
    addresses: Vec<IpAddr>,
}

impl Identity {
    /// Makes a node; node1 is published with IPv4 only, the others prefer IPv6 if there is any.
    pub(super) fn new(number: u8, ipv6: bool) -> Result<Self> {
        let mut addresses: Vec<IpAddr> = vec![[192, 0, 2, number].into()];
        if ipv6 && number != 1 {
            addresses.insert(0, format!("2001:db8::{number:x}").parse()?);
        }
        let private_key = PrivateKey::generate()?;
        Ok(Self {
            number,
            public_key: private_key.public_key(),
            private_key,
            pod_cidrs: BTreeSet::from([
                format!("10.244.{number}.0/24").parse()?,
                format!("fd00:244:0:{number:x}::/64").parse()?,
            ]),
            addresses,
        })
    }

    pub(super) fn name(&self) -> String {
        format!("node{}", self.number)
    }

    /// Pairs every published endpoint with the socket that stands for it.
    pub(super) fn endpoints(
        &self,
        sockets: &[SocketAddr],
    ) -> Result<BTreeMap<SocketAddr, SocketAddr>> {
        let pair = |address: &IpAddr| {
            let socket = sockets.iter().find(|s| s.is_ipv6() == address.is_ipv6());
            let socket = socket.with_context(|| format!("no socket stands for {address}"))?;
            Ok((SocketAddr::new(*address, DEFAULT_PORT), *socket))
        };
        self.addresses.iter().map(pair).collect()
    }

    fn uid(&self) -> NodeUid {
        NodeUid(format!("uid-{}", self.number))
    }

    fn view(&self) -> NodeView {
        NodeView {
            name: self.name(),
            uid: self.uid(),
            pod_cidrs: self.pod_cidrs.iter().map(ToString::to_string).collect(),
            addresses: self.addresses.iter().map(ToString::to_string).collect(),
            annotations: BTreeMap::from([(
                annotation::PUBLIC_KEY.into(),
                self.public_key.to_base64(),
            )]),
        }
    }

    fn local(&self) -> Result<LocalNode> {
        Ok(LocalNode {
            name: NodeName::new(self.name())?,
            uid: self.uid(),
            public_key: self.public_key,
            pod_cidrs: self.pod_cidrs.clone(),
            addresses: self.addresses.clone(),
            endpoints: Endpoints::from_addresses(&self.addresses, DEFAULT_PORT),
            underlay_mtu_bytes: UNDERLAY_MTU,
            data_plane: DataPlaneKind::Userspace,
        })
    }
}

/// Plans the peers of one node from the views of all.
pub(super) fn peers_of(
    node: &Identity,
    all: &[Identity],
    endpoints: &BTreeMap<SocketAddr, SocketAddr>,
) -> Result<SetRequest> {
    let settings = Settings::new(BTreeSet::from([CLUSTER_V4.parse()?, CLUSTER_V6.parse()?]));
    let mut planner = Planner::new(settings, node.local()?, SavedView::default());
    planner.handle_event(RegistryEvent::Synced(
        all.iter().map(Identity::view).collect(),
    ));
    let plan = planner.poll_plan();
    ensure!(
        plan.rejects.is_empty() && plan.desired.peers.len() == all.len() - 1,
        "{} does not plan with all nodes: {:?}",
        node.name(),
        plan.rejects
    );
    let mut request = SetRequest::default();
    for (public_key, peer) in plan.desired.peers {
        let socket = endpoints.get(&peer.endpoint);
        let socket = socket.with_context(|| format!("no socket stands for {}", peer.endpoint))?;
        request.peers.push(PeerUpdate {
            endpoint: Some(*socket),
            persistent_keepalive: Some(peer.persistent_keepalive),
            allowed_ips: peer
                .allowed_ips
                .into_iter()
                .map(AllowedIpUpdate::Add)
                .collect(),
            ..PeerUpdate::new(public_key)
        });
    }
    Ok(request)
}
