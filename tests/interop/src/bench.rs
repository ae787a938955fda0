//! Two ends and a switch, shared by the scenarios of one implementation.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use warren_keyring::PublicKey;
use warren_lab::{Host, Lab, Link};

use crate::Result;
use crate::end::{End, Outer};
use crate::flood::Flood;
use crate::implementation::{Implementation, Warren};

/// Which end does something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// warren-tunnel.
    Ours,
    /// The other implementation.
    Theirs,
}

impl Side {
    /// Both, for scenarios that are the same in both roles.
    pub const BOTH: [Self; 2] = [Self::Ours, Self::Theirs];
}

/// Two ends on a switch, and a third host to flood them from.
pub struct Bench {
    /// warren-tunnel's.
    pub ours: End,
    /// The other implementation's.
    pub theirs: End,
    flooder: Host,
    links: Vec<Link>,
    // Last, for its end kills what the ends still talk to.
    _lab: Lab,
}

impl Bench {
    fn new(implementation: &'static dyn Implementation) -> Result<Self> {
        let lab = Lab::new(implementation.name())?;
        let lan = lab.bridge("lan")?;
        let (ours, theirs) = (lab.host("ours")?, lab.host("theirs")?);
        let flooder = lab.host("flooder")?;
        let attacker = flooder
            .end("eth0")
            .addr("192.0.2.3/24")
            .addr("2001:db8::3/64");
        let links = vec![
            lab.connect(ours.end("eth0"), lan.port())?,
            lab.connect(theirs.end("eth0"), lan.port())?,
            lab.connect(attacker, lan.port())?,
        ];
        Ok(Self {
            ours: End::new(&Warren, Warren.machine(ours)?, 1)?,
            theirs: End::new(implementation, implementation.machine(theirs)?, 2)?,
            flooder,
            links,
            _lab: lab,
        })
    }

    /// Starts both ends anew, without peers.
    ///
    /// # Errors
    ///
    /// When one does not come up.
    pub fn start(&mut self) -> Result {
        self.start_with_mtu(1420, 1500)
    }

    /// Starts both ends anew with these MTUs of the interfaces and the cables, in bytes.
    ///
    /// # Errors
    ///
    /// When one does not come up.
    pub fn start_with_mtu(&mut self, inner_bytes: u32, cable_bytes: u32) -> Result {
        for link in &self.links {
            link.set_mtu(cable_bytes)?;
        }
        self.theirs.machine.set_cable_mtu(cable_bytes)?;
        self.ours.start(inner_bytes)?;
        self.theirs.start(inner_bytes)
    }

    /// Starts both ends anew as each other's peers; the initiator alone knows an endpoint.
    ///
    /// # Errors
    ///
    /// When one does not come up.
    pub fn start_as_peers(&mut self, outer: Outer, initiator: Side) -> Result {
        self.start()?;
        self.introduce(outer, initiator)
    }

    /// Makes them each other's peers; the initiator alone knows an endpoint.
    ///
    /// # Errors
    ///
    /// With what `wg` said.
    pub fn introduce(&self, outer: Outer, initiator: Side) -> Result {
        let (initiator, responder) = self.roles(initiator);
        responder.add_peer(initiator, None)?;
        initiator.add_peer(responder, Some(outer))
    }

    /// The end of that side, then the other.
    pub fn roles(&self, first: Side) -> (&End, &End) {
        match first {
            Side::Ours => (&self.ours, &self.theirs),
            Side::Theirs => (&self.theirs, &self.ours),
        }
    }

    /// The end of that side, then the other, both to be changed.
    pub fn roles_mut(&mut self, first: Side) -> (&mut End, &mut End) {
        match first {
            Side::Ours => (&mut self.ours, &mut self.theirs),
            Side::Theirs => (&mut self.theirs, &mut self.ours),
        }
    }

    /// Floods an end with forged initiations from a third host.
    ///
    /// # Errors
    ///
    /// When no socket can be had.
    pub fn flood(&self, victim: &End, outer: Outer) -> Result<Flood> {
        let key = PublicKey::from_base64(&victim.public_key())?;
        let pace = victim.implementation.load();
        Flood::start(&self.flooder, &victim.endpoint(outer), key.as_bytes(), pace)
    }

    /// Both ends' state, for messages.
    pub fn describe(&self) -> String {
        format!("{}\n{}", self.ours.describe(), self.theirs.describe())
    }
}

/// Runs a scenario on the implementation's bench, which is made at the first and again after a
/// failure. Skips it where the implementation is not there.
///
/// # Panics
///
/// When the scenario fails, or when it would be skipped and the environment variable `CI` is set.
pub fn with_bench(name: &str, scenario: impl FnOnce(&mut Bench) -> Result) {
    type Slot = Arc<Mutex<Option<Bench>>>;
    static BENCHES: LazyLock<Mutex<BTreeMap<&'static str, Slot>>> = LazyLock::new(Mutex::default);
    if warren_lab::skip_reason().is_some() {
        return;
    }
    let found = crate::implementations()
        .into_iter()
        .find(|i| i.name() == name);
    let Some(implementation) = found else {
        panic!("no implementation is called {name}");
    };
    if let Some(missing) = implementation
        .needs()
        .into_iter()
        .find(|path| !path.exists())
    {
        let reason = format!(
            "{} is missing (run tests/interop/prepare)",
            missing.display()
        );
        assert!(
            std::env::var_os("CI").is_none(),
            "a test cannot run in CI: {reason}"
        );
        // Not by a print macro: the test harness swallows those of tests that pass.
        let _ = writeln!(std::io::stderr(), "skipped: {reason}");
        return;
    }
    let slot = Arc::clone(
        BENCHES
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .entry(implementation.name())
            .or_default(),
    );
    let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
    // Taken out, so that the next scenario gets a new one after a failure.
    let made = slot.take().map_or_else(|| Bench::new(implementation), Ok);
    let mut bench = made.unwrap_or_else(|e| panic!("a bench for {name}: {e:#}"));
    if let Err(e) = scenario(&mut bench) {
        panic!("{e:#}\n{}", bench.describe());
    }
    *slot = Some(bench);
}
