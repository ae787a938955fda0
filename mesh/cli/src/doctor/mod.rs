//! `warren doctor`: checks of this node as an operator would make them.
//!
//! ```text
//! sockets, files, /proc, netlink, nft --gather--> Facts --check--> Finding: ok, warning or error,
//!                      pings to the peers --------/                what it means, what to do
//! ```
//!
//! It works when the daemons are dead: each check takes what it can get, and says what it could not
//! look at. It refuses to change anything; what it sends is a few pings through the tunnel, and one
//! datagram without meaning to each peer's endpoint, to learn the path's MTU.

mod clock;
mod cni;
mod daemons;
mod facts;
mod firewall;
mod kernel;
mod key;
mod mtu;
mod peers;
mod ping;
mod program;
mod protection;
mod routes;
mod state;

pub use finding::{Finding, Severity, count, json, page};

use crate::args::DoctorArgs;
use crate::{Environment, Outcome};
use facts::Facts;
use warren_text::finding;

/// Runs `warren doctor`. Exit codes: 0 no error found, 1 at least one.
pub fn run(args: &DoctorArgs, environment: &Environment) -> Outcome {
    let facts = Facts::gather(args, environment);
    let findings = check(&facts);
    let mut outcome = Outcome {
        code: u8::from(count(&findings, Severity::Error) > 0),
        ..Outcome::default()
    };
    outcome.stdout = if args.json {
        json(&findings)
    } else {
        page(&findings, "this node")
    };
    outcome
}

/// All checks, in the order in which a person would look: a dead daemon explains most of the rest.
fn check(facts: &Facts) -> Vec<Finding> {
    let checks: [fn(&Facts) -> Vec<Finding>; 15] = [
        daemons::agent,
        daemons::tunnel,
        daemons::versions,
        kernel::features,
        kernel::sysctls,
        protection::check,
        routes::check,
        firewall::check,
        key::check,
        state::files,
        state::disk,
        clock::check,
        cni::check,
        mtu::check,
        peers::check,
    ];
    checks.iter().flat_map(|check| check(facts)).collect()
}
