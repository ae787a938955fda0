//! The UAPI socket, on which the stock `wg` and the agent configure the device.
//!
//! It answers what wireguard-go answers, but for what ARCHITECTURE.md lists. Before all: a request is
//! carried out wholly or not at all, where the reference has done the lines before a wrong one, or
//! before the end of a client that went away.

use std::collections::VecDeque;
use std::io;
use std::io::Write;
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use warren_core::uapi::{self, SetParser, UapiError, errno};
use zeroize::Zeroizing;

use crate::control::{Control, Gone};
use crate::uapi_lines::{Line, LineReader};
use crate::zone;

/// The clients that are served at once.
const MAX_CLIENTS: usize = 64;
/// How long a client may be silent, or may not read its answer.
const PATIENCE: Duration = Duration::from_secs(60);
/// The answer to a request that is too long: EMSGSIZE.
const TOO_LONG: i32 = -90;

/// Serves clients for ever, each in a thread of its own.
///
/// # Errors
/// What the kernel says about the thread that accepts them.
pub fn serve(listener: UnixListener, control: Control) -> io::Result<()> {
    let clients = Clients::default();
    thread::Builder::new().name("uapi".into()).spawn(move || {
        for client in listener.incoming() {
            let Ok(client) = client else {
                // Out of descriptors: others will be closed.
                thread::sleep(Duration::from_millis(100));
                continue;
            };
            let client = clients.admit(client);
            let (clients, control) = (clients.clone(), control.clone());
            let served = thread::Builder::new()
                .name("uapi-client".into())
                .spawn(move || {
                    // Clients that connect and go away without a word are normal: `wg` does it.
                    if let Err(error) = serve_client(&client, &control) {
                        tracing::debug!(%error, "UAPI client");
                    }
                    clients.forget(&client);
                });
            if let Err(error) = served {
                tracing::warn!(%error, "cannot serve a UAPI client");
            }
        }
    })?;
    Ok(())
}

/// The clients that are being served, the one that came first at the front.
#[derive(Clone, Default)]
struct Clients(Arc<Mutex<VecDeque<Arc<UnixStream>>>>);

impl Clients {
    /// Takes a client in; where all places are taken, the one that came first goes, so that clients
    /// that only sit there never keep `wg` out.
    fn admit(&self, client: UnixStream) -> Arc<UnixStream> {
        let client = Arc::new(client);
        let mut clients = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if clients.len() >= MAX_CLIENTS
            && let Some(first) = clients.pop_front()
        {
            tracing::debug!("too many UAPI clients; the one that came first goes");
            // It can only fail when the client has gone by itself.
            let _ = first.shutdown(Shutdown::Both);
        }
        clients.push_back(Arc::clone(&client));
        client
    }

    fn forget(&self, client: &Arc<UnixStream>) {
        let mut clients = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        clients.retain(|other| !Arc::ptr_eq(other, client));
    }
}

/// What became of a request.
enum Outcome {
    /// The text before the `errno=`, and that.
    Answer(Zeroizing<String>, i32),
    /// As an answer without text; the lines up to the empty one are still to be read.
    Refused(i32),
    /// As an answer without text; whatever comes next, it is not understood.
    Hopeless(i32),
    /// The client has gone; what it began to say is not carried out.
    Nothing,
}

fn serve_client(client: &UnixStream, control: &Control) -> io::Result<()> {
    client.set_read_timeout(Some(PATIENCE))?;
    client.set_write_timeout(Some(PATIENCE))?;
    let mut lines = LineReader::new(client);
    loop {
        lines.begin_request();
        match handle_request(&mut lines, control)? {
            Outcome::Nothing => return Ok(()),
            Outcome::Answer(text, errno) => answer(client, &text, errno)?,
            Outcome::Refused(errno) => {
                // At once: a client may wait for the answer before it says more.
                answer(client, "", errno)?;
                loop {
                    match lines.next_line()? {
                        Line::Text(b"" | b"\r") => break,
                        Line::Text(_) => {}
                        Line::End | Line::TooLong | Line::TooMany => return Ok(()),
                    }
                }
            }
            Outcome::Hopeless(errno) => return answer(client, "", errno),
        }
    }
}

fn handle_request(lines: &mut LineReader<'_>, control: &Control) -> io::Result<Outcome> {
    let is_get = match lines.next_line()? {
        Line::End => return Ok(Outcome::Nothing),
        Line::Text(b"get=1") => true,
        Line::Text(b"set=1") => false,
        Line::Text(_) | Line::TooLong | Line::TooMany => {
            return Ok(Outcome::Hopeless(refuse(&UapiError::Operation)));
        }
    };
    let mut parser = SetParser::default();
    loop {
        // The reference takes lines with a carriage return, but not as an operation.
        let line = match lines.next_line()? {
            Line::End => return Ok(Outcome::Nothing),
            Line::TooLong => return Ok(Outcome::Hopeless(errno::EIO)),
            Line::TooMany => return Ok(Outcome::Hopeless(TOO_LONG)),
            Line::Text(line) if is_get => line,
            Line::Text(line) => line.strip_suffix(b"\r").unwrap_or(line),
        };
        if line.is_empty() {
            break;
        }
        if is_get {
            return Ok(Outcome::Refused(refuse(&UapiError::Trailing)));
        }
        // Bytes that are no text have no place in any value; their replacement has neither.
        let parsed = match std::str::from_utf8(line) {
            Ok(line) => parser.take_line(&zone::numbered(line)),
            Err(_) => {
                let line = Zeroizing::new(String::from_utf8_lossy(line).into_owned());
                parser.take_line(&line)
            }
        };
        if let Err(error) = parsed {
            return Ok(Outcome::Refused(refuse(&error)));
        }
    }
    let (text, errno) = if is_get {
        match control.get() {
            Ok(device) => (device.to_text(), 0),
            Err(Gone) => return Ok(Outcome::Hopeless(errno::EIO)),
        }
    } else {
        match control.set(parser.finish()) {
            Ok(Ok(())) => (Zeroizing::default(), 0),
            Ok(Err(error)) => {
                tracing::warn!(%error, "a UAPI request was refused");
                (Zeroizing::default(), error.errno())
            }
            Err(Gone) => return Ok(Outcome::Hopeless(errno::EIO)),
        }
    };
    Ok(Outcome::Answer(text, errno))
}

fn refuse(error: &UapiError) -> i32 {
    tracing::warn!(%error, "a UAPI request was refused");
    error.errno()
}

fn answer(mut client: &UnixStream, text: &str, errno: i32) -> io::Result<()> {
    let end = uapi::answer_errno(errno);
    let mut answer = Zeroizing::new(String::with_capacity(text.len() + end.len()));
    answer.push_str(text);
    answer.push_str(&end);
    client.write_all(answer.as_bytes())
}
