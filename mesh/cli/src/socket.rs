//! One answer from a Unix socket, bounded in time and size.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use zeroize::{Zeroize, Zeroizing};

/// How an answer ends, apart from the server's closing the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Only when the server closes.
    Close,
    /// With an empty line: UAPI servers wait for the next request after it.
    EmptyLine,
}

/// The longest answer that is taken, in bytes: a status of 10,000 nodes has about 5 MB.
pub const MAX_ANSWER_BYTES: usize = 64 << 20;

/// Why a socket gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Nobody could be reached.
    #[error("connect to {path}: {source}; {}", hint(.source.kind()))]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The connection broke.
    #[error("read from {path}: {source}; try again, and see the server's log")]
    Read {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The server took the connection and did not finish its answer in time.
    #[error("read from {path}: no whole answer within {limit:?}; the server hangs, see its log")]
    TimedOut {
        /// The socket.
        path: PathBuf,
        /// The time that it had.
        limit: Duration,
    },
    /// The answer is longer than [`MAX_ANSWER_BYTES`].
    #[error("read from {path}: more than {MAX_ANSWER_BYTES} bytes; is this the right socket?")]
    TooLong {
        /// The socket.
        path: PathBuf,
    },
    /// The answer is not UTF-8.
    #[error("read from {path}: the answer is not UTF-8 text; is this the right socket?")]
    NotText {
        /// The socket.
        path: PathBuf,
    },
}

/// Connects, sends `request` unless it is empty, and returns the answer.
///
/// The answer is wiped when dropped, and so are all buffers it passed through: it may hold a key.
///
/// # Errors
/// [`SocketError`]; each variant's message says what to do.
pub fn ask(
    path: &Path,
    request: &str,
    end: End,
    limit: Duration,
) -> Result<Zeroizing<String>, SocketError> {
    let deadline = Instant::now() + limit;
    let mut stream = UnixStream::connect(path).map_err(|source| SocketError::Connect {
        path: path.to_owned(),
        source,
    })?;
    let failed = |source: std::io::Error| match source.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => SocketError::TimedOut {
            path: path.to_owned(),
            limit,
        },
        _ => SocketError::Read {
            path: path.to_owned(),
            source,
        },
    };
    if !request.is_empty() {
        stream.set_write_timeout(Some(limit)).map_err(failed)?;
        stream.write_all(request.as_bytes()).map_err(failed)?;
    }
    let mut answer = Zeroizing::new(Vec::with_capacity(CHUNK_BYTES));
    let mut chunk = Zeroizing::new([0_u8; CHUNK_BYTES]);
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(failed(ErrorKind::TimedOut.into()));
        }
        stream.set_read_timeout(Some(left)).map_err(failed)?;
        let count = match stream.read(&mut *chunk) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(failed(error)),
        };
        if answer.len() + count > MAX_ANSWER_BYTES {
            return Err(SocketError::TooLong {
                path: path.to_owned(),
            });
        }
        append(&mut answer, &chunk[..count]);
        if end == End::EmptyLine && answer.ends_with(b"\n\n") {
            break;
        }
    }
    match String::from_utf8(std::mem::take(&mut *answer)) {
        Ok(text) => Ok(Zeroizing::new(text)),
        Err(error) => {
            error.into_bytes().zeroize();
            Err(SocketError::NotText {
                path: path.to_owned(),
            })
        }
    }
}

const CHUNK_BYTES: usize = 8192;

/// Grows by hand: a vector that grows by itself leaves an unwiped copy behind.
fn append(answer: &mut Zeroizing<Vec<u8>>, bytes: &[u8]) {
    let needed = answer.len() + bytes.len();
    if needed > answer.capacity() {
        let mut bigger = Zeroizing::new(Vec::with_capacity(needed.max(answer.capacity() * 2)));
        bigger.extend_from_slice(answer);
        *answer = bigger;
    }
    answer.extend_from_slice(bytes);
}

fn hint(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::NotFound => "the program that serves it is not running, or uses another path",
        ErrorKind::ConnectionRefused => "the program that made it is gone: start it again",
        ErrorKind::PermissionDenied => "run this as root",
        _ => "is it the socket of a running program?",
    }
}
