//! The daemon: its parts put together, started, and ended in order.

use std::io;
use std::path::Path;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Context as _, bail};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::Pid;
use warren_core::consts;
use warren_keyring::{PrivateKey, file};

use crate::engine::{Engine, EngineConfig};
use crate::lock::{InterfaceLock, claim};
use crate::options::Options;
use crate::saver::Saver;
use crate::shard::{NEW_TUN_MTU, Shard, ShardParts};
use crate::state::{STATE_FILE, State};
use crate::status_socket::{Fixed, KeyFile};
use crate::time::Now;
use crate::tun::Tun;
use crate::udp::Udp;
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
    let (shard, changed) = make_shard(
        &options,
        private_key,
        state_path.as_deref(),
        saved,
        generation,
    )?;
    let control = shard.control();

    let saver = state_path.map(|path| Saver::new(control.clone(), path, generation));
    if let Some(saver) = &saver {
        saver.clone().spawn(changed).context("start the saver")?;
    }
    let shard = spawn_shard(shard)?;
    uapi_server::serve(uapi, control.clone()).context("serve UAPI")?;
    status_socket::serve(status, control.clone(), fixed).context("serve the status")?;

    let signal = signals.wait().context("wait for signals")?;
    tracing::info!(%signal, "ending; the interface and its routes stay");
    if let Some(saver) = &saver {
        saver.save_last();
    }
    control.stop();
    join_shard(shard)
}

/// Blocks the signals that end the daemon; they are waited for.
pub(crate) fn block_signals() -> anyhow::Result<SigSet> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGINT);
    signals.thread_block().context("block signals")?;
    Ok(signals)
}

/// Starts the packet loop in a thread; the process gets SIGTERM when it has ended.
pub(crate) fn spawn_shard(shard: Shard) -> anyhow::Result<JoinHandle<io::Result<()>>> {
    thread::Builder::new()
        .name("shard-0".into())
        .spawn(move || {
            let _ended = EndOfShard;
            shard.run()
        })
        .context("start the packet loop")
}

pub(crate) fn join_shard(shard: JoinHandle<io::Result<()>>) -> anyhow::Result<()> {
    match shard.join() {
        Ok(ended) => ended.context("the packet loop ended"),
        Err(_) => bail!("the packet loop panicked; the log says where"),
    }
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

fn make_shard(
    options: &Options,
    private_key: PrivateKey,
    state_path: Option<&Path>,
    saved: Option<State>,
    generation: bool,
) -> anyhow::Result<(Shard, mpsc::Receiver<()>)> {
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
    let mut engine = Engine::new(EngineConfig {
        generation,
        newest_stamp: mark,
        ..EngineConfig::new(Some(private_key), random_seed()?)
    });
    let saved = saved.map(|state| state.request).unwrap_or_default();
    if let Some(path) = state_path {
        // Before the first handshake: a mark that was passed is none.
        let state = State {
            generation,
            newest_stamp: engine.newest_stamp() + clock::RESERVE,
            request: saved.clone(),
        };
        if let Err(error) = state.save(path) {
            tracing::warn!(%error, "cannot save the state; a restart may be refused by peers");
        }
    }
    engine.apply(now, &saved).context("apply the saved peers")?;
    engine.start_handshakes(now);

    let port = options
        .listen_port
        .or(saved.listen_port)
        .unwrap_or(consts::DEFAULT_PORT);
    let udp = Udp::bind(port, saved.fwmark.unwrap_or(0), options.offloads())?;
    // A node that has just booted has no filter yet, and what peers send to its pods of the last boot
    // would be routed on in clear. Whoever gives a device for saved peers its addresses brings it up;
    // the agent does so behind the filter.
    let bring_up = engine.peer_count() == 0;
    let tun = Tun::open(
        &options.interface,
        NEW_TUN_MTU,
        bring_up,
        options.offloads(),
    )?;
    tracing::info!(
        interface = options.interface,
        listen_port = udp.port(),
        public_key = engine.public_key().map(tracing::field::display),
        peers = engine.peer_count(),
        offload = %tun.offloads().with_sockets(udp.offloads()),
        "the tunnel is up",
    );
    let (told, changed) = mpsc::sync_channel(1);
    let interface = options.interface.clone();
    let shard = Shard::new(ShardParts {
        interface,
        tun,
        udp,
        engine,
        remake_tun: true,
        spin: options.spin(),
        changed: told,
    })
    .context("make the packet loop")?;
    Ok((shard, changed))
}

pub(crate) fn random_seed() -> io::Result<u64> {
    let mut seed = [0; 8];
    getrandom::fill(&mut seed).map_err(io::Error::other)?;
    Ok(u64::from_le_bytes(seed))
}
