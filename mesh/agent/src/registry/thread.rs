//! A registry on a thread of its own, so that one that hangs, as a network file system does whose
//! server is gone, holds up nothing but itself.
//!
//! ```text
//!   the agent's loop                        the registry's thread
//!     next()    <---- reports ----------------- next()
//!     publish() ----- this node's record -----> publish()
//!               <---- the outcome, if soon ----
//!     every second: has it beaten? <----------- a beat twice a second
//! ```

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::{Interval, MissedTickBehavior, interval, timeout};

use super::{NodeRegistry, OwnRecord, RegistryError, RegistryReport};

/// How often the thread shows that it is not held up.
const BEAT: Duration = Duration::from_millis(500);
/// How often the loop looks for a beat.
const LOOK: Duration = Duration::from_secs(1);
/// How many looks in a row find no beat before it is told: they are counted, not timed, so that a
/// process that was stopped does not blame the registry.
const PATIENCE: u32 = 4;
/// How long the loop waits for a record to be written before it goes on. A hanging registry costs
/// the loop this once.
const SOON: Duration = Duration::from_millis(250);

type Outcome = Result<bool, RegistryError>;

/// A registry that another one on its own thread is behind.
#[derive(Debug)]
pub struct RegistryThread {
    /// What it is, for messages.
    subject: String,
    reports: UnboundedReceiver<RegistryReport>,
    records: UnboundedSender<OwnRecord>,
    outcomes: UnboundedReceiver<Outcome>,
    /// The record that the thread has and has not answered for.
    pending: Option<OwnRecord>,
    beats: Arc<AtomicU64>,
    last_beat: u64,
    missed: u32,
    silent_since: Option<SystemTime>,
    look: Interval,
    /// What the registry itself is troubled by.
    troubles: Vec<String>,
    ended: bool,
}

impl RegistryThread {
    /// Starts the thread and makes the registry there. To be called within a runtime. `subject`
    /// names the registry in messages: `registry directory /srv/nodes`. The thread ends when this
    /// value is dropped, unless it is held up.
    ///
    /// # Errors
    /// When the system has no thread or no event queue left.
    pub fn start<R: NodeRegistry>(
        subject: String,
        make: impl FnOnce() -> R + Send + 'static,
    ) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let (report, reports) = unbounded_channel();
        let (records, mut record) = unbounded_channel();
        let (outcome, outcomes) = unbounded_channel();
        let beats = Arc::new(AtomicU64::new(0));
        let beating = beats.clone();
        let work = move || async move {
            let mut registry = make();
            let mut beat = every(BEAT);
            loop {
                tokio::select! {
                    told = registry.next() => {
                        if report.send(told).is_err() {
                            return;
                        }
                    }
                    own = record.recv() => {
                        let Some(own) = own else { return };
                        let done = registry.publish(&own).await;
                        if outcome.send(done).is_err() {
                            return;
                        }
                    }
                    _ = beat.tick() => {
                        beating.fetch_add(1, Ordering::Relaxed);
                    }
                }
            }
        };
        std::thread::Builder::new()
            .name("registry".into())
            .spawn(move || runtime.block_on(work()))?;
        Ok(Self {
            subject,
            reports,
            records,
            outcomes,
            pending: None,
            beats,
            last_beat: 0,
            missed: 0,
            silent_since: None,
            look: every(LOOK),
            troubles: Vec::new(),
            ended: false,
        })
    }

    /// All that is wrong, its own silence first.
    fn troubles(&self) -> RegistryReport {
        let silent = self.silent_since.map(|since| {
            format!(
                "{} does not answer since {}: is its server or the network away? the last view \
                 holds",
                self.subject,
                utc(since)
            )
        });
        let all = silent.into_iter().chain(self.troubles.iter().cloned());
        RegistryReport::Troubles(all.collect())
    }

    /// Returns whether there is anything new to tell.
    fn look(&mut self) -> bool {
        let beat = self.beats.load(Ordering::Relaxed);
        if beat != self.last_beat {
            self.last_beat = beat;
            self.missed = 0;
            return self.silent_since.take().is_some();
        }
        self.missed = self.missed.saturating_add(1);
        if self.missed != PATIENCE {
            return false;
        }
        self.silent_since = SystemTime::now().checked_sub(LOOK * PATIENCE);
        true
    }
}

impl NodeRegistry for RegistryThread {
    async fn next(&mut self) -> RegistryReport {
        loop {
            tokio::select! {
                report = self.reports.recv(), if !self.ended => match report {
                    Some(RegistryReport::Troubles(troubles)) => {
                        self.troubles = troubles;
                        return self.troubles();
                    }
                    Some(event) => return event,
                    // Only a bug ends it; the silence that follows is told.
                    None => self.ended = true,
                },
                _ = self.look.tick() => {
                    if self.look() {
                        return self.troubles();
                    }
                }
            }
        }
    }

    /// Gives the record to the thread. What does not come to an end soon does so in the background:
    /// the call returns that nothing was written, and a later one tells how it went.
    async fn publish(&mut self, own: &OwnRecord) -> Outcome {
        if let Ok(late) = self.outcomes.try_recv() {
            let answered = self.pending.take();
            if late.is_err() || answered.as_ref() == Some(own) {
                return late;
            }
        }
        if self.pending.is_some() {
            return Ok(false);
        }
        if self.records.send(own.clone()).is_err() {
            return Ok(false);
        }
        self.pending = Some(own.clone());
        match timeout(SOON, self.outcomes.recv()).await {
            Ok(Some(outcome)) => {
                self.pending = None;
                outcome
            }
            Ok(None) | Err(_) => Ok(false),
        }
    }
}

fn every(period: Duration) -> Interval {
    let mut ticks = interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

/// A time as people read it: `2026-01-31 09:05:00 UTC`.
fn utc(time: SystemTime) -> String {
    let since_1970 = time.duration_since(SystemTime::UNIX_EPOCH);
    let seconds = since_1970.map_or(0, |duration| duration.as_secs());
    let (mut days, second) = (seconds / 86_400, seconds % 86_400);
    let leap = |year: u64| {
        year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
    };
    let mut year = 1970;
    while days >= 365 + u64::from(leap(year)) {
        days -= 365 + u64::from(leap(year));
        year += 1;
    }
    let february = 28 + u64::from(leap(year));
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30] {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    let (hour, minute) = (second / 3600, second / 60 % 60);
    format!(
        "{year}-{month:02}-{:02} {hour:02}:{minute:02}:{:02} UTC",
        days + 1,
        second % 60
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_the_calendar() {
        for (seconds, text) in [
            (0, "1970-01-01 00:00:00 UTC"),
            (951_782_399, "2000-02-28 23:59:59 UTC"),
            (951_782_400, "2000-02-29 00:00:00 UTC"),
            (1_735_689_599, "2024-12-31 23:59:59 UTC"),
            (1_767_225_600, "2026-01-01 00:00:00 UTC"),
            (4_107_542_400, "2100-03-01 00:00:00 UTC"),
        ] {
            let time = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
            assert_eq!(utc(time), text);
        }
    }
}
