//! A running tunnel that is spoken to by raw UAPI.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)] // each test binary uses a part of it

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use warren_keyring::PrivateKey;
use warren_lab::{Host, Proc, Result, poll_until};

pub const TUNNEL: &str = env!("CARGO_BIN_EXE_warren-tunnel");
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The socket of a device; the file can be reached from all namespaces of a lab.
#[derive(Clone, Debug)]
pub struct Socket(pub PathBuf);

impl Socket {
    pub fn connect(&self) -> UnixStream {
        let client = UnixStream::connect(&self.0).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client.set_write_timeout(Some(PATIENCE)).unwrap();
        client
    }

    /// Says something, ends, and reads all answers.
    pub fn say(&self, request: &[u8]) -> String {
        let mut client = self.connect();
        // The device may have had enough before the end.
        let _ = client.write_all(request);
        let _ = client.shutdown(Shutdown::Write);
        read_all(&mut client)
    }

    pub fn get(&self) -> String {
        let answer = self.say(b"get=1\n\n");
        assert!(answer.ends_with("errno=0\n\n"), "{answer}");
        answer
    }

    /// The state without what time and traffic change.
    pub fn configuration(&self) -> String {
        let moving = ["tx_bytes=", "rx_bytes=", "last_handshake_time"];
        let lines = self.get();
        let lines = lines.lines().map(|line| format!("{line}\n"));
        lines
            .filter(|line| !moving.iter().any(|key| line.starts_with(key)))
            .collect()
    }

    pub fn set(&self, lines: &str) {
        assert_eq!(
            self.say(request(lines).as_bytes()),
            "errno=0\n\n",
            "{lines}"
        );
    }
}

/// Reads to the end; the error that a peer leaves which has not read everything is an end too.
pub fn read_all(client: &mut UnixStream) -> String {
    let mut answer = Vec::new();
    let mut piece = [0; 4096];
    loop {
        match client.read(&mut piece) {
            Ok(0) => break,
            Ok(count) => answer.extend_from_slice(&piece[..count]),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => break,
            Err(error) => panic!("no answer within {PATIENCE:?}: {error}"),
        }
    }
    String::from_utf8(answer).unwrap()
}

/// Makes the whole request of the lines of a `set`.
pub fn request(lines: &str) -> String {
    format!("set=1\n{lines}\n")
}

/// Starts a device without key and peers.
pub fn start(host: &Host, interface: &str) -> Result<(Proc, Socket)> {
    let dir = host.dir().join(format!("uapi-{interface}"));
    let tunnel = host.spawn(
        Command::new(TUNNEL)
            .args(["-f", interface, "--log", "info", "--uapi-dir"])
            .arg(&dir),
    )?;
    let socket = dir.join(format!("{interface}.sock"));
    tunnel.wait_log("the tunnel is up", PATIENCE)?;
    Ok((tunnel, Socket(socket)))
}

/// Waits until a socket is there and answers.
pub fn wait_for(socket: &Path) -> Result<()> {
    poll_until(PATIENCE, "a UAPI socket", || {
        UnixStream::connect(socket).is_ok()
    })
    .map(drop)
}

/// A private key by number, the same in each run.
pub fn private_key(number: u32) -> PrivateKey {
    let mut bytes = [0x55; 32];
    bytes[..4].copy_from_slice(&number.to_be_bytes());
    PrivateKey::from_bytes(bytes).unwrap()
}

/// The public key of a numbered private key, in UAPI's form.
pub fn public_key(number: u32) -> String {
    private_key(number).public_key().to_hex()
}
