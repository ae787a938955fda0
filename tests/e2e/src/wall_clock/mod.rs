//! A wall clock of a node's own, which a test sets while the node's programs run.
//!
//! The kernel has one `CLOCK_REALTIME` for all namespaces, and setting it would set the machine's.
//! The programs read it through the C library, which they are linked to dynamically: all of their
//! calls, those of the standard library and of boringtun, end in libc's `clock_gettime`
//! (`warren-tunnel` has one of its own before it, see mesh/tunnel/src/interpose.rs, which goes on to
//! the same). So a library loaded before libc (`LD_PRELOAD`, shim.c) gives each unchanged program
//! the time that the test wants, and nothing of the program is replaced.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// A wall clock and its setting.
#[derive(Debug)]
pub struct WallClock {
    shim: PathBuf,
    offset_path: PathBuf,
    offset: File,
}

impl WallClock {
    /// Makes a clock that reads as the machine's, with its files in `folder`.
    ///
    /// # Errors
    /// When the C compiler, which Rust needs for linking too, cannot build the library.
    pub fn new(folder: &Path) -> Result<Self> {
        let (source, shim) = (folder.join("wall-clock.c"), folder.join("wall-clock.so"));
        std::fs::write(&source, include_str!("shim.c")).context("write the clock's source")?;
        let out = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o"])
            .arg(&shim)
            .arg(&source)
            .arg("-ldl")
            .output()
            .context("run cc")?;
        ensure!(
            out.status.success(),
            "cc: {}",
            String::from_utf8_lossy(&out.stderr)
        );
        let offset_path = folder.join("wall-clock.offset");
        let offset = OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .open(&offset_path)
            .context("create the clock's setting")?;
        let clock = Self {
            shim,
            offset_path,
            offset,
        };
        clock.set(0)?;
        Ok(clock)
    }

    /// What a program must find in its environment to go by this clock.
    pub fn env(&self) -> Vec<(String, String)> {
        let text = |path: &Path| path.display().to_string();
        vec![
            ("LD_PRELOAD".into(), text(&self.shim)),
            ("WARREN_CLOCK_OFFSET".into(), text(&self.offset_path)),
        ]
    }

    /// Sets it to the machine's time and so many seconds, for programs that run as well.
    pub fn set(&self, offset_seconds: i64) -> Result<()> {
        let bytes = offset_seconds.to_ne_bytes();
        self.offset.write_all_at(&bytes, 0).context("set the clock")
    }
}
