//! One interface as wireguard-go serves it, which is what wg-quick expects of a program.
//!
//! ```text
//! warren-tunnel wg0
//!   make the TUN wg0, down  ->  listen on wg0.sock  ->  fork: the caller goes on, both are there
//!                                                        |
//!   no key, no peers, any port; all by `wg` from now on  v
//!   ends by SIGTERM or SIGINT, or when wg0 or wg0.sock is removed; wg0 goes with the process
//! ```
//!
//! Unlike wireguard-go it has its UDP port at once and not from the moment when the interface is
//! brought up.

use std::env;
use std::fs::OpenOptions;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use nix::unistd::{ForkResult, dup2_stderr, dup2_stdin, dup2_stdout, fork, setsid};

use crate::daemon::{block_signals, end_process, join_shards, random_seed, spawn_shards};
use crate::engine::{Engine, EngineConfig};
use crate::options::Options;
use crate::shard::{Mates, NEW_TUN_MTU, Shard, ShardParts};
use crate::tun::Tun;
use crate::uapi_server;
use crate::udp::Udp;
use crate::unix_socket::{self, SocketError, SocketFile};

/// How long the process before, which has lost its interface, may take to end.
const ENDING: Duration = Duration::from_secs(2);

/// Makes the interface and its socket, and serves them: in a process in the background, or in this
/// one if it was asked to stay in the foreground.
///
/// INVARIANT: there is one thread when this is called, for it may fork.
///
/// # Errors
/// What could not be had at the start, or why the packet loop ended.
pub fn run(options: &Options, interface: &str) -> anyhow::Result<()> {
    let tun = match given_descriptor("WG_TUN_FD")? {
        Some(descriptor) => Tun::from_descriptor(descriptor, options.offloads())?,
        None => Tun::open_transient(interface, NEW_TUN_MTU, options.offloads())?,
    };
    let socket = options.uapi_dir.join(format!("{}.sock", tun.name()));
    let (uapi, file) = match given_descriptor("WG_UAPI_FD")? {
        Some(descriptor) => (UnixListener::from(descriptor), SocketFile::of(&socket)?),
        None => listen(&socket)?,
    };
    let udp = Udp::bind(options.listen_port.unwrap_or(0), 0, options.offloads())?;

    let foreground =
        options.foreground || env::var("WG_PROCESS_FOREGROUND").is_ok_and(|value| value == "1");
    if !foreground {
        go_to_background()?;
    }
    serve(tun, udp, (uapi, file), options.spin())
}

fn serve(
    tun: Tun,
    udp: Udp,
    (uapi, file): (UnixListener, SocketFile),
    spin: Duration,
) -> anyhow::Result<()> {
    let signals = block_signals()?;
    // Nobody listens to what is worth saving.
    let (changed, _) = mpsc::sync_channel(1);
    let interface = tun.name().to_owned();
    let offloads = tun.offloads().with_sockets(udp.offloads());
    let (mut mates, control) = Mates::all(1, None).context("make the packet loop")?;
    let shard = Shard::new(ShardParts {
        interface: interface.clone(),
        tun,
        udp,
        engine: Engine::new(EngineConfig::new(None, random_seed()?)),
        remake_tun: false,
        spin,
        changed,
        mates: mates.remove(0),
    })
    .context("make the packet loop")?;
    let shards = spawn_shards(vec![shard])?;
    uapi_server::serve(uapi, control.clone()).context("serve UAPI")?;
    let watch = file.watch().context("watch the UAPI socket")?;
    thread::Builder::new()
        .name("socket-watch".into())
        .spawn(move || {
            match watch.wait_gone() {
                Ok(()) => tracing::info!("the UAPI socket is gone; ending"),
                Err(error) => tracing::error!(%error, "cannot watch the UAPI socket; ending"),
            }
            end_process();
        })
        .context("watch the UAPI socket")?;
    tracing::info!(interface, offload = %offloads, "the tunnel is up");

    let signal = signals.wait().context("wait for signals")?;
    tracing::info!(%signal, "ending");
    drop(file);
    control.stop();
    join_shards(shards)
}

/// Listens, when necessary after a process that is about to end: `wg-quick down` comes back as
/// soon as the interface is gone.
fn listen(path: &Path) -> Result<(UnixListener, SocketFile), SocketError> {
    let until = Instant::now() + ENDING;
    loop {
        match unix_socket::listen(path) {
            Err(SocketError::AlreadyRunning { .. }) if Instant::now() < until => {
                thread::sleep(Duration::from_millis(20));
            }
            listened => return listened,
        }
    }
}

fn given_descriptor(variable: &str) -> anyhow::Result<Option<OwnedFd>> {
    let Some(value) = env::var(variable).ok().filter(|value| !value.is_empty()) else {
        return Ok(None);
    };
    let descriptor: RawFd = value
        .parse()
        .ok()
        .filter(|descriptor| *descriptor > 2)
        .with_context(|| format!("{variable}={value}: give the number of an open descriptor"))?;
    // SAFETY: fcntl only looks at the number.
    if unsafe { libc::fcntl(descriptor, libc::F_GETFD) } < 0 {
        return Err(std::io::Error::last_os_error())
            .with_context(|| format!("{variable}={value}: give the number of an open descriptor"));
    }
    // SAFETY: it is open, and whoever set the variable has handed it to this process.
    Ok(Some(unsafe { OwnedFd::from_raw_fd(descriptor) }))
}

/// Goes on in a child without a terminal; the parent ends, for everything is there by now.
fn go_to_background() -> anyhow::Result<()> {
    // SAFETY: there is one thread, so that the child has no lock that nobody will let go.
    match unsafe { fork() }.context("go to the background")? {
        // Without destructors: the sockets and the interface are the child's.
        ForkResult::Parent { .. } => process::exit(0),
        ForkResult::Child => {}
    }
    setsid().context("leave the session")?;
    let null = OpenOptions::new().read(true).write(true).open("/dev/null");
    let null = null.context("open /dev/null")?;
    dup2_stdin(&null).context("leave the terminal")?;
    if matches!(env::var("LOG_LEVEL").as_deref(), Err(_) | Ok("" | "silent")) {
        dup2_stdout(&null).context("leave the terminal")?;
        dup2_stderr(&null).context("leave the terminal")?;
    }
    env::set_current_dir("/").context("leave the directory")
}
