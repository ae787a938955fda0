//! How large a packet to the peer may be, asked of the peer.

use std::time::Instant;

use super::one_piece::outer_overhead;
use super::{Context, Peer};
use crate::outbox::Way;
use crate::outcome::Sealed;
use crate::path_probe::{MESSAGE_LEN, ProbeMessage};
use crate::session::room_for;

impl Peer {
    /// Asks for the sizes that are to be asked for.
    pub(super) fn send_probes(&mut self, ctx: &mut Context<'_>) {
        while let Some(size) = self.probe.poll_ask() {
            let overhead = self.endpoint.map_or(0, outer_overhead);
            let len = (size as usize).saturating_sub(overhead).max(MESSAGE_LEN);
            self.send_probe(ctx, ProbeMessage::Ask(size), len);
        }
    }

    fn send_probe(&mut self, ctx: &mut Context<'_>, message: ProbeMessage, len: usize) {
        let (Some(endpoint), Some(session)) = (self.way(), &mut self.session) else {
            return;
        };
        if self.endpoint_loops || !session.sendable(ctx.now.monotonic) {
            return;
        }
        message.write(&mut ctx.scratch[..len]);
        let Some(room) = ctx.out.datagrams.room(room_for(len)) else {
            return;
        };
        if let Sealed::Data(sent) = session.seal(ctx.now.monotonic, &ctx.scratch[..len], room) {
            // A probe is about its own size: never in pieces, nor with others.
            let way = Way {
                rides: false,
                ..endpoint.into()
            };
            ctx.out.datagrams.commit(sent, way);
            self.tx_bytes += sent as u64;
        }
    }

    /// Answers a probe, or takes the answer to one.
    pub(crate) fn handle_probe(&mut self, ctx: &mut Context<'_>, message: ProbeMessage) {
        match message {
            ProbeMessage::Ask(size) => {
                self.send_probe(ctx, ProbeMessage::Answer(size), MESSAGE_LEN);
            }
            ProbeMessage::Answer(size) => {
                let changed = self.probe.handle_answer(ctx.now.monotonic, size);
                self.note_path_limit(ctx.now.monotonic, changed);
            }
        }
    }

    pub(super) fn note_path_limit(&mut self, now: Instant, changed: bool) {
        if changed {
            let path_mtu_bytes = self.probe.limit(now);
            tracing::info!(
                peer = %self.public_key,
                path_mtu_bytes,
                "the largest packet that arrives has changed"
            );
            // Measured anew, the inner MTU follows.
            self.path_asked_at = None;
        }
    }
}
