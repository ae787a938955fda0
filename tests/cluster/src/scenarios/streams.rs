//! Streams of numbered datagrams between all pods while something happens.

use anyhow::{Result, bail, ensure};
use std::fmt::Write as _;

use super::topology::Topology;
use crate::probe::{Account, Asker, PORT, Stream, bracketed};

/// Datagrams a second of each stream; there is one for each ordered pair of nodes and family.
const RATE: u32 = 50;

/// Running streams, each with a name for messages.
pub(super) struct Streams {
    running: Vec<(String, Stream)>,
}

impl Streams {
    /// Starts a stream from each pod to each other one, in both families, and waits until all of them flow.
    pub(super) fn start(topology: &Topology) -> Result<Self> {
        let mut running = Vec::new();
        for a in &topology.members {
            let Asker::Pod(probe) = &a.in_pod else {
                bail!("{} is asked by no pod", a.node);
            };
            for b in topology.members.iter().filter(|b| b.number != a.number) {
                for address in b.pod_addresses {
                    let to = format!("{}:{PORT}", bracketed(address));
                    let name = format!("{} to {} ({address})", a.node, b.node);
                    running.push((name, probe.start_stream(&to, RATE)?));
                }
            }
        }
        Ok(Self { running })
    }

    /// Ends all and gives their accounts.
    pub(super) fn stop(mut self) -> Result<Accounts> {
        Ok(Accounts(self.end()?))
    }

    fn end(&mut self) -> Result<Vec<(String, Account)>> {
        std::thread::scope(|scope| {
            let ending: Vec<_> = self
                .running
                .drain(..)
                .map(|(name, stream)| scope.spawn(move || Ok((name, stream.stop()?))))
                .collect();
            let joined = ending.into_iter().map(|thread| thread.join());
            joined
                .map(|done| done.unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
                .collect()
        })
    }
}

impl Drop for Streams {
    fn drop(&mut self) {
        // After a failure: the next scenario is to find none.
        let _ = self.end();
    }
}

/// What the streams have seen, by name.
pub(super) struct Accounts(Vec<(String, Account)>);

impl Accounts {
    /// Fails unless each datagram of the streams that `concern` picks by name has returned.
    pub(super) fn require_no_loss(&self, concern: impl Fn(&str) -> bool) -> Result<()> {
        let (mut text, mut sent) = (String::new(), 0);
        for (name, account) in self.0.iter().filter(|(name, _)| concern(name)) {
            sent += account.sent;
            if account.lost + account.unsent > 0 {
                writeln!(text, "  {name}: {account:?}")?;
            }
        }
        ensure!(sent > 0, "no stream has sent anything");
        ensure!(text.is_empty(), "datagrams were lost:\n{text}");
        println!("{sent} datagrams there and back, none lost");
        Ok(())
    }

    /// The longest time without any return on one of the streams, in seconds, and how many were lost in all.
    pub(super) fn worst(&self) -> (f64, u64) {
        let gap = self.0.iter().map(|(_, account)| account.gap_millis).max();
        let lost = self
            .0
            .iter()
            .map(|(_, account)| account.lost + account.unsent)
            .sum();
        (gap.unwrap_or(0) as f64 / 1000.0, lost)
    }
}
