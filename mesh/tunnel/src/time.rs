//! The time that is handed to the engine.

use std::ops::Add;
use std::time::{Duration, Instant, SystemTime};

/// One reading of both clocks: the steady one that timers go by, and the wall clock that `get`
/// reports handshakes in.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// The steady clock.
    pub monotonic: Instant,
    /// Time since the Unix epoch.
    pub unix: Duration,
}

impl Now {
    /// Reads both clocks. Only loops do that; the engine is given what they read.
    pub fn read() -> Self {
        let unix = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        Self {
            monotonic: Instant::now(),
            unix,
        }
    }
}

impl Add<Duration> for Now {
    type Output = Self;

    fn add(self, later: Duration) -> Self {
        Self {
            monotonic: self.monotonic + later,
            unix: self.unix + later,
        }
    }
}
