//! Reads the node's kernel back.

use std::collections::BTreeMap;

use warren_core::ObservedState;
use warren_core::consts::{MAIN_TABLE, NODE_TABLE, PROTOCOL_AGENT, PROTOCOL_CNI, RULE_PRIORITY};
use warren_core::state::{ObservedLink, Packets, RouteKey, RouteTarget, Rule};
use warren_netlink::Route;

use super::{HostError, LinuxHost, target_of};

impl LinuxHost {
    pub(super) async fn observe_all(&mut self) -> Result<ObservedState, HostError> {
        let filter = match self.filter.observe().await {
            Ok(filter) => filter,
            // Loading it anew tells the same cause as an error of that change.
            Err(e) => {
                tracing::warn!(error = %e, "cannot read the filter back");
                None
            }
        };
        let mut out = ObservedState {
            filter,
            ..ObservedState::default()
        };
        let link = self.netlink.link_by_name(&self.interface).await?;
        self.tunnel = link.as_ref().map(|link| link.index);
        if let Some(link) = link {
            out.link = Some(ObservedLink {
                mtu_bytes: link.mtu,
                up: link.up,
            });
            let addresses = self.netlink.addresses(Some(link.index)).await;
            out.addresses = match addresses {
                // The kernel's own link-local address is nobody's to remove.
                Ok(all) => all
                    .into_iter()
                    .map(|a| a.net)
                    .filter(|net| !is_link_local(net))
                    .collect(),
                // The link went away since; its addresses with it.
                Err(e) if e.is_not_found() => Default::default(),
                Err(e) => return Err(e.into()),
            };
        }
        self.rules = self.netlink.rules().await?;
        self.rules.retain(is_ours);
        out.rules = self.rules.iter().filter_map(rule_of).collect();
        // The whole of the node table is ours, whoever put a route there; of the main table only
        // what the agent made.
        let main = Some(PROTOCOL_AGENT);
        let mut routes = self.netlink.routes_in(MAIN_TABLE, main).await?;
        routes.extend(self.netlink.routes_in(NODE_TABLE, None).await?);
        let pods = Some(PROTOCOL_CNI);
        self.pods = self.netlink.routes_in(MAIN_TABLE, pods).await?;
        self.routes = group(routes);
        for (key, routes) in &self.routes {
            let target = match routes.as_slice() {
                [route] if route.protocol == PROTOCOL_AGENT => target_of(route, self.tunnel),
                // Several of one key: which one is used is not ours to say. Or somebody else's.
                _ => RouteTarget::Foreign,
            };
            out.routes.insert(key.clone(), target);
        }
        Ok(out)
    }
}

/// A rule of our priority into our table is ours whoever made it: the kernel does not tell apart
/// who did.
fn is_ours(rule: &warren_netlink::Rule) -> bool {
    let made_by_us = rule.protocol == PROTOCOL_AGENT;
    rule.priority == RULE_PRIORITY && (made_by_us || rule.table == NODE_TABLE)
}

/// One of another form would be nobody's we know.
pub(super) fn rule_of(rule: &warren_netlink::Rule) -> Option<Rule> {
    Some(Rule {
        priority: rule.priority,
        packets: match (rule.from, rule.to) {
            (Some(net), None) => Packets::From(net),
            (None, Some(net)) => Packets::To(net),
            _ => return None,
        },
        table: rule.table,
    })
}

fn is_link_local(net: &ipnet::IpNet) -> bool {
    matches!(net, ipnet::IpNet::V6(v6) if v6.addr().is_unicast_link_local())
}

fn group(routes: Vec<Route>) -> BTreeMap<RouteKey, Vec<Route>> {
    let mut out: BTreeMap<RouteKey, Vec<Route>> = BTreeMap::new();
    for route in routes {
        let key = RouteKey {
            table: route.table,
            destination: route.dst,
            metric: route.metric,
        };
        out.entry(key).or_default().push(route);
    }
    out
}
