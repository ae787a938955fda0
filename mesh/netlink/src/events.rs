//! Changes of the kernel's network configuration, as they happen.

use std::collections::VecDeque;
use std::io;

use nix::sys::socket::{SockFlag, SockProtocol};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::socket::{Datagram, Socket, messages};
use crate::{Netlink, NetlinkError};

/// A burst of ten thousand routes fits; the memory is used only while a reader lags.
const RECEIVE_BUFFER: usize = 8 * 1024 * 1024;
/// Bits of `RTNLGRP_LINK`, `IPV4_IFADDR`, `IPV4_ROUTE`, `IPV4_RULE`, `IPV6_IFADDR`, `IPV6_ROUTE`
/// and `IPV6_RULE` (linux/rtnetlink.h).
const GROUPS: u32 = (1 << 0) | (1 << 4) | (1 << 6) | (1 << 7) | (1 << 8) | (1 << 10) | (1 << 18);

/// What was added, changed or removed. What it is now, a dump tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NetEvent {
    /// A link, or its state.
    Link,
    /// An address.
    Address,
    /// A route.
    Route,
    /// A policy rule.
    Rule,
    /// Events were lost: anything may have changed, so everything is to be dumped again.
    Overrun,
}

/// The changes of one network namespace, from the moment it was made.
///
/// Changes made through [`Netlink`] are among them. A dump that starts after the stream was made
/// misses nothing.
pub struct EventStream {
    socket: AsyncFd<Socket>,
    pending: VecDeque<NetEvent>,
}

impl Netlink {
    /// Watches the calling thread's network namespace.
    ///
    /// # Errors
    /// [`NetlinkError::Socket`] when there is no descriptor left, or outside a tokio runtime.
    ///
    /// # Panics
    /// In a runtime that was built without `enable_io`.
    pub fn watch() -> Result<EventStream, NetlinkError> {
        EventStream::open(RECEIVE_BUFFER).map_err(|source| NetlinkError::Socket {
            operation: "watch for changes of the network",
            source,
        })
    }
}

impl EventStream {
    fn open(receive_buffer: usize) -> io::Result<Self> {
        tokio::runtime::Handle::try_current().map_err(io::Error::other)?;
        let socket = Socket::open(SockProtocol::NetlinkRoute, SockFlag::SOCK_NONBLOCK, GROUPS)?;
        socket.set_receive_buffer(receive_buffer)?;
        // SAFETY: `Socket` owns its descriptor, never replaces it, and closes it when dropped.
        let socket = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }?;
        Ok(Self {
            socket,
            pending: VecDeque::new(),
        })
    }

    /// Waits for the next change. Giving up waiting loses none.
    ///
    /// # Errors
    /// [`NetlinkError::Socket`] when the socket fails for good: make a new stream and dump again.
    pub async fn next(&mut self) -> Result<NetEvent, NetlinkError> {
        loop {
            if let Some(event) = self.pending.pop_front() {
                return Ok(event);
            }
            self.fill().await.map_err(|source| NetlinkError::Socket {
                operation: "wait for changes of the network",
                source,
            })?;
        }
    }

    async fn fill(&mut self) -> io::Result<()> {
        let mut ready = self.socket.readable_mut().await?;
        let pending = &mut self.pending;
        let received = ready.try_io(|socket| match socket.get_mut().receive() {
            Ok(Datagram::Messages(datagram)) => {
                for message in messages(datagram) {
                    pending.extend(event_of(message.message_type()));
                }
                Ok(())
            }
            Ok(Datagram::Truncated) => {
                pending.push_back(NetEvent::Overrun);
                Ok(())
            }
            Ok(Datagram::Foreign) => Ok(()),
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                pending.push_back(NetEvent::Overrun);
                Ok(())
            }
            Err(error) => Err(error),
        });
        // "Would block" only means that the readiness was stale.
        received.unwrap_or(Ok(()))
    }
}

fn event_of(message_type: u16) -> Option<NetEvent> {
    match message_type {
        libc::RTM_NEWLINK | libc::RTM_DELLINK => Some(NetEvent::Link),
        libc::RTM_NEWADDR | libc::RTM_DELADDR => Some(NetEvent::Address),
        libc::RTM_NEWROUTE | libc::RTM_DELROUTE => Some(NetEvent::Route),
        libc::RTM_NEWRULE | libc::RTM_DELRULE => Some(NetEvent::Rule),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Address, Netns};
    use nix::sched::{CloneFlags, unshare};

    #[test]
    fn a_reader_that_lags_too_far_behind_is_told() {
        let make = || {
            unshare(CloneFlags::CLONE_NEWNET)
                .ok()
                .and_then(|()| Netns::current().ok())
        };
        let Some(ns) = std::thread::spawn(make).join().unwrap() else {
            assert!(
                std::env::var_os("CI").is_none(),
                "would be skipped: no network namespace"
            );
            println!("skipped: cannot make a network namespace");
            return;
        };
        ns.run(|| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let mut events = EventStream::open(4096).unwrap();
                let netlink = Netlink::open().unwrap();
                for host in 1..200 {
                    let net = format!("127.0.1.{host}/32").parse().unwrap();
                    assert!(netlink.add_address(1, net).await.unwrap());
                }
                sees(&mut events, NetEvent::Overrun).await;
                // It goes on working.
                let idle = std::time::Duration::from_millis(50);
                while tokio::time::timeout(idle, events.next()).await.is_ok() {}
                let all: Vec<Address> = netlink.addresses(Some(1)).await.unwrap();
                netlink.delete_address(1, all[0].net).await.unwrap();
                sees(&mut events, NetEvent::Address).await;
            });
        })
        .unwrap();
    }

    async fn sees(events: &mut EventStream, wanted: NetEvent) {
        let wait = async { while events.next().await.unwrap() != wanted {} };
        let seen = tokio::time::timeout(std::time::Duration::from_secs(5), wait).await;
        assert!(seen.is_ok(), "no {wanted:?} within 5 s");
    }

    #[test]
    fn other_messages_are_no_events() {
        assert_eq!(event_of(libc::RTM_NEWNEIGH), None);
        assert_eq!(event_of(libc::NLMSG_DONE as u16), None);
    }
}
