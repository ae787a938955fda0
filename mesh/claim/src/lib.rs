//! One daemon of a kind in a network namespace, whatever directories it was given.
//!
//! A claim is a listening Unix socket in the abstract name space, which every network namespace has
//! its own of, as it has its own interfaces, routes and nftables. The kernel lets go of it when the
//! process ends in any way, so that nothing stale is ever in the way. Whoever connects is told what
//! the holder says of itself.
//!
//! What it refuses to do: believe anyone but root. Any user may listen on such a name; a claim that
//! somebody else holds is passed over.

#![forbid(unsafe_code)]

mod file;

use std::fmt;
use std::io::{self, Read as _, Write as _};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::thread;
use std::time::Duration;

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::unistd::geteuid;

pub use file::{LockFile, LockFileError};

/// The claim of the one agent of a network namespace.
pub const AGENT: &str = "agent";

/// What an agent says of itself that holds the claim of a tunnel, for it drives the kernel's WireGuard.
pub const AGENT_AS_TUNNEL: &str = "warren-agent with data-plane kernel";

/// How often a claim whose holder is just ending is tried.
const ATTEMPTS: u32 = 20;
const PAUSE: Duration = Duration::from_millis(20);
/// How long the holder may take to say who it is; its process may be stopped.
const PATIENCE: Duration = Duration::from_millis(500);
/// The longest that a holder says of itself, in bytes.
const MAX_WORDS: u64 = 1024;

/// The claim of the tunnel of an interface.
pub fn tunnel(interface: &str) -> String {
    format!("tunnel/{interface}")
}

/// Why a claim could not be had.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// Another process of root has it.
    #[error("claim {name}: held by {holder}")]
    Held {
        /// What was claimed.
        name: String,
        /// Who has it.
        holder: Holder,
    },
    /// The kernel refused.
    #[error("claim {name}: {source}")]
    Io {
        /// What was claimed.
        name: String,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Who holds a claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Its process, as this PID namespace sees it; none when it is in another.
    pub pid: Option<i32>,
    /// What it says of itself, if it said anything in time.
    pub words: Option<String>,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.pid {
            Some(pid) => write!(f, "pid {pid}")?,
            None => f.write_str("a process in another PID namespace")?,
        }
        match &self.words {
            Some(words) => write!(f, ", {words}"),
            None => Ok(()),
        }
    }
}

/// Held as long as this process runs.
#[derive(Debug)]
pub struct Claim {
    squatter: Option<Holder>,
}

impl Claim {
    /// Takes a claim in the calling thread's network namespace. `words` is one line for people that
    /// the next one who tries is told, such as the lock's file.
    ///
    /// A thread answers from then on, which ends with the process.
    ///
    /// # Errors
    /// [`ClaimError::Held`] when another process of root has it.
    pub fn take(name: &str, words: &str) -> Result<Self, ClaimError> {
        let failed = |source| ClaimError::Io {
            name: name.to_owned(),
            source,
        };
        let address = address(name).map_err(failed)?;
        for _ in 0..ATTEMPTS {
            match UnixListener::bind_addr(&address) {
                Ok(listener) => {
                    serve(listener, words.to_owned()).map_err(failed)?;
                    return Ok(Self { squatter: None });
                }
                Err(e) if e.kind() == io::ErrorKind::AddrInUse => {}
                Err(e) => return Err(failed(e)),
            }
            match ask(&address) {
                Ok((holder, true)) => {
                    return Err(ClaimError::Held {
                        name: name.to_owned(),
                        holder,
                    });
                }
                Ok((holder, false)) => {
                    return Ok(Self {
                        squatter: Some(holder),
                    });
                }
                // It ended in between, or has not begun to listen.
                Err(_) => thread::sleep(PAUSE),
            }
        }
        Err(failed(io::ErrorKind::AddrInUse.into()))
    }

    /// A process of another user that sits on the name, and that was passed over.
    pub fn squatter(&self) -> Option<&Holder> {
        self.squatter.as_ref()
    }
}

/// Returns who holds a claim in the calling thread's network namespace.
pub fn holder(name: &str) -> Option<Holder> {
    let (holder, trusted) = ask(&address(name).ok()?).ok()?;
    trusted.then_some(holder)
}

fn address(name: &str) -> io::Result<SocketAddr> {
    SocketAddr::from_abstract_name(format!("warren/{name}"))
}

/// Who listens, and whether it is root or this process's own user.
fn ask(address: &SocketAddr) -> io::Result<(Holder, bool)> {
    let mut stream = UnixStream::connect_addr(address)?;
    let peer = getsockopt(&stream, PeerCredentials)?;
    let trusted = peer.uid() == 0 || peer.uid() == geteuid().as_raw();
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut words = String::new();
    let told = (&mut stream).take(MAX_WORDS).read_to_string(&mut words);
    let words = words.trim().to_owned();
    Ok((
        Holder {
            pid: (peer.pid() > 0).then_some(peer.pid()),
            words: (told.is_ok() && !words.is_empty() && trusted).then_some(words),
        },
        trusted,
    ))
}

fn serve(listener: UnixListener, words: String) -> io::Result<()> {
    let answer = move || {
        for stream in listener.incoming() {
            match stream {
                Ok(mut stream) => {
                    // Somebody who connects and does not read must not keep the next one waiting.
                    let _ = stream.set_write_timeout(Some(PATIENCE));
                    let _ = writeln!(stream, "{words}");
                }
                // No descriptors left, for one.
                Err(_) => thread::sleep(PAUSE),
            }
        }
    };
    thread::Builder::new()
        .name("claim".into())
        .spawn(answer)
        .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_claim_names_the_holder_and_others_are_free() {
        let name = format!("test-{}", std::process::id());
        assert_eq!(holder(&name), None);
        let first = Claim::take(&name, "lock /run/warren/agent.lock").unwrap();
        assert_eq!(first.squatter(), None);
        let error = Claim::take(&name, "another").unwrap_err().to_string();
        let pid = std::process::id();
        assert!(
            error.contains(&format!("pid {pid}, lock /run/warren/agent.lock")),
            "{error}"
        );
        assert_eq!(holder(&name).unwrap().pid, i32::try_from(pid).ok());
        Claim::take(&format!("{name}-other"), "").unwrap();
    }

    #[test]
    fn a_holder_that_says_nothing_is_named_all_the_same() {
        let name = format!("test-mute-{}", std::process::id());
        let _mute = UnixListener::bind_addr(&address(&name).unwrap()).unwrap();
        let error = Claim::take(&name, "").unwrap_err().to_string();
        assert!(error.contains("held by pid "), "{error}");
    }
}
