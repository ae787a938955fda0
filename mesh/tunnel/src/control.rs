//! How other threads speak to the shard that owns the device: a channel, and an event that wakes
//! the shard up. The packet path takes no lock.

use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender, SyncSender};

use nix::sys::eventfd::{EfdFlags, EventFd};
use warren_core::uapi::{Device, SetRequest};

use crate::shard::{SetError, ShardStatus};

/// What the shard is asked to do.
pub(crate) enum Command {
    Get(SyncSender<Device>),
    Set(Box<SetRequest>, SyncSender<Result<(), SetError>>),
    Status(SyncSender<ShardStatus>),
    Stop,
}

/// The shard is gone: the daemon is about to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the tunnel's packet loop has ended")]
pub struct Gone;

/// A handle on a running shard; clones of it may be used by any thread.
#[derive(Clone, Debug)]
pub struct Control {
    commands: Sender<Command>,
    wake: Arc<EventFd>,
}

impl Control {
    pub(crate) fn new() -> nix::Result<(Self, Receiver<Command>)> {
        let wake = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
        let (commands, receiver) = mpsc::channel();
        Ok((
            Self {
                commands,
                wake: Arc::new(wake),
            },
            receiver,
        ))
    }

    /// Returns the device's state.
    ///
    /// # Errors
    /// [`Gone`].
    pub fn get(&self) -> Result<Device, Gone> {
        self.ask(Command::Get)
    }

    /// Changes the device, wholly or not at all.
    ///
    /// # Errors
    /// The outer [`Gone`]; the inner [`SetError`] when the device refuses.
    pub fn set(&self, request: SetRequest) -> Result<Result<(), SetError>, Gone> {
        self.ask(|answer| Command::Set(Box::new(request), answer))
    }

    /// Returns what UAPI has no words for.
    ///
    /// # Errors
    /// [`Gone`].
    pub fn status(&self) -> Result<ShardStatus, Gone> {
        self.ask(Command::Status)
    }

    /// Asks the shard to end; it does so after the batch it is at.
    pub fn stop(&self) {
        // One that has ended already is as good.
        let _ = self.send(Command::Stop);
    }

    pub(crate) fn wake(&self) -> Arc<EventFd> {
        Arc::clone(&self.wake)
    }

    fn ask<T>(&self, command: impl FnOnce(SyncSender<T>) -> Command) -> Result<T, Gone> {
        let (answer, answered) = mpsc::sync_channel(1);
        self.send(command(answer))?;
        answered.recv().map_err(|_| Gone)
    }

    fn send(&self, command: Command) -> Result<(), Gone> {
        self.commands.send(command).map_err(|_| Gone)?;
        // It can only fail when it is signalled as often as a u64 can count.
        let _ = self.wake.write(1);
        Ok(())
    }
}
