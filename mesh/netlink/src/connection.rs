//! The rtnetlink connection: requests, acknowledgements, dumps.

use std::fmt::Display;
use std::sync::Arc;

use futures::StreamExt;
use netlink_packet_core::{
    ErrorMessage, NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkMessage,
    NetlinkPayload, NlasIterator,
};
use netlink_packet_route::RouteNetlinkMessage;
use rtnetlink::{Handle, new_connection_with_strict_check};
use tokio::sync::Mutex;

use crate::{NetlinkError, Netns};

/// How often a dump is repeated that the kernel reports as inconsistent.
const DUMP_ATTEMPTS: usize = 20;

/// One rtnetlink connection, bound to the network namespace it was opened in, wherever it is used.
///
/// Clones share the connection; its task ends with the last of them. Requests are sent one at a
/// time, so that answers always fit into the socket's buffer.
#[derive(Clone, Debug)]
pub struct Netlink {
    handle: Handle,
    // INVARIANT: held from a request until its last answer. The kernel runs one dump a socket and
    // drops acknowledgements that find the receive buffer full.
    turn: Arc<Mutex<()>>,
}

impl Netlink {
    /// Opens a connection in the calling thread's network namespace.
    ///
    /// # Errors
    /// [`NetlinkError::Socket`] when there is no descriptor left, or outside a tokio runtime.
    ///
    /// # Panics
    /// In a runtime that was built without `enable_io`.
    pub fn open() -> Result<Self, NetlinkError> {
        let operation = "open an rtnetlink socket";
        let runtime = runtime(operation)?;
        Self::open_on(&runtime).map_err(|source| NetlinkError::Socket { operation, source })
    }

    /// Opens a connection inside `ns`, to be used from here.
    ///
    /// # Errors
    /// As [`Netlink::open`], and those of [`Netns::run`].
    ///
    /// # Panics
    /// As [`Netlink::open`].
    pub fn open_in(ns: &Netns) -> Result<Self, NetlinkError> {
        let operation = "open an rtnetlink socket in another network namespace";
        let runtime = runtime(operation)?;
        ns.run(|| Self::open_on(&runtime))
            .and_then(|opened| opened)
            .map_err(|source| NetlinkError::Socket { operation, source })
    }

    fn open_on(runtime: &tokio::runtime::Handle) -> std::io::Result<Self> {
        let _entered = runtime.enter();
        let (mut connection, handle, unsolicited) = new_connection_with_strict_check()?;
        drop(unsolicited);
        let socket = rtnetlink::sys::AsyncSocket::socket_mut(connection.socket_mut());
        // Without the cap an error repeats the whole request before the kernel's words.
        socket.set_cap_ack(true)?;
        socket.set_ext_ack(true)?;
        connection.set_forward_ack(true);
        connection.set_forward_done(true);
        runtime.spawn(connection);
        Ok(Self {
            handle,
            turn: Arc::default(),
        })
    }

    /// Sends a request and waits for its acknowledgement.
    pub(crate) async fn change(
        &self,
        operation: &'static str,
        subject: &(dyn Display + Sync),
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<(), NetlinkError> {
        self.request(operation, subject, message, flags | NLM_F_ACK)
            .await
            .map(drop)
    }

    /// Sends a request for one object and returns it.
    pub(crate) async fn get(
        &self,
        operation: &'static str,
        subject: &(dyn Display + Sync),
        message: RouteNetlinkMessage,
    ) -> Result<RouteNetlinkMessage, NetlinkError> {
        // The acknowledgement ends the wait even when the object itself could not be parsed.
        let answers = self.request(operation, subject, message, NLM_F_ACK).await?;
        answers
            .messages
            .into_iter()
            .next()
            .ok_or_else(|| NetlinkError::Answer {
                operation,
                subject: subject.to_string(),
                reason: "it was acknowledged without the object asked for",
            })
    }

    /// Sends a dump request and returns all objects, from one consistent pass over the table.
    pub(crate) async fn dump(
        &self,
        operation: &'static str,
        message: RouteNetlinkMessage,
    ) -> Result<Vec<RouteNetlinkMessage>, NetlinkError> {
        for _ in 0..DUMP_ATTEMPTS {
            match self
                .request(operation, &"", message.clone(), NLM_F_DUMP)
                .await
            {
                Ok(answers) if answers.consistent => return Ok(answers.messages),
                Ok(_) => {}
                // A dump whose caller gave up is still being read to its end.
                Err(error) if error.errno() == Some(libc::EBUSY) => tokio::task::yield_now().await,
                Err(error) => return Err(error),
            }
        }
        Err(NetlinkError::Interrupted { operation })
    }

    async fn request(
        &self,
        operation: &'static str,
        subject: &(dyn Display + Sync),
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<Answers, NetlinkError> {
        let closed = || NetlinkError::Closed {
            operation,
            subject: subject.to_string(),
        };
        let mut message = NetlinkMessage::from(message);
        message.header.flags = NLM_F_REQUEST | flags;

        let _turn = self.turn.lock().await;
        let mut stream = self.handle.clone().request(message).map_err(|_| closed())?;
        let mut answers = Answers {
            messages: Vec::new(),
            consistent: true,
        };
        while let Some(answer) = stream.next().await {
            answers.consistent &= answer.header.flags & NLM_F_DUMP_INTR == 0;
            match answer.payload {
                NetlinkPayload::InnerMessage(inner) => answers.messages.push(inner),
                NetlinkPayload::Done(done) if done.code == 0 => return Ok(answers),
                NetlinkPayload::Done(done) => {
                    return Err(kernel_error(
                        operation,
                        subject,
                        done.code,
                        &done.extended_ack,
                    ));
                }
                NetlinkPayload::Error(ErrorMessage { code: None, .. }) => return Ok(answers),
                NetlinkPayload::Error(error) => {
                    let words = error.header.get(NLMSG_HEADER..).unwrap_or_default();
                    return Err(kernel_error(operation, subject, error.raw_code(), words));
                }
                _ => {}
            }
        }
        Err(closed())
    }
}

struct Answers {
    messages: Vec<RouteNetlinkMessage>,
    consistent: bool,
}

/// Length of `struct nlmsghdr` (linux/netlink.h).
const NLMSG_HEADER: usize = 16;

pub(crate) fn kernel_error(
    operation: &'static str,
    subject: &dyn Display,
    code: i32,
    extended_ack: &[u8],
) -> NetlinkError {
    NetlinkError::Kernel {
        operation,
        subject: subject.to_string(),
        errno: code.saturating_abs(),
        detail: kernels_words(extended_ack),
    }
}

/// Finds the text in an extended acknowledgement (`NLMSGERR_ATTR_MSG`, linux/netlink.h).
fn kernels_words(attributes: &[u8]) -> Option<String> {
    const NLMSGERR_ATTR_MSG: u16 = 1;
    let attribute = NlasIterator::new(attributes)
        .flatten()
        .find(|nla| nla.kind() == NLMSGERR_ATTR_MSG)?;
    let text = attribute
        .value()
        .split(|byte| *byte == 0)
        .next()
        .unwrap_or_default();
    Some(String::from_utf8_lossy(text).into_owned())
}

fn runtime(operation: &'static str) -> Result<tokio::runtime::Handle, NetlinkError> {
    tokio::runtime::Handle::try_current().map_err(|error| NetlinkError::Socket {
        operation,
        source: std::io::Error::other(error),
    })
}
