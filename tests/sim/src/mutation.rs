//! Known bugs, planted at the seams, so that the simulator can be seen to find them.

/// A bug. Each is what a wrong line in the product would come to at the reconcile's seams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutation {
    /// A difference that removes what it does not know before the first full view.
    RemovesBeforeSync,
    /// A planner that lets the newcomer have what an incumbent holds.
    NewcomerWins,
    /// A start that does not read who the incumbents were.
    ForgetsIncumbents,
    /// A difference that sets routes before their peers.
    RouteBeforePeer,
    /// A difference that removes peers before their routes.
    PeerGoesBeforeRoute,
    /// A prefix that is taken from its old peer before the new one has it.
    MovesWithAGap,
    /// A reconcile that gives learned endpoints anew each time.
    ResetsEndpoints,
    /// A filter and unreachable routes that are taken away to be made anew.
    ReplacesProtection,
    /// A planner that takes the end of an earlier life of a node for that of the present one.
    IgnoresUid,
    /// Peers without their IPv6 prefixes.
    ForgetsV6,
    /// A registry's deletions that nobody hears.
    DeafToDeletions,
    /// A peer's removed prefix that stays.
    KeepsStalePrefixes,
    /// An engine that gives waiting packets up without counting them.
    GivesUpInSilence,
    /// An engine that takes no data any more long before the end of its keys.
    KeysEndEarly,
}

impl Mutation {
    /// All of them.
    pub const ALL: [Self; 14] = [
        Self::RemovesBeforeSync,
        Self::NewcomerWins,
        Self::ForgetsIncumbents,
        Self::RouteBeforePeer,
        Self::PeerGoesBeforeRoute,
        Self::MovesWithAGap,
        Self::ResetsEndpoints,
        Self::ReplacesProtection,
        Self::IgnoresUid,
        Self::ForgetsV6,
        Self::DeafToDeletions,
        Self::KeepsStalePrefixes,
        Self::GivesUpInSilence,
        Self::KeysEndEarly,
    ];
}
