//! One call from its environment to its answer.

use std::ffi::OsString;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::stat::{fstat, stat};
use serde_json::Value;

use crate::config::{MAX_CONFIG_BYTES, NetConf};
use crate::env::{AttachmentId, CniRequest};
use crate::error::Error;
use crate::result::version_result;
use crate::version::CniVersion;
use crate::{add, check, del, gc, logging, status};

/// How long a configuration is waited for that need not come, in milliseconds.
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
///
/// An ADD whose result nobody can read is refused where that is known before, and undone where it
/// turns out: the runtime would not know what it has.
pub fn run(
    get_env: impl Fn(&str) -> Option<OsString>,
    stdin: impl Read + AsFd,
    mut stdout: impl Write + AsFd,
) -> ExitCode {
    let adds = get_env("CNI_COMMAND").is_some_and(|verb| verb == "ADD");
    if adds && leads_nowhere(&stdout) {
        eprintln!(
            "warren-cni: ADD refused: stdout is closed or /dev/null, and nobody would learn of the \
             result"
        );
        return ExitCode::FAILURE;
    }
    let (answer, made) = call(get_env, stdin);
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
    if let Err(error) = written {
        eprintln!("warren-cni: cannot write the answer to stdout: {error}");
        if let Some(made) = made {
            made.undo();
        }
        return ExitCode::FAILURE;
    }
    match answer.success {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

/// Whether what is written there is lost. A program that is started with a closed stdout has
/// /dev/null there: Rust's runtime opens it, lest a file of its own becomes its stdout.
fn leads_nowhere(stdout: &impl AsFd) -> bool {
    let Ok(stdout) = fstat(stdout) else {
        return true;
    };
    let null = stat("/dev/null");
    null.is_ok_and(|null| (null.st_mode, null.st_rdev) == (stdout.st_mode, stdout.st_rdev))
}

/// What an ADD has made.
struct Made {
    conf: NetConf,
    attachment: AttachmentId,
}

impl Made {
    /// Takes it away again, as DEL does.
    fn undo(self) {
        let _guard = logging::start(&self.conf).unwrap_or_else(|_| logging::to_stderr(&self.conf));
        let attachment = &self.attachment;
        match del::del(&self.conf, attachment) {
            Ok(()) => tracing::error!(%attachment, "undone: its result could not be written"),
            Err(error) => {
                tracing::error!(%attachment, %error, "its result could not be written, and it is left until DEL");
            }
        }
    }
}

/// Carries out one call and returns its answer.
pub fn answer(get_env: impl Fn(&str) -> Option<OsString>, stdin: impl Read + AsFd) -> Answer {
    call(get_env, stdin).0
}

fn call(
    get_env: impl Fn(&str) -> Option<OsString>,
    stdin: impl Read + AsFd,
) -> (Answer, Option<Made>) {
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
        Ok((output, made)) => {
            let success = true;
            (Answer { output, success }, made)
        }
        Err(error) => {
            let (output, success) = (Some(error.to_json(version)), false);
            (Answer { output, success }, None)
        }
    }
}

fn carry_out(
    get_env: impl Fn(&str) -> Option<OsString>,
    stdin: impl Read + AsFd,
    version: &mut CniVersion,
) -> Result<(Option<Value>, Option<Made>), Error> {
    let request = match CniRequest::from_env(get_env) {
        Ok(CniRequest::Version) => {
            let versions = version_result(asked_version(stdin).as_deref());
            return Ok((Some(versions), None));
        }
        Ok(request) => request,
        Err(error) => {
            let asked = asked_version(stdin).and_then(|text| CniVersion::parse(&text));
            *version = asked.unwrap_or(*version);
            return Err(error.into());
        }
    };
    let conf = configuration(stdin, version)?;
    let (verb, since) = match &request {
        CniRequest::Check(_) => ("CHECK", CniVersion::V0_4_0),
        CniRequest::Gc => ("GC", CniVersion::V1_1_0),
        CniRequest::Status => ("STATUS", CniVersion::V1_1_0),
        CniRequest::Del { .. } => ("DEL", CniVersion::V0_3_1),
        CniRequest::Add(_) | CniRequest::Version => ("ADD", CniVersion::V0_3_1),
    };
    if conf.version < since {
        return Err(Error::Verb {
            verb,
            version: conf.version,
            since,
        });
    }
    let _guard = match logging::start(&conf) {
        // Whatever is wrong with the file, or with its disk, pods go.
        Err(error) if matches!(request, CniRequest::Del { .. } | CniRequest::Gc) => {
            let guard = logging::to_stderr(&conf);
            tracing::warn!(%error, "the log goes to stderr");
            guard
        }
        started => started?,
    };
    let outcome = match &request {
        CniRequest::Add(pod) => add::add(&conf, pod).map(Some),
        CniRequest::Check(pod) => block_on(check::check(&conf, pod))?.map(|()| None),
        CniRequest::Del { attachment } => del::del(&conf, attachment).map(|()| None),
        CniRequest::Gc => block_on(gc::gc(&conf))?.map(|()| None),
        CniRequest::Status => block_on(status::status(&conf))?.map(|()| None),
        CniRequest::Version => Ok(None),
    };
    let subject = match &request {
        CniRequest::Add(pod) | CniRequest::Check(pod) => pod.attachment.to_string(),
        CniRequest::Del { attachment } => attachment.to_string(),
        _ => String::new(),
    };
    let network = &conf.name;
    match &outcome {
        Ok(_) if matches!(request, CniRequest::Check(_) | CniRequest::Status) => {
            tracing::debug!(verb, attachment = subject, network, "done");
        }
        Ok(_) => tracing::info!(verb, attachment = subject, network, "done"),
        Err(error) => {
            tracing::error!(verb, attachment = subject, network, %error, "failed");
        }
    }
    let output = outcome?;
    let made = match request {
        CniRequest::Add(pod) => Some(Made {
            conf,
            attachment: pod.attachment,
        }),
        _ => None,
    };
    Ok((output, made))
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

/// The `cniVersion` on stdin, where the answer does not depend on anything else of it.
fn asked_version(stdin: impl Read + AsFd) -> Option<String> {
    // Some callers leave stdin open and silent.
    let mut fds = [PollFd::new(stdin.as_fd(), PollFlags::POLLIN)];
    if poll(&mut fds, VERSION_PATIENCE).ok()? == 0 {
        return None;
    }
    let conf: Value = serde_json::from_slice(&read_limited(stdin).ok()?).ok()?;
    conf["cniVersion"].as_str().map(Into::into)
}

fn block_on<F: Future>(future: F) -> Result<F::Output, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .map_err(Error::Runtime)?;
    Ok(runtime.block_on(future))
}
