//! Which of the kernel's events concern the agent, and how much.
//!
//! A host may have a routing daemon that changes a thousand routes a second, and pods come and go
//! all the time: a reconcile for each of these events would eat the node.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use warren_core::consts::{
    NFT_TABLE, NODE_TABLE, PROTOCOL_AGENT, PROTOCOL_CNI, RULE_PRIORITY, VETH_PREFIX,
};
use warren_netlink::NetEvent;

use crate::reconcile::Touched;

/// `RT_TABLE_LOCAL` (linux/rtnetlink.h): the kernel keeps it by itself.
const LOCAL_TABLE: u32 = 255;

/// How an event concerns the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Concern {
    /// Not at all.
    None,
    /// The network below the tunnel may be another: worth a look, in a while.
    Underlay,
    /// Another program's route leads into the pod ranges, or does no longer.
    ForeignRoute,
    /// Something of ours may have been touched: to be repaired at once.
    Ours(Touched),
    /// Events were lost: everything is to be looked at.
    Everything,
}

/// What is ours, to judge events by.
#[derive(Clone, Debug)]
pub struct Ours {
    /// The tunnel's interface.
    pub interface: String,
    /// The cluster's pod ranges.
    pub ranges: BTreeSet<IpNet>,
}

impl Ours {
    /// Judges an event. It may be of our own making; a repair then finds nothing to do.
    pub fn concern(&self, event: &NetEvent) -> Concern {
        let network = Concern::Ours(Touched {
            network: true,
            ..Touched::default()
        });
        match event {
            NetEvent::Overrun => Concern::Everything,
            NetEvent::Table { name } if name == NFT_TABLE => Concern::Ours(Touched {
                filter: true,
                ..Touched::default()
            }),
            NetEvent::Table { .. } => Concern::None,
            NetEvent::Setting {
                forwarding,
                rp_filter,
                ..
            } => self.of_setting(*forwarding, *rp_filter),
            NetEvent::Link { name, .. } if *name == self.interface => network,
            NetEvent::Link { name, .. } if name.starts_with(VETH_PREFIX) => Concern::None,
            NetEvent::Link { .. } => Concern::Underlay,
            NetEvent::Address { address, .. } => match address {
                Some(address) if self.has(*address) => network,
                Some(IpAddr::V6(address)) if address.is_unicast_link_local() => Concern::None,
                _ => Concern::Underlay,
            },
            NetEvent::Rule { priority } if *priority == RULE_PRIORITY => network,
            NetEvent::Rule { .. } => Concern::Underlay,
            NetEvent::Route {
                table,
                dst,
                protocol,
            } => {
                if *protocol == PROTOCOL_AGENT || *table == NODE_TABLE {
                    network
                } else if *protocol == PROTOCOL_CNI {
                    Concern::Ours(Touched {
                        pods: true,
                        ..Touched::default()
                    })
                } else if *table == LOCAL_TABLE || is_local(dst) {
                    Concern::None
                } else if self.ranges.iter().any(|range| range.contains(dst)) {
                    Concern::ForeignRoute
                } else {
                    Concern::Underlay
                }
            }
        }
    }

    /// Tells whether an event is about the tunnel's interface: its carrier goes and comes with the
    /// tunnel's process.
    pub fn is_tunnel(&self, event: &NetEvent) -> bool {
        matches!(event, NetEvent::Link { name, .. } if *name == self.interface)
    }

    /// New devices tell of their settings too; only what is not as it must be is worth a look.
    fn of_setting(&self, forwarding: Option<bool>, rp_filter: Option<i32>) -> Concern {
        let settings = forwarding == Some(false) || rp_filter.is_some_and(|value| value != 2);
        if !settings {
            return Concern::None;
        }
        Concern::Ours(Touched {
            settings,
            ..Touched::default()
        })
    }

    fn has(&self, address: IpAddr) -> bool {
        self.ranges.iter().any(|range| range.contains(&address))
    }
}

/// Link-local and multicast routes, which come and go with every device.
fn is_local(dst: &IpNet) -> bool {
    match dst.addr() {
        IpAddr::V4(ip) => ip.is_multicast() || ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_multicast() || ip.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use warren_core::consts::MAIN_TABLE;

    fn ours() -> Ours {
        let ranges = ["10.244.0.0/16", "fd00:244::/48"];
        Ours {
            interface: "warren0".into(),
            ranges: ranges.iter().map(|r| r.parse().unwrap()).collect(),
        }
    }

    fn route(table: u32, dst: &str, protocol: u8) -> NetEvent {
        NetEvent::Route {
            table,
            dst: dst.parse().unwrap(),
            protocol,
        }
    }

    fn link(name: &str) -> NetEvent {
        let name = name.into();
        NetEvent::Link { index: 9, name }
    }

    #[test]
    fn what_is_ours_is_repaired_at_once() {
        let network = [
            link("warren0"),
            route(MAIN_TABLE, "10.244.2.0/24", PROTOCOL_AGENT),
            route(NODE_TABLE, "198.51.100.0/24", 3),
            NetEvent::Rule {
                priority: RULE_PRIORITY,
            },
            NetEvent::Address {
                index: 9,
                address: Some("10.244.1.1".parse().unwrap()),
            },
        ];
        for event in network {
            let concern = ours().concern(&event);
            assert!(
                matches!(concern, Concern::Ours(Touched { network: true, .. })),
                "{event:?}: {concern:?}"
            );
        }
        let filter = NetEvent::Table {
            name: "warren".into(),
        };
        assert!(matches!(
            ours().concern(&filter),
            Concern::Ours(Touched { filter: true, .. })
        ));
        let pod = route(MAIN_TABLE, "10.244.1.5/32", PROTOCOL_CNI);
        assert!(matches!(
            ours().concern(&pod),
            Concern::Ours(Touched {
                pods: true,
                network: false,
                ..
            })
        ));
        for (forwarding, rp_filter) in [(Some(false), None), (None, Some(1)), (None, Some(0))] {
            let event = NetEvent::Setting {
                index: None,
                forwarding,
                rp_filter,
            };
            assert!(matches!(
                ours().concern(&event),
                Concern::Ours(Touched { settings: true, .. })
            ));
        }
    }

    #[test]
    fn pods_that_come_and_other_programs_tables_cost_nothing() {
        let settings = |forwarding, rp_filter| NetEvent::Setting {
            index: Some(9),
            forwarding,
            rp_filter,
        };
        for event in [
            link("wrn0123456789ab"),
            route(LOCAL_TABLE, "10.244.1.5/32", 2),
            route(MAIN_TABLE, "fe80::/64", 2),
            route(LOCAL_TABLE, "ff00::/8", 2),
            NetEvent::Address {
                index: 9,
                address: Some("fe80::1".parse().unwrap()),
            },
            NetEvent::Table {
                name: "kube-proxy".into(),
            },
            settings(Some(true), Some(2)),
            settings(Some(true), None),
        ] {
            assert_eq!(ours().concern(&event), Concern::None, "{event:?}");
        }
    }

    #[test]
    fn the_rest_may_be_the_underlay_or_a_route_astray() {
        for event in [
            link("eth0"),
            route(MAIN_TABLE, "0.0.0.0/0", 16),
            route(MAIN_TABLE, "10.0.0.0/8", 186),
            NetEvent::Rule { priority: 100 },
        ] {
            assert_eq!(ours().concern(&event), Concern::Underlay, "{event:?}");
        }
        let astray = route(MAIN_TABLE, "10.244.2.128/25", 3);
        assert_eq!(ours().concern(&astray), Concern::ForeignRoute);
        assert_eq!(ours().concern(&NetEvent::Overrun), Concern::Everything);
    }
}
