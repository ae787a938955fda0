//! Saves the state off the packet thread: soon after a change, and not more than a few times a second.

use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::clock::{LAST_RESERVE, RESERVE};
use crate::control::Control;
use crate::state::State;

/// How long changes are collected before they are saved: what a process that is killed loses.
const DEBOUNCE: Duration = Duration::from_millis(20);
/// The least time between the end of one save and the next: endpoints can change with every packet.
const SPACING: Duration = Duration::from_millis(250);
/// How often the mark of stamps is written anew when nothing changes: in time before it is reached.
const REFRESH: Duration = Duration::from_secs(600);

/// Saves the device's state to a file after each change.
#[derive(Clone, Debug)]
pub struct Saver {
    /// The running device.
    control: Control,
    /// The state's file.
    path: PathBuf,
    /// The generation bit of this process.
    generation: bool,
    /// Whether the last save is done: one that was still under way then must not undo it.
    ended: Arc<Mutex<bool>>,
}

impl Saver {
    /// Makes the saver of a running device.
    pub fn new(control: Control, path: PathBuf, generation: bool) -> Self {
        Self {
            control,
            path,
            generation,
            ended: Arc::default(),
        }
    }

    /// Starts the thread that saves whenever `changed` says so, until the shard is gone.
    ///
    /// # Errors
    /// What the kernel says about the thread.
    pub fn spawn(self, changed: Receiver<()>) -> std::io::Result<JoinHandle<()>> {
        thread::Builder::new().name("saver".into()).spawn(move || {
            let mut last: Option<Instant> = None;
            loop {
                match changed.recv_timeout(REFRESH) {
                    Ok(()) => {
                        let spacing =
                            last.map_or(Duration::ZERO, |at| SPACING.saturating_sub(at.elapsed()));
                        thread::sleep(spacing.max(DEBOUNCE));
                    }
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => return,
                }
                let _ = changed.try_recv();
                self.save();
                last = Some(Instant::now());
            }
        })
    }

    /// Saves now. A failure is told of, and does not end anything: the next change tries again.
    pub fn save(&self) {
        let ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        if !*ended {
            self.save_ahead(RESERVE);
        }
    }

    /// Saves at an orderly end, after which no more than what is under way is stamped, and nothing
    /// is saved.
    pub fn save_last(&self) {
        let mut ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        *ended = true;
        self.save_ahead(LAST_RESERVE);
    }

    fn save_ahead(&self, reserve: Duration) {
        let (Ok(device), Ok(status)) = (self.control.get(), self.control.status()) else {
            return;
        };
        let state = State::of_device(device, self.generation, status.newest_stamp + reserve);
        if let Err(error) = state.save(&self.path) {
            tracing::warn!(%error, "cannot save the peers; a restart would not know the newest ones");
        }
    }
}
