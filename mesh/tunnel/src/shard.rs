//! The packet loop: one thread that owns a TUN queue, the UDP sockets, the arenas and the engine,
//! and takes each packet from one end to the other before it takes the next batch.
//!
//! ```text
//! TUN   --read x 64-->  engine (split, seal) --> outbox --trains--> sendmmsg --> UDP
//! UDP   --recvmmsg--->  engine (open) ---------> outbox --frames--> write -----> TUN
//! UDP, handshakes ----> engine, after the data of the same round; under load in their share of time
//! time  ------------->  engine (timers) -> outbox
//! other threads: channel + eventfd
//! other shards: rings + the same eventfd, see `shards.rs`
//! ```

mod device;
mod handshakes;
mod mates;
mod status;
mod wait;
mod ways;

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::mpsc::{SyncSender, TryRecvError};
use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use warren_core::uapi::{SetRequest, errno};

use crate::control::{Accepted, Command};
use crate::engine::{ApplyError, Engine};
use crate::offload::Offloads;
use crate::outbox::Outbox;
use crate::route::RouteWatch;
use crate::shards::ring::Kind;
use crate::share::Share;
use crate::spin::Spin;
use crate::time::Now;
use crate::tun::{FRAME_ROOM, Tun, TunWriter};
use crate::udp::{BATCH, Lane, ReceiveArena, Sender, Udp, UdpBook, UdpCounters, UdpError};

pub use mates::Mates;
pub use status::{FrameCounters, ShardStatus, ShardSummary};

/// The MTU of a new TUN device in bytes, until the agent sets the underlay's.
pub const NEW_TUN_MTU: u32 = 1420;
/// Why a `set` was refused.
#[derive(Debug, thiserror::Error)]
pub enum SetError {
    /// The sockets cannot be had as asked; the old ones stay.
    #[error(transparent)]
    Udp(#[from] UdpError),
    /// The engine refused.
    #[error(transparent)]
    Apply(#[from] ApplyError),
}

impl SetError {
    /// Returns the number for UAPI's answer.
    pub fn errno(&self) -> i32 {
        match self {
            // Whatever the kernel said, as in the reference.
            Self::Udp(UdpError::Bind { .. } | UdpError::Mark { .. }) => errno::EADDRINUSE,
            Self::Apply(ApplyError::TooManyPeers { .. }) => errno::EINVAL,
        }
    }
}

/// What a shard is made of.
#[derive(Debug)]
pub struct ShardParts {
    /// The interface's name.
    pub interface: String,
    /// Its queue.
    pub tun: Tun,
    /// The sockets.
    pub udp: Udp,
    /// The device.
    pub engine: Engine,
    /// Whether an interface that others delete is made anew; else the loop ends with it.
    pub remake_tun: bool,
    /// How long the loop polls at most before it sleeps, where packets come that close; zero: never.
    pub spin: Duration,
    /// Told once after each change that is worth saving; a full channel is told already.
    pub changed: SyncSender<()>,
    /// Its place among the shards of the device.
    pub mates: Mates,
}

/// The packet loop, ready to run.
pub struct Shard {
    interface: String,
    tun: Option<Tun>,
    reopen_at: Option<Instant>,
    routes: Option<RouteWatch>,
    remake_tun: bool,
    udp: Udp,
    engine: Engine,
    changed: SyncSender<()>,
    epoll: Epoll,
    /// The sockets for handshakes, as one in `epoll`.
    handshakes: Epoll,
    spin: Spin,
    share: Share,
    /// The socket for handshakes that is the next one's turn.
    next_lane: u64,
    /// Whether a look at them began with the key exchanges that waited.
    backlog_first: bool,
    mates: Mates,
    out: Outbox,
    received: ReceiveArena,
    /// How many messages of data are received at once.
    data_batch: usize,
    frame: Box<[u8]>,
    sender: Sender,
    udp_book: UdpBook,
    tun_writer: TunWriter,
    frames: FrameCounters,
    /// What sockets that are closed since have lost, data and handshakes.
    closed_overflows: (u64, u64),
    tun_read_errors: u64,
}

/// What an event of epoll is about, in the order of their turns; the sockets for data count on from
/// `UDP`.
const TUN: u64 = 0;
const CONTROL: u64 = 1;
const ROUTES: u64 = 2;
const UDP: u64 = 3;
const HANDSHAKES: u64 = u64::MAX;
/// From so many bytes on, one receive was too much for one turn: half a millisecond of decryption.
const TURN_BYTES: usize = 512 << 10;
/// The fewest messages of data that are received at once.
const LEAST_BATCH: usize = 8;
impl Shard {
    /// Makes the loop of its parts.
    ///
    /// # Errors
    /// What the kernel says about epoll or eventfd, of which there is one each.
    pub fn new(parts: ShardParts) -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(
            parts.mates.line().wake().as_fd(),
            EpollEvent::new(EpollFlags::EPOLLIN, CONTROL),
        )?;
        watch_tun(&epoll, &parts.tun)?;
        let handshakes = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        watch(&epoll, &handshakes.0, HANDSHAKES)?;
        watch_sockets(&epoll, &handshakes, &parts.udp)?;
        // Without it, routes are looked at every ten seconds of a peer's traffic.
        let routes = RouteWatch::open()
            .inspect_err(|error| tracing::warn!(%error, "cannot watch the routes"))
            .ok();
        if let Some(routes) = &routes {
            watch(&epoll, routes, ROUTES)?;
        }
        let mut engine = parts.engine;
        engine.set_listen(parts.udp.port(), parts.udp.mark());
        Ok(Self {
            interface: parts.interface,
            tun: Some(parts.tun),
            reopen_at: None,
            routes,
            remake_tun: parts.remake_tun,
            udp: parts.udp,
            engine,
            changed: parts.changed,
            epoll,
            handshakes,
            spin: Spin::new(parts.spin),
            share: Share::new(),
            next_lane: 0,
            backlog_first: false,
            mates: parts.mates,
            out: Outbox::new(),
            received: ReceiveArena::new(),
            data_batch: BATCH,
            frame: vec![0; FRAME_ROOM].into(),
            sender: Sender::new(),
            udp_book: UdpBook::default(),
            tun_writer: TunWriter::new(),
            frames: FrameCounters::default(),
            closed_overflows: (0, 0),
            tun_read_errors: 0,
        })
    }

    /// Runs until it is asked to stop, or until its interface is gone and shall not be made anew.
    ///
    /// # Errors
    /// What the kernel says about epoll; no packet and no peer can make it end.
    pub fn run(mut self) -> io::Result<()> {
        let mut events = [EpollEvent::empty(); 8];
        loop {
            let now = Instant::now();
            let timeout = self.timeout(now);
            let spin = &mut self.spin;
            let count = match wait::wait(&self.epoll, &mut events, timeout, now, spin) {
                Ok(count) => count,
                Err(nix::Error::EINTR) => 0,
                Err(error) => return Err(error.into()),
            };
            let now = Now::read();
            // Data comes before handshakes.
            events[..count].sort_unstable_by_key(EpollEvent::data);
            for event in &events[..count] {
                match event.data() {
                    TUN => {
                        self.read_tun(now);
                    }
                    CONTROL => {
                        if self.obey(now) {
                            return Ok(());
                        }
                    }
                    HANDSHAKES => {}
                    ROUTES => {
                        if let Some(routes) = &mut self.routes {
                            routes.handle_readable(now.monotonic);
                        }
                    }
                    socket => self.receive(now, (socket - UDP) as usize),
                }
            }
            let handshakes = events[..count].last().map(EpollEvent::data) == Some(HANDSHAKES);
            if handshakes || self.share.is_due(now.monotonic) {
                self.receive_handshakes(now);
            }
            self.do_due(now);
            if self.tun.is_none() && !self.remake_tun {
                return Ok(());
            }
        }
    }

    /// Reads a batch of packets and sends them in as few calls as can be. Tells whether that was all
    /// that there was.
    fn read_tun(&mut self, now: Now) -> bool {
        let mut all = false;
        for _ in 0..BATCH {
            let Some(tun) = &mut self.tun else { break };
            match tun.read(&mut self.frame) {
                Ok(frame) => {
                    self.share.note_data();
                    self.frames.tun_rx += 1;
                    let elsewhere = self.engine.handle_tun_frame(
                        now,
                        frame.packet,
                        frame.offload,
                        &mut self.out,
                    );
                    let full = elsewhere.is_some_and(|shard| {
                        let kind = Kind::Frame(frame.offload);
                        self.mates.push(shard, kind, frame.packet)
                    });
                    // It is the others' turn after that.
                    if full || self.out.is_full() {
                        break;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    all = true;
                    break;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    self.lose_tun(now.monotonic, &error);
                    break;
                }
            }
        }
        self.flush();
        all || self.tun.is_none()
    }

    /// Receives a batch of data and writes what it carries to the TUN.
    fn receive(&mut self, now: Now, socket: usize) {
        let Some(socket) = self.udp.lanes(Lane::Data).nth(socket) else {
            return;
        };
        match self.received.receive(socket, self.data_batch) {
            Ok(count) => {
                self.share.note_data();
                // Of trains a few at once, or it is the TUN's turn too late; of datagrams many.
                self.data_batch = match self.received.bytes(count) {
                    TURN_BYTES.. => (self.data_batch / 2).max(LEAST_BATCH),
                    _ if count == self.data_batch => (self.data_batch * 2).min(BATCH),
                    _ => self.data_batch,
                };
                self.handle_received(now, count);
            }
            Err(error) => self.note_receive_error(&error),
        }
        self.flush();
    }

    fn handle_received(&mut self, now: Now, count: usize) {
        self.frames.udp_rx += count as u64;
        for n in 0..count {
            if let Some(message) = self.received.message(n) {
                for datagram in message.datagrams() {
                    self.engine
                        .handle_datagram(now, message.from, datagram, &mut self.out);
                }
            }
            if self.out.is_full() {
                self.flush();
            }
        }
    }

    fn note_receive_error(&mut self, error: &io::Error) {
        // An ICMP error that is told here is about one datagram sent earlier.
        if !matches!(
            error.kind(),
            io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
        ) {
            self.udp_book.counters.receive_errors += 1;
        }
    }

    fn flush(&mut self) {
        self.sender.send(&self.udp, &self.out, &mut self.udp_book);
        for endpoint in self.udp_book.refused_sources.drain(..) {
            self.engine.handle_source_refused(endpoint);
        }
        self.tun_writer
            .write(self.tun.as_mut(), &mut self.out.packets);
        let version = self.engine.version();
        let lost = self.mates.send(version, &mut self.out.handed_over);
        if lost > 0 {
            self.engine.note_handover_full(lost);
        }
        self.out.clear();
    }

    fn do_due(&mut self, now: Now) {
        if self
            .engine
            .poll_timeout()
            .is_some_and(|at| at <= now.monotonic)
        {
            self.engine.handle_timers(now, &mut self.out);
            self.flush();
        }
        if let Some(routes) = &mut self.routes
            && routes.take_due(now.monotonic)
        {
            self.engine.handle_routes_changed();
            self.sender.forget_refusals();
        }
        self.answer_path_queries(now);
        if self.reopen_at.is_some_and(|at| at <= now.monotonic) {
            self.reopen_tun(now.monotonic);
        }
        if self.engine.take_changed() {
            let _ = self.changed.try_send(());
            self.mates.note_addresses_changed(now.monotonic);
        }
        if self
            .mates
            .addresses_due()
            .is_some_and(|at| at <= now.monotonic)
        {
            let addresses = self.engine.own_addresses().collect();
            self.mates.tell_addresses(now.monotonic, addresses);
        }
    }

    /// Carries out what other threads have asked for; tells whether to stop.
    fn obey(&mut self, now: Now) -> bool {
        // Read first: a command that comes after the last look signals anew.
        let _ = self.mates.line().wake().read();
        loop {
            match self.mates.commands.try_recv() {
                // Whoever asked may have gone away meanwhile.
                Ok(Command::Get(answer)) => drop(answer.send(self.engine.get_at(now))),
                Ok(Command::Set(request, answer)) => drop(answer.send(self.set(now, &request))),
                Ok(Command::Status(answer)) => drop(answer.send(self.status())),
                Ok(Command::Follow(request, udp, done)) => {
                    self.follow(now, &request, udp.map(|udp| *udp));
                    let _ = done.send(());
                }
                Ok(Command::Hold(done)) => {
                    self.mates.held = true;
                    self.watch_tun_again();
                    let _ = done.send(());
                }
                Ok(Command::Drain(done)) => {
                    self.drain_tun(now);
                    let _ = done.send(());
                }
                Ok(Command::Resume(done)) => {
                    self.take_all_handed_over(now);
                    self.mates.held = false;
                    self.watch_tun_again();
                    let _ = done.send(());
                }
                Ok(Command::Tun(tun)) => self.adopt_tun(*tun),
                Ok(Command::Addresses(shard, addresses)) => {
                    self.engine.handle_addresses_elsewhere(shard, addresses);
                    self.share.note_peers_changed();
                }
                Ok(Command::Stop) => return true,
                Err(TryRecvError::Empty | TryRecvError::Disconnected) => break,
            }
        }
        self.take_handed_over(now);
        false
    }

    fn set(&mut self, now: Now, request: &SetRequest) -> Result<Accepted, SetError> {
        let port = request.listen_port.unwrap_or(self.udp.port());
        let (old_mark, mark) = (self.udp.mark(), request.fwmark.unwrap_or(self.udp.mark()));
        let mut rebound = Vec::new();
        if port == self.udp.port() {
            self.udp.set_mark(mark)?;
        } else {
            rebound = Udp::bind_shards(port, mark, self.udp.allowed(), self.udp.shards())?;
        }
        if let Err(error) = self.engine.apply(now, request) {
            // The mark was accepted a moment ago, and the old one before.
            let _ = self.udp.set_mark(old_mark);
            return Err(error.into());
        }
        let mut rebound = rebound.into_iter();
        self.adopt_sockets(rebound.next());
        let prefixes = match self.mates.steering() {
            Some(_) => self.engine.shards_of_prefixes().collect(),
            None => Vec::new(),
        };
        Ok(Accepted {
            sockets: rebound.collect(),
            prefixes,
        })
    }

    fn adopt_sockets(&mut self, rebound: Option<Udp>) {
        if let Some(udp) = rebound {
            if let Err(error) = watch_sockets(&self.epoll, &self.handshakes, &udp) {
                tracing::error!(%error, "cannot watch the new UDP sockets");
            }
            let (data, handshakes) = self.udp.overflows();
            self.closed_overflows.0 += data;
            self.closed_overflows.1 += handshakes;
            // Closing the old sockets takes them out of epoll.
            self.udp = udp;
        }
        self.engine.set_listen(self.udp.port(), self.udp.mark());
        self.share.note_peers_changed();
    }

    fn status(&self) -> ShardStatus {
        // Errors of sending are younger than the round's own time.
        let now = Instant::now();
        let (receive_overflows, handshake_overflows) = self.udp.overflows();
        ShardStatus {
            public_key: self.engine.public_key(),
            listen_port: self.udp.port(),
            peers: self.engine.peer_count(),
            shards: vec![ShardSummary {
                shard: self.mates.own(),
                peers: self.engine.own_peer_count(),
                reads_tun: self.tun.as_ref().is_some_and(|tun| !tun.writes_only()),
                tun_rx_frames: self.frames.tun_rx,
                udp_rx_messages: self.frames.udp_rx,
                handed_over: self.mates.handed_over,
            }],
            mtu_bytes: self.tun.as_ref().and_then(|tun| tun.mtu().ok()),
            waiting_bytes: self.engine.waiting_bytes(),
            newest_stamp: self.engine.newest_stamp(),
            counters: self.engine.counters().clone(),
            udp: UdpCounters {
                receive_overflows: self.closed_overflows.0 + receive_overflows,
                handshake_overflows: self.closed_overflows.1 + handshake_overflows,
                ..self.udp_book.counters
            },
            tun_errors: self.tun_read_errors + self.tun_writer.lost_packets,
            offloads: self.offloads(),
            spin_limit: self.spin.limit(),
            spin: self.spin.counters(),
            frames: FrameCounters {
                tun_tx: self.tun_writer.frames,
                udp_tx: self.udp_book.sent_messages,
                ..self.frames
            },
            peer_paths: self.engine.peer_paths(now, |endpoint, path| {
                path.send_failure = self.udp_book.failures.report(&endpoint, now);
            }),
        }
    }

    /// The offloads in use.
    fn offloads(&self) -> Offloads {
        let tun = self.tun.as_ref().map_or(Offloads::NONE, Tun::offloads);
        tun.with_sockets(self.udp.offloads())
    }

    fn timeout(&mut self, now: Instant) -> EpollTimeout {
        let due = self
            .engine
            .poll_timeout()
            .into_iter()
            .chain(self.reopen_at)
            .chain(self.share.deadline())
            .chain(self.mates.addresses_due())
            .chain(self.routes.as_ref().and_then(RouteWatch::due))
            .chain(self.engine.has_path_queries().then_some(now))
            .min();
        let Some(due) = due else {
            return EpollTimeout::NONE;
        };
        // Rounded up: woken too early, the loop would spin until the deadline.
        let milliseconds = due
            .saturating_duration_since(now)
            .as_micros()
            .div_ceil(1000);
        EpollTimeout::from(u16::try_from(milliseconds).unwrap_or(u16::MAX))
    }
}

fn watch_sockets(epoll: &Epoll, handshakes: &Epoll, udp: &Udp) -> io::Result<()> {
    for (n, socket) in udp.lanes(Lane::Data).enumerate() {
        watch(epoll, socket, UDP + n as u64)?;
    }
    for (n, socket) in udp.lanes(Lane::Handshakes).enumerate() {
        watch(handshakes, socket, n as u64)?;
    }
    Ok(())
}

fn watch_tun(epoll: &Epoll, tun: &Tun) -> io::Result<()> {
    match tun.writes_only() {
        true => Ok(()),
        false => watch(epoll, tun, TUN),
    }
}

fn watch(epoll: &Epoll, descriptor: &impl AsRawFd, about: u64) -> io::Result<()> {
    let raw: RawFd = descriptor.as_raw_fd();
    // SAFETY: the descriptor is open, for its owner is borrowed, and the borrow ends here.
    let borrowed = unsafe { BorrowedFd::borrow_raw(raw) };
    epoll.add(borrowed, EpollEvent::new(EpollFlags::EPOLLIN, about))?;
    Ok(())
}
