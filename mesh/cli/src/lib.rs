//! The command for people: `warren show`, `warren status`, `warren pods`, `warren doctor`,
//! `warren trust`, `warren uninstall` and `warren install-cni`.
//!
//! Job: read the sockets that the tunnel and the agent offer ([`sources`]), and print what they
//! say: as `wg show` does ([`show`]), or as a page about the node and its peers ([`status`]); read
//! which pods have which addresses, and which nothing owns ([`pods`]); check the node as an operator
//! would ([`doctor`]); let a peer change its pinned key ([`trust`]); and put the plugin where the
//! container runtime looks for it ([`install_cni`]).
//!
//! But for [`uninstall`], [`trust`] and [`install_cni`] it refuses to change anything: it writes to no file, sends the daemons nothing
//! but `get=1`, and does not remove dead sockets as `wg` does. Text that came from other nodes is cleaned of control
//! characters before it reaches a terminal ([`text::clean`]). The clock and the environment are
//! handed in ([`Environment`]), so that all output can be tested.
//!
//! ```text
//! /var/run/wireguard/*.sock --Device--> show ----> stdout
//! /run/warren/agent.sock ----AgentStatus--^-> status --> stdout, exit code
//! /run/warren/tunnel.sock ---key=value lines----^  (when the agent does not answer)
//! ```

#![forbid(unsafe_code)]

pub mod args;
pub mod doctor;
mod environment;
pub mod install_cni;
mod kernel_device;
pub mod pods;
pub mod show;
pub mod socket;
pub mod sources;
pub mod status;
pub mod trust;
pub mod uninstall;

pub use args::Cli;
pub use environment::Environment;
pub use warren_text::outcome::Outcome;
pub use warren_text::{json, text};

/// Runs a command and returns what it prints and its exit code.
pub fn run(cli: &Cli, environment: &Environment) -> Outcome {
    match &cli.command {
        args::Command::Pods(args) => pods::run(args, environment),
        args::Command::Show(args) => show::run(args, environment),
        args::Command::Status(args) => status::run(args, environment),
        args::Command::Doctor(args) => doctor::run(args, environment),
        args::Command::Trust(args) => trust::run(args),
        args::Command::Uninstall(args) => uninstall::run(args),
        args::Command::InstallCni(args) => install_cni::run(args),
    }
}
