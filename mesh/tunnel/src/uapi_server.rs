//! The UAPI socket, on which the stock `wg` and the agent configure the device.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use warren_core::uapi::{self, Request, UapiError, errno};
use zeroize::{Zeroize, Zeroizing};

use crate::control::{Control, Gone};

/// The longest request: ten thousand peers with dozens of prefixes each.
const MAX_REQUEST_BYTES: u64 = 16 << 20;
/// The clients that are served at once; more are turned away.
const MAX_CLIENTS: usize = 32;
/// How long a client may be silent, or may not read its answer.
const PATIENCE: Duration = Duration::from_secs(60);
/// The answer to a request that is too long: EMSGSIZE.
const TOO_LONG: i32 = -90;

/// Serves clients for ever, each in a thread of its own.
pub fn serve(listener: UnixListener, control: Control) -> io::Result<()> {
    let clients = Arc::new(AtomicUsize::new(0));
    thread::Builder::new().name("uapi".into()).spawn(move || {
        for client in listener.incoming() {
            let Ok(client) = client else {
                // Out of descriptors: others will be closed.
                thread::sleep(Duration::from_millis(100));
                continue;
            };
            let slot = Slot::take(&clients);
            let Some(slot) = slot else {
                tracing::debug!("too many UAPI clients");
                continue;
            };
            let control = control.clone();
            let served = thread::Builder::new()
                .name("uapi-client".into())
                .spawn(move || {
                    let _slot = slot;
                    // Clients that connect and go away without a word are normal: `wg` does it.
                    if let Err(error) = serve_client(&client, &control) {
                        tracing::debug!(%error, "UAPI client");
                    }
                });
            if let Err(error) = served {
                tracing::warn!(%error, "cannot serve a UAPI client");
            }
        }
    })?;
    Ok(())
}

/// One of the places for clients.
struct Slot(Arc<AtomicUsize>);

impl Slot {
    fn take(clients: &Arc<AtomicUsize>) -> Option<Self> {
        let taken = Self(Arc::clone(clients));
        (clients.fetch_add(1, Ordering::AcqRel) < MAX_CLIENTS).then_some(taken)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

fn serve_client(client: &UnixStream, control: &Control) -> io::Result<()> {
    client.set_read_timeout(Some(PATIENCE))?;
    client.set_write_timeout(Some(PATIENCE))?;
    let mut reader = BufReader::new(client);
    let mut writer = client;
    loop {
        match read_request(&mut reader)? {
            Incoming::Nothing => return Ok(()),
            Incoming::TooLong => {
                return writer.write_all(uapi::answer_errno(TOO_LONG).as_bytes());
            }
            Incoming::Request(text) => {
                let (answer, keep_open) = answer(&text, control);
                writer.write_all(answer.as_bytes())?;
                if !keep_open {
                    return Ok(());
                }
            }
        }
    }
}

enum Incoming {
    /// The client has gone away; what it began to say is not carried out.
    Nothing,
    TooLong,
    Request(Zeroizing<Vec<u8>>),
}

/// Reads the lines up to the empty one.
fn read_request(reader: &mut BufReader<&UnixStream>) -> io::Result<Incoming> {
    let mut text = Zeroizing::new(Vec::with_capacity(64 * 1024));
    let mut limited = reader.take(MAX_REQUEST_BYTES);
    loop {
        let before = text.len();
        if text.capacity() - before < 4096 {
            // Growing by itself would leave copies of keys behind.
            let mut larger = Zeroizing::new(Vec::with_capacity(text.capacity() * 2));
            larger.extend_from_slice(&text);
            text.zeroize();
            text = larger;
        }
        let read = limited.read_until(b'\n', &mut text)?;
        if !text.ends_with(b"\n") {
            return Ok(if limited.limit() == 0 {
                Incoming::TooLong
            } else {
                Incoming::Nothing
            });
        }
        if read == 1 && before > 0 {
            return Ok(Incoming::Request(text));
        }
    }
}

/// Carries out a request. The flag tells whether the client still speaks our protocol.
fn answer(text: &[u8], control: &Control) -> (Zeroizing<String>, bool) {
    let (body, errno, keep_open) = match parse(text) {
        Ok(Request::Get) => match control.get() {
            Ok(device) => (device.to_text(), 0, true),
            Err(Gone) => (Zeroizing::default(), errno::EIO, false),
        },
        Ok(Request::Set(request)) => {
            let errno = match control.set(request) {
                Ok(Ok(())) => 0,
                Ok(Err(error)) => {
                    tracing::warn!(%error, "a UAPI request was refused");
                    error.errno()
                }
                Err(Gone) => errno::EIO,
            };
            (Zeroizing::default(), errno, true)
        }
        Err(error) => {
            tracing::warn!(%error, "a UAPI request was refused");
            (
                Zeroizing::default(),
                error.errno(),
                !matches!(error, UapiError::Operation),
            )
        }
    };
    let end = uapi::answer_errno(errno);
    let mut answer = Zeroizing::new(String::with_capacity(body.len() + end.len()));
    answer.push_str(&body);
    answer.push_str(&end);
    (answer, keep_open)
}

fn parse(text: &[u8]) -> Result<Request, UapiError> {
    let text = std::str::from_utf8(text).map_err(|_| UapiError::Operation)?;
    Request::parse(text)
}
