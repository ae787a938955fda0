//! Counts what arrives.

use std::time::Duration;

use anyhow::Context as _;
use warren_lab::{Host, poll_until};

use crate::Result;

/// A counter of the packets that reach a host and match a rule of nftables.
#[derive(Debug)]
pub struct Heard<'a> {
    host: &'a Host,
}

impl<'a> Heard<'a> {
    /// Counts from now on; one for each host.
    ///
    /// # Errors
    ///
    /// With what `nft` said; so for all that follow.
    pub fn new(host: &'a Host, rule: &str) -> Result<Self> {
        host.sh(&format!(
            "nft 'table inet heard {{
                 chain in {{ type filter hook prerouting priority raw; {rule} counter; }}
             }}'"
        ))?;
        Ok(Self { host })
    }

    /// How many there were.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new).
    pub fn count(&self) -> Result<u64> {
        let listed = self.host.run(&["nft", "list", "table", "inet", "heard"])?;
        let mut words = listed.stdout.split_whitespace();
        words.find(|word| *word == "packets");
        let count = words.next().with_context(|| listed.stdout.clone())?;
        Ok(count.parse()?)
    }

    /// Waits until there were so many or more.
    ///
    /// # Errors
    ///
    /// When there are fewer for long.
    pub fn wait(&self, count: u64) -> Result {
        let limit = Duration::from_secs(30);
        poll_until(limit, "packets to arrive", || {
            self.count().is_ok_and(|heard| heard >= count)
        })?;
        Ok(())
    }
}
