//! What outlives the daemon: the peers last applied, so that a restart needs nobody's help.
//!
//! ```text
//! warren-tunnel-state=1
//! generation=0                          top bit of the session indices of who wrote it
//! tai64n_mark=400000006753a1c500000000  no handshake was stamped later than this
//!                                       (empty line)
//! set=1                                 the rest is a UAPI request
//! listen_port=51871
//! public_key=...
//! ```

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use warren_core::uapi::{AllowedIpUpdate, Device, PeerUpdate, Request, SetRequest, UapiError};
use zeroize::Zeroizing;

/// The state's file in the state directory.
pub const STATE_FILE: &str = "tunnel.state";

/// The label of TAI64 (cr.yp.to/libtai/tai64.html): 1970 in TAI, as WireGuard implementations have
/// it.
const TAI64_BASE: u64 = (1 << 62) + 37;

/// What is saved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// The generation bit of the process that wrote it.
    pub generation: bool,
    /// A time since the Unix epoch that nothing was stamped later than: it is written ahead.
    ///
    /// Peers refuse stamps that are not later than the last one; where the clock has gone back
    /// over a restart, they would refuse every handshake until it has caught up.
    pub newest_stamp: Duration,
    /// The request that makes the device as it was; without the private key, which has its own
    /// file.
    pub request: SetRequest,
}

/// Why a state could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The file system refused.
    #[error("{operation} {path}: {source}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The file is no state, or not of this version.
    #[error("read {path}: line `{line}` is missing or wrong; written by another version?")]
    Header {
        /// The file.
        path: PathBuf,
        /// The key of the line.
        line: &'static str,
    },
    /// The request in it is none.
    #[error("read {path}: {source}")]
    Request {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: UapiError,
    },
}

impl State {
    /// Makes the state of a device as it is now.
    pub fn of_device(device: Device, generation: bool, newest_stamp: Duration) -> Self {
        let peers = device.peers.into_iter().map(|peer| PeerUpdate {
            preshared_key: peer.preshared_key,
            endpoint: peer.endpoint,
            persistent_keepalive: Some(peer.persistent_keepalive),
            path_probes: peer.path_probes.then_some(true),
            allowed_ips: peer
                .allowed_ips
                .into_iter()
                .map(AllowedIpUpdate::Add)
                .collect(),
            ..PeerUpdate::new(peer.public_key)
        });
        let request = SetRequest {
            listen_port: Some(device.listen_port),
            fwmark: Some(device.fwmark),
            peers: peers.collect(),
            ..SetRequest::default()
        };
        Self {
            generation,
            newest_stamp,
            request,
        }
    }

    /// Reads the state; `None` when there is none yet.
    ///
    /// # Errors
    /// [`StateError`]: the file is damaged or cannot be read.
    pub fn load(path: &Path) -> Result<Option<Self>, StateError> {
        match fs::read_to_string(path).map(Zeroizing::new) {
            Ok(text) => Self::parse(path, &text).map(Some),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(StateError::Io {
                operation: "read",
                path: path.to_owned(),
                source,
            }),
        }
    }

    /// Reads the state, or starts without one: a damaged file is moved aside and told of.
    pub fn load_or_move_aside(path: &Path) -> Option<Self> {
        match Self::load(path) {
            Ok(state) => state,
            Err(error) => {
                let aside = path.with_extension("state.damaged");
                let moved = fs::rename(path, &aside);
                tracing::warn!(
                    %error,
                    moved_to = %aside.display(),
                    moved = moved.is_ok(),
                    "starting without the saved peers",
                );
                None
            }
        }
    }

    /// Writes the state: all of it or nothing, also when the machine dies meanwhile.
    ///
    /// # Errors
    /// [`StateError::Io`]; what was there before is untouched.
    pub fn save(&self, path: &Path) -> Result<(), StateError> {
        let failed = |operation| {
            move |source| StateError::Io {
                operation,
                path: path.to_owned(),
                source,
            }
        };
        let folder = path.parent().unwrap_or(Path::new("."));
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .map_err(failed("make the directory of"))?;
        // Made 0600 by tempfile; there are preshared keys in it.
        let mut file = tempfile::NamedTempFile::new_in(folder).map_err(failed("write"))?;
        file.write_all(self.to_text().as_bytes())
            .map_err(failed("write"))?;
        file.as_file().sync_all().map_err(failed("write"))?;
        file.persist(path)
            .map_err(|error| failed("replace")(error.error))?;
        File::open(folder)
            .and_then(|folder| folder.sync_all())
            .map_err(failed("replace"))
    }

    fn parse(path: &Path, text: &str) -> Result<Self, StateError> {
        let missing = |line| StateError::Header {
            path: path.to_owned(),
            line,
        };
        let (header, request) = text.split_once("\n\n").ok_or_else(|| missing("set"))?;
        // Cut off at the end of a line, it would be a good request with fewer peers.
        if !request.ends_with("\n\n") {
            return Err(missing("(the final empty line)"));
        }
        let mut lines = header.lines();
        let mut next = |key: &'static str| {
            lines
                .next()
                .and_then(|line| line.strip_prefix(key)?.strip_prefix('='))
                .ok_or_else(|| missing(key))
        };
        if next("warren-tunnel-state")? != "1" {
            return Err(missing("warren-tunnel-state"));
        }
        let generation = match next("generation")? {
            "0" => false,
            "1" => true,
            _ => return Err(missing("generation")),
        };
        let newest_stamp =
            parse_tai64n(next("tai64n_mark")?).ok_or_else(|| missing("tai64n_mark"))?;
        match Request::parse(request) {
            Ok(Request::Set(request)) => Ok(Self {
                generation,
                newest_stamp,
                request,
            }),
            Ok(Request::Get) => Err(missing("set")),
            Err(source) => Err(StateError::Request {
                path: path.to_owned(),
                source,
            }),
        }
    }

    fn to_text(&self) -> Zeroizing<String> {
        let header = format!(
            "warren-tunnel-state=1\ngeneration={}\ntai64n_mark={:016x}{:08x}\n\n",
            u8::from(self.generation),
            TAI64_BASE + self.newest_stamp.as_secs(),
            self.newest_stamp.subsec_nanos(),
        );
        let request = self.request.to_text();
        let mut text = Zeroizing::new(String::with_capacity(header.len() + request.len()));
        text.push_str(&header);
        text.push_str(&request);
        text
    }
}

fn parse_tai64n(text: &str) -> Option<Duration> {
    if text.len() != 24 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let seconds = u64::from_str_radix(&text[..16], 16)
        .ok()?
        .checked_sub(TAI64_BASE)?;
    let nanoseconds = u32::from_str_radix(&text[16..], 16).ok()?;
    (nanoseconds < 1_000_000_000).then(|| Duration::new(seconds, nanoseconds))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use warren_core::uapi::Peer;
    use warren_keyring::{PresharedKey, PrivateKey};

    fn state() -> State {
        let peer = Peer {
            preshared_key: Some(PresharedKey::generate().unwrap()),
            endpoint: Some("[2001:db8::1]:7".parse().unwrap()),
            persistent_keepalive: 25,
            allowed_ips: vec!["10.1.0.0/24".parse().unwrap(), "fd00::/64".parse().unwrap()],
            ..Peer::new(PrivateKey::generate().unwrap().public_key())
        };
        let device = Device {
            private_key: Some(PrivateKey::generate().unwrap()),
            listen_port: 51871,
            fwmark: 9,
            peers: vec![peer],
        };
        State::of_device(device, true, Duration::new(1_700_000_000, 5))
    }

    #[test]
    fn what_was_saved_is_loaded_and_has_no_private_key() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state").join(STATE_FILE);
        assert_eq!(State::load(&path).unwrap(), None);
        let state = state();
        state.save(&path).unwrap();
        assert_eq!(State::load(&path).unwrap(), Some(state));
        assert!(!fs::read_to_string(&path).unwrap().contains("private_key"));
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
    }

    #[test]
    fn a_damaged_state_is_moved_aside_and_the_next_one_is_good() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(STATE_FILE);
        state().save(&path).unwrap();
        let whole = fs::read_to_string(&path).unwrap();
        for len in 0..whole.len() {
            fs::write(&path, &whole[..len]).unwrap();
            assert!(State::load(&path).is_err(), "cut off after {len} bytes");
        }
        assert_eq!(State::load_or_move_aside(&path), None);
        assert!(!path.exists());
        assert!(dir.path().join("tunnel.state.damaged").exists());
        state().save(&path).unwrap();
        assert!(State::load_or_move_aside(&path).is_some());
    }

    #[test]
    fn each_wrong_header_is_named() {
        let good = state().to_text();
        let path = Path::new("x");
        for (from, to, line) in [
            (
                "warren-tunnel-state=1",
                "warren-tunnel-state=2",
                "warren-tunnel-state",
            ),
            ("generation=1", "generation=2", "generation"),
            ("tai64n_mark=4", "tai64n_mark=0", "tai64n_mark"),
            ("set=1", "get=1", "set"),
        ] {
            let error = State::parse(path, &good.replace(from, to)).unwrap_err();
            assert!(error.to_string().contains(line) || line == "set", "{error}");
        }
    }
}
