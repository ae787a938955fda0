//! The agent's socket: one JSON document a connection, then it closes. Nothing can be asked or
//! changed by it.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::io::AsyncWriteExt;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::{sleep, timeout};
use warren_core::status::AgentStatus;

use crate::config::Config;
use crate::dataplane::DeviceReader;
use crate::snapshot::Snapshot;
use crate::status::{self, TunnelView};
use crate::tunnel_socket::TunnelReport;

const SOCKET_MODE: u32 = 0o660;
/// How long a reader may take.
const TIMEOUT: Duration = Duration::from_secs(5);
/// How many readers are served at once.
const MAX_READERS: usize = 16;

/// What the servers answer from.
#[derive(Clone, Debug)]
pub struct Source {
    /// The agent's configuration.
    pub config: Arc<Config>,
    /// What the reconcile last saw.
    pub snapshots: watch::Receiver<Option<Arc<Snapshot>>>,
    /// The device, to be asked for its counters as they are now.
    pub tunnel: DeviceReader,
}

impl Source {
    /// The last snapshot.
    pub fn snapshot(&self) -> Option<Arc<Snapshot>> {
        self.snapshots.borrow().clone()
    }

    /// The status now, and what the tunnel's own socket tells; waits for the first snapshot.
    pub async fn status(&self) -> Option<(AgentStatus, TunnelReport)> {
        let mut snapshots = self.snapshots.clone();
        let snapshot = snapshots.wait_for(Option::is_some).await.ok()?.clone()?;
        let (fresh, report) = tokio::join!(self.tunnel.get(), self.tunnel.report());
        let fresh = fresh.ok();
        let tunnel = TunnelView {
            device: fresh.as_ref().or(snapshot.device.as_ref()),
            report: &report,
        };
        let mut status = status::build(&self.config, &snapshot, &tunnel, SystemTime::now());
        if status.tunnel.ok {
            status.tunnel.detail += &report.how();
        }
        Some((status, report))
    }
}

/// Makes the socket in place of one that a dead agent left.
///
/// # Errors
/// The system's answer. The caller holds the run directory's lock: no other agent listens there.
pub fn bind(path: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    // Nobody can connect between bind and chmod but who may enter the run directory.
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(SOCKET_MODE))?;
    Ok(listener)
}

/// Answers for ever.
pub async fn serve(listener: UnixListener, source: Source) {
    let slots = Arc::new(Semaphore::new(MAX_READERS));
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, _)) => {
                let source = source.clone();
                tokio::spawn(async move {
                    // A reader that goes away or stalls is its own loss.
                    let _ = timeout(TIMEOUT, answer(stream, source)).await;
                    drop(slot);
                });
            }
            Err(e) => {
                tracing::warn!(error = %e, "accept a reader of the status");
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn answer(mut stream: UnixStream, source: Source) -> io::Result<()> {
    let Some((status, _)) = source.status().await else {
        return Ok(());
    };
    let mut text = serde_json::to_vec(&status)?;
    text.push(b'\n');
    stream.write_all(&text).await?;
    stream.shutdown().await
}

/// Removes the socket at a clean exit, so that readers are told at once that no agent runs.
#[derive(Debug)]
pub struct RemoveOnExit(pub PathBuf);

impl Drop for RemoveOnExit {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}
