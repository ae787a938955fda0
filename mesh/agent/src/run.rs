//! The agent's loop: when to reconcile.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use warren_netlink::{EventStream, Netlink};

use crate::dataplane::DataPlane;
use crate::host::Host;
use crate::reconcile::Reconciler;
use crate::registry::NodeRegistry;
use crate::snapshot::Snapshot;

/// How often everything is looked at whatever happens: a change made by others that raises no
/// event is repaired within this time.
const TICK: Duration = Duration::from_secs(5);
/// How often an absent tunnel is looked for.
const TUNNEL_TICK: Duration = Duration::from_millis(250);
/// How long to wait after an event for others: they come in bursts.
const SETTLE: Duration = Duration::from_millis(20);
/// The least time between reconciles that events cause; our own changes raise events too.
const SPACING: Duration = Duration::from_millis(200);
/// The longest time that events wait after reconciles that left something undone.
const MAX_BACKOFF: Duration = Duration::from_secs(5);

/// Where snapshots go.
pub type Publisher = watch::Sender<Option<Arc<Snapshot>>>;

/// Reconciles until `stop` is done. Nothing is taken back then: traffic goes on without the agent.
pub async fn run<H: Host, D: DataPlane>(
    mut reconciler: Reconciler<H, D>,
    mut registry: impl NodeRegistry,
    probe: impl AsyncFn() -> bool,
    snapshots: Publisher,
    stop: impl Future<Output = ()>,
) {
    let mut stop = std::pin::pin!(stop);
    let mut events = Events::open();
    let mut tick = interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut tunnel_tick = interval(TUNNEL_TICK);
    tunnel_tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut pace = Pace::default();
    let mut tunnel_answers = false;
    loop {
        tokio::select! {
            () = &mut stop => return,
            report = registry.next() => {
                reconciler.handle_report(report);
                pace.ask(Instant::now() + SETTLE);
            }
            () = events.next() => pace.ask(Instant::now() + SETTLE),
            _ = tick.tick() => pace.force(),
            _ = tunnel_tick.tick(), if !tunnel_answers => {
                if probe().await {
                    pace.force();
                    // Whether it works is for the reconcile to say.
                    tunnel_answers = true;
                }
            }
            () = pace.due() => {
                let snapshot = reconciler.reconcile(&mut registry).await;
                tunnel_answers = snapshot.device.is_some();
                pace.done(snapshot.settled);
                snapshots.send_replace(Some(Arc::new(snapshot)));
            }
        }
    }
}

/// When the next reconcile is due.
#[derive(Debug, Default)]
struct Pace {
    due: Option<Instant>,
    not_before: Option<Instant>,
    failures: u32,
}

impl Pace {
    /// An event: soon, but not sooner than the last outcome allows.
    fn ask(&mut self, at: Instant) {
        let at = self.not_before.map_or(at, |not_before| at.max(not_before));
        self.due = Some(self.due.map_or(at, |due| due.min(at)));
    }

    /// The clock, or a tunnel that came back: now.
    fn force(&mut self) {
        self.due = Some(Instant::now());
    }

    fn done(&mut self, complete: bool) {
        self.failures = if complete {
            0
        } else {
            self.failures.saturating_add(1)
        };
        let backoff = SPACING * 2u32.pow(self.failures.min(5));
        self.not_before = Some(Instant::now() + backoff.min(MAX_BACKOFF));
        self.due = None;
    }

    async fn due(&self) {
        match self.due {
            Some(at) => sleep_until(at).await,
            None => std::future::pending().await,
        }
    }
}

/// The kernel's events; without them the clock remains.
struct Events(Option<EventStream>);

impl Events {
    fn open() -> Self {
        let opened = Netlink::watch();
        Self(
            opened
                .inspect_err(|e| tracing::warn!(error = %e, "no kernel events"))
                .ok(),
        )
    }

    async fn next(&mut self) {
        let Some(stream) = &mut self.0 else {
            return std::future::pending().await;
        };
        if let Err(e) = stream.next().await {
            tracing::warn!(error = %e, "kernel events end; watching anew");
            *self = Self::open();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn events_wait_longer_the_longer_nothing_can_be_done() {
        let mut pace = Pace::default();
        let mut waits = Vec::new();
        for _ in 0..8 {
            pace.done(false);
            let asked = Instant::now();
            pace.ask(asked);
            pace.due().await;
            waits.push((Instant::now() - asked).as_millis());
        }
        assert_eq!(waits[0], 400);
        assert!(waits.windows(2).all(|pair| pair[0] <= pair[1]), "{waits:?}");
        assert_eq!(*waits.last().unwrap(), 5000);
    }

    #[tokio::test(start_paused = true)]
    async fn the_clock_does_not_wait_for_a_backoff() {
        let mut pace = Pace::default();
        pace.done(false);
        let asked = Instant::now();
        pace.force();
        pace.due().await;
        assert_eq!(Instant::now(), asked);
    }

    #[tokio::test(start_paused = true)]
    async fn a_burst_of_events_is_one_reconcile() {
        let mut pace = Pace::default();
        let first = Instant::now();
        for _ in 0..100 {
            pace.ask(Instant::now() + SETTLE);
        }
        pace.due().await;
        assert_eq!(Instant::now() - first, SETTLE);
        pace.done(true);
        assert!(pace.due.is_none());
    }
}
