//! The nftables table `inet warren`: one atomic batch puts it in place, and a listing tells whether
//! anyone changed it since.
//!
//! The table is deleted and made anew within one transaction, or only its sets are given other
//! elements: there is no packet that meets none or half of it. Beside it stands a small table that
//! this process owns, and that nobody else can flush.

mod listing;
mod ruleset;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::process::Stdio;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use serde_json::Value;
use thiserror::Error;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use warren_core::consts::{NFT_GUARD_TABLE, NFT_TABLE, VETH_PREFIX, rule_comment as rule};
use warren_core::state::FilterSpec;
use warren_netlink::{Guard, GuardSpec, NetlinkError, change_peer_sets, protection};

use self::listing::{counters, normalise, rules, without_elements};
pub use self::ruleset::ruleset;
use self::ruleset::{PEER_SETS, ruleset_with, same_rules, set_changes};

/// How long `nft` may take.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Why the table could not be loaded or read.
#[derive(Debug, Error)]
pub enum NftError {
    /// The program could not be run.
    #[error("run nft: {source}; is the package nftables installed?")]
    Run {
        /// The system's answer.
        source: std::io::Error,
    },
    /// The program refused.
    #[error("nft {operation}: {message}")]
    Refused {
        /// What was tried.
        operation: &'static str,
        /// What it said.
        message: String,
    },
    /// The program did not end in time.
    #[error("nft {operation} does not end within {TIMEOUT:?}; is another program holding it up?")]
    Timeout {
        /// What was tried.
        operation: &'static str,
    },
    /// The listing is no listing.
    #[error("parse nft's listing: {source}")]
    Listing {
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// The addresses of peers could not be changed one by one.
    #[error("change the filter's peer addresses: {source}")]
    Elements {
        /// The kernel's answer.
        source: NetlinkError,
    },
    /// The filter is not there, or not as this process loaded it.
    #[error("change the filter's peer addresses: the filter is not as it was loaded")]
    NotLoaded,
    /// Some rules are missing right after they were loaded.
    #[error("nft took the table, but the rule {comment} is not in it")]
    Incomplete {
        /// The comment of the first missing rule.
        comment: &'static str,
    },
}

/// How old a listing may be while the ruleset's generation says that nothing changed: the counters
/// in it are told to people.
const FRESH: Duration = Duration::from_secs(4);
/// How long to wait before the owned table is tried again.
const GUARD_RETRY: Duration = Duration::from_secs(60);

/// The filter in the kernel, and what it looked like when this process loaded it.
#[derive(Debug, Default)]
pub struct Filter {
    loaded: Option<Loaded>,
    counters: Counters,
    guard: Option<Guard>,
    guard_tried: Option<Instant>,
}

#[derive(Debug)]
struct Loaded {
    spec: FilterSpec,
    listing: Value,
    /// The ruleset's generation that the listing is not older than, own changes of peers aside.
    generation: Option<u32>,
    listed: Instant,
}

/// What each dropping rule has counted, by the rule's comment.
type Counters = BTreeMap<String, Counted>;

/// What a rule has counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counted {
    packets: u64,
    bytes: u64,
}

impl Filter {
    /// Nothing is known of the kernel's table yet: the first [`Filter::observe`] finds no filter,
    /// and so a start of the agent always loads its own.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether the table is not there at all; it takes some ten microseconds to know.
    pub fn is_gone(&self) -> bool {
        // What cannot be read is for `observe` to tell.
        matches!(protection::table_exists("inet", NFT_TABLE), Ok(false))
    }

    /// What the kernel enforces; `None` when the table is absent, was changed by anyone, or is not
    /// this process's.
    ///
    /// # Errors
    /// [`NftError`] when the table cannot be listed.
    pub async fn observe(&mut self) -> Result<Option<FilterSpec>, NftError> {
        // Read before the listing: a change between the two is then found by the next look.
        let generation = protection::generation().ok();
        let untouched = |loaded: &&Loaded| {
            generation.is_some()
                && loaded.generation == generation
                && loaded.listed.elapsed() < FRESH
        };
        if let Some(loaded) = self.loaded.as_ref().filter(untouched) {
            return Ok(Some(loaded.spec.clone()));
        }
        let listing = match self.is_gone() {
            true => None,
            false => list().await?,
        };
        let Some(listing) = listing else {
            self.loaded = None;
            return Ok(None);
        };
        self.count(&listing);
        let (normal, peers) = normalise(listing);
        let same = |loaded: &mut Loaded| {
            loaded.listing == normal && peers.as_ref() == Some(&loaded.spec.peer_addresses)
        };
        let Some(loaded) = self.loaded.take_if(same) else {
            self.loaded = None;
            return Ok(None);
        };
        let spec = loaded.spec.clone();
        self.keep_guard(&spec);
        self.loaded = Some(Loaded {
            generation,
            listed: Instant::now(),
            ..loaded
        });
        Ok(Some(spec))
    }

    /// Brings the table to this state in one transaction: sets alone where nothing else differs from
    /// what was last observed, else the whole table. What the rules have counted is kept.
    ///
    /// # Errors
    /// [`NftError`]; when nft refused, the old table is still there.
    pub async fn apply(&mut self, spec: &FilterSpec) -> Result<(), NftError> {
        if let Some(loaded) = self.loaded.take()
            && same_rules(&loaded.spec, spec)
        {
            let batch = set_changes(&loaded.spec, spec);
            run("-f -", &["-f", "-"], batch.as_bytes()).await?;
            let listing = self.list_loaded(spec).await?;
            // Somebody else's change between two looks must not be taken for ours.
            if without_elements(&listing) == without_elements(&loaded.listing) {
                self.keep_guard(spec);
                return Ok(());
            }
            self.loaded = None;
        }
        let batch = ruleset_with(spec, &self.counters);
        run("-f -", &["-f", "-"], batch.as_bytes()).await?;
        self.list_loaded(spec).await?;
        self.keep_guard(spec);
        Ok(())
    }

    /// Takes single addresses into, and out of, the peers' sets, without the `nft` program and without
    /// a look at the table: [`Filter::observe`] finds whatever else has changed.
    ///
    /// # Errors
    /// [`NftError::NotLoaded`] and [`NftError::Elements`]; the filter is then as it was.
    pub fn change_peers(
        &mut self,
        add: &BTreeSet<IpNet>,
        remove: &BTreeSet<IpNet>,
    ) -> Result<(), NftError> {
        let loaded = self.loaded.as_mut().ok_or(NftError::NotLoaded)?;
        let addresses = |nets: &BTreeSet<IpNet>| nets.iter().map(IpNet::addr).collect();
        let (added, removed): (BTreeSet<IpAddr>, BTreeSet<IpAddr>) =
            (addresses(add), addresses(remove));
        let before = protection::generation().ok();
        change_peer_sets(NFT_TABLE, &added, &removed)
            .map_err(|source| NftError::Elements { source })?;
        loaded.spec.change_peer_addresses(add, remove);
        let mut transactions = 1;
        if let Some(guard) = &mut self.guard {
            transactions += 1;
            if guard.change_peers(&added, &removed).is_err() {
                // It is loaded anew with all of them.
                self.guard = None;
            }
        }
        // Anybody else's transaction meanwhile, or one that was not seen yet, is to be looked at.
        let expected = before
            .filter(|before| loaded.generation == Some(*before))
            .map(|before| before.wrapping_add(transactions));
        loaded.generation = protection::generation()
            .ok()
            .filter(|now| expected == Some(*now));
        Ok(())
    }

    /// Whether nobody has changed any table since this process loaded its own, or looked at it.
    pub fn is_as_loaded(&self) -> bool {
        let known = self.loaded.as_ref().and_then(|loaded| loaded.generation);
        known.is_some() && known == protection::generation().ok()
    }

    async fn list_loaded(&mut self, spec: &FilterSpec) -> Result<Value, NftError> {
        let generation = protection::generation().ok();
        let listing = list().await?.unwrap_or(Value::Null);
        let found: BTreeSet<&str> = rules(&listing).filter_map(|(comment, _)| comment).collect();
        if let Some(comment) = rule::REQUIRED.into_iter().find(|c| !found.contains(c)) {
            return Err(NftError::Incomplete { comment });
        }
        self.count(&listing);
        let (listing, _) = normalise(listing);
        self.loaded = Some(Loaded {
            spec: spec.clone(),
            listing: listing.clone(),
            generation,
            listed: Instant::now(),
        });
        Ok(listing)
    }

    /// Packets that each dropping rule has dropped since the agent found the table, as last
    /// observed.
    pub fn drops(&self) -> BTreeMap<String, u64> {
        let drops = self.counters.iter().map(|(comment, counted)| {
            let name = comment.strip_prefix(rule::PREFIX).unwrap_or(comment);
            (name.to_owned(), counted.packets)
        });
        drops.collect()
    }

    fn count(&mut self, listing: &Value) {
        for (comment, counted) in counters(listing) {
            let known = self.counters.entry(comment).or_default();
            // A table that somebody put in the place of ours counts from 0.
            known.packets = known.packets.max(counted.packets);
            known.bytes = known.bytes.max(counted.bytes);
        }
    }

    /// Sees to it that the owned table is there, which holds what `nft flush ruleset` takes away.
    fn keep_guard(&mut self, spec: &FilterSpec) {
        let wanted = GuardSpec {
            table: NFT_GUARD_TABLE.into(),
            comment_prefix: rule::PREFIX.into(),
            tunnel: spec.interface.clone(),
            veth_prefix: VETH_PREFIX.into(),
            pod_ranges: spec.pod_ranges.iter().copied().collect(),
            peers: spec.peer_addresses.iter().map(IpNet::addr).collect(),
        };
        // The kernel needs no second look: nobody but its owner can change the table.
        if let Some(guard) = &mut self.guard {
            if *guard.spec() == wanted {
                return;
            }
            let others = GuardSpec {
                peers: guard.spec().peers.clone(),
                ..wanted.clone()
            };
            if *guard.spec() == others && guard.set_peers(&wanted.peers).is_ok() {
                return;
            }
        }
        self.guard = None;
        if self
            .guard_tried
            .is_some_and(|tried| tried.elapsed() < GUARD_RETRY)
        {
            return;
        }
        match Guard::load(&wanted) {
            Ok(guard) => self.guard = Some(guard),
            Err(e) => {
                self.guard_tried = Some(Instant::now());
                tracing::info!(
                    error = %e,
                    "no owned table (Linux before 5.12 has none): until the filter is repaired, \
                     `nft flush ruleset` opens it"
                );
            }
        }
    }
}

/// The table in JSON; `None` when there is none.
async fn list() -> Result<Option<Value>, NftError> {
    let operation = "list table";
    match run(operation, &["-j", "list", "table", "inet", NFT_TABLE], b"").await {
        Ok(text) => serde_json::from_slice(&text)
            .map(Some)
            .map_err(|e| NftError::Listing { source: e }),
        Err(NftError::Refused { message, .. }) if message.contains("No such file") => Ok(None),
        Err(e) => Err(e),
    }
}

async fn run(operation: &'static str, args: &[&str], input: &[u8]) -> Result<Vec<u8>, NftError> {
    let failed = |source| NftError::Run { source };
    let mut child = Command::new("nft")
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .env("LC_ALL", "C")
        .kill_on_drop(true)
        .spawn()
        .map_err(failed)?;
    let stdin = child.stdin.take();
    let work = async {
        if let Some(mut stdin) = stdin {
            // A program that ends before it has read all says why by itself.
            let _ = stdin.write_all(input).await;
        }
        child.wait_with_output().await
    };
    let output = tokio::time::timeout(TIMEOUT, work).await;
    let output = output
        .map_err(|_| NftError::Timeout { operation })?
        .map_err(failed)?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(NftError::Refused { operation, message })
}
