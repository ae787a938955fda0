//! Carries out single changes on the node's kernel.

use std::time::Instant;

use warren_core::Change;
use warren_core::consts::PROTOCOL_AGENT;
use warren_core::state::{ObservedLink, Packets, RouteKey, RouteTarget, Rule};
use warren_netlink::{Family, NetlinkError, Route};

use super::observe::rule_of;
use super::{HostError, LinuxHost};

impl LinuxHost {
    pub(super) async fn apply_one(&mut self, change: &Change) -> Result<(), HostError> {
        match change {
            Change::SetFilter { new, .. } => self.filter.apply(new).await?,
            Change::SetPeerAddresses { add, remove } => self.filter.change_peers(add, remove)?,
            Change::SetLink { old, new } => self.set_link(old, new).await?,
            Change::AddAddress(net) => {
                let Some(index) = self.tunnel else {
                    return Ok(());
                };
                self.netlink.add_address(index, *net).await?;
            }
            Change::RemoveAddress(net) => {
                let Some(index) = self.tunnel else {
                    return Ok(());
                };
                absent_is_fine(self.netlink.delete_address(index, *net).await)?;
            }
            Change::SetRoute { key, new, .. } => self.set_route(key, new).await?,
            Change::RemoveRoute { key, .. } => self.remove_route(key).await?,
            Change::AddRule(rule) => match self.netlink.add_rule(&kernel_rule(rule)).await {
                Err(e) if e.is_exists() => {}
                other => other?,
            },
            Change::RemoveRule(rule) => {
                for found in self
                    .rules
                    .iter()
                    .filter(|found| rule_of(found).as_ref() == Some(rule))
                {
                    absent_is_fine(self.netlink.delete_rule(found).await)?;
                }
            }
            Change::AddPeer { .. } | Change::UpdatePeer { .. } | Change::RemovePeer { .. } => {
                return Err(HostError::NotMine {
                    change: format!("{change:?}"),
                });
            }
        }
        Ok(())
    }

    async fn set_link(&self, old: &ObservedLink, new: &ObservedLink) -> Result<(), NetlinkError> {
        // A link that went away is found by the next observation.
        let Some(index) = self.tunnel else {
            return Ok(());
        };
        if old.mtu_bytes != new.mtu_bytes {
            self.netlink.set_mtu(index, new.mtu_bytes).await?;
        }
        match (old.up, new.up) {
            (false, true) => self.netlink.set_up(index).await,
            (true, false) => self.netlink.set_down(index).await,
            _ => Ok(()),
        }
    }

    async fn set_route(&mut self, key: &RouteKey, target: &RouteTarget) -> Result<(), HostError> {
        let RouteKey {
            table,
            destination,
            metric,
        } = *key;
        let route = match target {
            RouteTarget::Unreachable => {
                Route::unreachable(table, destination, metric, PROTOCOL_AGENT)
            }
            RouteTarget::Tunnel { src, mtu_bytes } => {
                let interface = || self.interface.clone();
                let no_tunnel = || HostError::NoTunnel {
                    destination,
                    interface: interface(),
                };
                let oif = self.tunnel.ok_or_else(no_tunnel)?;
                let on_link = Route::on_link(table, destination, oif, PROTOCOL_AGENT);
                Route {
                    src: *src,
                    mtu: *mtu_bytes,
                    metric,
                    ..on_link
                }
            }
            RouteTarget::Foreign => {
                return Err(HostError::NotMine {
                    change: format!("a foreign route {key:?}"),
                });
            }
        };
        let known = self.routes.get(key).map(Vec::as_slice);
        let single = match known {
            // As observed, or as made since: only its attributes differ.
            Some([known]) => {
                let shape = |r: &Route| (r.kind, r.oif, r.gateway, r.protocol);
                shape(known) == shape(&route)
            }
            _ => false,
        };
        let done = match single {
            true => self.netlink.overwrite_route(&route).await,
            false => self.netlink.add_route(&route).await,
        };
        match done {
            Ok(()) => self.echoes.expect(table, destination, Instant::now()),
            Err(e) if e.is_exists() => self.netlink.replace_route(&route).await?,
            Err(e) => return Err(e.into()),
        }
        self.routes.insert(key.clone(), vec![route.as_reported()]);
        Ok(())
    }

    async fn remove_route(&mut self, key: &RouteKey) -> Result<(), NetlinkError> {
        for route in self.routes.get(key).into_iter().flatten() {
            match self.netlink.delete_route(route).await {
                Ok(()) => self
                    .echoes
                    .expect(key.table, key.destination, Instant::now()),
                failed => absent_is_fine(failed)?,
            }
        }
        self.routes.remove(key);
        Ok(())
    }
}

fn kernel_rule(rule: &Rule) -> warren_netlink::Rule {
    let (from, to) = match rule.packets {
        Packets::From(net) => (Some(net), None),
        Packets::To(net) => (None, Some(net)),
    };
    warren_netlink::Rule {
        family: Family::of(rule.packets.prefix().addr()),
        priority: rule.priority,
        from,
        to,
        table: rule.table,
        protocol: PROTOCOL_AGENT,
    }
}

fn absent_is_fine(result: Result<(), NetlinkError>) -> Result<(), NetlinkError> {
    match result {
        Err(e) if e.is_not_found() => Ok(()),
        other => other,
    }
}
