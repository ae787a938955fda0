//! Where the peer is: as it was told, or as it is heard.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::Peer;
use crate::path_probe::PathProbe;
use crate::source::{Endpoint, Source};

/// How often an active peer's path is measured again.
const PATH_QUERY_EVERY: Duration = Duration::from_secs(10);

/// And that of one whose endpoint is reached through the device itself.
const LOOP_QUERY_EVERY: Duration = Duration::from_secs(1);

impl Peer {
    /// Notes whether the way to the endpoint is by the link that the source came by.
    pub(crate) fn note_source(&mut self, good: bool) {
        self.source_good = good;
    }

    /// Leaves the choice of our address to the kernel, until the peer is heard again.
    pub(crate) fn forget_source(&mut self) {
        self.source = None;
    }

    /// Whether the path to the peer is to be measured (anew).
    pub(crate) fn path_query_due(&self, now: Instant) -> bool {
        let every = match self.endpoint_loops {
            true => LOOP_QUERY_EVERY,
            false => PATH_QUERY_EVERY,
        };
        self.endpoint.is_some()
            && self
                .path_asked_at
                .is_none_or(|at| now.saturating_duration_since(at) >= every)
    }

    /// Notes that the way to the endpoint leads through the device itself. A source that was
    /// followed there is left again; an endpoint that was set stays, and nothing is sent to it.
    pub(crate) fn note_endpoint_loops(&mut self, now: Instant) {
        if let Some(before) = self.endpoint_before.take() {
            tracing::debug!(
                peer = %self.public_key, endpoint = %before,
                "the peer is not followed to an address behind this device"
            );
            self.not_followed = self.endpoint.replace(before).zip(Some(now));
            self.source = None;
            self.path_asked_at = None;
            self.probe = PathProbe::default();
        } else if !self.endpoint_loops {
            tracing::warn!(
                peer = %self.public_key, endpoint = self.endpoint.map(tracing::field::display),
                "the way to the peer's endpoint leads through the tunnel itself; nothing is sent \
                 there until endpoint or routes change"
            );
            self.endpoint_loops = true;
        }
    }

    /// Notes that the way to the endpoint is another one than through the device itself.
    pub(crate) fn note_endpoint_good(&mut self) {
        self.endpoint_loops = false;
        self.endpoint_before = None;
    }

    pub(crate) fn set_endpoint(&mut self, endpoint: SocketAddr) -> bool {
        // Also for the endpoint that it has: that is the way to have the choice made anew.
        self.source = None;
        if self.endpoint == Some(endpoint) {
            return false;
        }
        self.endpoint = Some(endpoint);
        self.path_asked_at = None;
        self.probe = PathProbe::default();
        self.endpoint_within = false;
        self.endpoint_loops = false;
        self.endpoint_in_tunnel = false;
        self.endpoint_before = None;
        self.not_followed = None;
        if let Some(session) = &mut self.session {
            session.endpoint_changed();
        }
        true
    }

    /// Books an authenticated message; only those move the endpoint. Tells whether they did.
    #[inline]
    pub(super) fn received(&mut self, now: Instant, from: Endpoint, len: usize) -> bool {
        self.rx_bytes += len as u64;
        if self.endpoint == Some(from.address) {
            if self.source != from.source {
                self.set_source(from.source);
            }
            return false;
        }
        if self.not_followed.is_some_and(|(address, at)| {
            address == from.address && now.saturating_duration_since(at) < PATH_QUERY_EVERY
        }) {
            return false;
        }
        tracing::debug!(peer = %self.public_key, endpoint = %from.address, "peer roamed");
        let before = self.endpoint.replace(from.address);
        if !self.endpoint_loops && self.endpoint_before.is_none() {
            self.endpoint_before = before;
        }
        self.endpoint_within = false;
        self.endpoint_loops = false;
        self.endpoint_in_tunnel = false;
        self.set_source(from.source);
        self.path_asked_at = None;
        self.probe = PathProbe::default();
        true
    }

    fn set_source(&mut self, source: Option<Source>) {
        let link = |source: Option<Source>| source.map(|source| source.link);
        if link(self.source) != link(source) {
            self.path_asked_at = None;
        }
        self.source = source;
        self.source_good = true;
    }
}
