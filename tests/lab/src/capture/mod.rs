//! Captures that judge every packet as it passes.

mod parse;
mod pcap;
mod report;
mod ring;
mod rules;

use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::error::{LabError, Result};
use crate::space::{Space, lock};
pub use report::{Count, KEPT_PACKETS, LinkReport, Offence, Report};
use ring::Ring;
use rules::Judge;
pub use rules::{Allow, ClearTextRules, Family, WireGuardKind};

/// How long the thread sleeps at most before it looks whether to stop.
const POLL_MILLIS: u8 = 20;
/// The niceness that the thread asks for.
const WATCH_NICE: i32 = -15;
/// How long it goes on after the stop: longer than the kernel holds back a block.
const DRAIN: Duration = Duration::from_millis(300);

/// A place to capture: one interface of a host, pod or switch; sees both directions.
#[derive(Debug, Clone)]
pub struct Tap {
    space: Space,
    ifname: String,
    name: String,
}

impl Tap {
    pub(crate) fn new(space: &Space, ifname: &str) -> Self {
        let name = format!("{}:{ifname}", space.name());
        Self {
            space: space.clone(),
            ifname: ifname.to_owned(),
            name,
        }
    }

    pub(crate) fn named(self, name: &str) -> Self {
        Self {
            name: name.to_owned(),
            ..self
        }
    }

    fn failed(&self, what: &'static str) -> impl FnOnce(std::io::Error) -> LabError {
        let tap = self.name.clone();
        move |source| LabError::Capture { tap, what, source }
    }
}

/// A running capture; ends when stopped or dropped.
#[derive(Debug)]
pub struct Capture {
    shared: Arc<Shared>,
    retap: Arc<Retap>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    stop: AtomicBool,
    report: Mutex<Report>,
}

/// The sockets of a capture, to be bound again when a link is made again.
#[derive(Debug)]
pub(crate) struct Retap {
    taps: Vec<(Tap, OwnedFd, Mutex<i32>)>,
}

impl Retap {
    /// Binds the sockets whose interface is a new one of the old name.
    pub(crate) fn refresh(&self) {
        for (tap, socket, bound) in &self.taps {
            let mut bound = lock(bound);
            match ring::interface_index(socket.as_fd(), &tap.ifname) {
                Ok(index) if index != *bound => {
                    if let Ok(index) = ring::bind(socket.as_fd(), &tap.ifname) {
                        *bound = index;
                    }
                }
                // Unchanged, or the interface or its whole namespace is gone.
                _ => {}
            }
        }
    }
}

impl Capture {
    pub(crate) fn start(lab: &str, taps: &[Tap], rules: ClearTextRules) -> Result<Self> {
        let mut rings = Vec::with_capacity(taps.len());
        let mut sockets = Vec::with_capacity(taps.len());
        for tap in taps {
            let ring = tap
                .space
                .in_netns(Ring::open)?
                .map_err(tap.failed("open a ring"))?;
            let socket = ring.socket().map_err(tap.failed("duplicate the socket"))?;
            let index = ring::bind(socket.as_fd(), &tap.ifname)
                .map_err(tap.failed("bind to the interface"))?;
            rings.push(ring);
            sockets.push((tap.clone(), socket, Mutex::new(index)));
        }
        let links = taps.iter().map(|tap| LinkReport {
            link: tap.name.clone(),
            ..Default::default()
        });
        let report = Report {
            lab: lab.to_owned(),
            links: links.collect(),
        };
        let shared = Arc::new(Shared {
            stop: AtomicBool::new(false),
            report: Mutex::new(report),
        });
        let retap = Arc::new(Retap { taps: sockets });
        let thread = std::thread::Builder::new().name("capture".into()).spawn({
            let (shared, retap) = (Arc::clone(&shared), Arc::clone(&retap));
            move || watch(rings, &shared, &retap, rules)
        });
        let thread = thread.map_err(|e| LabError::io("start the capture's thread", e))?;
        Ok(Self {
            shared,
            retap,
            thread: Some(thread),
        })
    }

    pub(crate) fn retap(&self) -> &Arc<Retap> {
        &self.retap
    }

    /// What was seen so far; packets of the last few milliseconds may be missing.
    pub fn snapshot(&self) -> Report {
        lock(&self.shared.report).clone()
    }

    /// Ends the capture, packets already on their way included.
    pub fn stop(mut self) -> Report {
        self.finish();
        self.snapshot()
    }

    fn finish(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take()
            && let Err(panic) = thread.join()
            && !std::thread::panicking()
        {
            std::panic::resume_unwind(panic);
        }
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.finish();
    }
}

fn watch(mut rings: Vec<Ring>, shared: &Shared, retap: &Retap, rules: ClearTextRules) {
    // On a small machine the traffic's own programs would starve the one who must not miss a packet.
    // SAFETY: plain integers; 0 is the calling thread. Without the right to it nothing changes.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, WATCH_NICE) };
    let mut judge = Judge::new(rules);
    let mut until: Option<Instant> = None;
    loop {
        let mut any = false;
        for (index, ring) in rings.iter_mut().enumerate() {
            let mut report = lock(&shared.report);
            let Some(link) = report.links.get_mut(index) else {
                continue;
            };
            any |= ring.drain(|frame| {
                let verdict = if frame.data.len() < frame.wire_len {
                    rules::Verdict::Unexpected("cut off by the capture".to_owned())
                } else {
                    judge.frame(frame.layer, frame.data)
                };
                link.record(verdict, frame);
            });
            if any || until.is_some() {
                // An unreadable count must not pass for no drops.
                link.kernel_drops += ring.take_drops().unwrap_or(1);
            }
        }
        let now = Instant::now();
        match until {
            Some(end) if now >= end => return,
            None if shared.stop.load(Ordering::Acquire) => until = Some(now + DRAIN),
            _ => {}
        }
        if !any {
            let mut fds: Vec<_> = retap
                .taps
                .iter()
                .map(|(_, s, _)| PollFd::new(s.as_fd(), PollFlags::POLLIN))
                .collect();
            let ready = poll(&mut fds, PollTimeout::from(POLL_MILLIS));
            let failed =
                |fd: &PollFd<'_>| fd.revents().is_some_and(|r| r.contains(PollFlags::POLLERR));
            if ready.is_err() || fds.iter().any(failed) {
                // An interface that went down or away; reading the error clears it.
                for (_, socket, _) in &retap.taps {
                    let _ = nix::sys::socket::getsockopt(
                        socket,
                        nix::sys::socket::sockopt::SocketError,
                    );
                }
                std::thread::sleep(Duration::from_millis(POLL_MILLIS.into()));
            }
        }
    }
}
