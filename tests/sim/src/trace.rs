//! What happened, as a hash that two runs of one seed must share, and the last of it in words.

use std::collections::VecDeque;
use std::fmt::{Arguments, Write};
use std::time::Duration;

/// How much of the story is kept for a report.
const KEPT: usize = 60;

/// The story of a run.
#[derive(Debug)]
pub struct Trace {
    hash: u64,
    last: VecDeque<String>,
    /// Whether each line is printed as it happens.
    pub print: bool,
}

impl Trace {
    /// An empty story.
    pub fn new(print: bool) -> Self {
        let last = VecDeque::new();
        // FNV-1a's offset basis.
        let hash = 0xcbf2_9ce4_8422_2325;
        Self { hash, last, print }
    }

    /// Takes note of something.
    pub fn note(&mut self, at: Duration, what: Arguments<'_>) {
        let mut line = String::new();
        // Writing to a string does not fail.
        let _ = write!(line, "{:>10.4}s {what}", at.as_secs_f64());
        for byte in line.bytes() {
            self.hash = (self.hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        }
        if self.print {
            println!("{line}");
        }
        if self.last.len() == KEPT {
            self.last.pop_front();
        }
        self.last.push_back(line);
    }

    /// The hash of all of it.
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// The end of it, line by line.
    pub fn tail(&self) -> String {
        Vec::from(self.last.clone()).join("\n")
    }
}
