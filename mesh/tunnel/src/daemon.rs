//! The daemon: its parts put together, started, and ended in order.

use std::io;
use std::num::NonZero;
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Context as _, anyhow};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::Pid;
use warren_core::consts;
use warren_keyring::{PrivateKey, file};

use crate::control::Control;
use crate::engine::{Engine, EngineConfig};
use crate::lock::{InterfaceLock, claim};
use crate::options::Options;
use crate::saver::Saver;
use crate::shard::{Mates, NEW_TUN_MTU, Shard, ShardParts};
use crate::shards::{MAX_SHARDS, Place, ShardId, pin};
use crate::state::{STATE_FILE, State};
use crate::status_socket::{Fixed, KeyFile};
use crate::time::Now;
use crate::tun::{Tun, TunSteering};
use crate::udp::{Udp, UdpError};
use crate::{clock, state_dir, status_socket, uapi_server, unix_socket};

/// Runs the daemon until SIGTERM or SIGINT. The TUN device stays; the sockets go.
///
/// # Errors
/// What could not be had at the start, or why the packet loop ended.
pub fn run(options: Options) -> anyhow::Result<()> {
    // Before any thread exists, so that all inherit the mask and only this one takes the signals.
    let signals = block_signals()?;

    claim(&options.run_dir, &options.interface)?;
    let _lock = InterfaceLock::take(&options.run_dir, &options.interface)?;
    let uapi_path = options.uapi_dir.join(format!("{}.sock", options.interface));
    let (uapi, _uapi_file) = unix_socket::listen(&uapi_path)?;
    let (status, _status_file) = unix_socket::listen(&options.run_dir.join(consts::TUNNEL_SOCKET))?;

    let state_path = (!options.ephemeral).then(|| options.state_dir.join(STATE_FILE));
    let saved = state_path.as_deref().and_then(State::load_or_move_aside);
    let generation = saved.as_ref().is_some_and(|state| !state.generation);
    let private_key = private_key(&options)?;
    let fixed = Fixed {
        interface: options.interface.clone(),
        key_file: (!options.ephemeral)
            .then(|| key_file(&options.key_file(), &private_key))
            .flatten(),
    };
    let (shards, control, changed) = make_shards(
        &options,
        private_key,
        state_path.as_deref(),
        saved,
        generation,
    )?;

    let saver = state_path.map(|path| Saver::new(control.clone(), path, generation));
    if let Some(saver) = &saver {
        saver.clone().spawn(changed).context("start the saver")?;
    }
    let shards = spawn_shards(shards)?;
    uapi_server::serve(uapi, control.clone()).context("serve UAPI")?;
    status_socket::serve(status, control.clone(), fixed).context("serve the status")?;

    let signal = signals.wait().context("wait for signals")?;
    tracing::info!(%signal, "ending; the interface and its routes stay");
    if let Some(saver) = &saver {
        saver.save_last();
    }
    control.stop();
    join_shards(shards)
}

/// Blocks the signals that end the daemon; they are waited for.
pub(crate) fn block_signals() -> anyhow::Result<SigSet> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGINT);
    signals.thread_block().context("block signals")?;
    Ok(signals)
}

/// Starts the packet loops, each in a thread; the process gets SIGTERM when one of them has ended.
pub(crate) fn spawn_shards(shards: Vec<Shard>) -> anyhow::Result<Vec<JoinHandle<io::Result<()>>>> {
    let several = shards.len() > 1;
    let spawned = ShardId::first(MAX_SHARDS).zip(shards).map(|(id, shard)| {
        thread::Builder::new()
            .name(format!("shard-{}", id.number()))
            .spawn(move || {
                let _ended = EndOfShard;
                // A single one goes where there is room.
                if several {
                    pin(id);
                }
                shard.run()
            })
    });
    spawned
        .collect::<io::Result<_>>()
        .context("start the packet loop")
}

/// Waits for the end of all of them.
pub(crate) fn join_shards(shards: Vec<JoinHandle<io::Result<()>>>) -> anyhow::Result<()> {
    let mut result = Ok(());
    for shard in shards {
        let ended = match shard.join() {
            Ok(ended) => ended.context("the packet loop ended"),
            Err(_) => Err(anyhow!("the packet loop panicked; the log says where")),
        };
        result = result.and(ended);
    }
    result
}

/// Asks the main thread to end the daemon in order.
pub(crate) fn end_process() {
    // A process can always signal itself.
    let _ = kill(Pid::this(), Signal::SIGTERM);
}

/// Ends the whole process when the packet loop has ended, in whatever way.
struct EndOfShard;

impl Drop for EndOfShard {
    fn drop(&mut self) {
        end_process();
    }
}

fn private_key(options: &Options) -> anyhow::Result<PrivateKey> {
    if options.ephemeral {
        return Ok(PrivateKey::generate()?);
    }
    let key_file = options.key_file();
    // A key that is there already may have been read by others: that is for people to judge.
    if !key_file.exists() {
        state_dir::close_to_others(&options.state_dir)
            .with_context(|| format!("close {} to others", options.state_dir.display()))?;
    }
    Ok(file::load_or_create(&key_file)?)
}

/// What can be told of a key's file; nothing where the file system keeps no times.
fn key_file(path: &Path, key: &PrivateKey) -> Option<KeyFile> {
    let written = std::fs::metadata(path).and_then(|file| file.modified());
    Some(KeyFile {
        public_key: key.public_key(),
        written: written.ok()?.duration_since(UNIX_EPOCH).ok()?,
    })
}

fn make_shards(
    options: &Options,
    private_key: PrivateKey,
    state_path: Option<&Path>,
    saved: Option<State>,
    generation: bool,
) -> anyhow::Result<(Vec<Shard>, Control, mpsc::Receiver<()>)> {
    let now = Now::read();
    let mark = saved.as_ref().map_or(Duration::ZERO, |s| s.newest_stamp);
    if now.unix < mark {
        let behind_seconds = (mark - now.unix).as_secs();
        if clock::is_overridable() {
            tracing::info!(behind_seconds, "handshakes are stamped ahead of the clock");
        } else {
            tracing::warn!(
                behind_seconds,
                "peers refuse handshakes until the clock has caught up"
            );
        }
    }
    let saved = saved.map(|state| state.request).unwrap_or_default();
    let port = options
        .listen_port
        .or(saved.listen_port)
        .unwrap_or(consts::DEFAULT_PORT);
    let sockets = bind(options, port, saved.fwmark.unwrap_or(0))?;
    let count = sockets.len() as u8;
    let mut engines = Vec::new();
    for place in Place::all(count) {
        let config = EngineConfig::new(Some(private_key.clone()), random_seed()?);
        let queue_limit_bytes = config.queue_limit_bytes / usize::from(count);
        engines.push(Engine::new(EngineConfig {
            generation,
            newest_stamp: mark,
            place,
            queue_limit_bytes,
            ..config
        }));
    }
    if let (Some(path), Some(newest_stamp)) = (state_path, newest_stamp(&engines)) {
        // Before the first handshake: a mark that was passed is none.
        let state = State {
            generation,
            newest_stamp: newest_stamp + clock::RESERVE,
            request: saved.clone(),
        };
        if let Err(error) = state.save(path) {
            tracing::warn!(%error, "cannot save the state; a restart may be refused by peers");
        }
    }
    for engine in &mut engines {
        engine.apply(now, &saved).context("apply the saved peers")?;
        engine.start_handshakes(now);
    }
    let steering = (count > 1).then(|| load_steering(&engines)).flatten();

    // A node that has just booted has no filter yet, and what peers send to its pods of the last boot
    // would be routed on in clear. Whoever gives a device for saved peers its addresses brings it up;
    // the agent does so behind the filter.
    let bring_up = saved_peers(&engines) == 0;
    let queues = Tun::open_shards(
        &options.interface,
        NEW_TUN_MTU,
        bring_up,
        options.offloads(),
        count,
        steering.as_deref(),
    )?;
    if let (Some(tun), Some(udp), Some(engine)) = (queues.first(), sockets.first(), engines.first())
    {
        tracing::info!(
            interface = options.interface,
            listen_port = udp.port(),
            public_key = engine.public_key().map(tracing::field::display),
            peers = engine.peer_count(),
            shards = count,
            offload = %tun.offloads().with_sockets(udp.offloads()),
            "the tunnel is up",
        );
    }
    let (told, changed) = mpsc::sync_channel(1);
    let (mates, control) = Mates::all(count, steering).context("make the packet loop")?;
    let parts = mates.into_iter().zip(queues).zip(sockets).zip(engines);
    let shards = parts.map(|(((mates, tun), udp), engine)| {
        Shard::new(ShardParts {
            interface: options.interface.clone(),
            tun,
            udp,
            engine,
            remake_tun: true,
            spin: options.spin(),
            changed: told.clone(),
            mates,
        })
    });
    let shards = shards
        .collect::<io::Result<_>>()
        .context("make the packet loop")?;
    Ok((shards, control, changed))
}

/// Binds the sockets of as many shards as there are to be, or of one where the kernel does not deal
/// datagrams out to several.
fn bind(options: &Options, port: u16, mark: u32) -> Result<Vec<Udp>, UdpError> {
    let processors = thread::available_parallelism().map_or(1, NonZero::get);
    let shards = options.shards(processors);
    let bound = Udp::bind_shards(port, mark, options.offloads(), shards);
    match bound {
        Err(error) if shards > 1 => {
            let alone = Udp::bind_shards(port, mark, options.offloads(), 1)?;
            tracing::warn!(%error, shards, "no sockets for several shards; there is one");
            Ok(alone)
        }
        bound => bound,
    }
}

/// Loads what deals the TUN's packets out to shards, with the prefixes that they begin with.
fn load_steering(engines: &[Engine]) -> Option<Arc<TunSteering>> {
    let loaded = TunSteering::load();
    let steering = loaded
        .inspect_err(|error| {
            let without = "the kernel does not deal the TUN's packets out, which CAP_BPF is needed for; \
                           one shard reads for all";
            tracing::warn!(%error, "{without}");
        })
        .ok()?;
    if let Some(engine) = engines.first() {
        for changes in steering.changes(engine.shards_of_prefixes()).values() {
            steering.carry_out(changes);
        }
    }
    Some(Arc::new(steering))
}

/// The time that no engine stamps anything later than now.
fn newest_stamp(engines: &[Engine]) -> Option<Duration> {
    engines.iter().map(Engine::newest_stamp).max()
}

/// The peers that the device begins with: all engines know all of them.
fn saved_peers(engines: &[Engine]) -> usize {
    engines.first().map_or(0, Engine::peer_count)
}

pub(crate) fn random_seed() -> io::Result<u64> {
    let mut seed = [0; 8];
    getrandom::fill(&mut seed).map_err(io::Error::other)?;
    Ok(u64::from_le_bytes(seed))
}
