//! `warren status`: how this node and its peers are.

mod page;

pub use page::{is_well, page};

use crate::args::StatusArgs;
use crate::show::{NodeNames, humans, read_all};
use crate::sources::Sources;
use crate::text::clean;
use crate::{Environment, Outcome};

/// Runs `warren status`. Exit codes: 0 all well, 1 trouble, 2 nothing could be read.
pub fn run(args: &StatusArgs, environment: &Environment) -> Outcome {
    let sources = Sources::new(args.directories.clone());
    let mut outcome = Outcome::default();
    let (text, status) = match sources.agent() {
        Ok(answer) => answer,
        Err(error) => {
            outcome.complain(&error);
            return without_agent(&sources, args.json, environment, outcome);
        }
    };
    outcome.code = if is_well(&status) { WELL } else { TROUBLE };
    if !args.json {
        outcome.stdout = page(&status);
        return outcome;
    }
    match crate::json::indent(&text) {
        Ok(indented) => outcome.stdout = indented,
        Err(error) => {
            outcome.complain(&format!("indent the agent's status: {error}"));
            outcome.code = NOTHING_READ;
        }
    }
    outcome
}

const WELL: u8 = 0;
const TROUBLE: u8 = 1;
const NOTHING_READ: u8 = 2;

const NO_AGENT: &str = "\
The agent gives no status.
The tunnel goes on with the peers it has and the filters stay; but no new node is learned, and no
change is repaired. Start warren-agent, or see its log. If its sockets are elsewhere, give
--run-dir.
";

const NO_AGENT_NO_TUNNEL: &str = "\
Neither the agent nor the tunnel answers.
The filters stay as they were; pods of other nodes cannot be reached. Start warren-tunnel and
warren-agent, or see their logs. If their sockets are elsewhere, give --run-dir and --uapi-dir.
";

/// Shows what the tunnel says of itself. The node's names are not known, and whether pods are
/// protected is not either.
fn without_agent(
    sources: &Sources,
    as_json: bool,
    environment: &Environment,
    mut outcome: Outcome,
) -> Outcome {
    let tunnel = sources.tunnel();
    let devices = read_all(sources, &mut outcome);
    outcome.code = if tunnel.is_err() && devices.is_empty() {
        NOTHING_READ
    } else {
        TROUBLE
    };
    if as_json {
        // There is no status document, and nothing else is printed in its place.
        return outcome;
    }
    outcome.stdout.push_str(if outcome.code == NOTHING_READ {
        NO_AGENT_NO_TUNNEL
    } else {
        NO_AGENT
    });
    match tunnel {
        Ok(lines) => {
            outcome.stdout.push_str("\nThe tunnel says:\n");
            for line in lines.lines().filter(|line| !line.is_empty()) {
                outcome.stdout.push_str("  ");
                outcome.stdout.push_str(&clean(line));
                outcome.stdout.push('\n');
            }
        }
        Err(error) => outcome.complain(&error),
    }
    if !devices.is_empty() {
        outcome.stdout.push('\n');
        outcome
            .stdout
            .push_str(&humans(&devices, &NodeNames::new(), environment));
    }
    outcome
}
