//! The client of the UAPI socket that `warren-tunnel` serves.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;
use warren_core::Change;
use warren_core::state::PeerDelta;
use warren_core::uapi::{AllowedIpUpdate, Device, GET, PeerUpdate, SetRequest, UapiError};
use zeroize::Zeroizing;

use super::{DataPlane, DataPlaneError, DeviceState};
use crate::tunnel_socket::TunnelSocket;

/// How long a whole exchange may take.
const TIMEOUT: Duration = Duration::from_secs(3);
/// The largest answer: about 25,000 peers.
const MAX_ANSWER: usize = 16 * 1024 * 1024;
/// What an answer is read into at first.
const FIRST_ROOM: usize = 16 * 1024;

/// A device behind a UAPI socket; every exchange has a connection of its own.
#[derive(Clone, Debug)]
pub struct UapiDataPlane {
    path: PathBuf,
    limit: Duration,
    status: Option<TunnelSocket>,
}

impl UapiDataPlane {
    /// The device behind this socket, which need not be there yet.
    pub fn new(path: PathBuf) -> Self {
        Self {
            path,
            limit: TIMEOUT,
            status: None,
        }
    }

    /// The same with another limit on a whole exchange (3 s by default).
    pub fn with_timeout(self, limit: Duration) -> Self {
        Self { limit, ..self }
    }

    /// The same with the device's own socket, which tells what UAPI has no words for.
    pub fn with_status(self, status: TunnelSocket) -> Self {
        let status = Some(status);
        Self { status, ..self }
    }

    async fn exchange(&self, request: &[u8]) -> Result<Zeroizing<Vec<u8>>, DataPlaneError> {
        let path = || self.path.clone();
        let work = async {
            let connected = UnixStream::connect(&self.path).await;
            let mut stream = connected.map_err(|source| DataPlaneError::Connect {
                path: path(),
                source,
            })?;
            let io = |operation| {
                move |source| DataPlaneError::Io {
                    operation,
                    path: path(),
                    source,
                }
            };
            stream.write_all(request).await.map_err(io("write to"))?;
            read_answer(&mut stream).await.map_err(io("read from"))
        };
        let late = || DataPlaneError::Timeout {
            path: path(),
            limit: self.limit,
        };
        let answer = timeout(self.limit, work).await.map_err(|_| late())??;
        answer.ok_or_else(|| DataPlaneError::TooLarge {
            path: path(),
            limit: MAX_ANSWER,
        })
    }

    fn bad_answer(&self, source: UapiError) -> DataPlaneError {
        DataPlaneError::Answer {
            path: self.path.clone(),
            source,
        }
    }

    /// Reads the device's state; as [`DataPlane::observe`], without `&mut`.
    ///
    /// # Errors
    /// [`DataPlaneError`].
    pub async fn get(&self) -> Result<DeviceState, DataPlaneError> {
        let answer = self.exchange(GET.as_bytes()).await?;
        // Anything but UTF-8 is no `key=value` either.
        let text = std::str::from_utf8(&answer)
            .map_err(|_| self.bad_answer(UapiError::NotKeyValue { line: 0 }))?;
        let device = Device::parse(text).map_err(|source| self.bad_answer(source))?;
        Ok(DeviceState {
            // The private key is wiped when `device` goes, at the end of this function.
            public_key: device.private_key.as_ref().map(|key| key.public_key()),
            listen_port: device.listen_port,
            peers: device.peers,
            path_mtu: BTreeMap::new(),
        })
    }
}

impl DataPlane for UapiDataPlane {
    async fn observe(&mut self) -> Result<DeviceState, DataPlaneError> {
        let mut device = self.get().await?;
        if let Some(status) = &self.status {
            let paths = status.report().await.paths;
            let known = paths.into_iter();
            device.path_mtu = known
                .filter_map(|(key, path)| Some((key, path.path_mtu_bytes?)))
                .collect();
        }
        Ok(device)
    }

    async fn apply(&mut self, changes: &[Change]) -> Result<(), DataPlaneError> {
        let request = set_request(changes);
        if request.peers.is_empty() {
            return Ok(());
        }
        let request = request.to_text();
        let answer = self.exchange(request.as_bytes()).await?;
        let text = std::str::from_utf8(&answer).unwrap_or_default();
        warren_core::uapi::parse_set_answer(text).map_err(|source| self.bad_answer(source))
    }
}

/// Reads up to the empty line; `None` when the answer is too large.
async fn read_answer(stream: &mut UnixStream) -> io::Result<Option<Zeroizing<Vec<u8>>>> {
    let mut answer = Zeroizing::new(Vec::with_capacity(FIRST_ROOM));
    loop {
        if answer.len() == answer.capacity() {
            if answer.len() >= MAX_ANSWER {
                return Ok(None);
            }
            // Growing in place would leave a copy of the private key behind, unwiped.
            let mut larger = Zeroizing::new(Vec::with_capacity(answer.capacity() * 2));
            larger.extend_from_slice(&answer);
            answer = larger;
        }
        if stream.read_buf(&mut *answer).await? == 0 || answer.ends_with(b"\n\n") {
            return Ok(Some(answer));
        }
    }
}

/// What is asked of the device for these changes, in their order; those that are not of peers are
/// left out.
pub fn set_request(changes: &[Change]) -> SetRequest {
    SetRequest {
        peers: changes.iter().filter_map(update_of).collect(),
        ..SetRequest::default()
    }
}

pub(super) fn update_of(change: &Change) -> Option<PeerUpdate> {
    match change {
        Change::AddPeer { public_key, new } => {
            let mut update = PeerUpdate::new(*public_key);
            update.endpoint = Some(new.endpoint);
            update.persistent_keepalive = Some(new.persistent_keepalive);
            update.path_probes = Some(new.path_probes);
            update.allowed_ips = new
                .allowed_ips
                .iter()
                .copied()
                .map(AllowedIpUpdate::Add)
                .collect();
            Some(update)
        }
        Change::UpdatePeer {
            public_key, delta, ..
        } => {
            let PeerDelta {
                endpoint,
                persistent_keepalive,
                path_probes,
                ..
            } = *delta;
            let mut update = PeerUpdate::new(*public_key);
            // Somebody may have removed the peer meanwhile: half a peer must not come of that.
            update.update_only = true;
            update.endpoint = endpoint;
            update.persistent_keepalive = persistent_keepalive;
            update.path_probes = path_probes;
            let remove = delta
                .remove_allowed_ips
                .iter()
                .copied()
                .map(AllowedIpUpdate::Remove);
            let add = delta
                .add_allowed_ips
                .iter()
                .copied()
                .map(AllowedIpUpdate::Add);
            update.allowed_ips = remove.chain(add).collect();
            Some(update)
        }
        Change::RemovePeer { public_key, .. } => {
            let mut update = PeerUpdate::new(*public_key);
            update.update_only = true;
            update.remove = true;
            Some(update)
        }
        _ => None,
    }
}
