//! Endpoints that the kernel takes no datagrams for now, and why.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Instant;

use warren_core::peer_path::{SendFailure, SendFailures as Report};

/// The most endpoints that are remembered; a node has one a peer, and all fail for one cause then.
const MAX_ENDPOINTS: usize = 4096;

/// What is known of the endpoints that fail. Empty while all goes well, and then costs nothing.
#[derive(Debug, Default)]
pub struct SendFailures(BTreeMap<SocketAddr, Failing>);

#[derive(Clone, Copy, Debug)]
struct Failing {
    cause: SendFailure,
    datagrams: u64,
    last: Instant,
}

impl SendFailures {
    pub(crate) fn note(&mut self, endpoint: SocketAddr, cause: SendFailure) {
        let last = Instant::now();
        if let Some(failing) = self.0.get_mut(&endpoint) {
            failing.cause = cause;
            failing.datagrams += 1;
            failing.last = last;
        } else if self.0.len() < MAX_ENDPOINTS {
            let datagrams = 1;
            self.0.insert(
                endpoint,
                Failing {
                    cause,
                    datagrams,
                    last,
                },
            );
        }
    }

    /// Whether there is nothing that a success could end.
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn note_sent(&mut self, endpoint: &SocketAddr) {
        self.0.remove(endpoint);
    }

    /// What is known of one endpoint now.
    pub fn report(&self, endpoint: &SocketAddr, now: Instant) -> Option<Report> {
        self.0.get(endpoint).map(|failing| Report {
            cause: failing.cause,
            datagrams: failing.datagrams,
            last: now.saturating_duration_since(failing.last),
        })
    }
}

/// What an error of sending means for the peer; nothing where it is about this machine's load.
pub(crate) fn cause_of(code: Option<i32>) -> Option<SendFailure> {
    Some(match code? {
        libc::ENETUNREACH | libc::EHOSTUNREACH => SendFailure::NoRoute,
        libc::EINVAL | libc::EADDRNOTAVAIL => SendFailure::NoSource,
        libc::EPERM | libc::EACCES => SendFailure::Filtered,
        libc::EMSGSIZE => SendFailure::TooLarge,
        libc::ENETDOWN => SendFailure::DeviceDown,
        libc::ENOBUFS | libc::EAGAIN | libc::ENOMEM => return None,
        _ => SendFailure::Other,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_lasts_until_a_datagram_is_sent_and_memory_is_bounded() {
        let mut failures = SendFailures::default();
        let endpoint = |n: usize| SocketAddr::from(([10, 0, (n >> 8) as u8, n as u8], 1));
        for n in 0..MAX_ENDPOINTS + 10 {
            failures.note(endpoint(n), SendFailure::NoRoute);
        }
        assert_eq!(failures.0.len(), MAX_ENDPOINTS);
        failures.note(endpoint(0), SendFailure::Filtered);
        let report = failures.report(&endpoint(0), Instant::now()).unwrap();
        assert_eq!((report.cause, report.datagrams), (SendFailure::Filtered, 2));
        failures.note_sent(&endpoint(0));
        assert_eq!(failures.report(&endpoint(0), Instant::now()), None);
        assert_eq!(cause_of(Some(libc::ENOBUFS)), None);
    }
}
