//! Saves the state off the packet thread, and not more than once a second.

use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::control::Control;
use crate::state::State;
use crate::time::Now;

/// How long changes are collected before they are saved.
const DEBOUNCE: Duration = Duration::from_secs(1);
/// How often the newest stamp is saved when nothing changes: handshakes go on.
const REFRESH: Duration = Duration::from_secs(600);

/// Saves the device's state to a file after each change.
#[derive(Clone, Debug)]
pub struct Saver {
    /// The running device.
    pub control: Control,
    /// The state's file.
    pub path: PathBuf,
    /// The generation bit of this process.
    pub generation: bool,
}

impl Saver {
    /// Starts the thread that saves whenever `changed` says so, until the shard is gone.
    ///
    /// # Errors
    /// What the kernel says about the thread.
    pub fn spawn(self, changed: Receiver<()>) -> std::io::Result<JoinHandle<()>> {
        thread::Builder::new().name("saver".into()).spawn(move || {
            loop {
                match changed.recv_timeout(REFRESH) {
                    Ok(()) => thread::sleep(DEBOUNCE),
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => return,
                }
                let _ = changed.try_recv();
                self.save();
            }
        })
    }

    /// Saves now. A failure is told of, and does not end anything: the next change tries again.
    pub fn save(&self) {
        let Ok(device) = self.control.get() else {
            return;
        };
        let state = State::of_device(device, self.generation, Now::read().unix);
        if let Err(error) = state.save(&self.path) {
            tracing::warn!(%error, "cannot save the peers; a restart would not know the newest ones");
        }
    }
}
