//! One command in one container.

use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::AttachParams;
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::client::describe;

/// Larger than the status of an agent among 10,000 peers.
const MAX_STDOUT: u64 = 16 << 20;
const MAX_STDERR: u64 = 64 << 10;
/// Bytes that wait in between.
const BUFFER: usize = 64 << 10;

/// What a command printed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Printed {
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    /// What else is known of how it ended; empty when it ended well.
    pub(crate) failure: String,
}

/// Runs a command and waits for its end. What the command says by its exit code is left to the
/// caller.
pub(crate) async fn exec(
    pods: &Api<Pod>,
    pod: &str,
    container: &str,
    command: &[&str],
) -> Result<Printed, String> {
    let params = AttachParams::default()
        .container(container)
        .stdin(false)
        .stdout(true)
        .stderr(true)
        .max_stdout_buf_size(BUFFER)
        .max_stderr_buf_size(BUFFER);
    let command = command.iter().copied();
    let started = pods.exec(pod, command, &params).await;
    let mut process =
        started.map_err(|error| format!("exec in pod {pod}: {}", describe(&error)))?;
    let status = process.take_status();
    let (stdout, stderr) = tokio::try_join!(
        read(process.stdout(), MAX_STDOUT),
        read(process.stderr(), MAX_STDERR)
    )?;
    let ended = match status {
        Some(status) => status.await,
        None => None,
    };
    let failure = match ended {
        // The connection ended first.
        None => "the connection to its pod ended early".to_owned(),
        Some(status) => status.message.unwrap_or_default(),
    };
    Ok(Printed {
        stdout,
        stderr,
        failure,
    })
}

async fn read(stream: Option<impl AsyncRead + Unpin>, max: u64) -> Result<String, String> {
    let Some(stream) = stream else {
        return Ok(String::new());
    };
    let mut bytes = Vec::new();
    let mut stream = stream.take(max + 1);
    let read = stream.read_to_end(&mut bytes).await;
    read.map_err(|error| format!("read what the command prints: {error}"))?;
    if bytes.len() as u64 > max {
        return Err(format!("the command prints more than {max} bytes"));
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
