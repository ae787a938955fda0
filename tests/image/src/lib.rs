//! What the tests of Warren's images share: where the images are, and what is in one.

mod node;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tempfile::TempDir;

pub use node::{Container, Node, PATIENCE, missing};

/// The images, by the last part of their names.
pub const IMAGES: [&str; 3] = ["tunnel", "agent", "cni"];

/// The root of the source tree.
pub fn source() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Where `make image` puts the images, or `WARREN_IMAGE_DIR`.
pub fn directory() -> PathBuf {
    match std::env::var_os("WARREN_IMAGE_DIR") {
        Some(dir) => dir.into(),
        None => source().join("target/images"),
    }
}

/// The tar of an image.
///
/// # Errors
/// The image was not made.
pub fn tar(name: &str) -> Result<PathBuf> {
    let path = directory().join(format!("warren-{name}.tar"));
    ensure!(
        path.is_file(),
        "{} is missing; run make image",
        path.display()
    );
    Ok(path)
}

/// The whole reference of an image.
pub fn reference(name: &str) -> String {
    format!("localhost/warren/{name}:{}", env!("CARGO_PKG_VERSION"))
}

/// An image, unpacked.
#[derive(Debug)]
pub struct Image {
    dir: TempDir,
    /// What the index says of the manifest.
    pub descriptor: Value,
    /// The manifest.
    pub manifest: Value,
    /// The configuration.
    pub config: Value,
}

/// An entry of a layer, as `tar` lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Kind and mode, such as `-rwxr-xr-x`.
    pub mode: String,
    /// User and group as numbers, such as `0/0`.
    pub owner: String,
    /// Date and time of the last change.
    pub time: String,
    /// The path from the root on, such as `/usr/bin/warren`.
    pub path: String,
}

impl Image {
    /// Unpacks an image.
    ///
    /// # Errors
    /// It is no OCI layout of one image.
    pub fn open(tar: &Path) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        output(
            Command::new("tar")
                .arg("-xf")
                .arg(tar)
                .arg("-C")
                .arg(dir.path()),
        )?;
        let index = json(&dir.path().join("index.json"))?;
        let descriptor = index["manifests"][0].clone();
        ensure!(
            index["manifests"]
                .as_array()
                .is_some_and(|all| all.len() == 1)
        );
        let blob = |descriptor: &Value| json(&blob(dir.path(), descriptor)?);
        let manifest = blob(&descriptor)?;
        let config = blob(&manifest["config"])?;
        Ok(Self {
            dir,
            descriptor,
            manifest,
            config,
        })
    }

    /// The layers' blobs, the lowest first; their digests are compared with their names.
    ///
    /// # Errors
    /// A blob is missing, or is not what its descriptor says.
    pub fn layers(&self) -> Result<Vec<PathBuf>> {
        let layers = self.manifest["layers"].as_array().context("no layers")?;
        layers
            .iter()
            .map(|descriptor| {
                let path = blob(self.dir.path(), descriptor)?;
                let digest = output(Command::new("sha256sum").arg(&path))?;
                let named = descriptor["digest"].as_str().unwrap_or_default();
                let digest = digest.split(' ').next().unwrap_or_default();
                ensure!(
                    named == format!("sha256:{digest}"),
                    "{descriptor}: {digest}"
                );
                ensure!(descriptor["size"] == path.metadata()?.len(), "{descriptor}");
                Ok(path)
            })
            .collect()
    }

    /// All entries of all layers.
    ///
    /// # Errors
    /// A layer is no tar.
    pub fn entries(&self) -> Result<Vec<Entry>> {
        let mut entries = Vec::new();
        for layer in self.layers()? {
            let mut list = Command::new("tar");
            list.args(["--numeric-owner", "--utc", "--full-time", "-tvzf"]);
            for line in output(list.arg(layer).env("LC_ALL", "C"))?.lines() {
                let mut words = line.split_whitespace();
                let mut word = || words.next().unwrap_or_default().to_owned();
                let (mode, owner, _size) = (word(), word(), word());
                let time = format!("{} {}", word(), word());
                let path = word();
                let path = path.trim_start_matches('.').to_owned();
                entries.push(Entry {
                    mode,
                    owner,
                    time,
                    path,
                });
            }
        }
        Ok(entries)
    }

    /// Unpacks all layers into a directory, as a runtime does.
    ///
    /// # Errors
    /// A layer cannot be unpacked.
    pub fn unpack(&self) -> Result<TempDir> {
        let root = tempfile::tempdir()?;
        for layer in self.layers()? {
            let mut unpack = Command::new("tar");
            output(unpack.arg("-xzf").arg(layer).arg("-C").arg(root.path()))?;
        }
        Ok(root)
    }
}

/// Runs a command and returns its output.
///
/// # Errors
/// It failed; its words are in the error.
pub fn output(command: &mut Command) -> Result<String> {
    let output = command
        .output()
        .with_context(|| format!("run {command:?}"))?;
    ensure!(
        output.status.success(),
        "{command:?}: {}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8(output.stdout)?)
}

fn json(path: &Path) -> Result<Value> {
    let text = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
    Ok(serde_json::from_slice(&text)?)
}

fn blob(dir: &Path, descriptor: &Value) -> Result<PathBuf> {
    let digest = descriptor["digest"].as_str().context("no digest")?;
    Ok(dir.join("blobs").join(digest.replace(':', "/")))
}
