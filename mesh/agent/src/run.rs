//! The agent's loop: it waits for what [`Pace`] has to know, and reconciles when that says so.

use std::future::Future;
use std::sync::Arc;

use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use warren_netlink::{EventStream, Netlink};

use crate::dataplane::DataPlane;
use crate::host::Host;
use crate::pace::{Pace, TICK, TUNNEL_TICK};
use crate::reconcile::Reconciler;
use crate::registry::NodeRegistry;
use crate::snapshot::Snapshot;
use crate::store::Store;

/// Where snapshots go.
pub type Publisher = watch::Sender<Option<Arc<Snapshot>>>;

/// Reconciles until `stop` is done. Nothing is taken back then: traffic goes on without the agent.
pub async fn run<H: Host, D: DataPlane, S: Store>(
    mut reconciler: Reconciler<H, D, S>,
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
    let now = || Instant::now().into_std();
    loop {
        tokio::select! {
            () = &mut stop => return,
            report = registry.next() => {
                reconciler.handle_report(report);
                pace.handle_event(now());
            }
            () = events.next() => pace.handle_event(now()),
            _ = tick.tick() => pace.handle_tick(now()),
            _ = tunnel_tick.tick(), if pace.seeks_tunnel() => {
                if probe().await {
                    pace.handle_tunnel(now());
                }
            }
            () = sleep_until_due(&pace) => {
                let snapshot = reconciler.reconcile(&mut registry).await;
                pace.handle_outcome(now(), &snapshot);
                snapshots.send_replace(Some(Arc::new(snapshot)));
            }
        }
    }
}

async fn sleep_until_due(pace: &Pace) {
    match pace.poll_due() {
        Some(at) => sleep_until(Instant::from_std(at)).await,
        None => std::future::pending().await,
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
