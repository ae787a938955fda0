//! The TUN device that others delete, and that is made anew.

use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use super::{NEW_TUN_MTU, Shard, watch_tun};
use crate::tun::{Tun, TunError};

/// How often a TUN device that was deleted by others is made anew.
const REOPEN_EVERY: Duration = Duration::from_secs(1);

impl Shard {
    /// A device that somebody has deleted reads as broken for ever.
    pub(super) fn lose_tun(&mut self, now: Instant, error: &io::Error) {
        self.tun_read_errors += 1;
        if let Some(tun) = self.tun.take() {
            // Other shards may hold the same queue, so that closing it does not take it out.
            let _ = self.epoll.delete(tun.as_fd());
        }
        if !self.mates.leads() {
            tracing::debug!(interface = self.interface, %error, "the TUN queue is gone");
        } else if self.remake_tun {
            tracing::warn!(interface = self.interface, %error, "the TUN device is gone; making it anew");
            self.reopen_at = Some(now);
        } else {
            tracing::info!(interface = self.interface, %error, "the TUN device is gone; ending");
        }
    }

    pub(super) fn reopen_tun(&mut self, now: Instant) {
        let opened: Result<Vec<Tun>, TunError> = Tun::open_shards(
            &self.interface,
            NEW_TUN_MTU,
            true,
            self.udp.allowed(),
            self.udp.shards(),
            self.mates.steering(),
        );
        match opened {
            Ok(mut queues) => {
                let own = queues.remove(0);
                match watch_tun(&self.epoll, &own) {
                    Ok(()) => {
                        tracing::info!(interface = self.interface, "the TUN device is back");
                        self.tun = Some(own);
                        self.reopen_at = None;
                        self.mates.hand_out(queues);
                    }
                    Err(error) => {
                        tracing::warn!(%error, "cannot watch the TUN device");
                        self.reopen_at = Some(now + REOPEN_EVERY);
                    }
                }
            }
            Err(error) => {
                tracing::warn!(%error, "cannot make the TUN device anew");
                self.reopen_at = Some(now + REOPEN_EVERY);
            }
        }
    }
}
