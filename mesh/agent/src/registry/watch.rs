//! The kernel's events of the registry's directory (inotify(7)).

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::file::node_of;

/// Waits for events of the watch, if there is one, for ever otherwise.
pub(super) async fn names(watch: &Option<Watch>) -> io::Result<Vec<String>> {
    match watch {
        Some(watch) => watch.names().await,
        None => std::future::pending().await,
    }
}

/// The kernel's events of one directory.
#[derive(Debug)]
pub(super) struct Watch {
    inotify: Inotify,
    /// The same open file, for the runtime to wait on.
    ready: AsyncFd<OwnedFd>,
}

impl Watch {
    pub(super) fn new(dir: &Path) -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        let flags = AddWatchFlags::IN_MODIFY
            | AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_MOVE
            | AddWatchFlags::IN_ATTRIB
            | AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_MOVE_SELF
            | AddWatchFlags::IN_ONLYDIR;
        inotify.add_watch(dir, flags)?;
        let descriptor = inotify.as_fd().try_clone_to_owned()?;
        #[expect(
            unsafe_code,
            reason = "the runtime's only way to wait on a descriptor of ours"
        )]
        // SAFETY: `AsyncFd` owns the descriptor and closes it only after it has deregistered it;
        // an `OwnedFd` returns the same open descriptor as long as it lives.
        let ready = unsafe { AsyncFd::register_with_interest(descriptor, Interest::READABLE) }?;
        Ok(Self { inotify, ready })
    }

    /// Waits for events and returns the names of the nodes whose files they are about; an error
    /// means that the watch broke or events were lost.
    async fn names(&self) -> io::Result<Vec<String>> {
        loop {
            let mut guard = self.ready.readable().await?;
            let events = match guard.try_io(|_| Ok(self.inotify.read_events()?)) {
                Ok(events) => events?,
                Err(_would_block) => continue,
            };
            let broken = AddWatchFlags::IN_Q_OVERFLOW
                | AddWatchFlags::IN_IGNORED
                | AddWatchFlags::IN_MOVE_SELF;
            if events.iter().any(|event| event.mask.intersects(broken)) {
                return Err(io::Error::other("the watch broke"));
            }
            let names: Vec<String> = events
                .iter()
                .filter_map(|event| node_of(event.name.as_deref()?))
                .collect();
            if !names.is_empty() {
                return Ok(names);
            }
        }
    }
}
