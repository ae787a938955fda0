//! Policy routing rules.

use std::fmt;

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage};

use crate::{Family, Netlink, NetlinkError};

/// A rule that looks up a table: `[from PREFIX] [to PREFIX] lookup TABLE`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rule {
    /// The address family whose packets it sees.
    pub family: Family,
    /// Its place among the rules, lowest first; the main table's is 32766.
    pub priority: u32,
    /// The packets' source prefix; none matches all.
    pub from: Option<IpNet>,
    /// The packets' destination prefix; none matches all.
    pub to: Option<IpNet>,
    /// The routing table to look up.
    pub table: u32,
    /// Who made it (`RTPROT_*`, linux/rtnetlink.h): 2 is the kernel itself.
    pub protocol: u8,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} priority {} from ", self.family, self.priority)?;
        match self.from {
            Some(net) => write!(f, "{net}")?,
            None => f.write_str("all")?,
        }
        if let Some(net) = self.to {
            write!(f, " to {net}")?;
        }
        write!(f, " lookup {} protocol {}", self.table, self.protocol)
    }
}

impl Netlink {
    /// Lists the rules of both families that look up a table, selecting by source and destination
    /// at most.
    ///
    /// Rules with any other selector or action are left out: they cannot be told in a [`Rule`], and
    /// taken for one of ours they would hide that ours is gone.
    ///
    /// # Errors
    /// [`NetlinkError::Kernel`], [`NetlinkError::Interrupted`].
    pub async fn rules(&self) -> Result<Vec<Rule>, NetlinkError> {
        let mut rules = Vec::new();
        for family in [Family::V4, Family::V6] {
            let mut message = RuleMessage::default();
            message.header.family = family.into();
            match self
                .dump("list rules", RouteNetlinkMessage::GetRule(message))
                .await
            {
                Ok(answers) => rules.extend(
                    answers
                        .into_iter()
                        .filter_map(rule_of)
                        .filter(|rule: &Rule| rule.family == family),
                ),
                // IPv6 is not there at all: no rules.
                Err(error) if error.errno() == Some(libc::EAFNOSUPPORT) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(rules)
    }

    /// Adds a rule.
    ///
    /// # Errors
    /// [`NetlinkError::Kernel`]; `is_exists` when it is there already, or its opposite (`not from`),
    /// which the kernel does not tell apart; [`NetlinkError::Invalid`]
    /// when the prefix is of the other family.
    pub async fn add_rule(&self, rule: &Rule) -> Result<(), NetlinkError> {
        let message = RouteNetlinkMessage::NewRule(message_of("add rule", rule)?);
        self.change("add rule", rule, message, NLM_F_CREATE | NLM_F_EXCL)
            .await
    }

    /// Deletes a rule: the first that has all of these, whatever else it selects by. That the
    /// protocol is among them keeps others' rules safe.
    ///
    /// # Errors
    /// [`NetlinkError::Kernel`]; `is_not_found` when it is not there; [`NetlinkError::Invalid`]
    /// when the prefix is of the other family.
    pub async fn delete_rule(&self, rule: &Rule) -> Result<(), NetlinkError> {
        let message = RouteNetlinkMessage::DelRule(message_of("delete rule", rule)?);
        self.change("delete rule", rule, message, 0).await
    }
}

fn message_of(operation: &'static str, rule: &Rule) -> Result<RuleMessage, NetlinkError> {
    let mut message = RuleMessage::default();
    message.header.family = rule.family.into();
    message.header.action = RuleAction::ToTable;
    message.attributes = vec![
        RuleAttribute::Priority(rule.priority),
        RuleAttribute::Table(rule.table),
        RuleAttribute::Protocol(rule.protocol.into()),
    ];
    let prefixes = [rule.from, rule.to];
    let mut families = prefixes.iter().flatten().map(|net| Family::of(net.addr()));
    if families.any(|family| family != rule.family) {
        return Err(NetlinkError::Invalid {
            operation,
            subject: rule.to_string(),
            reason: "its prefix is of the other address family",
        });
    }
    let attributes = &mut message.attributes;
    if let Some(net) = rule.from {
        message.header.src_len = net.prefix_len();
        attributes.push(RuleAttribute::Source(net.network()));
    }
    if let Some(net) = rule.to {
        message.header.dst_len = net.prefix_len();
        attributes.push(RuleAttribute::Destination(net.network()));
    }
    Ok(message)
}

fn rule_of(message: RouteNetlinkMessage) -> Option<Rule> {
    let RouteNetlinkMessage::NewRule(message) = message else {
        return None;
    };
    let header = message.header;
    let inverted = header.flags.contains(RuleFlags::Invert);
    if header.action != RuleAction::ToTable || inverted || header.tos != 0 {
        return None;
    }
    let mut rule = Rule {
        family: Family::try_from(header.family).ok()?,
        // The kernel leaves a priority of 0 out.
        priority: 0,
        from: None,
        to: None,
        table: header.table.into(),
        protocol: 0,
    };
    for attribute in message.attributes {
        match attribute {
            RuleAttribute::Priority(priority) => rule.priority = priority,
            RuleAttribute::Source(ip) => rule.from = IpNet::new(ip, header.src_len).ok(),
            RuleAttribute::Destination(ip) => rule.to = IpNet::new(ip, header.dst_len).ok(),
            RuleAttribute::Table(table) => rule.table = table,
            RuleAttribute::Protocol(protocol) => rule.protocol = protocol.into(),
            // Present on every rule, and -1 where it suppresses nothing.
            RuleAttribute::SuppressPrefixLen(u32::MAX) => {}
            // What a newer kernel puts on every rule must not make them all unknown.
            RuleAttribute::Other(_) => {}
            _ => return None,
        }
    }
    Some(rule)
}
