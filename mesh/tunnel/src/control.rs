//! How other threads speak to the shards of a device: a channel for each, and an event that wakes it
//! up. The packet path takes no lock.
//!
//! With several shards a request is carried out by the first, which may refuse it, and then by the
//! others, which cannot. One request at a time: all of them see the same ones in the same order.

use std::net::IpAddr;
use std::sync::mpsc::{self, Receiver, Sender, SyncSender};
use std::sync::{Arc, Mutex, PoisonError};

use ipnet::IpNet;
use nix::sys::eventfd::{EfdFlags, EventFd};
use warren_core::uapi::{Device, SetRequest};

use crate::shard::{SetError, ShardStatus};
use crate::shards::ShardId;
use crate::tun::{Tun, TunSteering};
use crate::udp::Udp;

/// What a shard is asked to do.
pub(crate) enum Command {
    Get(SyncSender<Device>),
    Set(Arc<SetRequest>, SyncSender<Result<Accepted, SetError>>),
    /// What the first shard has accepted, and the sockets of a new port.
    Follow(Arc<SetRequest>, Option<Box<Udp>>, SyncSender<()>),
    Status(SyncSender<ShardStatus>),
    /// Reads nothing more from the TUN, until it is resumed.
    Hold(SyncSender<()>),
    /// Reads all that the TUN has now.
    Drain(SyncSender<()>),
    /// Takes what was handed over meanwhile, and reads from the TUN again.
    Resume(SyncSender<()>),
    /// The interface was made anew.
    Tun(Box<Tun>),
    /// Where the peers of a shard are.
    Addresses(ShardId, Vec<IpAddr>),
    Stop,
}

/// What the first shard leaves to be done when it has accepted a request.
#[derive(Default)]
pub(crate) struct Accepted {
    /// The sockets of a new port, of each other shard.
    pub(crate) sockets: Vec<Udp>,
    /// All prefixes and their shards.
    pub(crate) prefixes: Vec<(IpNet, ShardId)>,
}

/// The shards are gone: the daemon is about to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the tunnel's packet loop has ended")]
pub struct Gone;

/// The way to one shard.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    commands: Sender<Command>,
    wake: Arc<EventFd>,
}

impl Line {
    pub(crate) fn new() -> nix::Result<(Self, Receiver<Command>)> {
        let wake = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
        let (commands, receiver) = mpsc::channel();
        let line = Self {
            commands,
            wake: Arc::new(wake),
        };
        Ok((line, receiver))
    }

    pub(crate) fn wake(&self) -> &Arc<EventFd> {
        &self.wake
    }

    pub(crate) fn send(&self, command: Command) -> Result<(), Gone> {
        self.commands.send(command).map_err(|_| Gone)?;
        // It can only fail when it is signalled as often as a u64 can count.
        let _ = self.wake.write(1);
        Ok(())
    }

    fn begin<T>(
        &self,
        command: impl FnOnce(SyncSender<T>) -> Command,
    ) -> Result<Receiver<T>, Gone> {
        let (answer, answered) = mpsc::sync_channel(1);
        self.send(command(answer))?;
        Ok(answered)
    }

    fn ask<T>(&self, command: impl FnOnce(SyncSender<T>) -> Command) -> Result<T, Gone> {
        self.begin(command)?.recv().map_err(|_| Gone)
    }
}

/// A handle on the running shards; clones of it may be used by any thread.
#[derive(Clone, Debug)]
pub struct Control {
    lead: Line,
    others: Vec<Line>,
    steering: Option<Arc<TunSteering>>,
    /// Held while shards are asked one after the other, never by a shard.
    turn: Arc<Mutex<()>>,
}

impl Control {
    /// The handle on shards with these lines, and on how the kernel deals out to them.
    pub(crate) fn new(lead: Line, others: Vec<Line>, steering: Option<Arc<TunSteering>>) -> Self {
        Self {
            lead,
            others,
            steering,
            turn: Arc::default(),
        }
    }

    /// Returns the device's state.
    ///
    /// # Errors
    /// [`Gone`].
    pub fn get(&self) -> Result<Device, Gone> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let mut device = self.lead.ask(Command::Get)?;
        for line in &self.others {
            device.peers.append(&mut line.ask(Command::Get)?.peers);
        }
        device.peers.sort_by_key(|peer| peer.public_key);
        Ok(device)
    }

    /// Changes the device, wholly or not at all.
    ///
    /// # Errors
    /// The outer [`Gone`]; the inner [`SetError`] when the device refuses.
    pub fn set(&self, request: SetRequest) -> Result<Result<(), SetError>, Gone> {
        let request = Arc::new(request);
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let lead = |answer| Command::Set(Arc::clone(&request), answer);
        let accepted = match self.lead.ask(lead)? {
            Ok(accepted) => accepted,
            Err(error) => return Ok(Err(error)),
        };
        let mut sockets = accepted.sockets.into_iter().map(Box::new);
        let mut answers = Vec::with_capacity(self.others.len());
        for line in &self.others {
            let socket = sockets.next();
            answers
                .push(line.begin(|answer| Command::Follow(Arc::clone(&request), socket, answer))?);
        }
        for answer in answers {
            answer.recv().map_err(|_| Gone)?;
        }
        if let Some(steering) = &self.steering {
            self.steer(steering, accepted.prefixes)?;
        }
        Ok(Ok(()))
    }

    /// Lets the kernel deal packets out by other prefixes, one shard that gets some after the other:
    ///
    /// ```text
    /// the shard that gets them   hold ------------------------- resume: from the rings, from the TUN
    /// the kernel                       change
    /// all others                              drain: into the rings
    /// ```
    ///
    /// So what they had in their queues before the change is sent before what came after it.
    fn steer(&self, steering: &TunSteering, prefixes: Vec<(IpNet, ShardId)>) -> Result<(), Gone> {
        for (shard, changes) in steering.changes(prefixes.into_iter()) {
            let number = usize::from(shard.number());
            let lines = || [&self.lead].into_iter().chain(&self.others);
            let Some(line) = lines().nth(number) else {
                continue;
            };
            line.ask(Command::Hold)?;
            steering.carry_out(&changes);
            let others = lines().enumerate().filter(|(n, _)| *n != number);
            let drained: Vec<_> = others
                .map(|(_, line)| line.begin(Command::Drain))
                .collect::<Result<_, Gone>>()?;
            for answer in drained {
                answer.recv().map_err(|_| Gone)?;
            }
            line.ask(Command::Resume)?;
        }
        Ok(())
    }

    /// Returns what UAPI has no words for.
    ///
    /// # Errors
    /// [`Gone`].
    pub fn status(&self) -> Result<ShardStatus, Gone> {
        let mut status = self.lead.ask(Command::Status)?;
        for line in &self.others {
            status.merge(line.ask(Command::Status)?);
        }
        Ok(status)
    }

    /// Asks the shards to end; each does so after the batch it is at.
    pub fn stop(&self) {
        for line in [&self.lead].into_iter().chain(&self.others) {
            // One that has ended already is as good.
            let _ = line.send(Command::Stop);
        }
    }
}
