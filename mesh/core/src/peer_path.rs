//! What the tunnel knows of its way to a peer beyond UAPI: one `peer=` line of its own socket.
//!
//! ```text
//! peer=<public key> unanswered_ms=16400 asked_ms=310 initiations=1 initiating_ms=1200
//! ```
//!
//! | name | meaning |
//! |---|---|
//! | `unanswered_ms`, `asked_ms` | since the first and the last message that the peer must answer within 10 s (data) or at once (a handshake's initiation), where nothing authentic has come after the first |
//! | `initiations`, `initiating_ms` | our initiations since a handshake was last completed, and since the first of them |
//! | `unheard`, `unheard_ms`, `unheard_last_ms` | initiations of the peer that were answered and that it did not complete, and since the first and the last of them |
//! | `send_failure`, `send_failures`, `send_failure_ms` | why datagrams to its endpoint were not sent, how many since the last that was, and since the last failure |
//! | `dropped`, `dropped_packets`, `dropped_ms`, `dropped_last_ms` | why packets of the peer are dropped after they were authenticated, how many in a row of at most 15 s gaps, and since the first and the last of them |
//! | `path_mtu_bytes` | the largest outer packet that is known to arrive, where larger ones are known not to |
//!
//! A name that does not apply is left out, and a peer without any has no line. Readers pass over
//! names that they do not know.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use thiserror::Error;
use warren_keyring::PublicKey;

/// The way to one peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerPath {
    /// The peer.
    pub public_key: PublicKey,
    /// What it has not answered.
    pub unanswered: Option<Unanswered>,
    /// Our handshake that it has not answered.
    pub initiating: Option<Initiating>,
    /// Its handshakes that it does not complete.
    pub unheard: Option<Unheard>,
    /// Why nothing can be sent to it.
    pub send_failure: Option<SendFailures>,
    /// Why its packets are dropped.
    pub dropped: Option<DropRun>,
    /// The largest outer packet in bytes that arrives, where larger ones do not.
    pub path_mtu_bytes: Option<u32>,
}

/// Messages that the peer must answer, and nothing authentic came since the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unanswered {
    /// Time since the first.
    pub first: Duration,
    /// Time since the last.
    pub last: Duration,
}

/// A handshake of ours under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Initiating {
    /// Initiations sent since a handshake was last completed.
    pub initiations: u32,
    /// Time since the first of them.
    pub first: Duration,
}

/// Handshakes of the peer that were answered and that it did not complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unheard {
    /// How many.
    pub handshakes: u32,
    /// Time since the first answer.
    pub first: Duration,
    /// Time since the last answer.
    pub last: Duration,
}

/// Datagrams to the peer's endpoint that could not be sent, since the last that could.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SendFailures {
    /// Why, the last time.
    pub cause: SendFailure,
    /// How many.
    pub datagrams: u64,
    /// Time since the last.
    pub last: Duration,
}

/// Authentic packets of the peer that are dropped for one reason, in a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DropRun {
    /// The tunnel's stable name of the reason.
    pub reason: String,
    /// How many.
    pub packets: u64,
    /// Time since the first.
    pub first: Duration,
    /// Time since the last.
    pub last: Duration,
}

macro_rules! send_failures {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal,)+) => {
        /// Why the kernel did not take a datagram.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum SendFailure {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl SendFailure {
            /// Every one of them.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// Its stable name.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }
        }
    };
}

send_failures! {
    /// No route leads there (ENETUNREACH, EHOSTUNREACH).
    NoRoute = "no-route",
    /// There is no address of this machine to send from (EINVAL, EADDRNOTAVAIL).
    NoSource = "no-source",
    /// The machine does not have the endpoint's address family.
    NoFamily = "no-family",
    /// A filter of this machine refuses it (EPERM, EACCES).
    Filtered = "filtered",
    /// It is larger than the way allows (EMSGSIZE).
    TooLarge = "too-large",
    /// The device is down (ENETDOWN).
    DeviceDown = "device-down",
    /// Anything else.
    Other = "other",
}

/// Why a `peer=` line was not understood.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PeerPathError {
    /// It does not begin with a public key.
    #[error("peer line: no public key at its begin")]
    Key,
    /// A field is no `name=value`, or its value is none of those allowed.
    #[error("peer line: {field:?} is not understood; is the tunnel of another version?")]
    Field {
        /// The field.
        field: String,
    },
}

impl PeerPath {
    /// A way of which nothing is known.
    pub fn new(public_key: PublicKey) -> Self {
        Self {
            public_key,
            unanswered: None,
            initiating: None,
            unheard: None,
            send_failure: None,
            dropped: None,
            path_mtu_bytes: None,
        }
    }

    /// Whether there is nothing to tell.
    pub fn is_empty(&self) -> bool {
        *self == Self::new(self.public_key)
    }
}

/// Writes the line's value: what follows `peer=`.
impl fmt::Display for PeerPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.public_key)?;
        if let Some(Unanswered { first, last }) = self.unanswered {
            write!(f, " unanswered_ms={}", first.as_millis())?;
            write!(f, " asked_ms={}", last.as_millis())?;
        }
        if let Some(Initiating { initiations, first }) = self.initiating {
            write!(f, " initiations={initiations}")?;
            write!(f, " initiating_ms={}", first.as_millis())?;
        }
        if let Some(unheard) = self.unheard {
            write!(f, " unheard={}", unheard.handshakes)?;
            write!(f, " unheard_ms={}", unheard.first.as_millis())?;
            write!(f, " unheard_last_ms={}", unheard.last.as_millis())?;
        }
        if let Some(failure) = self.send_failure {
            write!(f, " send_failure={}", failure.cause.as_str())?;
            write!(f, " send_failures={}", failure.datagrams)?;
            write!(f, " send_failure_ms={}", failure.last.as_millis())?;
        }
        if let Some(dropped) = &self.dropped {
            write!(f, " dropped={}", dropped.reason)?;
            write!(f, " dropped_packets={}", dropped.packets)?;
            write!(f, " dropped_ms={}", dropped.first.as_millis())?;
            write!(f, " dropped_last_ms={}", dropped.last.as_millis())?;
        }
        if let Some(path_mtu_bytes) = self.path_mtu_bytes {
            write!(f, " path_mtu_bytes={path_mtu_bytes}")?;
        }
        Ok(())
    }
}

impl FromStr for PeerPath {
    type Err = PeerPathError;

    fn from_str(text: &str) -> Result<Self, PeerPathError> {
        let mut fields = text.split_ascii_whitespace();
        let key = fields
            .next()
            .and_then(|key| PublicKey::from_base64(key).ok());
        let mut path = Self::new(key.ok_or(PeerPathError::Key)?);
        for field in fields {
            path.take(field).ok_or_else(|| PeerPathError::Field {
                field: field.chars().take(80).collect(),
            })?;
        }
        Ok(path)
    }
}

impl PeerPath {
    fn take(&mut self, field: &str) -> Option<()> {
        let (name, value) = field.split_once('=')?;
        let number = || value.parse::<u64>().ok();
        let small = || value.parse::<u32>().ok();
        let time = || number().map(Duration::from_millis);
        match name {
            "unanswered_ms" => self.unanswered_mut().first = time()?,
            "asked_ms" => self.unanswered_mut().last = time()?,
            "initiations" => self.initiating_mut().initiations = small()?,
            "initiating_ms" => self.initiating_mut().first = time()?,
            "unheard" => self.unheard_mut().handshakes = small()?,
            "unheard_ms" => self.unheard_mut().first = time()?,
            "unheard_last_ms" => self.unheard_mut().last = time()?,
            "send_failure" => {
                let mut known = SendFailure::ALL.iter();
                let cause = known.find(|cause| cause.as_str() == value);
                self.failure_mut().cause = *cause.unwrap_or(&SendFailure::Other);
            }
            "send_failures" => self.failure_mut().datagrams = number()?,
            "send_failure_ms" => self.failure_mut().last = time()?,
            "dropped" => self.dropped_mut().reason = value.chars().take(40).collect(),
            "dropped_packets" => self.dropped_mut().packets = number()?,
            "dropped_ms" => self.dropped_mut().first = time()?,
            "dropped_last_ms" => self.dropped_mut().last = time()?,
            "path_mtu_bytes" => self.path_mtu_bytes = Some(small()?),
            _ => {}
        }
        Some(())
    }

    fn unanswered_mut(&mut self) -> &mut Unanswered {
        self.unanswered.get_or_insert(Unanswered {
            first: Duration::ZERO,
            last: Duration::ZERO,
        })
    }

    fn initiating_mut(&mut self) -> &mut Initiating {
        self.initiating.get_or_insert(Initiating {
            initiations: 0,
            first: Duration::ZERO,
        })
    }

    fn unheard_mut(&mut self) -> &mut Unheard {
        self.unheard.get_or_insert(Unheard {
            handshakes: 0,
            first: Duration::ZERO,
            last: Duration::ZERO,
        })
    }

    fn failure_mut(&mut self) -> &mut SendFailures {
        self.send_failure.get_or_insert(SendFailures {
            cause: SendFailure::Other,
            datagrams: 0,
            last: Duration::ZERO,
        })
    }

    fn dropped_mut(&mut self) -> &mut DropRun {
        self.dropped.get_or_insert_with(|| DropRun {
            reason: String::new(),
            packets: 0,
            first: Duration::ZERO,
            last: Duration::ZERO,
        })
    }
}
