//! The agent's loop: it waits for what [`Pace`] and [`RepairPace`] have to know, and reconciles or
//! repairs when they say so.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use warren_netlink::{EventStream, NetEvent, Netlink};

use crate::concern::Concern;
use crate::dataplane::DataPlane;
use crate::host::Host;
use crate::pace::{Pace, RepairPace, TICK, TUNNEL_TICK};
use crate::reconcile::Reconciler;
use crate::registry::{NodeRegistry, RegistryReport};
use crate::snapshot::Snapshot;
use crate::store::Store;

/// How often other programs' routes are looked for without any event of one.
const FOREIGN_TICK: Duration = Duration::from_secs(60);

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
    let ours = reconciler.ours();
    let every = |period| {
        let mut ticks = interval(period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticks
    };
    let (mut tick, mut tunnel_tick) = (every(TICK), every(TUNNEL_TICK));
    let mut foreign_tick = every(FOREIGN_TICK);
    let mut look_for_foreign = true;
    let (mut pace, mut repairs) = (Pace::default(), RepairPace::default());
    let now = || Instant::now().into_std();
    loop {
        tokio::select! {
            () = &mut stop => return,
            report = registry.next() => {
                match report {
                    RegistryReport::Event(_) => pace.handle_news(now()),
                    RegistryReport::Troubles(_) => pace.handle_event(now()),
                }
                reconciler.handle_report(report);
            }
            event = events.next() => {
                if reconciler.is_echo(&event) {
                    continue;
                }
                if ours.is_tunnel(&event) {
                    // A tunnel that was started anew may not have all of its peers.
                    pace.handle_late_event(now());
                }
                match ours.concern(&event) {
                    Concern::None => {}
                    Concern::Underlay => pace.handle_late_event(now()),
                    Concern::ForeignRoute => {
                        look_for_foreign = true;
                        pace.handle_late_event(now());
                    }
                    Concern::Ours(touched) => repairs.handle_touched(now(), touched),
                    Concern::Everything => {
                        tracing::warn!("events of the kernel were lost; reading everything anew");
                        look_for_foreign = true;
                        pace.handle_event(now());
                    }
                }
            }
            _ = tick.tick() => pace.handle_tick(now()),
            _ = foreign_tick.tick() => look_for_foreign = true,
            _ = tunnel_tick.tick(), if pace.seeks_tunnel() => {
                if probe().await {
                    pace.handle_tunnel(now());
                }
            }
            () = sleep_until_due(repairs.poll_due()) => {
                let touched = repairs.start(now());
                let repair = reconciler.repair(touched).await;
                if repair.changes > 0 || repair.unsettled {
                    pace.handle_event(now());
                }
            }
            () = sleep_until_due(pace.poll_due()) => {
                if !pace.is_whole_due(now()) {
                    let followed = reconciler.follow().await;
                    pace.handle_followed(now(), followed);
                    continue;
                }
                if std::mem::take(&mut look_for_foreign) {
                    reconciler.look_for_foreign_routes().await;
                }
                let snapshot = reconciler.reconcile(&mut registry).await;
                pace.handle_outcome(now(), &snapshot);
                snapshots.send_replace(Some(Arc::new(snapshot)));
            }
        }
    }
}

async fn sleep_until_due(due: Option<std::time::Instant>) {
    match due {
        Some(at) => sleep_until(Instant::from_std(at)).await,
        None => std::future::pending().await,
    }
}

/// The kernel's events; without them the clock remains.
struct Events(Option<EventStream>);

impl Events {
    fn open() -> Self {
        let opened = Netlink::watch();
        if opened.as_ref().is_ok_and(|events| !events.sees_tables()) {
            tracing::warn!("no kernel events of nftables: a change there is seen every {TICK:?}");
        }
        Self(
            opened
                .inspect_err(|e| tracing::warn!(error = %e, "no kernel events"))
                .ok(),
        )
    }

    async fn next(&mut self) -> NetEvent {
        let Some(stream) = &mut self.0 else {
            return std::future::pending().await;
        };
        match stream.next().await {
            Ok(event) => event,
            Err(e) => {
                tracing::warn!(error = %e, "kernel events end; watching anew");
                *self = Self::open();
                // Between the two streams anything may have been missed.
                NetEvent::Overrun
            }
        }
    }
}
