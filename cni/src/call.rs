//! One call from its environment to its answer.

use std::ffi::OsString;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::ExitCode;

use nix::poll::{PollFd, PollFlags, poll};
use serde_json::Value;
use warren_netlink::Netlink;

use crate::attach::{self, AttachError, Pod};
use crate::config::{MAX_CONFIG_BYTES, NetConf};
use crate::env::{AttachmentId, CniRequest};
use crate::error::Error;
use crate::ipam::Ipam;
use crate::logging;
use crate::plan::plan_add;
use crate::protect;
use crate::result::{CniResult, version_result};
use crate::version::CniVersion;

/// How long a VERSION waits for a configuration that need not come, in milliseconds.
const VERSION_PATIENCE: u16 = 500;

/// What a call answers.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// What goes to stdout; nothing after a DEL.
    pub output: Option<Value>,
    /// Whether the call succeeded.
    pub success: bool,
}

/// Carries out one call: environment and stdin in, one JSON document on stdout, and the exit code.
/// Whatever happens, a failure is told in the form that the specification asks for.
pub fn run(
    get_env: impl Fn(&str) -> Option<OsString>,
    stdin: impl Read + AsFd,
    mut stdout: impl Write,
) -> ExitCode {
    let answer = answer(get_env, stdin);
    let mut text = answer
        .output
        .map(|json| json.to_string())
        .unwrap_or_default();
    if !text.is_empty() {
        text.push('\n');
    }
    let written = stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush());
    match (answer.success, written) {
        (true, Ok(())) => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

/// Carries out one call and returns its answer.
pub fn answer(get_env: impl Fn(&str) -> Option<OsString>, stdin: impl Read + AsFd) -> Answer {
    // The answer's version is the configuration's, as soon as that is known.
    let mut version = CniVersion::NEWEST;
    // Nothing of the state that a panic may leave half-changed is looked at afterwards, but for
    // the version, which is a plain value.
    let outcome = catch_unwind(AssertUnwindSafe(|| carry_out(get_env, stdin, &mut version)));
    let outcome = outcome.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
        Err(Error::Panic(text.unwrap_or("panic").to_owned()))
    });
    match outcome {
        Ok(output) => Answer {
            output,
            success: true,
        },
        Err(error) => Answer {
            output: Some(error.to_json(version)),
            success: false,
        },
    }
}

fn carry_out(
    get_env: impl Fn(&str) -> Option<OsString>,
    stdin: impl Read + AsFd,
    version: &mut CniVersion,
) -> Result<Option<Value>, Error> {
    match CniRequest::from_env(get_env)? {
        CniRequest::Version => Ok(Some(answer_version(stdin))),
        CniRequest::Add {
            attachment,
            netns,
            pod,
        } => {
            let conf = configuration(stdin, version)?;
            let call = Add {
                conf: &conf,
                attachment: &attachment,
                netns: &netns,
                pod,
            };
            logged(&conf, "ADD", &attachment, || block_on(call.carry_out())?).map(Some)
        }
        CniRequest::Del { attachment } => {
            let conf = configuration(stdin, version)?;
            logged(&conf, "DEL", &attachment, || {
                block_on(del(&conf, &attachment))?
            })?;
            Ok(None)
        }
    }
}

fn configuration(stdin: impl Read, version: &mut CniVersion) -> Result<NetConf, Error> {
    let conf = NetConf::parse(&read_limited(stdin).map_err(Error::Stdin)?)?;
    *version = conf.version;
    Ok(conf)
}

/// Reads one byte more than is allowed at most, so that too much is noticed.
fn read_limited(stdin: impl Read) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    stdin
        .take(MAX_CONFIG_BYTES as u64 + 1)
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn answer_version(stdin: impl Read + AsFd) -> Value {
    let asked = || -> Option<String> {
        // Some callers leave stdin open and silent.
        let mut fds = [PollFd::new(stdin.as_fd(), PollFlags::POLLIN)];
        if poll(&mut fds, VERSION_PATIENCE).ok()? == 0 {
            return None;
        }
        let conf: Value = serde_json::from_slice(&read_limited(stdin).ok()?).ok()?;
        conf["cniVersion"].as_str().map(Into::into)
    };
    version_result(asked().as_deref())
}

fn logged<T>(
    conf: &NetConf,
    verb: &'static str,
    attachment: &AttachmentId,
    call: impl FnOnce() -> Result<T, Error>,
) -> Result<T, Error> {
    let _guard = logging::start(conf)?;
    let outcome = call();
    match &outcome {
        Ok(_) => tracing::info!(verb, %attachment, network = conf.name, "done"),
        Err(error) => tracing::error!(verb, %attachment, network = conf.name, %error, "failed"),
    }
    outcome
}

fn block_on<F: Future>(future: F) -> Result<F::Output, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .map_err(Error::Runtime)?;
    Ok(runtime.block_on(future))
}

struct Add<'a> {
    conf: &'a NetConf,
    attachment: &'a AttachmentId,
    netns: &'a Path,
    pod: Option<String>,
}

impl Add<'_> {
    async fn carry_out(self) -> Result<Value, Error> {
        let conf = self.conf;
        let previous = CniResult::from_prev(conf.prev_result.as_ref())?;
        let node = protect::load_node(&conf.state_dir)?;
        let host = Netlink::open().map_err(AttachError::from)?;
        protect::check(&host, &node).await?;
        // All that can be refused is refused before an address is taken.
        let pod = Pod::open(self.netns, &self.attachment.ifname).await?;
        let ipam = Ipam::open(&conf.state_dir, &conf.name)?;
        let granted = ipam.reserve(self.attachment, self.pod.as_deref(), &node.pod_cidrs)?;
        let made = async {
            let plan = plan_add(self.attachment, &granted.addresses, &node, conf.mtu_bytes)?;
            attach::attach(&host, &pod, &plan).await?;
            Ok(plan)
        };
        let plan = match made.await {
            Ok(plan) => plan,
            Err(error) => {
                // What is left of a pod keeps its address, and so does an earlier ADD's pod.
                let left = matches!(error, Error::Attach(AttachError::Undo { .. }));
                if granted.fresh
                    && !left
                    && let Err(undo) = ipam.give_back(self.attachment)
                {
                    tracing::warn!(error = %undo, "the addresses stay reserved until DEL");
                }
                return Err(error);
            }
        };
        tracing::debug!(interface = plan.host.name, addresses = ?granted.addresses, "attached");
        let netns = self.netns.to_string_lossy();
        Ok(plan
            .extend(previous, &netns, &conf.dns)
            .to_json(conf.version))
    }
}

async fn del(conf: &NetConf, attachment: &AttachmentId) -> Result<(), Error> {
    let mut errors = Vec::new();
    let detached = match Netlink::open() {
        Ok(host) => attach::detach(&host, attachment).await,
        Err(error) => Err(error.into()),
    };
    // While the interface may be there, its address is not free.
    match detached {
        Ok(found) => {
            tracing::debug!(found, "interface removed");
            match Ipam::open(&conf.state_dir, &conf.name).and_then(|i| i.release(attachment)) {
                Ok(addresses) => tracing::debug!(?addresses, "addresses released"),
                Err(error) => errors.push(error.into()),
            }
        }
        Err(error) => errors.push(error.into()),
    }
    if errors.is_empty() {
        Ok(())
    } else {
        Err(Error::Detach(errors))
    }
}
